package cpu

import (
	"math/rand/v2"
	"testing"

	"github.com/scavenge/scavenge/gpu"
	"github.com/scavenge/scavenge/gpu/enginetest"
	"github.com/scavenge/scavenge/schemas/checkpoint"
	"github.com/scavenge/scavenge/schemas/dtype"
)

// benchConfig is the reference shape: about the default experiment's models.
func benchConfig(vocab int) checkpoint.Config {
	return checkpoint.Config{Architecture: checkpoint.GPTNeoX, Vocab: vocab, Dim: 128, Hidden: 512, Layers: 4, Context: 128, Eps: 1e-5,
		Attention: checkpoint.Attention{Heads: 4, RotaryPct: 0.25, RotaryBase: 10000}}
}

func small(c checkpoint.Config) *checkpoint.Model {
	r := rand.New(rand.NewPCG(11, 12))
	m := &checkpoint.Model{Config: c, Weights: map[string][]float32{}}
	for _, s := range c.Specs() {
		w := make([]float32, s.Size())
		for i := range w {
			w[i] = float32(0.02 * r.NormFloat64())
		}
		m.Weights[s.Name] = w
	}
	return m
}

// BenchmarkStep reports tokens a second at dim 128, 4 layers, 4 heads, MLP 512,
// context 128, batch 16, as many threads as -cpu gives.
func BenchmarkStep(b *testing.B) {
	for _, vocab := range []int{2048, 4096} {
		attention := benchConfig(vocab)
		hyena := attention.Student(checkpoint.DefaultHyena(), 128)
		r := rand.New(rand.NewPCG(1, 1))
		batch := gpu.Batch{Rows: 16, Length: 128}
		for range batch.Rows * batch.Length {
			batch.Tokens = append(batch.Tokens, r.Int32N(int32(vocab)))
		}
		run := func(name string, c checkpoint.Config, f func(m gpu.Model, teacher gpu.Model) error) {
			b.Run(name, func(b *testing.B) {
				e, err := gpu.Open("cpu")
				if err != nil {
					b.Fatal(err)
				}
				defer e.Close()
				m, err := e.Open(small(c), gpu.Options{Train: true})
				if err != nil {
					b.Fatal(err)
				}
				teacher, err := e.Open(small(attention), gpu.Options{})
				if err != nil {
					b.Fatal(err)
				}
				if err := f(m, teacher); err != nil { // the first step makes the buffers
					b.Fatal(err)
				}
				b.ReportAllocs()
				for b.Loop() {
					if err := f(m, teacher); err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric(float64(len(batch.Tokens)*b.N)/b.Elapsed().Seconds(), "tokens/s")
			})
		}
		tag := map[int]string{2048: "vocab2048", 4096: "vocab4096"}[vocab]
		step := func(s gpu.Step) func(m, teacher gpu.Model) error {
			s.Batch, s.Rate = batch, 1e-4
			return func(m, teacher gpu.Model) error {
				if s.Objective == gpu.SoftTargets {
					s.Teacher, s.Temperature, s.SoftWeight = teacher, 2, 0.5
				}
				_, err := m.Step(s)
				return err
			}
		}
		run("ce-attention/"+tag, attention, step(gpu.Step{Objective: gpu.CrossEntropy}))
		run("ce-hyena/"+tag, hyena, step(gpu.Step{Objective: gpu.CrossEntropy}))
		if vocab == 4096 {
			run("soft-hyena/"+tag, hyena, step(gpu.Step{Objective: gpu.SoftTargets}))
			continue
		}
		run("score-hyena/"+tag, hyena, func(m, _ gpu.Model) error { _, err := m.Score(batch); return err })
		run("teacher-hidden", attention, func(m, _ gpu.Model) error { _, err := m.Hidden(batch, []int{0, 1, 2, 3}); return err })
		values, err := dtype.Encode(nil, dtype.Float16, make([]float32, len(batch.Tokens)*hyena.Dim))
		if err != nil {
			b.Fatal(err)
		}
		var all []gpu.Target
		for i := range hyena.Layers {
			t := gpu.Target{Layer: i, Type: dtype.Float16, Values: values}
			all = append(all, t)
			run("layer-mse-"+string(rune('0'+i)), hyena, step(gpu.Step{Objective: gpu.LayerMSE, Layer: i, Targets: []gpu.Target{t}}))
		}
		run("joint-mse", hyena, step(gpu.Step{Objective: gpu.JointMSE, Targets: all}))
	}
}

func TestEngine(t *testing.T) {
	open := func() gpu.Engine {
		e, err := gpu.Open("cpu")
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	t.Run("float32", func(t *testing.T) { enginetest.Run(t, open, enginetest.Float32()) })
	t.Run("float64", func(t *testing.T) { enginetest.Run(t, open, enginetest.Float64()) })
}
