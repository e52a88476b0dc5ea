package cpu

import (
	"github.com/nlpodyssey/spago/mat"

	"github.com/scavenge/scavenge/gpu/cpu/simd"
)

// embedding is x_n = E[token_n].
//
//	tokens [N], E [V, D] → x [N, D]
//	dE[t] = Σ dx_n over the n with token_n = t, in the order of n
type embedding[T simd.Float] struct {
	c      context[T]
	tokens []int32
	e      mat.Tensor
	dim    int
}

func (f *embedding[T]) Operands() []mat.Tensor { return []mat.Tensor{f.e} }

func (f *embedding[T]) Forward() (mat.Tensor, error) {
	e, d := values[T](f.e), f.dim
	x := f.c.tensor(len(f.tokens), d)
	for i, t := range f.tokens {
		copy(x.v[i*d:(i+1)*d], e[int(t)*d:])
	}
	return x, nil
}

func (f *embedding[T]) Backward(g mat.Tensor) error {
	dx, d := values[T](g), f.dim
	de := newTensor(f.c.zeros(f.e.Size()), f.e.Size()/d, d)
	for i, t := range f.tokens {
		simd.Add(de.v[int(t)*d:int(t+1)*d], dx[i*d:(i+1)*d])
	}
	f.e.AccGrad(de)
	return nil
}
