package enginetest

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/scavenge/scavenge/gpu"
	"github.com/scavenge/scavenge/schemas/activation"
	"github.com/scavenge/scavenge/schemas/checkpoint"
	"github.com/scavenge/scavenge/schemas/dtype"
)

// causal checks that a token changes nothing before it, bit for bit or, where
// an engine convolves by Fourier transforms, within their rounding, and does
// change what follows.
func (s suite) causal(t *testing.T) {
	e := s.engine(t)
	for _, c := range []checkpoint.Config{teacherConfig(), studentConfig()} {
		m := s.model(t, e, random(c, 40))
		b := batch(c, 2, c.Context, 41)
		last := c.Layers - 1
		want := hidden(t, m, b, last)[0]
		for _, at := range []int{0, 1, 2, 15, 16, c.Context - 1} {
			changed := gpu.Batch{Rows: b.Rows, Length: b.Length, Tokens: append([]int32(nil), b.Tokens...)}
			changed.Tokens[at] = (changed.Tokens[at] + 1) % int32(c.Vocab) // in the first row
			got := hidden(t, m, changed, last)[0]
			what := fmt.Sprintf("%s, token %d changed", c.Architecture, at)
			if before := what + ": before it"; s.tol.Leak > 0 && at > 0 {
				near(t, before, got[:at*c.Dim], want[:at*c.Dim], s.tol.Leak)
			} else {
				same(t, before, got[:at*c.Dim], want[:at*c.Dim])
			}
			same(t, what+": the other row", got[c.Context*c.Dim:], want[c.Context*c.Dim:])
			for p := at; p < c.Context; p++ {
				if d, _ := distance(got[p*c.Dim:(p+1)*c.Dim], want[p*c.Dim:(p+1)*c.Dim]); d == 0 {
					t.Errorf("%s: position %d is the same", what, p)
				}
			}
		}
		m.Close()
	}
}

func (s suite) scores(t *testing.T) {
	e := s.engine(t)
	for _, c := range []checkpoint.Config{teacherConfig(), studentConfig()} {
		m := s.model(t, e, random(c, 42))
		b := batch(c, 3, 23, 43)
		logits, err := m.Logits(b)
		if err != nil {
			t.Fatal(err)
		}
		got, err := m.Score(b)
		if err != nil {
			t.Fatal(err)
		}
		var want []float32
		mean := 0.0
		for i := range b.Tokens {
			if i%b.Length == b.Length-1 {
				continue
			}
			row := logits[i*c.Vocab : (i+1)*c.Vocab]
			sum := 0.0
			for _, v := range row {
				sum += math.Exp(float64(v))
			}
			nll := math.Log(sum) - float64(row[b.Tokens[i+1]])
			want = append(want, float32(nll))
			mean += nll / float64(b.Rows*(b.Length-1))
		}
		near(t, c.Architecture+": scores", got, want, s.tol.Output)
		if r, _ := gradients(t, m, gpu.Step{Batch: b, Objective: gpu.CrossEntropy}); math.Abs(r.Loss-mean) > s.tol.Output*mean {
			t.Errorf("%s: the loss is %.8g, the mean score %.8g", c.Architecture, r.Loss, mean)
		}
		one, err := m.Score(gpu.Batch{Rows: 2, Length: 1, Tokens: []int32{1, 2}})
		if err != nil || len(one) != 0 {
			t.Errorf("%s: rows of one token score %v, %v", c.Architecture, one, err)
		}
		m.Close()
	}
}

// batchInvariance checks that a row's scores do not depend on the rows beside it.
func (s suite) batchInvariance(t *testing.T) {
	e := s.engine(t)
	for _, c := range []checkpoint.Config{teacherConfig(), studentConfig()} {
		m := s.model(t, e, random(c, 44))
		b := batch(c, 13, 29, 45)
		all, err := m.Score(b)
		if err != nil {
			t.Fatal(err)
		}
		for _, part := range [][2]int{{0, 1}, {4, 5}, {12, 13}, {2, 9}} {
			got, err := m.Score(gpu.Batch{Rows: part[1] - part[0], Length: 29, Tokens: b.Tokens[part[0]*29 : part[1]*29]})
			if err != nil {
				t.Fatal(err)
			}
			near(t, fmt.Sprintf("%s: rows %d to %d", c.Architecture, part[0], part[1]), got, all[part[0]*28:part[1]*28], s.tol.Output/10)
		}
		m.Close()
	}
}

// inRows is a target with its values in pieces, which lie apart.
func inRows(g gpu.Target, rows int) gpu.Target {
	for piece := range slices.Chunk(g.Values, len(g.Values)/rows) {
		g.Rows = append(g.Rows, slices.Clone(piece))
	}
	g.Values = nil
	return g
}

// targetTypes checks that a target in each of the formats that records come in,
// in one or in rows, is read as the values it stands for.
func (s suite) targetTypes(t *testing.T) {
	e := s.engine(t)
	c := studentConfig()
	m := s.model(t, e, random(c, 46))
	b := batch(c, 2, 14, 47)
	exact := make([]float32, len(b.Tokens)*c.Dim)
	if err := target(c, b, 1, 48).Decode(exact); err != nil {
		t.Fatal(err)
	}
	var check func(g gpu.Target)
	check = func(g gpu.Target) {
		t.Helper()
		if g.Rows == nil {
			defer check(inRows(g, b.Rows))
		}
		values := make([]float32, len(exact))
		if err := g.Decode(values); err != nil {
			t.Fatal(err)
		}
		if d, _ := distance(values, exact); d > 2e-2 {
			t.Errorf("%s: a decoded target is off by %g", g.Type, d)
		}
		got, grads := gradients(t, m, gpu.Step{Batch: b, Objective: gpu.LayerMSE, Layer: 1, Targets: []gpu.Target{g}})
		want, wantGrads := gradients(t, m, gpu.Step{Batch: b, Objective: gpu.LayerMSE, Layer: 1, Targets: []gpu.Target{encode(1, values)}})
		if got.Loss != want.Loss {
			t.Errorf("%s: loss %.9g, from the same values in float32 %.9g", g.Type, got.Loss, want.Loss)
		}
		sameWeights(t, string(g.Type)+" target", grads, wantGrads)
	}
	for _, typ := range []dtype.Type{dtype.Float32, dtype.Float16, dtype.BFloat16} {
		data, err := dtype.Encode(nil, typ, exact)
		if err != nil {
			t.Fatal(err)
		}
		check(gpu.Target{Layer: 1, Type: typ, Values: data})
	}
	int8s := gpu.Target{Layer: 1, Type: dtype.Int8}
	for i := range b.Tokens {
		row := exact[i*c.Dim : (i+1)*c.Dim]
		top := 0.0
		for _, v := range row {
			top = max(top, math.Abs(float64(v)))
		}
		scale := float32(top / 127)
		int8s.Scales = append(int8s.Scales, scale)
		for _, v := range row {
			int8s.Values = append(int8s.Values, byte(int8(math.Round(float64(v/scale)))))
		}
	}
	check(int8s)
}

// teacherBeside checks that a step with a teacher gives, bit for bit, what the
// teacher's outputs give as targets, rounded to each type that records have.
func (s suite) teacherBeside(t *testing.T) {
	e := s.engine(t)
	c := studentConfig()
	m, teacher := s.model(t, e, random(c, 53)), s.model(t, e, random(teacherConfig(), 54))
	for i, typ := range []dtype.Type{dtype.Float32, dtype.Float16, dtype.BFloat16, dtype.Int8} {
		b := batch(c, 3, 11+i, 55)
		for name, layers := range map[gpu.Objective][]int{gpu.LayerMSE: {1}, gpu.JointMSE: {0, 2}} {
			hidden, err := teacher.Hidden(b, layers)
			if err != nil {
				t.Fatal(err)
			}
			recorded := gpu.Step{Batch: b, Objective: name, Layer: layers[0]}
			beside := recorded
			beside.Teacher = teacher
			for k, layer := range layers {
				g := gpu.Target{Layer: layer, Type: typ}
				beside.Targets = append(beside.Targets, g)
				if g.Values, g.Scales, err = activation.Encode(typ, hidden[k], c.Dim); err != nil {
					t.Fatal(err)
				}
				recorded.Targets = append(recorded.Targets, g)
			}
			want, wantGrads := gradients(t, m, recorded)
			for range 3 { // an engine may take other ways from the second step on
				got, grads := gradients(t, m, beside)
				if got.Loss != want.Loss || !(got.Loss > 0) {
					t.Errorf("%s, %s: loss %.9g with the teacher beside, %.9g from its outputs", name, typ, got.Loss, want.Loss)
				}
				sameWeights(t, fmt.Sprintf("%s, %s", name, typ), grads, wantGrads)
			}
		}
	}
}

// refusals checks that bad input is an error that says what is wrong, and that
// the model goes on working after it.
func (s suite) refusals(t *testing.T) {
	e := s.engine(t)
	c := studentConfig()
	m, teacher := s.model(t, e, random(c, 49)), s.model(t, e, random(teacherConfig(), 50))
	b := batch(c, 2, 10, 51)
	good := target(c, b, 1, 52)
	withTokens := func(i int, id int32) gpu.Batch {
		x := gpu.Batch{Rows: b.Rows, Length: b.Length, Tokens: append([]int32(nil), b.Tokens...)}
		x.Tokens[i] = id
		return x
	}
	short, scales, doubles := good, good, good
	short.Values = short.Values[:len(short.Values)-4]
	scales.Type, scales.Values, scales.Scales = dtype.Int8, make([]byte, len(b.Tokens)*c.Dim), make([]float32, 3)
	doubles.Type, doubles.Values = dtype.Float64, make([]byte, 8*len(b.Tokens)*c.Dim)
	uneven := inRows(good, b.Rows)
	uneven.Rows[0], uneven.Rows[1] = append(uneven.Rows[0], 0, 0, 0, 0), uneven.Rows[1][4:]
	other := random(teacherConfig(), 50)
	other.Config.Vocab = 50
	other.Weights[checkpoint.EmbedIn], other.Weights[checkpoint.EmbedOut] = make([]float32, 50*c.Dim), make([]float32, 50*c.Dim)

	before := weights(t, m)
	for _, x := range []struct {
		name, says string
		call       func() error
	}{
		{"too few tokens", "do not make", func() error {
			_, err := m.Score(gpu.Batch{Rows: 2, Length: 10, Tokens: b.Tokens[:19]})
			return err
		}},
		{"no rows", "do not make", func() error { _, err := m.Logits(gpu.Batch{}); return err }},
		{"negative length", "do not make", func() error {
			_, err := m.Logits(gpu.Batch{Rows: -2, Length: -10, Tokens: b.Tokens})
			return err
		}},
		{"longer than the context", "context", func() error { _, err := m.Score(batch(c, 1, c.Context+1, 1)); return err }},
		{"id past the vocabulary", "row 1", func() error { _, err := m.Score(withTokens(13, int32(c.Vocab))); return err }},
		{"negative id", "row 0", func() error { _, err := m.Hidden(withTokens(4, -1), []int{0}); return err }},
		{"layer past the last", "layers", func() error { _, err := m.Hidden(b, []int{0, c.Layers}); return err }},
		{"layers not ascending", "layers", func() error { _, err := m.Hidden(b, []int{1, 1}); return err }},
		{"no layers", "layer", func() error { _, err := m.Hidden(b, nil); return err }},
		{"unknown objective", "objective", func() error { _, err := m.Step(gpu.Step{Batch: b, Objective: "mse"}); return err }},
		{"another layer's target", "layer", func() error {
			_, err := m.Step(gpu.Step{Batch: b, Objective: gpu.LayerMSE, Layer: 0, Targets: []gpu.Target{good}})
			return err
		}},
		{"no target", "target", func() error { _, err := m.Step(gpu.Step{Batch: b, Objective: gpu.JointMSE}); return err }},
		{"targets not ascending", "ascending", func() error {
			_, err := m.Step(gpu.Step{Batch: b, Objective: gpu.JointMSE, Targets: []gpu.Target{good, good}})
			return err
		}},
		{"a short target", "bytes", func() error {
			_, err := m.Step(gpu.Step{Batch: b, Objective: gpu.LayerMSE, Layer: 1, Targets: []gpu.Target{short}})
			return err
		}},
		{"rows of more than one length", "row 0", func() error {
			_, err := m.Step(gpu.Step{Batch: b, Objective: gpu.LayerMSE, Layer: 1, Targets: []gpu.Target{uneven}})
			return err
		}},
		{"one row too few", "rows", func() error {
			_, err := m.Step(gpu.Step{Batch: b, Objective: gpu.LayerMSE, Layer: 1, Targets: []gpu.Target{inRows(good, 1)}})
			return err
		}},
		{"int8 without its scales", "scales", func() error {
			_, err := m.Step(gpu.Step{Batch: b, Objective: gpu.LayerMSE, Layer: 1, Targets: []gpu.Target{scales}})
			return err
		}},
		{"values beside a teacher", "teacher", func() error {
			_, err := m.Step(gpu.Step{Batch: b, Objective: gpu.LayerMSE, Layer: 1, Targets: []gpu.Target{good}, Teacher: teacher})
			return err
		}},
		{"a teacher with too few layers", "layers", func() error {
			few := random(teacherConfig(), 50)
			few.Config.Layers = 1
			for _, spec := range random(teacherConfig(), 50).Config.Specs() {
				if spec.Layer > 0 {
					delete(few.Weights, spec.Name)
				}
			}
			x := s.model(t, e, few)
			defer x.Close()
			_, err := m.Step(gpu.Step{Batch: b, Objective: gpu.LayerMSE, Layer: 1, Targets: []gpu.Target{{Layer: 1, Type: dtype.Float16}}, Teacher: x})
			return err
		}},
		{"a float64 target", "F64", func() error {
			_, err := m.Step(gpu.Step{Batch: b, Objective: gpu.LayerMSE, Layer: 1, Targets: []gpu.Target{doubles}})
			return err
		}},
		{"cross entropy of single tokens", "2 tokens", func() error {
			_, err := m.Step(gpu.Step{Batch: batch(c, 3, 1, 1), Objective: gpu.CrossEntropy})
			return err
		}},
		{"soft targets without a teacher", "teacher", func() error {
			_, err := m.Step(gpu.Step{Batch: b, Objective: gpu.SoftTargets, Temperature: 1, SoftWeight: 1})
			return err
		}},
		{"temperature zero", "temperature", func() error {
			_, err := m.Step(gpu.Step{Batch: b, Objective: gpu.SoftTargets, Teacher: teacher, SoftWeight: 1})
			return err
		}},
		{"a teacher of another vocabulary", "vocabulary", func() error {
			x := s.model(t, e, other)
			defer x.Close()
			_, err := m.Step(gpu.Step{Batch: b, Objective: gpu.SoftTargets, Teacher: x, Temperature: 1, SoftWeight: 1})
			return err
		}},
		{"a teacher of another engine", "another engine", func() error {
			x := s.model(t, s.engine(t), random(teacherConfig(), 50))
			_, err := m.Step(gpu.Step{Batch: b, Objective: gpu.SoftTargets, Teacher: x, Temperature: 1, SoftWeight: 1})
			return err
		}},
		{"a rate that is not a number", "rate", func() error {
			_, err := m.Step(gpu.Step{Batch: b, Objective: gpu.CrossEntropy, Rate: math.NaN()})
			return err
		}},
		{"a step of a model that was not opened to train", "Train", func() error {
			x, err := e.Open(random(c, 49), gpu.Options{Precision: s.tol.Precision})
			if err != nil {
				t.Fatal(err)
			}
			defer x.Close()
			_, err = x.Step(gpu.Step{Batch: b, Objective: gpu.CrossEntropy})
			return err
		}},
		{"a missing weight", checkpoint.EmbedOut, func() error {
			x := random(c, 49)
			delete(x.Weights, checkpoint.EmbedOut)
			_, err := e.Open(x, gpu.Options{Precision: s.tol.Precision})
			return err
		}},
		{"a misshapen weight", checkpoint.FinalBias, func() error {
			x := random(c, 49)
			x.Weights[checkpoint.FinalBias] = make([]float32, 3)
			_, err := e.Open(x, gpu.Options{Precision: s.tol.Precision})
			return err
		}},
		{"an unknown precision", "precision", func() error { _, err := e.Open(random(c, 49), gpu.Options{Precision: "int4"}); return err }},
		{"a beta of one", "betas", func() error {
			o := gpu.PaperAdamW()
			o.Beta1 = 1
			_, err := e.Open(random(c, 49), gpu.Options{Precision: s.tol.Precision, Train: true, Optimizer: o})
			return err
		}},
		{"optimiser state of an unknown weight", "lm_head", func() error {
			v := make([]float32, 3)
			return m.Restore(&checkpoint.Optimizer{Mean: map[string][]float32{"lm_head": v}, Variance: map[string][]float32{"lm_head": v}, Steps: map[string]int64{"lm_head": 1}})
		}},
		{"optimiser state of another shape", checkpoint.FinalBias, func() error {
			v := make([]float32, 3)
			return m.Restore(&checkpoint.Optimizer{Mean: map[string][]float32{checkpoint.FinalBias: v}, Variance: map[string][]float32{checkpoint.FinalBias: v}, Steps: map[string]int64{checkpoint.FinalBias: 1}})
		}},
		{"a closed model", "closed", func() error {
			x := s.model(t, e, random(c, 49))
			x.Close()
			_, err := x.Score(b)
			return err
		}},
	} {
		err := x.call()
		if err == nil {
			t.Errorf("%s: no error", x.name)
		} else if !strings.Contains(err.Error(), x.says) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: the error does not say %q in one line: %v", x.name, x.says, err)
		}
	}
	sameWeights(t, "after refusals", weights(t, m), before)
	step(t, m, gpu.Step{Batch: b, Objective: gpu.LayerMSE, Layer: 1, Targets: []gpu.Target{good}, Rate: 1e-3})
}
