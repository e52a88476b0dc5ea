package cpu

import (
	"math"

	"github.com/nlpodyssey/spago/mat"

	"github.com/scavenge/scavenge/gpu/cpu/simd"
)

// Layer norm is two operators, since a block's two norms share the first:
//
//	standardise: x̂ = (x − μ)·r, r = 1/√(σ² + ε), a row at a time
//	scaleShift:  y = γ ⊙ x̂ + β
//
// Statistics are sums in float64.

// standardise: x [N, D] → x̂ [N, D].
//
//	dx = r·(g − mean(g) − x̂·mean(g ⊙ x̂)),  g = dx̂
type standardise[T simd.Float] struct {
	c   context[T]
	x   mat.Tensor
	dim int
	eps float64
	out *tensor[T]
	r   []T // [N], kept for backward
}

func (f *standardise[T]) Operands() []mat.Tensor { return []mat.Tensor{f.x} }

func (f *standardise[T]) Forward() (mat.Tensor, error) {
	x, d := values[T](f.x), f.dim
	n := len(x) / d
	f.out, f.r = f.c.tensor(n, d), f.c.take(n)
	f.c.workers.slice(n, 64, func(from, to int) {
		for i := from; i < to; i++ {
			row, y := x[i*d:(i+1)*d], f.out.v[i*d:(i+1)*d]
			mean := sum(row) / float64(d)
			m := T(mean)
			for j, v := range row {
				y[j] = v - m
			}
			// the rounding of μ to float32 is taken out of the variance again
			off := mean - float64(m)
			variance := dot(y, y)/float64(d) - off*off
			r := 1 / math.Sqrt(variance+f.eps)
			f.r[i] = T(r)
			simd.Scale(y, y, T(r))
		}
	})
	return f.out, nil
}

func (f *standardise[T]) Backward(gy mat.Tensor) error {
	g, d := values[T](gy), f.dim
	n := len(g) / d
	dx := f.c.tensor(n, d)
	f.c.workers.slice(n, 64, func(from, to int) {
		for i := from; i < to; i++ {
			gi, xi, o := g[i*d:(i+1)*d], f.out.v[i*d:(i+1)*d], dx.v[i*d:(i+1)*d]
			mean, slope := T(sum(gi)/float64(d)), T(dot(gi, xi)/float64(d))
			r := f.r[i]
			for j, v := range gi {
				o[j] = r * (v - mean - xi[j]*slope)
			}
		}
	})
	f.x.AccGrad(dx)
	return nil
}

// scaleShift: x̂ [N, D], γ [D], β [D] → y [N, D].
//
//	dx̂ = γ ⊙ dy,  dγ = Σ_n dy_n ⊙ x̂_n,  dβ = Σ_n dy_n
type scaleShift[T simd.Float] struct {
	c           context[T]
	x           mat.Tensor
	gamma, beta mat.Tensor
}

func (f *scaleShift[T]) Operands() []mat.Tensor { return []mat.Tensor{f.x, f.gamma, f.beta} }

func (f *scaleShift[T]) Forward() (mat.Tensor, error) {
	x, gamma, beta := values[T](f.x), values[T](f.gamma), values[T](f.beta)
	d := len(gamma)
	n := len(x) / d
	y := f.c.tensor(n, d)
	f.c.workers.slice(n, 64, func(from, to int) {
		for i := from; i < to; i++ {
			row := y.v[i*d : (i+1)*d]
			copy(row, beta)
			simd.AddProduct(row, x[i*d:(i+1)*d], gamma)
		}
	})
	return y, nil
}

func (f *scaleShift[T]) Backward(gy mat.Tensor) error {
	x, gamma, dy := values[T](f.x), values[T](f.gamma), values[T](gy)
	d := len(gamma)
	n := len(x) / d
	if f.x.RequiresGrad() {
		dx := f.c.tensor(n, d)
		f.c.workers.slice(n, 64, func(from, to int) {
			for i := from; i < to; i++ {
				simd.Product(dx.v[i*d:(i+1)*d], dy[i*d:(i+1)*d], gamma)
			}
		})
		f.x.AccGrad(dx)
	}
	if f.gamma.RequiresGrad() {
		dg := f.c.tensor(d, 1)
		f.c.sumRows(dg.v, dy, x)
		f.gamma.AccGrad(dg)
	}
	if f.beta.RequiresGrad() {
		db := f.c.tensor(d, 1)
		f.c.sumRows(db.v, dy, nil)
		f.beta.AccGrad(db)
	}
	return nil
}

// sum and dot are float64 sums in four interleaved parts.
func sum[T simd.Float](x []T) float64 {
	var a, b, c, d float64
	for ; len(x) >= 4; x = x[4:] {
		a += float64(x[0])
		b += float64(x[1])
		c += float64(x[2])
		d += float64(x[3])
	}
	for _, v := range x {
		a += float64(v)
	}
	return a + b + (c + d)
}

func dot[T simd.Float](x, y []T) float64 {
	var a, b, c, d float64
	for ; len(x) >= 4 && len(y) >= 4; x, y = x[4:], y[4:] {
		a += float64(x[0]) * float64(y[0])
		b += float64(x[1]) * float64(y[1])
		c += float64(x[2]) * float64(y[2])
		d += float64(x[3]) * float64(y[3])
	}
	for i, v := range x {
		a += float64(v) * float64(y[i])
	}
	return a + b + (c + d)
}
