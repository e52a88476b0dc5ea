package enginetest

import (
	"fmt"
	"math"
	"testing"

	"github.com/scavenge/scavenge/gpu"
	"github.com/scavenge/scavenge/schemas/checkpoint"
)

// clipping checks that the optimiser sees gradients of at most the bound's norm.
func (s suite) clipping(t *testing.T) {
	e := s.engine(t)
	c := studentConfig()
	st := gpu.Step{Batch: batch(c, 2, 20, 31), Objective: gpu.CrossEntropy, Rate: 1e-3}
	for _, share := range []float64{0.25, 4} {
		free := s.model(t, e, random(c, 32))
		r, _ := gradients(t, free, st)
		free.Close()
		o := gpu.PaperAdamW()
		o.Clip = share * r.Norm
		m, err := e.Open(random(c, 32), gpu.Options{Precision: s.tol.Precision, Train: true, Optimizer: o})
		if err != nil {
			t.Fatal(err)
		}
		if got := step(t, m, st); got.Norm != r.Norm {
			t.Errorf("the norm before clipping is %g, with clipping %g", r.Norm, got.Norm)
		}
		state, err := m.Optimizer()
		if err != nil {
			t.Fatal(err)
		}
		square := 0.0
		for _, v := range state.Mean {
			for _, x := range v {
				square += float64(x) * float64(x)
			}
		}
		// after one step the mean is (1 − β₁) of the clipped gradient
		if got, want := math.Sqrt(square)/(1-o.Beta1), min(o.Clip, r.Norm); math.Abs(got-want) > 1e-4*want {
			t.Errorf("bound %g on a norm of %g: the optimiser saw %g", o.Clip, r.Norm, got)
		}
		m.Close()
	}
}

// updates checks each of several steps against AdamW's equations in float64,
// from the gradients that the engine itself gives: training curves part sooner
// or later by rounding alone, single updates do not.
func (s suite) updates(t *testing.T) {
	e := s.engine(t)
	c := studentConfig()
	b := batch(c, 2, 26, 53)
	m, teacher := s.model(t, e, random(c, 54)), s.model(t, e, random(teacherConfig(), 55))
	kinds := objectives(c, b, teacher)
	o := gpu.PaperAdamW()
	mean, variance, steps := map[string][]float64{}, map[string][]float64{}, map[string]int{}
	for i, kind := range []string{"layer-mse-1", "layer-mse-1", "joint-mse", "cross-entropy", "soft-targets", "cross-entropy"} {
		st := kinds[kind]
		st.Rate = 1e-3 / float64(i+1)
		before := weights(t, m)
		_, grads := gradients(t, m, st)
		step(t, m, st)
		after := weights(t, m)
		for _, spec := range c.Specs() {
			g, ok := grads[spec.Name]
			if !ok {
				same(t, kind+" leaves "+spec.Name, after[spec.Name], before[spec.Name])
				continue
			}
			if mean[spec.Name] == nil {
				mean[spec.Name], variance[spec.Name] = make([]float64, len(g)), make([]float64, len(g))
			}
			steps[spec.Name]++
			n := float64(steps[spec.Name])
			got, want := make([]float32, len(g)), make([]float32, len(g)) // the updates
			for j, v := range g {
				m, q := &mean[spec.Name][j], &variance[spec.Name][j]
				*m = o.Beta1**m + (1-o.Beta1)*float64(v)
				*q = o.Beta2**q + (1-o.Beta2)*float64(v)*float64(v)
				w := float64(before[spec.Name][j])
				next := w
				if spec.Decays() {
					next -= st.Rate * o.Decay * w
				}
				next -= st.Rate / (1 - math.Pow(o.Beta1, n)) * *m / (math.Sqrt(*q/(1-math.Pow(o.Beta2, n))) + o.Eps)
				got[j], want[j] = after[spec.Name][j]-before[spec.Name][j], float32(next-w)
			}
			// weights of about 1 are rounded by 6e-8, updates are about the rate
			near(t, fmt.Sprintf("step %d, %s: update of %s", i, kind, spec.Name), got, want, 2e-3)
		}
	}
}

// decay checks decoupled weight decay where there is nothing else: rows of the
// token embedding that no token uses have no gradient, and shrink by rate · decay.
func (s suite) decay(t *testing.T) {
	e := s.engine(t)
	c := studentConfig()
	m := random(c, 33)
	b := gpu.Batch{Rows: 1, Length: 8, Tokens: []int32{1, 2, 3, 4, 5, 6, 7, 8}}
	g := s.model(t, e, m)
	step(t, g, gpu.Step{Batch: b, Objective: gpu.CrossEntropy, Rate: 0.01})
	before, after := m.Weights[checkpoint.EmbedIn][9*c.Dim:], weights(t, g)[checkpoint.EmbedIn][9*c.Dim:]
	want := make([]float32, len(before))
	for i, v := range before {
		want[i] = float32(float64(v) * (1 - 0.01*0.1))
	}
	near(t, "unused rows", after, want, 1e-6)
}

func (s suite) notFinite(t *testing.T) {
	e := s.engine(t)
	c := studentConfig()
	bad := random(c, 34)
	bad.Weights[checkpoint.Block(1)+"mlp.dense_h_to_4h.bias"][3] = float32(math.NaN())
	m := s.model(t, e, bad)
	b := batch(c, 2, 12, 35)
	for name, st := range objectives(c, b, s.model(t, e, random(teacherConfig(), 36))) {
		if name == "layer-mse-0" { // is below the bad block
			continue
		}
		if r := step(t, m, st); !math.IsNaN(r.Loss) && !math.IsInf(r.Loss, 0) {
			t.Errorf("%s: loss is %g", name, r.Loss)
		}
	}
	sameWeights(t, "after losses that are not finite", weights(t, m), bad.Weights)
	if o, err := m.Optimizer(); err != nil || len(o.Steps) != 0 {
		t.Errorf("the optimiser counts steps: %v, %v", o.Steps, err)
	}
}
