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
	f.byChannel(func(row, c, t int) {
		p := f.p[(row*l+t)*3*d:]
		f.u[(c*n+row)*l+t] = p[d+c] * p[2*d+c]
	})
	longConvolution(f.c.workers, f.s, f.u, values[T](f.h), n, l, d)
	beta := values[T](f.beta)
	f.c.workers.each(d, func(c int) {
		simd.AddScaled(f.s[c*n*l:(c+1)*n*l], f.u[c*n*l:(c+1)*n*l], beta[c])
	})
	y := f.c.tensor(n*l, d)
	f.byChannel(func(row, c, t int) {
		y.v[(row*l+t)*d+c] = f.p[(row*l+t)*3*d+c] * f.s[(c*n+row)*l+t]
	})
	return y, nil
}

func (f *hyena[T]) Backward(g mat.Tensor) error {
	n, l, d := f.sizes()
	dy, beta := values[T](g), values[T](f.beta)
	dp, ds, du := f.c.take(n*l*3*d), f.c.take(n*l*d), f.c.take(n*l*d)
	f.byChannel(func(row, c, t int) {
		i := row*l + t
		dp[i*3*d+c] = dy[i*d+c] * f.s[(c*n+row)*l+t]
		ds[(c*n+row)*l+t] = dy[i*d+c] * f.p[i*3*d+c]
	})
	longCorrelation(f.c.workers, du, ds, values[T](f.h), n, l, d)
	f.c.workers.each(d, func(c int) {
		simd.AddScaled(du[c*n*l:(c+1)*n*l], ds[c*n*l:(c+1)*n*l], beta[c])
	})
	f.byChannel(func(row, c, t int) {
		i := (row*l + t) * 3 * d
		v := du[(c*n+row)*l+t]
		dp[i+d+c], dp[i+2*d+c] = v*f.p[i+2*d+c], v*f.p[i+d+c]
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

// byChannel visits every (sequence, channel, position), a patch of neighbouring
// channels and positions at a time, so that both layouts are read by cache lines.
func (f *hyena[T]) byChannel(visit func(row, c, t int)) {
	n, l, d := f.sizes()
	const patch = 32
	f.c.workers.slice(n*l, patch, func(from, to int) {
		for c0 := 0; c0 < d; c0 += patch {
			for i := from; i < to; i++ {
				row, t := i/l, i%l
				for c := c0; c < min(d, c0+patch); c++ {
					visit(row, c, t)
				}
			}
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
