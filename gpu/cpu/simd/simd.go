// Package simd holds the few inner loops in which the cpu engine spends its
// time: a matrix product tile by tile, and element-wise functions over slices.
// On amd64 with AVX2 and FMA they are assembly; elsewhere, or with the build
// tag purego, they are the Go twins in twin.go, which compute the same sums in
// the same order up to the rounding of a fused multiply-add.
//
// No function here depends on the number of threads, and none treats the end
// of a slice differently from its middle, so a row's results do not depend on
// the rows around it.
package simd

import "math"

// Float is what the loops compute in. float64 is for checks: only its matrix
// product is assembly.
type Float interface{ float32 | float64 }

// Rows of a tile of the matrix product.
const Rows = 6

// Columns of a tile: 64 bytes of them.
const (
	cols32 = 16
	cols64 = 8
)

// Cols is the columns of a tile.
func Cols[T Float]() int {
	if _, ok := any(T(0)).(float32); ok {
		return cols32
	}
	return cols64
}

// chunk bounds the elements summed in float32 before a sum goes on in float64.
const chunk = 512

// Tile computes a tile of a matrix product, C[i][j] = Σ_k A[i][k]·B[k][j] for
// 6 rows i and Cols columns j and n terms k, or adds it to C. A's element
// (i, k) is a[i·ra + k·ca], B's row k starts at b[bo + k·rb], C's row i at
// c[i·rc]. rb may be negative or small: overlapping rows make a Toeplitz matrix
// of a vector, and so a convolution of the product.
func Tile[T Float](n int, a []T, ra, ca int, b []T, bo, rb int, c []T, rc int, add bool) {
	cols := Cols[T]()
	if n <= 0 {
		if !add {
			clearTile(c, rc, cols)
		}
		return
	}
	// the tile's corners, so that a wrong call panics here and not in assembly
	_ = a[(Rows-1)*ra+(n-1)*ca]
	_, _ = b[bo:bo+cols], b[bo+(n-1)*rb:bo+(n-1)*rb+cols]
	_ = c[(Rows-1)*rc+cols-1]
	switch a := any(a).(type) {
	case []float32:
		tile32(n, a, ra, ca, any(b).([]float32), bo, rb, any(c).([]float32), rc, add)
	case []float64:
		tile64(n, a, ra, ca, any(b).([]float64), bo, rb, any(c).([]float64), rc, add)
	}
}

func clearTile[T Float](c []T, rc, cols int) {
	for i := range Rows {
		clear(c[i*rc : i*rc+cols])
	}
}

// CopyRows packs n rows of Cols elements, stride apart in src, one after the
// other in dst: a panel of B for Tile.
func CopyRows[T Float](n int, dst, src []T, stride int) {
	if n <= 0 {
		return
	}
	cols := Cols[T]()
	_, _ = dst[:n*cols], src[:(n-1)*stride+cols]
	switch dst := any(dst).(type) {
	case []float32:
		copyRows32(n, dst, any(src).([]float32), stride)
	case []float64:
		copyRows64(n, dst, any(src).([]float64), stride)
	}
}

// Gather packs n columns of tiles·Rows elements, stride apart in src, as tiles
// of A for Tile: element r of tile i's column k goes to dst[(i·n + k)·Rows + r].
func Gather[T Float](tiles, n int, dst, src []T, stride int) {
	if n <= 0 || tiles <= 0 {
		return
	}
	_, _ = dst[:tiles*n*Rows], src[:(n-1)*stride+tiles*Rows]
	if d, ok := any(dst).([]float32); ok {
		gather32(tiles, n, d, any(src).([]float32), stride)
		return
	}
	gatherTwin(tiles, n, dst, src, stride)
}

// Exp sets dst[i] = exp(scale·(x[i] − shift)) and returns the sum. In float32
// the largest relative error of an element is 4e-7 for arguments of −10 to 0
// and grows with the argument's own rounding (6e-8 · |argument|) beyond;
// arguments below −87 give about 1e-38. NaN stays NaN. dst may be x.
func Exp[T Float](dst, x []T, scale, shift T) float64 {
	sum := 0.0
	d, ok := any(dst).([]float32)
	if !ok {
		for i, v := range x {
			e := math.Exp(float64(scale * (v - shift)))
			dst[i] = T(e)
			sum += e
		}
		return sum
	}
	for y := any(x).([]float32); len(y) > 0; {
		n := min(len(y), chunk)
		sum += expChunk(d[:n], y[:n], float32(scale), float32(shift))
		d, y = d[n:], y[n:]
	}
	return sum
}

// GELU sets y = h·Φ(h) and d = Φ(h) + h·φ(h), its derivative, where Φ and φ
// are the normal distribution's and its density (erf GELU, Hendrycks and
// Gimpel 2016). Largest error in float32 1e-6 relative to max(|y|, 1e-6). y or
// d may be h.
func GELU[T Float](y, d, h []T) {
	if len(h) == 0 {
		return
	}
	y, d = y[:len(h)], d[:len(h)]
	if h32, ok := any(h).([]float32); ok {
		gelu(any(y).([]float32), any(d).([]float32), h32)
		return
	}
	for i, v := range h {
		x := float64(v)
		phi := 0.5 * math.Erfc(-x/math.Sqrt2)
		y[i], d[i] = T(x*phi), T(phi+x*math.Exp(-x*x/2)*invSqrt2Pi)
	}
}

// Max is the largest element of a slice that is not empty; NaNs may be passed over.
func Max[T Float](x []T) T {
	if x32, ok := any(x).([]float32); ok {
		return T(maximum(x32))
	}
	return maxTwin(x)
}

// Add sets dst += x.
func Add[T Float](dst, x []T) { AddScaled(dst, x, 1) }

// AddScaled sets dst += s·x.
func AddScaled[T Float](dst, x []T, s T) {
	if len(x) == 0 {
		return
	}
	dst = dst[:len(x)]
	if d, ok := any(dst).([]float32); ok {
		addScaled(d, any(x).([]float32), float32(s))
		return
	}
	addScaledTwin(dst, x, s)
}

// AddProduct sets dst += x ⊙ y.
func AddProduct[T Float](dst, x, y []T) {
	if len(x) == 0 {
		return
	}
	dst, y = dst[:len(x)], y[:len(x)]
	if d, ok := any(dst).([]float32); ok {
		addProduct(d, any(x).([]float32), any(y).([]float32))
		return
	}
	addProductTwin(dst, x, y)
}

// Product sets dst = x ⊙ y; dst may be either.
func Product[T Float](dst, x, y []T) {
	if len(x) == 0 {
		return
	}
	dst, y = dst[:len(x)], y[:len(x)]
	if d, ok := any(dst).([]float32); ok {
		product(d, any(x).([]float32), any(y).([]float32))
		return
	}
	productTwin(dst, x, y)
}

// Scale sets dst = s·x; dst may be x.
func Scale[T Float](dst, x []T, s T) {
	if len(x) == 0 {
		return
	}
	dst = dst[:len(x)]
	if d, ok := any(dst).([]float32); ok {
		scale(d, any(x).([]float32), float32(s))
		return
	}
	scaleTwin(dst, x, s)
}
