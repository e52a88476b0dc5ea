package cpu

import (
	"math"

	"github.com/scavenge/scavenge/gpu"
	"github.com/scavenge/scavenge/gpu/cpu/simd"
)

// moments are AdamW's state of one weight.
type moments[T simd.Float] struct {
	steps          int64
	mean, variance []T
}

// update is one step of AdamW (Loshchilov and Hutter 2019), t being the
// weight's own count of steps:
//
//	w ← w − η λ w
//	m ← β₁ m + (1 − β₁) g,  v ← β₂ v + (1 − β₂) g²
//	w ← w − η/(1 − β₁ᵗ) · m / (√v/√(1 − β₂ᵗ) + ε)
func (s *moments[T]) update(wk workers, w, g []T, o gpu.AdamW, rate, scale float64, decays bool) {
	s.steps++
	keep := T(1)
	if decays {
		keep = T(1 - rate*o.Decay)
	}
	b1, b2 := T(o.Beta1), T(o.Beta2)
	r1, r2 := T(1-o.Beta1), T(1-o.Beta2)
	step := T(rate / (1 - math.Pow(o.Beta1, float64(s.steps))))
	root := T(1 / math.Sqrt(1-math.Pow(o.Beta2, float64(s.steps))))
	eps, clip := T(o.Eps), T(scale)
	wk.slice(len(w), 1<<14, func(from, to int) {
		w, g, m, v := w[from:to], g[from:to], s.mean[from:to], s.variance[from:to]
		for i, gi := range g {
			gi *= clip
			m[i] = b1*m[i] + r1*gi
			v[i] = b2*v[i] + r2*gi*gi
			w[i] = keep*w[i] - step*m[i]/(T(math.Sqrt(float64(v[i])))*root+eps)
		}
	})
}
