package cpu

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/scavenge/scavenge/gpu"
	"github.com/scavenge/scavenge/gpu/enginetest"
	"github.com/scavenge/scavenge/schemas/checkpoint"
)

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

// TestResultsDoNotDependOnThreads steps both models with 1, 2 and 5 threads.
func TestResultsDoNotDependOnThreads(t *testing.T) {
	teacher := checkpoint.Config{Architecture: checkpoint.GPTNeoX, Vocab: 300, Dim: 48, Hidden: 130, Layers: 2, Context: 70, Eps: 1e-5,
		Attention: checkpoint.Attention{Heads: 3, RotaryPct: 0.25, RotaryBase: 10000}}
	student := teacher.Student(checkpoint.DefaultHyena(), 70)
	b := gpu.Batch{Rows: 9, Length: 70}
	for i := range b.Rows * b.Length {
		b.Tokens = append(b.Tokens, int32(i*i%300))
	}
	var want map[string][]float32
	for _, threads := range []int{1, 2, 5} {
		e, err := gpu.Open(fmt.Sprintf("cpu:%d", threads))
		if err != nil {
			t.Fatal(err)
		}
		got := map[string][]float32{}
		for _, c := range []checkpoint.Config{teacher, student} {
			m, err := e.Open(small(c), gpu.Options{Train: true})
			if err != nil {
				t.Fatal(err)
			}
			for range 2 {
				if _, err := m.Step(gpu.Step{Batch: b, Objective: gpu.CrossEntropy, Rate: 1e-3}); err != nil {
					t.Fatal(err)
				}
			}
			after, err := m.Model()
			if err != nil {
				t.Fatal(err)
			}
			for name, w := range after.Weights {
				got[c.Architecture+" "+name] = w
			}
		}
		if want == nil {
			want = got
		}
		for name, w := range want {
			for i := range w {
				if math.Float32bits(got[name][i]) != math.Float32bits(w[i]) {
					t.Fatalf("%d threads: %s: element %d is %g, with one thread %g", threads, name, i, got[name][i], w[i])
				}
			}
		}
		if err := e.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestOpenRefusesImpossibleThreads(t *testing.T) {
	for _, device := range []string{"cpu:0", "cpu:-1", "cpu:many", "cpu:99999"} {
		if _, err := gpu.Open(device); !errors.Is(err, gpu.ErrDevice) {
			t.Errorf("%s: %v", device, err)
		}
	}
}

// small is a model of random weights.
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
