package cpu

import (
	"github.com/nlpodyssey/spago/mat"

	"github.com/scavenge/scavenge/gpu/cpu/simd"
)

// residual is y = x + m + f: the parallel residual of a block, with its mixer's
// and its MLP's outputs. All are [N, D], and every gradient is dy.
type residual[T simd.Float] struct {
	c       context[T]
	x, m, f mat.Tensor
}

func (r *residual[T]) Operands() []mat.Tensor { return []mat.Tensor{r.x, r.m, r.f} }

func (r *residual[T]) Forward() (mat.Tensor, error) {
	x, m, f := values[T](r.x), values[T](r.m), values[T](r.f)
	y := r.c.tensor(r.x.Shape()[0], r.x.Shape()[1])
	r.c.workers.slice(len(x), 1<<14, func(from, to int) {
		copy(y.v[from:to], x[from:to])
		simd.Add(y.v[from:to], m[from:to])
		simd.Add(y.v[from:to], f[from:to])
	})
	return y, nil
}

// Backward gives x a gradient of its own, since others will be added to it, and
// before m and f get theirs: the gradients that come to x through the norms
// wait for those, so this one is always first.
func (r *residual[T]) Backward(g mat.Tensor) error {
	dy := g.(*tensor[T])
	if r.x.RequiresGrad() {
		dx := r.c.tensor(dy.Shape()[0], dy.Shape()[1])
		copy(dx.v, dy.v)
		r.x.AccGrad(dx)
	}
	for _, t := range []mat.Tensor{r.m, r.f} {
		if t.RequiresGrad() {
			t.AccGrad(dy)
		}
	}
	return nil
}
