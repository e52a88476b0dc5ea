package cpu

import (
	"github.com/nlpodyssey/spago/mat"

	"github.com/scavenge/scavenge/gpu/cpu/simd"
)

// hyena is the Hyena operator of order 2 between its two projections
// (Poli et al. 2023): a short convolution, a gate, a long convolution, a gate.
//
//	z [N, 3D], N = rows · L;  w [3D, 3], b [3D];  h [D, L];  β [D] → y [N, D]
//	p_t = b + w₂ ⊙ z_t + w₁ ⊙ z_{t−1} + w₀ ⊙ z_{t−2}, its columns (q, k, v)
//	u = k ⊙ v,  s = h ∗ u + β ⊙ u,  y = q ⊙ s
//	dq = dy ⊙ s,  ds = dy ⊙ q,  du = h ⋆ ds + β ⊙ ds,  dh = Σ u ⋆ ds,  dβ = Σ u ⊙ ds,  dk = du ⊙ v,  dv = du ⊙ k
//	dz_t = w₂ ⊙ dp_t + w₁ ⊙ dp_{t+1} + w₀ ⊙ dp_{t+2},  dw_i = Σ dp_t ⊙ z_{t+i−2},  db = Σ dp_t
//
// (∗ is the causal convolution and ⋆ its transpose, the correlation.) z, p and y
// are row-major by position; u and s lie by channel, [D, rows, L], for the long
// convolution's sake.
type hyena[T simd.Float] struct {
	c       context[T]
	z, w, b mat.Tensor
	h, beta mat.Tensor
	length  int
	p, u, s []T // kept for backward
}

func (f *hyena[T]) Operands() []mat.Tensor { return []mat.Tensor{f.z, f.w, f.b, f.h, f.beta} }

// sizes are the sequences, their length and the channels.
func (f *hyena[T]) sizes() (n, l, d int) { return f.z.Shape()[0] / f.length, f.length, f.beta.Size() }

func (f *hyena[T]) Forward() (mat.Tensor, error) {
	n, l, d := f.sizes()
	f.p, f.u, f.s = f.c.take(n*l*3*d), f.c.take(n*l*d), f.c.take(n*l*d)
	f.shortForward()
	f.patches(func(at patch[T]) {
		for t := at.t0; t < at.t1; t++ {
			p := f.p[(at.row*l+t)*3*d:]
			k, v := p[d+at.c0:d+at.c1], p[2*d+at.c0:2*d+at.c1]
			for c, x := range k {
				at.a[c*patchSide+t-at.t0] = x * v[c]
			}
		}
		at.store(f.u, at.a)
	})
	longConvolution(f.c.workers, f.s, f.u, values[T](f.h), n, l, d)
	beta := values[T](f.beta)
	f.c.workers.each(d, func(c int) {
		simd.AddScaled(f.s[c*n*l:(c+1)*n*l], f.u[c*n*l:(c+1)*n*l], beta[c])
	})
	y := f.c.tensor(n*l, d)
	f.patches(func(at patch[T]) {
		at.load(at.a, f.s)
		for t := at.t0; t < at.t1; t++ {
			i := at.row*l + t
			q, out := f.p[i*3*d+at.c0:i*3*d+at.c1], y.v[i*d+at.c0:i*d+at.c1]
			for c, x := range q {
				out[c] = x * at.a[c*patchSide+t-at.t0]
			}
		}
	})
	return y, nil
}

func (f *hyena[T]) Backward(g mat.Tensor) error {
	n, l, d := f.sizes()
	gy, beta := values[T](g), values[T](f.beta)
	dp, ds, du := f.c.take(n*l*3*d), f.c.take(n*l*d), f.c.take(n*l*d)
	f.patches(func(at patch[T]) {
		at.load(at.a, f.s)
		for t := at.t0; t < at.t1; t++ {
			i := at.row*l + t
			q, dq, dy := f.p[i*3*d+at.c0:i*3*d+at.c1], dp[i*3*d+at.c0:], gy[i*d+at.c0:]
			for c, x := range q {
				o := c*patchSide + t - at.t0
				dq[c] = dy[c] * at.a[o]
				at.b[o] = dy[c] * x
			}
		}
		at.store(ds, at.b)
	})
	longCorrelation(f.c.workers, du, ds, values[T](f.h), n, l, d)
	f.c.workers.each(d, func(c int) {
		simd.AddScaled(du[c*n*l:(c+1)*n*l], ds[c*n*l:(c+1)*n*l], beta[c])
	})
	f.patches(func(at patch[T]) {
		at.load(at.a, du)
		for t := at.t0; t < at.t1; t++ {
			i := (at.row*l + t) * 3 * d
			k, v := f.p[i+d+at.c0:i+d+at.c1], f.p[i+2*d+at.c0:i+2*d+at.c1]
			dk, dv := dp[i+d+at.c0:], dp[i+2*d+at.c0:]
			for c, x := range k {
				u := at.a[c*patchSide+t-at.t0]
				dk[c], dv[c] = u*v[c], u*x
			}
		}
	})
	if f.h.RequiresGrad() {
		dh := f.c.tensor(d, l)
		longFilterGrad(f.c.workers, dh.v, ds, f.u, n, l, d)
		f.h.AccGrad(dh)
	}
	if f.beta.RequiresGrad() {
		db := f.c.tensor(d, 1)
		f.c.workers.each(d, func(c int) {
			db.v[c] = T(dot(ds[c*n*l:(c+1)*n*l], f.u[c*n*l:(c+1)*n*l]))
		})
		f.beta.AccGrad(db)
	}
	f.shortBackward(dp)
	return nil
}

// patchSide is the channels and the positions of a patch.
const patchSide = 32

// patch is where the two layouts meet: positions t0 … t1 of one sequence,
// channels c0 … c1, and two buffers [patchSide, patchSide] by channel. Whole
// runs of a channel go between them and a [D, rows, L] array, since its
// channels lie a power of two apart, where single elements would evict each
// other from the cache.
type patch[T simd.Float] struct {
	row, t0, t1, c0, c1 int
	a, b                []T
	rows, length        int
}

// store copies a patch's buffer to an array by channel, load from it.
func (p patch[T]) store(dst, buffer []T) {
	for c := p.c0; c < p.c1; c++ {
		copy(dst[(c*p.rows+p.row)*p.length+p.t0:], buffer[(c-p.c0)*patchSide:][:p.t1-p.t0])
	}
}

func (p patch[T]) load(buffer, src []T) {
	for c := p.c0; c < p.c1; c++ {
		at := (c*p.rows + p.row) * p.length
		copy(buffer[(c-p.c0)*patchSide:], src[at+p.t0:at+p.t1])
	}
}

// patches visits every patch.
func (f *hyena[T]) patches(visit func(at patch[T])) {
	n, l, d := f.sizes()
	perRow := (l + patchSide - 1) / patchSide
	f.c.workers.each(n*perRow, func(i int) {
		buffer := borrow[T](2 * patchSide * patchSide)
		defer giveBack(buffer)
		t0 := i % perRow * patchSide
		at := patch[T]{row: i / perRow, t0: t0, t1: min(l, t0+patchSide), rows: n, length: l,
			a: (*buffer)[:patchSide*patchSide], b: (*buffer)[patchSide*patchSide:]}
		for at.c0 = 0; at.c0 < d; at.c0 += patchSide {
			at.c1 = min(d, at.c0+patchSide)
			visit(at)
		}
	})
}

// taps are the short filter's three columns, w [3D, 3] across.
func taps[T simd.Float](w []T) (w0, w1, w2 []T) {
	n := len(w) / 3
	b := make([]T, 3*n)
	for c := range n {
		b[c], b[n+c], b[2*n+c] = w[3*c], w[3*c+1], w[3*c+2]
	}
	return b[:n], b[n : 2*n], b[2*n:]
}

func (f *hyena[T]) shortForward() {
	n, l, d := f.sizes()
	z, b, m := values[T](f.z), values[T](f.b), 3*d
	w0, w1, w2 := taps(values[T](f.w))
	f.c.workers.slice(n*l, 64, func(from, to int) {
		for i := from; i < to; i++ {
			p, t := f.p[i*m:(i+1)*m], i%l
			copy(p, b)
			simd.AddProduct(p, z[i*m:(i+1)*m], w2)
			if t >= 1 {
				simd.AddProduct(p, z[(i-1)*m:i*m], w1)
			}
			if t >= 2 {
				simd.AddProduct(p, z[(i-2)*m:(i-1)*m], w0)
			}
		}
	})
}

func (f *hyena[T]) shortBackward(dp []T) {
	n, l, d := f.sizes()
	z, m := values[T](f.z), 3*d
	w0, w1, w2 := taps(values[T](f.w))
	if f.z.RequiresGrad() {
		dz := f.c.tensor(n*l, m)
		f.c.workers.slice(n*l, 64, func(from, to int) {
			for i := from; i < to; i++ {
				o, t := dz.v[i*m:(i+1)*m], i%l
				simd.Product(o, dp[i*m:(i+1)*m], w2)
				if t+1 < l {
					simd.AddProduct(o, dp[(i+1)*m:(i+2)*m], w1)
				}
				if t+2 < l {
					simd.AddProduct(o, dp[(i+2)*m:(i+3)*m], w0)
				}
			}
		})
		f.z.AccGrad(dz)
	}
	if f.b.RequiresGrad() {
		db := f.c.tensor(m, 1)
		f.c.sumRows(db.v, dp, nil)
		f.b.AccGrad(db)
	}
	if f.w.RequiresGrad() {
		dw := f.c.tensor(m, 3)
		tap := make([]T, m)
		for i := range 3 {
			f.c.sumShifted(tap, dp, z, l, 2-i)
			for c, v := range tap {
				dw.v[3*c+i] = v
			}
		}
		f.w.AccGrad(dw)
	}
}
