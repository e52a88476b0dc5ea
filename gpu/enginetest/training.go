package enginetest

import (
	"fmt"
	"maps"
	"math"
	"testing"

	"github.com/scavenge/scavenge/gpu"
	"github.com/scavenge/scavenge/schemas/checkpoint"
)

// slope compares gradients with finite differences: for each trained weight w,
// L(w⁺) − L(w⁻) with g·(w⁺ − w⁻), where w± are Epsilon away along the gradient
// plus as much of a random direction. The part along the gradient gives the
// difference its size, and makes whatever does not belong in the gradient show
// as a slope that is missing.
//
// With no Slope it compares them with the engine's own in float32, a tensor at a
// time, which a run of the suite in that precision checks.
func (s suite) slope(t *testing.T, e gpu.Engine, m *checkpoint.Model, st gpu.Step, what string) {
	t.Helper()
	open := s.model(t, e, m)
	_, grads := gradients(t, open, st)
	open.Close()
	if s.tol.Slope == 0 {
		inFloat32 := s
		inFloat32.tol.Precision = gpu.Float32
		exact := inFloat32.model(t, e, m)
		defer exact.Close()
		if st.Teacher != nil {
			w, err := st.Teacher.Model()
			if err != nil {
				t.Fatal(err)
			}
			st.Teacher = inFloat32.model(t, e, w)
			defer st.Teacher.Close()
		}
		_, want := gradients(t, exact, st)
		s.nearGradients(t, what, grads, want)
		return
	}
	r := source(77)
	for name, g := range grads {
		d, gg, rr := make([]float64, len(g)), 0.0, 0.0
		for i, v := range g {
			d[i] = r.NormFloat64()
			gg += float64(v) * float64(v)
			rr += d[i] * d[i]
		}
		for i, v := range g {
			d[i] = d[i]/math.Sqrt(rr) + float64(v)/math.Max(math.Sqrt(gg), 1e-30)
		}
		moved := func(sign float64) ([]float32, float64) {
			w := append([]float32(nil), m.Weights[name]...)
			for i := range w {
				w[i] += float32(sign * s.tol.Epsilon * d[i])
			}
			c := &checkpoint.Model{Config: m.Config, Weights: maps.Clone(m.Weights)}
			c.Weights[name] = w
			open := s.model(t, e, c)
			defer open.Close()
			r, _ := gradients(t, open, st)
			return w, r.Loss
		}
		up, high := moved(1)
		down, low := moved(-1)
		want := 0.0
		for i, v := range g {
			want += float64(v) * (float64(up[i]) - float64(down[i]))
		}
		got := high - low
		// a gradient of 0.1 is about the least that a difference of losses resolves
		if math.Abs(got-want) > s.tol.Slope*math.Max(math.Abs(want), 0.2*s.tol.Epsilon) {
			t.Errorf("%s: %s: the loss rises by %.6g, the gradient says %.6g", what, name, got, want)
		}
	}
}

// nearGradients compares each tensor. The suite's random models are 16 wide,
// which averages little rounding out: they are allowed twice the error. What is
// zero but for rounding is measured against a thousandth of the largest.
func (s suite) nearGradients(t *testing.T, what string, got, want map[string][]float32) {
	t.Helper()
	norm := func(v []float32) float64 {
		sum := 0.0
		for _, x := range v {
			sum += float64(x) * float64(x)
		}
		return math.Sqrt(sum)
	}
	largest := 0.0
	for _, w := range want {
		largest = max(largest, norm(w))
	}
	for name, w := range want {
		d := make([]float32, len(w))
		for i := range w {
			d[i] = got[name][i] - w[i]
		}
		if e, size := norm(d), max(norm(w), 1e-3*largest); !(e <= 2*s.tol.Gradient*size) {
			t.Errorf("%s: %s: off by %.3g of %.3g, at most %g of it is allowed", what, name, e, size, 2*s.tol.Gradient)
		}
	}
}

func (s suite) slopes(t *testing.T) {
	e := s.engine(t)
	teacher, student := random(teacherConfig(), 1), random(studentConfig(), 2)
	b := batch(student.Config, 2, 21, 3)
	s.slope(t, e, teacher, gpu.Step{Batch: b, Objective: gpu.CrossEntropy}, "attention")
	open := s.model(t, e, teacher)
	for name, st := range objectives(student.Config, b, open) {
		s.slope(t, e, student, st, name)
	}
	soft := gpu.Step{Batch: b, Objective: gpu.SoftTargets, Teacher: open, Temperature: 1.5, SoftWeight: 0.3}
	s.slope(t, e, random(teacherConfig(), 4), soft, "attention, soft targets")
}

// lengths checks that what a model says of a sequence's start does not depend
// on how far the sequence goes on, for every length up to the context, and that
// gradients are right at the lengths around a tile's edge.
func (s suite) lengths(t *testing.T) {
	e := s.engine(t)
	check := func(c checkpoint.Config, lengths []int) {
		m := s.model(t, e, random(c, 5))
		defer m.Close()
		full := batch(c, 2, c.Context, 6)
		last := c.Layers - 1
		want := hidden(t, m, full, last)[0]
		for _, l := range lengths {
			short := gpu.Batch{Rows: 2, Length: l}
			for row := range 2 {
				short.Tokens = append(short.Tokens, full.Tokens[row*c.Context:row*c.Context+l]...)
			}
			h := hidden(t, m, short, last)[0]
			for row := range 2 {
				near(t, fmt.Sprintf("%s, length %d of %d, row %d", c.Architecture, l, c.Context, row),
					h[row*l*c.Dim:(row+1)*l*c.Dim], want[row*c.Context*c.Dim:][:l*c.Dim], s.tol.Output)
			}
		}
	}
	var every []int
	for l := range studentConfig().Context {
		every = append(every, l+1)
	}
	for _, c := range []checkpoint.Config{teacherConfig(), studentConfig()} {
		check(c, every)
		c.Layers, c.Context = 1, 1040
		check(c, []int{127, 1000, 1023, 1025, 1039})
	}
	for _, l := range []int{1, 2, 3, 15, 16, 17, 37} {
		c := studentConfig()
		b := batch(c, 1, l, uint64(l))
		s.slope(t, e, random(c, 7), gpu.Step{Batch: b, Objective: gpu.JointMSE, Targets: []gpu.Target{target(c, b, c.Layers-1, 8)}}, fmt.Sprintf("hyena, length %d", l))
		c = teacherConfig()
		s.slope(t, e, random(c, 7), gpu.Step{Batch: b, Objective: gpu.JointMSE, Targets: []gpu.Target{target(c, b, c.Layers-1, 8)}}, fmt.Sprintf("attention, length %d", l))
	}
	for _, c := range []checkpoint.Config{teacherConfig(), studentConfig()} {
		c.Layers, c.Context = 1, 257
		b := batch(c, 1, 257, 9)
		s.slope(t, e, random(c, 10), gpu.Step{Batch: b, Objective: gpu.CrossEntropy}, c.Architecture+", length 257")
	}
}

// rows checks batches of several sizes.
func (s suite) rows(t *testing.T) {
	e := s.engine(t)
	for _, c := range []checkpoint.Config{teacherConfig(), studentConfig()} {
		m := s.model(t, e, random(c, 11))
		for _, n := range []int{2, 5, 7, 60} {
			s.meanOfRows(t, m, batch(c, n, 19, 12))
		}
		m.Close()
	}
}

// meanOfRows checks a batch against its rows alone: a mean over rows of equal
// weight has the mean of the rows' losses and gradients.
func (s suite) meanOfRows(t *testing.T, m gpu.Model, b gpu.Batch) {
	t.Helper()
	what := fmt.Sprintf("%s, %d rows of %d", m.Config().Architecture, b.Rows, b.Length)
	r, got := gradients(t, m, gpu.Step{Batch: b, Objective: gpu.CrossEntropy})
	loss, mean := 0.0, map[string][]float64{}
	for row := range b.Rows {
		one := gpu.Batch{Rows: 1, Length: b.Length, Tokens: b.Tokens[row*b.Length : (row+1)*b.Length]}
		r, g := gradients(t, m, gpu.Step{Batch: one, Objective: gpu.CrossEntropy})
		loss += r.Loss / float64(b.Rows)
		for name, v := range g {
			if mean[name] == nil {
				mean[name] = make([]float64, len(v))
			}
			for i, x := range v {
				mean[name][i] += float64(x) / float64(b.Rows)
			}
		}
	}
	if math.Abs(loss-r.Loss) > s.tol.Output*loss {
		t.Errorf("%s: loss %.8g, the rows' mean is %.8g", what, r.Loss, loss)
	}
	for name, v := range mean {
		want := make([]float32, len(v))
		for i, x := range v {
			want[i] = float32(x)
		}
		near(t, what+": "+name, got[name], want, s.tol.Gradient)
	}
}

// frozenPrefix checks that training one block above a frozen prefix gives it
// the gradients that the whole graph gives it.
func (s suite) frozenPrefix(t *testing.T) {
	e := s.engine(t)
	c := studentConfig()
	m := s.model(t, e, random(c, 13))
	b := batch(c, 3, 30, 14)
	for i := range c.Layers {
		g := target(c, b, i, 15)
		_, alone := gradients(t, m, gpu.Step{Batch: b, Objective: gpu.LayerMSE, Layer: i, Targets: []gpu.Target{g}})
		_, whole := gradients(t, m, gpu.Step{Batch: b, Objective: gpu.JointMSE, Targets: []gpu.Target{g}})
		for name, v := range alone {
			near(t, fmt.Sprintf("layer %d: %s", i, name), v, whole[name], s.tol.Prefix)
		}
	}
}

// keptPrefix checks that steps which may keep what the frozen prefix computed
// give the same bits as steps which may not, through layers and epochs of
// batches that are composed anew, with too little memory for all, after a step
// that moves the prefix, and back at a lower layer.
func (s suite) keptPrefix(t *testing.T) {
	c := studentConfig()
	const rows, length, sequences = 3, 20, 8
	all := batch(c, sequences, length, 60)
	run := func(memory int64) (losses []float64, w map[string][]float32) {
		e := s.engine(t)
		m, err := e.Open(random(c, 61), gpu.Options{Precision: s.tol.Precision, Train: true, PrefixCache: memory})
		if err != nil {
			t.Fatal(err)
		}
		r := source(62)
		epochs := func(layer int) {
			for range 3 {
				order := r.Perm(sequences)
				for at := 0; at+rows <= sequences; at += rows {
					st := gpu.Step{Batch: gpu.Batch{Rows: rows, Length: length}, Objective: gpu.LayerMSE, Layer: layer, Rate: 1e-2}
					for _, id := range order[at : at+rows] {
						st.IDs = append(st.IDs, int64(id)*7)
						st.Tokens = append(st.Tokens, all.Tokens[id*length:(id+1)*length]...)
					}
					st.Targets = []gpu.Target{target(c, st.Batch, layer, uint64(63+at))}
					losses = append(losses, step(t, m, st).Loss)
				}
			}
		}
		for layer := range c.Layers {
			epochs(layer)
		}
		losses = append(losses, step(t, m, gpu.Step{Batch: all, Objective: gpu.CrossEntropy, Rate: 1e-2}).Loss)
		epochs(2)
		epochs(1)
		epochs(2)
		return losses, weights(t, m)
	}
	wantLosses, want := run(0)
	for _, memory := range []int64{1 << 20, 5 * length * int64(c.Dim) * 4, -1} {
		losses, w := run(memory)
		for i := range losses {
			if losses[i] != wantLosses[i] {
				t.Fatalf("with %d bytes to keep prefixes in, the loss of step %d is %.9g, without %.9g", memory, i, losses[i], wantLosses[i])
			}
		}
		sameWeights(t, fmt.Sprintf("with %d bytes to keep prefixes in", memory), w, want)
	}
}

func (s suite) jointSum(t *testing.T) {
	e := s.engine(t)
	c := studentConfig()
	m := s.model(t, e, random(c, 16))
	b := batch(c, 2, 24, 17)
	var targets []gpu.Target
	sum := 0.0
	for i := range c.Layers {
		targets = append(targets, target(c, b, i, uint64(18+i)))
		r, _ := gradients(t, m, gpu.Step{Batch: b, Objective: gpu.LayerMSE, Layer: i, Targets: targets[i:]})
		sum += r.Loss
	}
	r, _ := gradients(t, m, gpu.Step{Batch: b, Objective: gpu.JointMSE, Targets: targets})
	if math.Abs(r.Loss-sum) > 1e-6*sum && math.Abs(r.Loss-sum) > s.tol.Output/10*sum {
		t.Errorf("joint loss %.9g, the layers' sum is %.9g", r.Loss, sum)
	}
}

func (s suite) softMix(t *testing.T) {
	e := s.engine(t)
	c := studentConfig()
	m, teacher := s.model(t, e, random(c, 19)), s.model(t, e, random(teacherConfig(), 20))
	soft := gpu.Step{Batch: batch(c, 2, 25, 21), Objective: gpu.SoftTargets, Teacher: teacher, Temperature: 3}
	loss := map[float64]float64{}
	for _, w := range []float64{0, 0.25, 1} {
		soft.SoftWeight = w
		r, _ := gradients(t, m, soft)
		loss[w] = r.Loss
	}
	if want := 0.75*loss[0] + 0.25*loss[1]; math.Abs(loss[0.25]-want) > s.tol.Output*want {
		t.Errorf("weight 0.25: loss %.8g, a quarter of the way from %.8g to %.8g is %.8g", loss[0.25], loss[0], loss[1], want)
	}
	hard, _ := gradients(t, m, gpu.Step{Batch: soft.Batch, Objective: gpu.CrossEntropy})
	if math.Abs(loss[0]-hard.Loss) > s.tol.Output*hard.Loss {
		t.Errorf("weight 0: loss %.8g, the cross entropy is %.8g", loss[0], hard.Loss)
	}
	// the divergence of a model from a twin is nothing
	twin := s.model(t, e, random(c, 19))
	soft.Teacher, soft.SoftWeight = twin, 1
	if r, _ := gradients(t, m, soft); math.Abs(r.Loss) > s.tol.Output {
		t.Errorf("the divergence from a twin is %g", r.Loss)
	}
}

// moves checks that a step changes the weights of Step.Trains and no others.
func (s suite) moves(t *testing.T) {
	e := s.engine(t)
	c := studentConfig()
	b := batch(c, 2, 20, 22)
	before := random(c, 23)
	for name, st := range objectives(c, b, s.model(t, e, random(teacherConfig(), 24))) {
		m := s.model(t, e, before)
		step(t, m, st)
		o, err := m.Optimizer()
		if err != nil {
			t.Fatal(err)
		}
		after := weights(t, m)
		for _, spec := range c.Specs() {
			moved := false
			for i, v := range after[spec.Name] {
				moved = moved || v != before.Weights[spec.Name][i]
			}
			if moved != st.Trains(spec) {
				t.Errorf("%s: %s moved: %v, want %v", name, spec.Name, moved, st.Trains(spec))
			}
			if trained := o.Steps[spec.Name] == 1; trained != st.Trains(spec) || len(o.Steps) != len(o.Mean) || len(o.Mean) != len(o.Variance) {
				t.Errorf("%s: the optimiser counts %d steps of %s", name, o.Steps[spec.Name], spec.Name)
			}
		}
		m.Close()
	}
}

// resume checks that stopping, copying weights and optimiser state out and
// into a new engine, and going on gives the bits of not stopping, across a
// change of layer.
func (s suite) resume(t *testing.T) {
	c := studentConfig()
	b := batch(c, 3, 31, 25)
	run := func(stop int) (map[string][]float32, []float64) {
		e := s.engine(t)
		m, teacher := s.model(t, e, random(c, 26)), s.model(t, e, random(teacherConfig(), 27))
		var losses []float64
		for i := range 8 {
			if i == stop {
				w, err := m.Model()
				if err != nil {
					t.Fatal(err)
				}
				o, err := m.Optimizer()
				if err != nil {
					t.Fatal(err)
				}
				m.Close()
				e = s.engine(t)
				m, teacher = s.model(t, e, w), s.model(t, e, random(teacherConfig(), 27))
				if err := m.Restore(o); err != nil {
					t.Fatal(err)
				}
			}
			kinds := objectives(c, b, teacher)
			st := kinds[[]string{"layer-mse-0", "layer-mse-0", "layer-mse-1", "layer-mse-1", "joint-mse", "cross-entropy", "cross-entropy", "soft-targets"}[i]]
			losses = append(losses, step(t, m, st).Loss)
		}
		return weights(t, m), losses
	}
	want, losses := run(-1)
	for _, stop := range []int{1, 3, 6} {
		got, l := run(stop)
		if s.tol.Precision == gpu.Float64 { // which a checkpoint rounds to float32
			for i := range l {
				if math.Abs(l[i]-losses[i]) > 1e-5*losses[i] {
					t.Errorf("stopped before step %d: loss %d is %.9g, want %.9g", stop, i, l[i], losses[i])
				}
			}
			continue
		}
		for i := range l {
			if l[i] != losses[i] {
				t.Errorf("stopped before step %d: loss %d is %.17g, want %.17g", stop, i, l[i], losses[i])
			}
		}
		sameWeights(t, fmt.Sprintf("stopped before step %d", stop), got, want)
	}
}

func (s suite) sameBits(t *testing.T) {
	for _, c := range []checkpoint.Config{teacherConfig(), studentConfig()} {
		b := batch(c, 5, 33, 28)
		run := func() (map[string][]float32, map[string][]float32) {
			e := s.engine(t)
			m, teacher := s.model(t, e, random(c, 29)), s.model(t, e, random(teacherConfig(), 30))
			kinds := objectives(c, b, teacher)
			for _, k := range []string{"joint-mse", "cross-entropy", "soft-targets", "joint-mse"} {
				step(t, m, kinds[k])
			}
			_, g := gradients(t, m, kinds["joint-mse"])
			return weights(t, m), g
		}
		want, wantG := run()
		for range 3 {
			got, g := run()
			sameWeights(t, c.Architecture+" weights", got, want)
			sameWeights(t, c.Architecture+" gradients", g, wantG)
		}
	}
}

func (s suite) memory(t *testing.T) {
	e := s.engine(t)
	c := studentConfig()
	m, teacher := s.model(t, e, random(c, 37)), s.model(t, e, random(teacherConfig(), 38))
	kinds := objectives(c, batch(c, 4, 32, 39), teacher)
	round := func() int64 {
		for _, name := range []string{"layer-mse-0", "layer-mse-1", "layer-mse-2", "joint-mse", "cross-entropy", "soft-targets"} {
			step(t, m, kinds[name])
		}
		used, _ := e.Memory()
		return used
	}
	round()
	first := round()
	for range 20 {
		round()
	}
	if last := round(); last > first {
		t.Errorf("memory grew from %d to %d bytes over 20 rounds", first, last)
	}
	if e.Device() == "" {
		t.Error("the device has no name")
	}
}
