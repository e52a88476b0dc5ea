package cpu

import (
	"github.com/nlpodyssey/spago/mat"

	"github.com/scavenge/scavenge/gpu/cpu/simd"
)

// linear is y = x Wᵀ + b.
//
//	x [N, K], W [M, K], b [M] → y [N, M]
//	dx = dy W,  dW = dyᵀ x,  db = Σ_n dy_n
type linear[T simd.Float] struct {
	c       context[T]
	x, w, b mat.Tensor
}

func (f *linear[T]) Operands() []mat.Tensor { return []mat.Tensor{f.x, f.w, f.b} }

func (f *linear[T]) Forward() (mat.Tensor, error) {
	x, w, b := values[T](f.x), values[T](f.w), values[T](f.b)
	m := len(b)
	k := len(w) / m
	n := len(x) / k
	y := f.c.tensor(n, m)
	affine(f.c.workers, y.v, x, w, b)
	return y, nil
}

func (f *linear[T]) Backward(g mat.Tensor) error {
	x, w, b, dy := values[T](f.x), values[T](f.w), values[T](f.b), values[T](g)
	m := len(b)
	k := len(w) / m
	n := len(x) / k
	if f.x.RequiresGrad() {
		dx := f.c.tensor(n, k)
		product(f.c.workers, n, k, m, rows(dy, m), rows(w, k), dx.v, k, false)
		f.x.AccGrad(dx)
	}
	f.c.weightGrads(f.w, f.b, dy, x, n, m, k)
	return nil
}

// affine sets y = x Wᵀ + b, for as many rows as x has.
func affine[T simd.Float](wk workers, y, x, w, b []T) {
	m := len(b)
	k := len(w) / m
	n := len(x) / k
	wk.slice(n, 64, func(from, to int) {
		for i := from; i < to; i++ {
			copy(y[i*m:(i+1)*m], b)
		}
	})
	product(wk, n, m, k, rows(x, k), across(w, k), y, m, true)
}

// weightGrads gives a layer's weights their gradients, dW = dyᵀ x [m, k] and
// db = Σ dy [m], where they are trained.
func (c context[T]) weightGrads(w, b mat.Tensor, dy, x []T, n, m, k int) {
	if w.RequiresGrad() {
		dw := c.tensor(m, k)
		product(c.workers, m, k, n, across(dy, m), rows(x, k), dw.v, k, false)
		w.AccGrad(dw)
	}
	if b.RequiresGrad() {
		db := c.tensor(m, 1)
		c.sumRows(db.v, dy, nil)
		b.AccGrad(db)
	}
}

// sumRows sets dst [m] to Σ_n x_n, or to Σ_n x_n ⊙ y_n where y is given.
func (c context[T]) sumRows(dst, x, y []T) { c.sumShifted(dst, x, y, len(x), 0) }

// sumShifted sets dst [m] to Σ_n x_n ⊙ y_{n−shift} over the rows n that are at
// least shift rows into their sequence of length rows: sums of 64 rows in
// float32, sums of those in float64. Without y it sums the x_n.
func (c context[T]) sumShifted(dst, x, y []T, length, shift int) {
	const block = 64
	m := len(dst)
	n := len(x) / m
	blocks := (n + block - 1) / block
	partial := borrow[T](blocks * m)
	defer giveBack(partial)
	c.workers.slice(n, block, func(from, to int) {
		p := (*partial)[from/block*m:][:m]
		clear(p)
		for i := from; i < to; i++ {
			switch {
			case y == nil:
				simd.Add(p, x[i*m:(i+1)*m])
			case i%length >= shift:
				simd.AddProduct(p, x[i*m:(i+1)*m], y[(i-shift)*m:(i-shift+1)*m])
			}
		}
	})
	for j := range dst {
		s := 0.0
		for i := range blocks {
			s += float64((*partial)[i*m+j])
		}
		dst[j] = T(s)
	}
}
