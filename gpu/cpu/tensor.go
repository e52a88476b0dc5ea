package cpu

import (
	"sync"

	"github.com/nlpodyssey/spago/ag"
	"github.com/nlpodyssey/spago/mat"

	"github.com/scavenge/scavenge/gpu/cpu/simd"
)

// tensor is a spago matrix whose gradient is handed over instead of copied:
// spago's own Dense clones the first gradient it is given, which costs a copy
// of every activation. v is the matrix's storage, row-major.
//
// The order in which a tensor's gradients are summed must not depend on the
// scheduler, and spago runs the backward passes of operators that do not wait
// for each other at the same time. So no tensor of our graphs has two gradients
// that race, but for pairs: a + b = b + a in floating point (see graph.go).
type tensor[T simd.Float] struct {
	*mat.Dense[T]
	v    []T
	mu   sync.Mutex
	grad *tensor[T]
}

func newTensor[T simd.Float](v []T, rows, cols int) *tensor[T] {
	d := mat.NewDense[T](mat.WithShape(rows, cols), mat.WithBacking(v))
	return &tensor[T]{Dense: d, v: mat.Data[T](d)}
}

// values is the storage of an operand or gradient, one of ours or a scalar that spago made.
func values[T simd.Float](t mat.Tensor) []T {
	if own, ok := t.Value().(*tensor[T]); ok {
		return own.v
	}
	return mat.Data[T](t.Value())
}

func (t *tensor[T]) Value() mat.Tensor { return t }

// Grad is nil while there is no gradient.
func (t *tensor[T]) Grad() mat.Tensor {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.grad == nil {
		return nil
	}
	return t.grad
}

func (t *tensor[T]) HasGrad() bool { return t.Grad() != nil }

func (t *tensor[T]) ZeroGrad() {
	t.mu.Lock()
	t.grad = nil
	t.mu.Unlock()
}

// AccGrad keeps the first gradient itself and adds later ones to it: the giver
// of a gradient to a tensor with several users must not use it afterwards.
func (t *tensor[T]) AccGrad(g mat.Tensor) {
	own, ok := g.(*tensor[T])
	if !ok {
		own = newTensor(values[T](g), g.Shape()[0], g.Shape()[1])
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.grad == nil {
		t.grad = own
		return
	}
	simd.Add(t.grad.v, own.v)
}

// run evaluates an operator. Its inputs were checked when the batch was, so it
// cannot fail: spago ends the process on an operator's error.
func run(f ag.AutoGradFunction) mat.Tensor { return ag.NewOperator(f).Run() }

// anyGrad tells whether an operator will be asked for a gradient, and so must
// keep what its backward pass needs.
func anyGrad(ts []mat.Tensor) bool {
	for _, t := range ts {
		if t.RequiresGrad() {
			return true
		}
	}
	return false
}
