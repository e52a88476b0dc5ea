package cpu

import (
	"math"

	"github.com/nlpodyssey/spago/mat"

	"github.com/scavenge/scavenge/gpu/cpu/simd"
	"github.com/scavenge/scavenge/schemas/checkpoint"
)

// filter is the implicit filter of a Hyena operator (Poli et al. 2023).
//
//	features [L, E] (fixed), φ [W], W₀ [W, E], b₀ [W], W₁, W₂ [W, W], b₁, b₂ [W], W₃ [D, W] → h [D, L]
//	a_i = x_i W_iᵀ + b_i,  x_{i+1} = sin(φ ⊙ a_i),  x₀ = features,  h[c, n] = window[n, c]·(x₃ W₃ᵀ)[n, c]
//	do = dhᵀ ⊙ window,  dx₃ = do W₃,  and for i = 2, 1, 0 with g = dx_{i+1} ⊙ cos(φ ⊙ a_i):
//	dφ += Σ_n g ⊙ a_i,  da_i = g ⊙ φ,  dW_i = da_iᵀ x_i,  db_i = Σ_n da_i,  dx_i = da_i W_i
//
// All in float64: φ is about 14, so three sines in a row multiply an error by
// thousands.
type filter[T simd.Float] struct {
	c      context[T]
	grid   *grid
	phi    mat.Tensor
	w      [4]mat.Tensor
	b      [3]mat.Tensor
	length int

	// kept for backward
	x     [4][]float64 // [L, E], then [L, W]
	a     [3][]float64 // [L, W]
	slope [3][]float64 // cos(φ ⊙ a)
}

// grid holds what is fixed of a model's filters.
type grid struct {
	features []float64 // [context, E]: t, cos(f ω), −sin(f ω)
	window   []float64 // [context, D]: exp(−t·|δ|)
	e, d     int
}

func newGrid(c checkpoint.Config) *grid {
	g := &grid{e: c.Hyena.Features, d: c.Dim}
	bands := (g.e - 1) / 2
	slow, fast := math.Log(c.Hyena.Target)/c.Hyena.Slow, math.Log(c.Hyena.Target)/c.Hyena.Fast
	for n := range c.Context {
		t := float64(n) / float64(max(1, c.Context-1))
		omega := 2 * math.Pi * float64(n) / float64(c.Context)
		f := make([]float64, g.e)
		f[0] = t
		for j := range bands {
			s, co := math.Sincos(linspace(1e-4, float64(bands-1), bands, j) * omega)
			f[1+j], f[1+bands+j] = co, -s
		}
		g.features = append(g.features, f...)
		for c := range g.d {
			g.window = append(g.window, math.Exp(-t*math.Abs(linspace(slow, fast, g.d, c))))
		}
	}
	return g
}

// linspace is element i of n from lo to hi, both included.
func linspace(lo, hi float64, n, i int) float64 {
	if n == 1 {
		return lo
	}
	return lo + (hi-lo)*float64(i)/float64(n-1)
}

func (f *filter[T]) Operands() []mat.Tensor {
	return []mat.Tensor{f.phi, f.w[0], f.b[0], f.w[1], f.b[1], f.w[2], f.b[2], f.w[3]}
}

func (f *filter[T]) Forward() (mat.Tensor, error) {
	l, e, d, width := f.length, f.grid.e, f.grid.d, f.phi.Size()
	phi := values[T](f.phi)
	f.x[0] = f.grid.features[:l*e]
	for i := range 3 {
		in := len(f.x[i]) / l
		w, b := f.doubles(f.w[i]), values[T](f.b[i])
		a, x, slope := f.c.wide.take(l*width), f.c.wide.take(l*width), f.c.wide.take(l*width)
		product(f.c.workers, l, width, in, rows(f.x[i], in), across(w, in), a, width, false)
		f.c.workers.slice(l, 16, func(from, to int) {
			for j := from * width; j < to*width; j++ {
				k := j % width
				a[j] += float64(b[k])
				x[j], slope[j] = math.Sincos(float64(phi[k]) * a[j])
			}
		})
		f.a[i], f.x[i+1], f.slope[i] = a, x, slope
	}
	o := f.c.wide.take(l * d)
	product(f.c.workers, l, d, width, rows(f.x[3], width), across(f.doubles(f.w[3]), width), o, d, false)
	h := f.c.tensor(d, l)
	f.c.workers.slice(d, 16, func(from, to int) {
		for n := range l {
			for c := from; c < to; c++ {
				h.v[c*l+n] = T(o[n*d+c] * f.grid.window[n*d+c])
			}
		}
	})
	return h, nil
}

func (f *filter[T]) Backward(g mat.Tensor) error {
	l, d, width := f.length, f.grid.d, f.phi.Size()
	dh, phi := values[T](g), values[T](f.phi)
	do := f.c.wide.take(l * d)
	f.c.workers.slice(d, 16, func(from, to int) {
		for n := range l {
			for c := from; c < to; c++ {
				do[n*d+c] = float64(dh[c*l+n]) * f.grid.window[n*d+c]
			}
		}
	})
	f.weightGrad(f.w[3], do, f.x[3], d, width)
	dx := f.c.wide.take(l * width)
	product(f.c.workers, l, width, d, rows(do, d), rows(f.doubles(f.w[3]), width), dx, width, false)

	dphi := f.c.wide.zeros(width)
	for i := 2; i >= 0; i-- {
		da, db := dx, f.c.wide.zeros(width)
		for j := range da {
			k := j % width
			g := dx[j] * f.slope[i][j]
			dphi[k] += g * f.a[i][j]
			da[j] = g * float64(phi[k])
			db[k] += da[j]
		}
		f.give(f.b[i], db)
		in := len(f.x[i]) / l
		f.weightGrad(f.w[i], da, f.x[i], width, in)
		if i > 0 {
			dx = f.c.wide.take(l * in)
			product(f.c.workers, l, in, width, rows(da, width), rows(f.doubles(f.w[i]), in), dx, in, false)
		}
	}
	f.give(f.phi, dphi)
	return nil
}

// weightGrad gives w its gradient dyᵀ x [m, k].
func (f *filter[T]) weightGrad(w mat.Tensor, dy, x []float64, m, k int) {
	if w.RequiresGrad() {
		dw := f.c.wide.take(m * k)
		product(f.c.workers, m, k, f.length, across(dy, m), rows(x, k), dw, k, false)
		f.give(w, dw)
	}
}

// give gives a weight its gradient, rounded to float32.
func (f *filter[T]) give(w mat.Tensor, g []float64) {
	if !w.RequiresGrad() {
		return
	}
	t := f.c.tensor(w.Shape()[0], w.Shape()[1])
	for i, v := range g {
		t.v[i] = T(v)
	}
	w.AccGrad(t)
}

// doubles is a weight in float64.
func (f *filter[T]) doubles(t mat.Tensor) []float64 {
	v := values[T](t)
	w := f.c.wide.take(len(v))
	for i, x := range v {
		w[i] = float64(x)
	}
	return w
}
