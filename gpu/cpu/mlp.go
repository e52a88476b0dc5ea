package cpu

import (
	"github.com/nlpodyssey/spago/mat"

	"github.com/scavenge/scavenge/gpu/cpu/simd"
)

// mlp is y = W₂ gelu(W₁ x + b₁) + b₂ a row.
//
//	x [N, D], W₁ [H, D], b₁ [H], W₂ [D, H], b₂ [D] → y [N, D]
//	h = x W₁ᵀ + b₁,  a = gelu(h),  y = a W₂ᵀ + b₂
//	dh = gelu′(h) ⊙ (dy W₂),  dx = dh W₁,  dW₁ = dhᵀ x,  dW₂ = dyᵀ a
type mlp[T simd.Float] struct {
	c              context[T]
	x              mat.Tensor
	w1, b1, w2, b2 mat.Tensor
	a, slope       []T // [N, H], gelu(h) and gelu′(h), kept for backward
}

func (f *mlp[T]) Operands() []mat.Tensor { return []mat.Tensor{f.x, f.w1, f.b1, f.w2, f.b2} }

func (f *mlp[T]) sizes() (n, d, h int) {
	d, h = f.b2.Size(), f.b1.Size()
	return f.x.Size() / d, d, h
}

func (f *mlp[T]) Forward() (mat.Tensor, error) {
	n, d, h := f.sizes()
	x, y := values[T](f.x), f.c.tensor(n, d)
	if anyGrad(f.Operands()) {
		f.a, f.slope = f.c.take(n*h), f.c.take(n*h)
		f.rows(y.v, x, f.a, f.slope)
		return y, nil
	}
	// nothing is kept: a few rows at a time, in the cache
	const block = 384
	a, slope := f.c.take(block*h), f.c.take(block*h)
	for i := 0; i < n; i += block {
		m := min(block, n-i)
		f.rows(y.v[i*d:(i+m)*d], x[i*d:(i+m)*d], a[:m*h], slope[:m*h])
	}
	return y, nil
}

func (f *mlp[T]) rows(y, x, a, slope []T) {
	affine(f.c.workers, a, x, values[T](f.w1), values[T](f.b1))
	f.c.workers.slice(len(a), 1<<13, func(from, to int) {
		simd.GELU(a[from:to], slope[from:to], a[from:to])
	})
	affine(f.c.workers, y, a, values[T](f.w2), values[T](f.b2))
}

func (f *mlp[T]) Backward(g mat.Tensor) error {
	n, d, h := f.sizes()
	x, dy := values[T](f.x), values[T](g)
	dh := f.c.take(n * h)
	product(f.c.workers, n, h, d, rows(dy, d), rows(values[T](f.w2), h), dh, h, false)
	f.c.workers.slice(n*h, 1<<13, func(from, to int) {
		simd.Product(dh[from:to], dh[from:to], f.slope[from:to])
	})
	f.c.weightGrads(f.w2, f.b2, dy, f.a, n, d, h)
	f.c.weightGrads(f.w1, f.b1, dh, x, n, h, d)
	if f.x.RequiresGrad() {
		dx := f.c.tensor(n, d)
		product(f.c.workers, n, d, h, rows(dh, h), rows(values[T](f.w1), d), dx.v, d, false)
		f.x.AccGrad(dx)
	}
	return nil
}
