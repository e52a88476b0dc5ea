package cpu

import (
	"math"

	"github.com/nlpodyssey/spago/mat"

	"github.com/scavenge/scavenge/gpu/cpu/simd"
)

// attention is causal softmax attention with rotary positions, a head at a time.
//
//	qkv [N, 3D], N = rows · L; columns [head 0: q k v][head 1: q k v]…, each of d = D/heads → y [N, D]
//	q, k ← R q/√d, R k;  S = q kᵀ;  P_ij = exp(S_ij − lse_i) for j ≤ i, else 0;  y = P v
//	dv = Pᵀ dy,  dP = dy vᵀ,  dS = P ⊙ (dP − δ),  δ_i = dy_i · y_i,  dq = dS k,  dk = dSᵀ q
//
// No L × L matrix is kept: backward computes P again from lse, the log of each
// row's sum of exponentials (Dao et al. 2022).
type attention[T simd.Float] struct {
	c             context[T]
	qkv           mat.Tensor
	length, heads int
	rotary        *rotary[T]
	y             *tensor[T]
	lse           []T // [rows, heads, L], kept for backward
}

// attentionRows is how many rows of S are computed at a time.
const attentionRows = 96

func (f *attention[T]) Operands() []mat.Tensor { return []mat.Tensor{f.qkv} }

func (f *attention[T]) sizes() (n, dim, d int) {
	dim = f.qkv.Shape()[1] / 3
	return f.qkv.Shape()[0], dim, dim / f.heads
}

// head gathers rotated q/√d and k [L, d] of one head of one row, and views v.
func (f *attention[T]) head(qkv []T, task int, q, k []T) (v matrix[T]) {
	_, dim, d := f.sizes()
	row, head := task/f.heads, task%f.heads
	scale := T(1 / math.Sqrt(float64(d)))
	base := row*f.length*3*dim + head*3*d
	for t := range f.length {
		src := qkv[base+t*3*dim:]
		f.rotary.rotate(k[t*d:(t+1)*d], src[d:2*d], t)
		f.rotary.rotate(q[t*d:(t+1)*d], src[:d], t)
		simd.Scale(q[t*d:(t+1)*d], q[t*d:(t+1)*d], scale)
	}
	return rows(qkv[base+2*d:], 3*dim)
}

func (f *attention[T]) Forward() (mat.Tensor, error) {
	n, dim, d := f.sizes()
	l, qkv := f.length, values[T](f.qkv)
	f.y, f.lse = f.c.tensor(n, dim), f.c.take(n*f.heads)
	f.c.workers.each(n/l*f.heads, func(task int) {
		buffer := borrow[T](2*l*d + attentionRows*l)
		defer giveBack(buffer)
		q, k, s := (*buffer)[:l*d], (*buffer)[l*d:2*l*d], (*buffer)[2*l*d:]
		v := f.head(qkv, task, q, k)
		y := f.y.v[task/f.heads*l*dim+task%f.heads*d:]
		for i := 0; i < l; i += attentionRows {
			m := min(attentionRows, l-i)
			cols := i + m // later ones are masked for all of these rows
			product(1, m, cols, d, rows(q[i*d:], d), across(k, d), s, cols, false)
			for r := range m {
				row := s[r*cols : (r+1)*cols]
				top := simd.Max(row[:i+r+1])
				sum := simd.Exp(row[:i+r+1], row[:i+r+1], 1, top)
				f.lse[task*l+i+r] = top + T(math.Log(sum))
				simd.Scale(row[:i+r+1], row[:i+r+1], T(1/sum))
				clear(row[i+r+1:])
			}
			product(1, m, d, cols, rows(s, cols), v, y[i*dim:], dim, false)
		}
	})
	return f.y, nil
}

func (f *attention[T]) Backward(g mat.Tensor) error {
	n, dim, d := f.sizes()
	l, qkv, gy := f.length, values[T](f.qkv), values[T](g)
	dqkv := f.c.tensor(n, 3*dim)
	scale := T(1 / math.Sqrt(float64(d)))
	f.c.workers.each(n/l*f.heads, func(task int) {
		buffer := borrow[T](4*l*d + 2*attentionRows*l)
		defer giveBack(buffer)
		b := *buffer
		q, k, dq, dk := b[:l*d], b[l*d:2*l*d], b[2*l*d:3*l*d], b[3*l*d:4*l*d]
		s, ds := b[4*l*d:4*l*d+attentionRows*l], b[4*l*d+attentionRows*l:]
		v := f.head(qkv, task, q, k)
		at := task/f.heads*l*dim + task%f.heads*d
		y, dy := f.y.v[at:], gy[at:]
		out := task/f.heads*l*3*dim + task%f.heads*3*d
		dv := dqkv.v[out+2*d:]
		for i := 0; i < l; i += attentionRows {
			m := min(attentionRows, l-i)
			cols := i + m
			product(1, m, cols, d, rows(q[i*d:], d), across(k, d), s, cols, false)
			product(1, m, cols, d, rows(dy[i*dim:], dim), matrix[T]{v.data, 1, v.row}, ds, cols, false)
			for r := range m {
				t := i + r
				p, dp := s[r*cols:(r+1)*cols], ds[r*cols:(r+1)*cols]
				delta := T(dot(dy[t*dim:t*dim+d], y[t*dim:t*dim+d]))
				simd.Exp(p[:t+1], p[:t+1], 1, f.lse[task*l+t])
				for j := range dp[:t+1] {
					dp[j] -= delta
				}
				simd.Product(dp[:t+1], dp[:t+1], p[:t+1])
				clear(p[t+1:])
				clear(dp[t+1:])
			}
			product(1, m, d, cols, rows(ds, cols), rows(k, d), dq[i*d:], d, false)
			// rows of k and v that these queries are the first to see start a sum, earlier ones go on
			for _, part := range [2][2]int{{0, i}, {i, cols}} {
				from, rowsOf := part[0], part[1]-part[0]
				product(1, rowsOf, d, m, across(ds[from:], cols), rows(q[i*d:], d), dk[from*d:], d, part[0] < i)
				product(1, rowsOf, d, m, across(s[from:], cols), rows(dy[i*dim:], dim), dv[from*3*dim:], 3*dim, part[0] < i)
			}
		}
		for t := range l {
			dst := dqkv.v[out+t*3*dim:]
			simd.Scale(dq[t*d:(t+1)*d], dq[t*d:(t+1)*d], scale)
			f.rotary.back(dst[:d], dq[t*d:(t+1)*d], t)
			f.rotary.back(dst[d:2*d], dk[t*d:(t+1)*d], t)
		}
	})
	f.qkv.AccGrad(dqkv)
	return nil
}

// rotary is the rotation R_t of the first 2·half dimensions of a head at
// position t: pairs (x_j, x_{j+half}) turn by t·base^(−j/half) (Su et al. 2021,
// in the two-halves layout of GPT-NeoX).
type rotary[T simd.Float] struct {
	half     int
	cos, sin []T // [context, half]
}

func newRotary[T simd.Float](context, dims int, base float64) *rotary[T] {
	r := &rotary[T]{half: dims / 2}
	for t := range context {
		for j := range r.half {
			s, c := math.Sincos(float64(t) * math.Pow(base, -float64(j)/float64(r.half)))
			r.cos, r.sin = append(r.cos, T(c)), append(r.sin, T(s))
		}
	}
	return r
}

// rotate sets dst = R_t x.
func (r *rotary[T]) rotate(dst, x []T, t int) { r.turn(dst, x, t, 1) }

// back sets dst = R_tᵀ x.
func (r *rotary[T]) back(dst, x []T, t int) { r.turn(dst, x, t, -1) }

func (r *rotary[T]) turn(dst, x []T, t int, sign T) {
	h := r.half
	copy(dst[2*h:], x[2*h:])
	cos, sin := r.cos[t*h:(t+1)*h], r.sin[t*h:(t+1)*h]
	for j := range h {
		a, b, s := x[j], x[j+h], sign*sin[j]
		dst[j], dst[j+h] = a*cos[j]-b*s, b*cos[j]+a*s
	}
}
