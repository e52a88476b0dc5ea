package simd

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

func uniform(n int, lo, hi float32) []float32 {
	r := rand.New(rand.NewPCG(7, uint64(n)))
	x := make([]float32, n)
	for i := range x {
		x[i] = lo + (hi-lo)*r.Float32()
	}
	return x
}

func TestExpIsWithinItsBound(t *testing.T) {
	x := append(uniform(10007, -10, 0), 0)
	y := make([]float32, len(x))
	sum := Exp(y, x, 1, 0)
	want, worst := 0.0, 0.0
	for i, v := range x {
		e := math.Exp(float64(v))
		want += e
		worst = max(worst, math.Abs(float64(y[i])-e)/e)
	}
	t.Logf("largest relative error %.2g", worst)
	if worst > 4e-7 {
		t.Errorf("largest relative error %.3g, documented 4e-7", worst)
	}
	if math.Abs(sum-want)/want > 1e-7 {
		t.Errorf("sum %.10g, want %.10g", sum, want)
	}
}

func TestExpAtTheEdges(t *testing.T) {
	nan, inf := float32(math.NaN()), float32(math.Inf(1))
	x := []float32{nan, -inf, -200, -87, 88}
	y := make([]float32, len(x))
	Exp(y, x, 1, 0)
	if y[0] == y[0] {
		t.Errorf("exp(NaN) = %g", y[0])
	}
	for _, v := range y[1:4] {
		if !(v >= 0 && v < 2e-38) {
			t.Errorf("exp of −87 or less: %g", v)
		}
	}
	if e := math.Abs(float64(y[4])/math.Exp(88) - 1); e > 1e-5 {
		t.Errorf("exp(88) is off by %g", e)
	}
}

func TestGELUIsWithinItsBound(t *testing.T) {
	h := append(uniform(20011, -12, 12), 0, -40, 40)
	y, d := make([]float32, len(h)), make([]float32, len(h))
	GELU(y, d, h)
	worstY, worstD := 0.0, 0.0
	for i, v := range h {
		x := float64(v)
		phi := 0.5 * math.Erfc(-x/math.Sqrt2)
		slope := phi + x*math.Exp(-x*x/2)/math.Sqrt(2*math.Pi)
		worstY = max(worstY, math.Abs(float64(y[i])-x*phi)/max(math.Abs(x*phi), 1e-6))
		worstD = max(worstD, math.Abs(float64(d[i])-slope)/max(math.Abs(slope), 1e-1))
	}
	t.Logf("largest relative errors %.2g and, of the derivative, %.2g", worstY, worstD)
	if worstY > 1e-6 || worstD > 1e-6 {
		t.Errorf("largest relative errors %.3g, %.3g", worstY, worstD)
	}
	h[0] = float32(math.NaN())
	if GELU(y, d, h); y[0] == y[0] || d[0] == d[0] {
		t.Errorf("gelu(NaN) = %g, %g", y[0], d[0])
	}
}

// TestAssemblyAgreesWithGo is meaningful where the assembly runs; elsewhere both sides are the twins.
func TestAssemblyAgreesWithGo(t *testing.T) {
	near := func(what string, got, want []float32) {
		t.Helper()
		for i := range got {
			if d := math.Abs(float64(got[i]) - float64(want[i])); d > 1e-6*(1+math.Abs(float64(want[i]))) {
				t.Fatalf("%s: element %d is %g, the twin says %g", what, i, got[i], want[i])
			}
		}
	}
	for _, n := range []int{1, 7, 8, 9, 64, 1003} {
		x, y := uniform(n, -3, 3), uniform(n, -2, 1)
		a, b := uniform(n, 0, 1), uniform(n, 0, 1)
		c, d := make([]float32, n), make([]float32, n)
		s1, s2 := Exp(a, x, 0.5, 1), 0.0
		for i := 0; i < n; i += chunk {
			s2 += expChunkTwin(b[i:min(n, i+chunk)], x[i:min(n, i+chunk)], 0.5, 1)
		}
		near("exp", a, b)
		if math.Abs(s1-s2) > 1e-6*s2 {
			t.Fatalf("exp: sums %g and %g", s1, s2)
		}
		GELU(a, c, x)
		geluTwin(b, d, x)
		near("gelu", a, b)
		near("gelu's derivative", c, d)
		AddScaled(a, y, 1.5)
		addScaledTwin(b, y, 1.5)
		near("add scaled", a, b)
		AddProduct(a, x, y)
		addProductTwin(b, x, y)
		near("add product", a, b)
		Product(a, a, y)
		productTwin(b, b, y)
		near("product", a, b)
		Scale(a, a, -0.3)
		scaleTwin(b, b, -0.3)
		near("scale", a, b)
		if m := Max(x); func() bool {
			for _, v := range x {
				if v > m {
					return true
				}
			}
			return false
		}() {
			t.Fatalf("max %g", m)
		}
	}
}

func TestTilesAgreeWithGo(t *testing.T) {
	r := rand.New(rand.NewPCG(9, 9))
	const n = 40
	a, b := make([]float32, 6*n), make([]float32, 16*n)
	for i := range a {
		a[i] = float32(r.NormFloat64())
	}
	for i := range b {
		b[i] = float32(r.NormFloat64())
	}
	for _, s := range []struct{ ra, ca, bo, rb int }{{n, 1, 0, 16}, {1, 6, 0, 16}, {n, 1, n, -1}, {n, 1, 0, 1}} {
		for _, add := range []bool{false, true} {
			c, d := make([]float32, 6*20), make([]float32, 6*20)
			for i := range c {
				c[i], d[i] = float32(i), float32(i)
			}
			Tile(n, a, s.ra, s.ca, b, s.bo, s.rb, c, 20, add)
			tileTwin(n, a, s.ra, s.ca, b, s.bo, s.rb, d, 20, cols32, add)
			a64, b64, c64, d64 := widen(a), widen(b), widen(c), widen(c)
			Tile(n, a64, s.ra, s.ca, b64, s.bo, s.rb, c64, 20, add)
			tileTwin(n, a64, s.ra, s.ca, b64, s.bo, s.rb, d64, 20, cols64, add)
			for i := range c {
				if math.Abs(float64(c[i]-d[i])) > 1e-4 || math.Abs(c64[i]-d64[i]) > 1e-12 {
					t.Fatalf("%+v add %v: element %d: %g, twin %g; in float64 %g, twin %g", s, add, i, c[i], d[i], c64[i], d64[i])
				}
			}
		}
	}
}

func TestPackingAgreesWithGo(t *testing.T) {
	const n, stride = 5, 40
	src := uniform(n*stride, -1, 1)
	a, b := make([]float32, 3*n*Rows), make([]float32, 3*n*Rows)
	Gather(3, n, a, src, stride)
	gatherTwin(3, n, b, src, stride)
	c, d := make([]float32, n*cols32), make([]float32, n*cols32)
	CopyRows(n, c, src, stride)
	copyRowsTwin(n, d, src, stride, cols32)
	e, f := make([]float64, n*cols64), make([]float64, n*cols64)
	CopyRows(n, e, widen(src), stride)
	copyRowsTwin(n, f, widen(src), stride, cols64)
	if !slices.Equal(a, b) || !slices.Equal(c, d) || !slices.Equal(e, f) {
		t.Errorf("gathered %v, the twin %v; copied %v and %v, the twin %v and %v", a, b, c, e, d, f)
	}
	if a[n*Rows+1] != src[Rows+1] || a[2*Rows] != src[2*stride] || c[cols32+3] != src[stride+3] {
		t.Error("elements are not where they belong")
	}
}

func widen(x []float32) []float64 {
	y := make([]float64, len(x))
	for i, v := range x {
		y[i] = float64(v)
	}
	return y
}
