package cpu

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/scavenge/scavenge/gpu/cpu/simd"
)

func TestLongConvolutionEqualsTheDirectSums(t *testing.T) {
	for _, l := range []int{1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 95, 96, 97, 113, 200} {
		for _, n := range []int{1, 5, 6, 13} {
			convolves[float32](t, n, l, 2e-5)
			convolves[float64](t, n, l, 1e-12)
		}
	}
}

// convolves compares the convolution of n sequences of length l in 3 channels,
// and its two transposes, with their definitions.
func convolves[T simd.Float](t *testing.T, n, l int, tol float64) {
	t.Helper()
	const d = 3
	r := rand.New(rand.NewPCG(uint64(n), uint64(l)))
	u, g, h := random[T](r, d*n*l), random[T](r, d*n*l), random[T](r, d*l)
	s, du, dh := make([]T, d*n*l), make([]T, d*n*l), make([]T, d*l)
	longConvolution(2, s, u, h, n, l, d)
	longCorrelation(2, du, g, h, n, l, d)
	longFilterGrad(2, dh, g, u, n, l, d)
	wantS, wantDu, wantDh := make([]float64, d*n*l), make([]float64, d*n*l), make([]float64, d*l)
	for c := range d {
		for b := range n {
			at := (c*n + b) * l
			for i := range l {
				for j := i; j < l; j++ {
					wantS[at+j] += float64(h[c*l+j-i]) * float64(u[at+i])
					wantDu[at+i] += float64(h[c*l+j-i]) * float64(g[at+j])
					wantDh[c*l+j-i] += float64(g[at+j]) * float64(u[at+i])
				}
			}
		}
	}
	for what, pair := range map[string][2]any{"h ∗ u": {s, wantS}, "du": {du, wantDu}, "dh": {dh, wantDh}} {
		got, want := pair[0].([]T), pair[1].([]float64)
		for i := range got {
			if math.Abs(float64(got[i])-want[i]) > tol*math.Sqrt(float64(n*l)) {
				t.Fatalf("%d sequences of %d: %s: element %d is %g, want %g", n, l, what, i, got[i], want[i])
			}
		}
	}
}
