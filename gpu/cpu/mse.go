package cpu

import (
	"github.com/nlpodyssey/spago/mat"
	"github.com/scavenge/scavenge/gpu/cpu/simd"
)

// mse is Σ_i mean((x_i − t_i)²) over some layers' outputs and their targets.
//
//	x_i, t_i [N, D] → scalar;  dx_i = 2 (x_i − t_i) / (N·D) · dy
type mse[T simd.Float] struct {
	c       context[T]
	x       []mat.Tensor
	targets [][]T
	value   float64
}

func (f *mse[T]) Operands() []mat.Tensor { return f.x }

func (f *mse[T]) Forward() (mat.Tensor, error) {
	for i, t := range f.targets {
		x := values[T](f.x[i])
		const block = 1 << 13
		sums := make([]float64, (len(x)+block-1)/block)
		f.c.workers.slice(len(x), block, func(from, to int) {
			s := 0.0
			for j, v := range x[from:to] {
				e := float64(v) - float64(t[from+j])
				s += e * e
			}
			sums[from/block] = s
		})
		total := 0.0
		for _, s := range sums {
			total += s
		}
		f.value += total / float64(len(x))
	}
	return newTensor([]T{T(f.value)}, 1, 1), nil
}

// Backward goes through the layers in ascending order, so that a lower layer
// has its own error's gradient before those that come down from the last.
func (f *mse[T]) Backward(g mat.Tensor) error {
	for i, t := range f.targets {
		if !f.x[i].RequiresGrad() {
			continue
		}
		x := values[T](f.x[i])
		dx := f.c.tensor(f.x[i].Shape()[0], f.x[i].Shape()[1])
		scale := 2 * values[T](g)[0] / T(len(x))
		f.c.workers.slice(len(x), 1<<13, func(from, to int) {
			for j, v := range x[from:to] {
				dx.v[from+j] = scale * (v - t[from+j])
			}
		})
		f.x[i].AccGrad(dx)
	}
	return nil
}
