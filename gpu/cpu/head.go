package cpu

import (
	"math"

	"github.com/nlpodyssey/spago/mat"

	"github.com/scavenge/scavenge/gpu/cpu/simd"
)

// head is the output embedding with the loss over it, a few rows at a time so
// that the logits of a batch never exist at once.
//
//	x [N, D] (after the final norm), W [V, D] → scalar;  s = x Wᵀ [N, V]
//	cross entropy:  mean over the N − rows positions with a next token of −log softmax(s_n)[token_{n+1}]
//	                ds_n = (softmax(s_n) − onehot(token_{n+1})) / (N − rows)
//	soft targets:   mean over all N of T² Σ_v t_v (log t_v − log p_v),  p = softmax(s/T),  t = softmax(teacher's s/T)
//	                ds_n = T (p − t) / N
//	loss = (1 − w)·cross entropy + w·soft targets;  dx = ds W,  dW = dsᵀ x
//
// The loss is the graph's root, so its gradients are computed on the way
// forward, while a row's logits are at hand; Backward scales them.
type head[T simd.Float] struct {
	c      context[T]
	x, w   mat.Tensor
	tokens []int32
	length int

	weight      float64 // w; 0 is cross entropy alone
	temperature float64
	teacherX    []T // [N, D′], the teacher's x, and its W [V, D′]
	teacherW    []T

	value  float64
	nll    []float64 // [N]: −log p of the next token; 0 where there is none
	dx, dw *tensor[T]
}

func (f *head[T]) Operands() []mat.Tensor { return []mat.Tensor{f.x, f.w} }

// headRows is how many rows of logits exist at a time: about 4 MB of them.
func headRows(vocab int) int { return min(512, max(48, 1<<20/vocab/48*48)) }

func (f *head[T]) Forward() (mat.Tensor, error) {
	x, w := values[T](f.x), values[T](f.w)
	d := f.x.Shape()[1]
	n, v := len(x)/d, len(w)/d
	train := anyGrad(f.Operands())
	if train {
		f.dx, f.dw = f.c.tensor(n, d), f.c.tensor(v, d)
	}
	f.nll = make([]float64, n)
	kl := make([]float64, n)
	block := min(n, headRows(v))
	s := f.c.take(block * v)
	var p, t, logits []T // softmax(s/T), softmax of the teacher's, and its logits
	if f.weight > 0 {
		p, t, logits = f.c.take(block*v), f.c.take(block*v), f.c.take(block*v)
	}
	for first := 0; first < n; first += block {
		m := min(block, n-first)
		product(f.c.workers, m, v, d, rows(x[first*d:], d), across(w, d), s, v, false)
		if f.weight > 0 {
			td := len(f.teacherX) / n
			product(f.c.workers, m, v, td, rows(f.teacherX[first*td:], td), across(f.teacherW, td), logits, v, false)
		}
		f.c.workers.each(m, func(i int) {
			from, to := i*v, (i+1)*v
			row := s[from:to]
			if f.weight > 0 {
				kl[first+i] = f.softRow(row, logits[from:to], p[from:to], t[from:to])
			}
			f.nll[first+i] = f.hardRow(row, first+i, train)
			if f.weight > 0 && train {
				scale := T(f.weight * f.temperature / float64(n))
				simd.AddScaled(row, p[from:to], scale)
				simd.AddScaled(row, t[from:to], -scale)
			}
		})
		if train {
			product(f.c.workers, m, d, v, rows(s, v), rows(w, d), f.dx.v[first*d:], d, false)
			product(f.c.workers, v, d, m, across(s, v), rows(x[first*d:], d), f.dw.v, d, first > 0)
		}
	}
	ce, soften := 0.0, 0.0
	for i := range n {
		ce += f.nll[i]
		soften += kl[i]
	}
	if f.weight < 1 {
		f.value = (1 - f.weight) * ce / float64(f.predictions(n))
	}
	if f.weight > 0 {
		f.value += f.weight * f.temperature * f.temperature * soften / float64(n)
	}
	return newTensor([]T{T(f.value)}, 1, 1), nil
}

// predictions counts the positions with a next token.
func (f *head[T]) predictions(n int) int { return n - n/f.length }

// hardRow is −log p of position n's next token. It turns the row's logits into
// their gradient where that is asked for.
func (f *head[T]) hardRow(s []T, n int, train bool) float64 {
	if n%f.length == f.length-1 {
		if train {
			clear(s)
		}
		return 0
	}
	target := f.tokens[n+1]
	top, logit := simd.Max(s), s[target]
	sum := simd.Exp(s, s, 1, top)
	if train {
		scale := (1 - f.weight) / float64(f.predictions(len(f.nll)))
		simd.Scale(s, s, T(scale/sum))
		s[target] -= T(scale)
	}
	return math.Log(sum) - (float64(logit) - float64(top))
}

// softRow is Σ t (log t − log p) for the student's and the teacher's logits; it
// sets p and t to their softmax.
func (f *head[T]) softRow(s, teacher, p, t []T) float64 {
	inv := T(1 / f.temperature)
	topP, topT := simd.Max(s), simd.Max(teacher)
	sumP, sumT := simd.Exp(p, s, inv, topP), simd.Exp(t, teacher, inv, topT)
	simd.Scale(p, p, T(1/sumP))
	simd.Scale(t, t, T(1/sumT))
	gap := 0.0 // Σ t times the difference of the logits, each below its top
	for i, v := range t {
		gap += float64(v) * (float64(teacher[i]-topT) - float64(s[i]-topP))
	}
	return gap/f.temperature - math.Log(sumT) + math.Log(sumP)
}

func (f *head[T]) Backward(g mat.Tensor) error {
	if scale := values[T](g)[0]; scale != 1 {
		simd.Scale(f.dx.v, f.dx.v, scale)
		simd.Scale(f.dw.v, f.dw.v, scale)
	}
	if f.x.RequiresGrad() {
		f.x.AccGrad(f.dx)
	}
	if f.w.RequiresGrad() {
		f.w.AccGrad(f.dw)
	}
	return nil
}
