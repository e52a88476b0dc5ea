package cpu

import (
	"math"
	"math/rand/v2"
	"testing"
)

func random[T float32 | float64](r *rand.Rand, n int) []T {
	x := make([]T, n)
	for i := range x {
		x[i] = T(r.NormFloat64())
	}
	return x
}

func TestProductEqualsTheTripleSum(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for _, s := range [][3]int{{1, 1, 1}, {5, 3, 2}, {6, 16, 8}, {7, 17, 300}, {49, 33, 5}, {100, 530, 257}, {3, 2100, 4}} {
		m, n, k := s[0], s[1], s[2]
		for form := range 4 {
			for _, add := range []bool{false, true} {
				a, b, c := random[float32](r, m*k), random[float32](r, k*n), random[float32](r, m*n)
				va, vb := rows(a, k), rows(b, n)
				if form&1 > 0 {
					va = across(a, m)
				}
				if form&2 > 0 {
					vb = across(b, k)
				}
				want := make([]float64, m*n)
				for i := range m {
					for j := range n {
						if add {
							want[i*n+j] = float64(c[i*n+j])
						}
						for x := range k {
							want[i*n+j] += float64(va.data[i*va.row+x*va.col]) * float64(vb.data[x*vb.row+j*vb.col])
						}
					}
				}
				product(2, m, n, k, va, vb, c, n, add)
				for i := range c {
					if math.Abs(float64(c[i])-want[i]) > 1e-6*math.Sqrt(float64(k))*8 {
						t.Fatalf("%dx%dx%d form %d add %v: element %d is %g, want %g", m, n, k, form, add, i, c[i], want[i])
					}
				}
			}
		}
	}
}

func TestProductIsTheSameForAnyNumberOfWorkersAndRows(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	m, n, k := 131, 70, 600
	a, b := random[float32](r, m*k), random[float32](r, k*n)
	one, three, alone := make([]float32, m*n), make([]float32, m*n), make([]float32, n)
	product(1, m, n, k, rows(a, k), rows(b, n), one, n, false)
	product(3, m, n, k, rows(a, k), rows(b, n), three, n, false)
	for i := range one {
		if one[i] != three[i] {
			t.Fatalf("element %d: %g with 1 worker, %g with 3", i, one[i], three[i])
		}
	}
	for i := range m {
		product(1, 1, n, k, rows(a[i*k:], k), rows(b, n), alone, n, false)
		for j, v := range alone {
			if v != one[i*n+j] {
				t.Fatalf("row %d, column %d: %g alone, %g among others", i, j, v, one[i*n+j])
			}
		}
	}
}
