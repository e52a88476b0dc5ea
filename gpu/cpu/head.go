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
	var soft, teacher []T
	if f.weight > 0 {
		soft, teacher = f.c.take(block*v), f.c.take(block*v)
	}
	for from := 0; from < n; from += block {
		m := min(block, n-from)
		product(f.c.workers, m, v, d, rows(x[from*d:], d), across(w, d), s, v, false)
		if f.weight > 0 {
			td := len(f.teacherX) / n
			product(f.c.workers, m, v, td, rows(f.teacherX[from*td:], td), across(f.teacherW, td), teacher, v, false)
		}
		f.c.workers.each(m, func(i int) {
			row := s[i*v : (i+1)*v]
			if f.weight > 0 {
				kl[from+i] = f.softRow(row, soft[i*v:(i+1)*v], teacher[i*v:(i+1)*v])
			}
			f.nll[from+i] = f.hardRow(row, from+i, train)
			if f.weight > 0 && train {
				simd.AddScaled(row, soft[i*v:(i+1)*v], T(f.weight*f.temperature/float64(n)))
			}
		})
		if train {
			product(f.c.workers, m, d, v, rows(s, v), rows(w, d), f.dx.v[from*d:], d, false)
			product(f.c.workers, v, d, m, across(s, v), rows(x[from*d:], d), f.dw.v, d, from > 0)
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

// softRow is Σ t (log t − log p); it sets p to p − t and spends t.
func (f *head[T]) softRow(s, p, t []T) float64 {
	inv := T(1 / f.temperature)
	topS, topT := simd.Max(s), simd.Max(t)
	sumS := simd.Exp(p, s, inv, topS)
	sumT, cross := 0.0, 0.0 // of t's exponentials, and of their products with the logits' differences
	for i := range t {
		gap := (float64(t[i]) - float64(topT)) - (float64(s[i]) - float64(topS))
		e := math.Exp((float64(t[i]) - float64(topT)) / f.temperature)
		t[i] = T(e)
		sumT += e
		cross += e * gap
	}
	simd.Scale(p, p, T(1/sumS))
	simd.AddScaled(p, t, T(-1/sumT))
	return cross/sumT/f.temperature - math.Log(sumT) + math.Log(sumS)
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
