// Package enginetest is the suite that every gpu.Engine must pass. An engine's
// tests call Run with a function that opens it; nothing here knows which engine
// it is. Expected values come from PyTorch and transformers in float64: a small
// case that is built in, and the larger ones of ../shared/golden where that
// folder is found.
package enginetest

import (
	"errors"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/scavenge/scavenge/gpu"
	"github.com/scavenge/scavenge/schemas/checkpoint"
	"github.com/scavenge/scavenge/schemas/dtype"
)

// Tolerances bound ‖a − b‖/‖b‖ between an engine and the expected values, a
// tensor at a time.
type Tolerances struct {
	Precision gpu.Precision // that models are opened with
	Output    float64       // hidden states, logits, scores, losses
	Gradient  float64       // each weight's gradient
	Median    float64       // the median of those of a step
	Prefix    float64       // gradients of a block alone, from those in the whole graph: an engine may round what frozen blocks give it
	Start     float64       // losses before the first three steps of training
	Curve     float64       // losses of ten steps; see curvesAgree
	Slope     float64       // finite differences; 0: gradients are compared with the engine's own in float32
	Epsilon   float64       // how far weights are moved for those
	Leak      float64       // what precedes a changed token, between the two outputs; 0: bit for bit
	Longest   int           // sequence that is tried, in tokens
}

// longest takes an engine whose convolution costs L² operations about a second.
const longest = 8193

// Float64 are the tolerances of an engine that computes and keeps everything
// in float64: what is left is the rounding of the golden vectors and of weights
// in checkpoints.
func Float64() Tolerances {
	return Tolerances{Precision: gpu.Float64, Output: 1e-6, Gradient: 1e-6, Median: 1e-6, Prefix: 1e-7, Start: 1e-6, Curve: 1e-4, Slope: 1e-4, Epsilon: 1e-4, Longest: longest}
}

// Float32 are the tolerances of an engine that computes in float32.
func Float32() Tolerances {
	return Tolerances{Precision: gpu.Float32, Output: 1e-4, Gradient: 1e-4, Median: 1e-4, Prefix: 1e-5, Start: 1e-4, Curve: 0.15, Slope: 1e-2, Epsilon: 1e-3, Longest: longest}
}

// BFloat16 are those of one whose matrix products are in bf16, in which finite
// differences drown, and of which the third loss of a curve already is far off:
// AdamW's first steps have each gradient's sign and not its size. The bounds on
// gradients are what PyTorch's autocast to bf16 needs on an H100: over other tokens
// for the tiny golden case its worst gradient, of the KL, is off by 0.036 to
// 0.071, and half of a step's gradients by less than 0.026.
func BFloat16() Tolerances {
	return Tolerances{Precision: gpu.BFloat16, Output: 2e-2, Gradient: 7.5e-2, Median: 3e-2, Prefix: 2e-2, Start: 0.1, Curve: 0.3, Longest: longest}
}

// suite is one run of the tests.
type suite struct {
	open func() gpu.Engine
	tol  Tolerances
}

// Run runs every test of the suite on engines that open makes.
func Run(t *testing.T, open func() gpu.Engine, tol Tolerances) {
	s := suite{open, tol}
	for _, c := range []struct {
		name string
		test func(*testing.T)
	}{
		{"AgreesWithPyTorch", s.golden},
		{"GradientsAreSlopes", s.slopes},
		{"OddLengths", s.lengths},
		{"LongSequences", s.long},
		{"GradientOfABatchIsTheMeanOfItsRows", s.rows},
		{"FrozenPrefixChangesNoGradient", s.frozenPrefix},
		{"KeptPrefixChangesNoBit", s.keptPrefix},
		{"JointErrorIsTheSumOfTheLayers", s.jointSum},
		{"SoftTargetsMixTheirTwoLosses", s.softMix},
		{"StepsMoveWhatTheObjectiveTrains", s.moves},
		{"ResumeIsBitIdentical", s.resume},
		{"SameSeedSameBits", s.sameBits},
		{"UpdatesAreAdamW", s.updates},
		{"OutputsAreCausal", s.causal},
		{"ScoresAreOfTheLogits", s.scores},
		{"ScoresDoNotDependOnTheBatch", s.batchInvariance},
		{"TargetsOfEveryTypeDecode", s.targetTypes},
		{"TeacherBesideGivesRecordedTargets", s.teacherBeside},
		{"ClippingBoundsTheNorm", s.clipping},
		{"DecayShrinksUnusedRows", s.decay},
		{"NothingMovesWhereTheLossIsNotFinite", s.notFinite},
		{"BadInputIsRefused", s.refusals},
		{"MemoryIsFlatOverSteps", s.memory},
	} {
		t.Run(c.name, c.test)
	}
}

// Two small configurations that share a vocabulary.
func teacherConfig() checkpoint.Config {
	return checkpoint.Config{Architecture: checkpoint.GPTNeoX, Vocab: 67, Dim: 16, Hidden: 40, Layers: 3, Context: 37, Eps: 1e-5,
		Attention: checkpoint.Attention{Heads: 2, RotaryPct: 0.5, RotaryBase: 10000}}
}

func studentConfig() checkpoint.Config {
	return teacherConfig().Student(checkpoint.Hyena{Width: 8, Features: 5, SineFreq: 14, Fast: 0.3, Slow: 1.5, Target: 0.01}, 37)
}

func source(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 0x5ca7e26e)) }

// random is a model whose weights are large enough that an error in any term shows.
func random(c checkpoint.Config, seed uint64) *checkpoint.Model {
	r := source(seed)
	m := &checkpoint.Model{Config: c, Weights: map[string][]float32{}}
	for _, s := range c.Specs() {
		w := make([]float32, s.Size())
		mean, scale := 0.0, 0.1
		switch {
		case s.Name == checkpoint.EmbedIn:
			scale = 0.5
		case len(s.Shape) >= 2:
			scale = 1 / math.Sqrt(float64(s.Size()/s.Shape[0]))
		case s.Name == checkpoint.FinalScale || len(s.Name) > 16 && s.Name[len(s.Name)-16:] == "layernorm.weight":
			mean, scale = 1, 0.2
		case len(s.Name) > 5 && s.Name[len(s.Name)-5:] == ".freq":
			mean, scale = c.Hyena.SineFreq/10, 0.3 // small enough for finite differences
		}
		for i := range w {
			w[i] = float32(mean + scale*r.NormFloat64())
		}
		m.Weights[s.Name] = w
	}
	return m
}

func batch(c checkpoint.Config, rows, length int, seed uint64) gpu.Batch {
	r := source(seed)
	b := gpu.Batch{Rows: rows, Length: length}
	for range rows * length {
		b.Tokens = append(b.Tokens, r.Int32N(int32(c.Vocab)))
	}
	return b
}

// target is a float32 target of random values.
func target(c checkpoint.Config, b gpu.Batch, layer int, seed uint64) gpu.Target {
	r := source(seed)
	v := make([]float32, len(b.Tokens)*c.Dim)
	for i := range v {
		v[i] = float32(r.NormFloat64())
	}
	return encode(layer, v)
}

func encode(layer int, v []float32) gpu.Target {
	data, err := dtype.Encode(nil, dtype.Float32, v)
	if err != nil {
		panic(err) // float32 encodes
	}
	return gpu.Target{Layer: layer, Type: dtype.Float32, Values: data}
}

// engine opens an engine that the test closes.
func (s suite) engine(t *testing.T) gpu.Engine {
	t.Helper()
	e := s.open()
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return e
}

// model opens a model to train.
func (s suite) model(t *testing.T, e gpu.Engine, m *checkpoint.Model) gpu.Model {
	t.Helper()
	g, err := e.Open(m, gpu.Options{Precision: s.tol.Precision, Train: true, Optimizer: gpu.PaperAdamW()})
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	return g
}

func step(t *testing.T, m gpu.Model, s gpu.Step) gpu.Result {
	t.Helper()
	r, err := m.Step(s)
	if err != nil {
		t.Fatalf("step: %v", err)
	}
	return r
}

func gradients(t *testing.T, m gpu.Model, s gpu.Step) (gpu.Result, map[string][]float32) {
	t.Helper()
	r, g, err := m.Gradients(s)
	if err != nil {
		t.Fatalf("gradients: %v", err)
	}
	return r, g
}

func weights(t *testing.T, m gpu.Model) map[string][]float32 {
	t.Helper()
	c, err := m.Model()
	if err != nil {
		t.Fatalf("model: %v", err)
	}
	return c.Weights
}

func hidden(t *testing.T, m gpu.Model, b gpu.Batch, layers ...int) [][]float32 {
	t.Helper()
	h, err := m.Hidden(b, layers)
	if err != nil {
		t.Fatalf("hidden: %v", err)
	}
	return h
}

// near fails where ‖got − want‖ > tol·‖want‖.
func near(t *testing.T, what string, got, want []float32, tol float64) {
	t.Helper()
	if e, err := distance(got, want); err != nil {
		t.Errorf("%s: %v", what, err)
	} else if !(e <= tol) {
		t.Errorf("%s: off by %.3g, at most %.3g is allowed; got %.6g …, want %.6g …", what, e, tol, got[:min(4, len(got))], want[:min(4, len(want))])
	}
}

func distance(got, want []float32) (float64, error) {
	if len(got) != len(want) {
		return 0, errors.New("lengths differ")
	}
	var d, n float64
	for i, w := range want {
		e := float64(got[i]) - float64(w)
		d += e * e
		n += float64(w) * float64(w)
	}
	if n == 0 {
		return math.Sqrt(d), nil
	}
	return math.Sqrt(d / n), nil
}

// same fails where any bit differs.
func same(t *testing.T, what string, got, want []float32) {
	t.Helper()
	if len(got) != len(want) {
		t.Errorf("%s: %d values, want %d", what, len(got), len(want))
		return
	}
	for i := range got {
		if math.Float32bits(got[i]) != math.Float32bits(want[i]) {
			t.Errorf("%s: element %d of %d is %.9g, want %.9g", what, i, len(got), got[i], want[i])
			return
		}
	}
}

func sameWeights(t *testing.T, what string, got, want map[string][]float32) {
	t.Helper()
	if len(got) != len(want) {
		t.Errorf("%s: %d tensors, want %d", what, len(got), len(want))
	}
	for name, w := range want {
		same(t, what+": "+name, got[name], w)
	}
}

// objectives are steps of every kind over a batch, for a student.
func objectives(c checkpoint.Config, b gpu.Batch, teacher gpu.Model) map[string]gpu.Step {
	all := map[string]gpu.Step{}
	var joint []gpu.Target
	for i := range c.Layers {
		t := target(c, b, i, uint64(100+i))
		if i != 1 { // a layer in between without a target
			joint = append(joint, t)
		}
		all["layer-mse-"+string(rune('0'+i))] = gpu.Step{Batch: b, Objective: gpu.LayerMSE, Layer: i, Targets: []gpu.Target{t}, Rate: 1e-3}
	}
	all["joint-mse"] = gpu.Step{Batch: b, Objective: gpu.JointMSE, Targets: joint, Rate: 1e-3}
	if b.Length > 1 {
		all["cross-entropy"] = gpu.Step{Batch: b, Objective: gpu.CrossEntropy, Rate: 1e-3}
		all["soft-targets"] = gpu.Step{Batch: b, Objective: gpu.SoftTargets, Teacher: teacher, Temperature: 2, SoftWeight: 0.6, Rate: 1e-3}
	}
	return all
}
