//go:build cuda

package cuda

import (
	"fmt"
	"math/rand/v2"
	"sort"
	"testing"

	"gorgonia.org/cu"

	"github.com/scavenge/scavenge/gpu"
	"github.com/scavenge/scavenge/schemas/checkpoint"
	"github.com/scavenge/scavenge/schemas/dtype"
)

// The benchmarks time the device with events, at Pythia-70M's size and a batch
// of 60 × 1024 in bf16, inputs on the device:
//
//	go test -tags cuda -run '^$' -bench . -benchtime 20x ./gpu/cuda
//
// A step is a captured graph from the second on, as in training.

func pythia() checkpoint.Config {
	return checkpoint.Config{Architecture: checkpoint.GPTNeoX, Vocab: 50304, Dim: 512, Hidden: 2048, Layers: 6, Context: 1024, Eps: 1e-5,
		Attention: checkpoint.Attention{Heads: 8, RotaryPct: 0.25, RotaryBase: 10000}}
}

// normals repeats a few normal numbers, which are slow to make by the million.
var normals = func() (v [1<<16 - 1]float32) {
	r := rand.New(rand.NewPCG(1, 2))
	for i := range v {
		v[i] = float32(r.NormFloat64())
	}
	return v
}()

// randomModel has weights of about the size that training starts from.
func randomModel(c checkpoint.Config) *checkpoint.Model {
	m := &checkpoint.Model{Config: c, Weights: map[string][]float32{}}
	for _, s := range c.Specs() {
		w := make([]float32, s.Size())
		for i := range w {
			w[i] = 0.02 * normals[i%len(normals)]
			if len(s.Shape) == 1 && s.Name[len(s.Name)-6:] == "weight" {
				w[i]++
			}
		}
		m.Weights[s.Name] = w
	}
	return m
}

// median reports the median of b.N runs of f on the device's stream after a few to warm up.
func median(b *testing.B, q *queue, f func()) {
	for range 3 {
		f()
	}
	q.wait()
	events := make([]cu.Event, b.N+1)
	for i := range events {
		var err error
		if events[i], err = cu.MakeEvent(cu.DefaultEvent); err != nil {
			b.Fatal(err)
		}
		defer cu.DestroyEvent(&events[i])
	}
	record := func(i int) {
		if err := events[i].Record(q.stream); err != nil {
			b.Fatal(err)
		}
	}
	b.ResetTimer()
	record(0)
	for i := range b.N {
		f()
		record(i + 1)
	}
	q.wait()
	b.StopTimer()
	if err := q.done(); err != nil {
		b.Fatal(err)
	}
	ms := make([]float64, b.N)
	for i := range ms {
		var err error
		if ms[i], err = events[i].Elapsed(events[i+1]); err != nil {
			b.Fatal(err)
		}
	}
	sort.Float64s(ms)
	b.ReportMetric(ms[len(ms)/2], "ms/median")
}

// bench opens an engine and a model, and runs f on the engine's thread.
func bench(b *testing.B, c checkpoint.Config, train bool, f func(e *engine, m *model) error) {
	e, err := open("0")
	if err != nil {
		b.Fatal(err)
	}
	defer e.Close()
	m, err := e.Open(randomModel(c), gpu.Options{Precision: gpu.BFloat16, Train: train, PrefixCache: 1 << 30})
	if err != nil {
		b.Fatal(err)
	}
	if err := e.do(func() error { return f(e, m.(*model)) }); err != nil {
		b.Fatal(err)
	}
}

func zipf(c checkpoint.Config, rows, length int) gpu.Batch {
	z := rand.NewZipf(rand.New(rand.NewPCG(3, 4)), 1.1, 10, uint64(c.Vocab-1))
	b := gpu.Batch{Rows: rows, Length: length}
	for range rows * length {
		b.Tokens = append(b.Tokens, int32(z.Uint64()))
	}
	return b
}

func targets(c checkpoint.Config, b gpu.Batch, layers ...int) (list []gpu.Target) {
	v := make([]float32, len(b.Tokens)*c.Dim)
	for i := range v {
		v[i] = normals[i%len(normals)]
	}
	data, err := dtype.Encode(nil, dtype.Float16, v)
	if err != nil {
		panic(err) // float16 encodes
	}
	for _, l := range layers {
		list = append(list, gpu.Target{Layer: l, Type: dtype.Float16, Values: data})
	}
	return list
}

func benchStep(b *testing.B, c checkpoint.Config, s gpu.Step) {
	bench(b, c, true, func(e *engine, m *model) error {
		p, err := m.pass(m.plan(s))
		if err != nil {
			return err
		}
		p.reuse(s, true)
		for range 2 { // the second step reads what the first one keeps, and makes the graphs
			p.reuse(s, true)
			p.replay(s, nil, true)
		}
		p.reuse(s, true)
		p.replay(s, nil, true)
		graphs := p.graphs[p.kind(s, nil, true)].graphs
		median(b, p.queue, func() {
			for _, g := range graphs {
				p.note(g.launch(p.stream))
			}
		})
		return p.done()
	})
}

func BenchmarkTeacherForward(b *testing.B) {
	c := pythia()
	batch := zipf(c, 60, 1024)
	bench(b, c, false, func(e *engine, m *model) error {
		p, err := m.pass(job{rows: batch.Rows, length: batch.Length, top: c.Layers - 1, from: c.Layers, keep: []int{0, 1, 2, 3, 4, 5}})
		if err != nil {
			return err
		}
		put(p.queue, p.b.tokens, batch.Tokens)
		median(b, p.queue, func() {
			p.forward()
			p.kept(c.Layers - 1)
		})
		return p.done()
	})
}

func BenchmarkDistilLayer(b *testing.B) {
	c := pythia().Student(checkpoint.DefaultHyena(), 1024)
	batch := zipf(c, 60, 1024)
	for layer := range c.Layers {
		b.Run(fmt.Sprint(layer+1), func(b *testing.B) {
			benchStep(b, c, gpu.Step{Batch: batch, Objective: gpu.LayerMSE, Layer: layer, Targets: targets(c, batch, layer), Rate: 1e-4})
		})
	}
}

// BenchmarkDistilLayerKept is BenchmarkDistilLayer with the frozen prefix's output kept.
func BenchmarkDistilLayerKept(b *testing.B) {
	c := pythia().Student(checkpoint.DefaultHyena(), 1024)
	batch := zipf(c, 60, 1024)
	ids := make([]int64, batch.Rows)
	for i := range ids {
		ids[i] = int64(i)
	}
	for layer := range c.Layers {
		b.Run(fmt.Sprint(layer+1), func(b *testing.B) {
			benchStep(b, c, gpu.Step{Batch: batch, IDs: ids, Objective: gpu.LayerMSE, Layer: layer, Targets: targets(c, batch, layer), Rate: 1e-4})
		})
	}
}

func BenchmarkDistilJoint(b *testing.B) {
	c := pythia().Student(checkpoint.DefaultHyena(), 1024)
	batch := zipf(c, 60, 1024)
	benchStep(b, c, gpu.Step{Batch: batch, Objective: gpu.JointMSE, Targets: targets(c, batch, 0, 1, 2, 3, 4, 5), Rate: 1e-4})
}

func BenchmarkCrossEntropyStudent(b *testing.B) {
	c := pythia().Student(checkpoint.DefaultHyena(), 1024)
	benchStep(b, c, gpu.Step{Batch: zipf(c, 60, 1024), Objective: gpu.CrossEntropy, Rate: 1e-4})
}

func BenchmarkCrossEntropyTeacher(b *testing.B) {
	c := pythia()
	benchStep(b, c, gpu.Step{Batch: zipf(c, 60, 1024), Objective: gpu.CrossEntropy, Rate: 1e-4})
}

// BenchmarkTransforms is q ⊙ (h ∗ u + β ⊙ u) and its gradients by transforms,
// which sequences too long for longconv_tensor.cu take, at (60, 512, L) and with
// 131,072 tokens.
func BenchmarkTransforms(b *testing.B) {
	for _, shape := range [][2]int{{60, 1024}, {60, 4096}, {60, 8192}, {8, 16384}, {4, 32768}, {2, 65536}, {1, 131072}} {
		rows, length := shape[0], shape[1]
		c := pythia().Student(checkpoint.DefaultHyena(), length)
		c.Layers = 1
		for _, backward := range []bool{false, true} {
			b.Run(fmt.Sprintf("B=%d/L=%d/backward=%v", rows, length, backward), func(b *testing.B) {
				bench(b, c, true, func(e *engine, m *model) error {
					e.transforms = true
					batch := zipf(c, rows, length)
					s := gpu.Step{Batch: batch, Objective: gpu.JointMSE, Targets: targets(c, batch, 0), Rate: 1e-4}
					p, err := m.pass(m.plan(s))
					if err != nil {
						return err
					}
					p.reuse(s, false)
					p.replay(s, nil, false) // leaves real inputs
					k, beta := &p.b.blocks[0], p.at(checkpoint.Block(0)+"hyena.filter.bias")
					median(b, p.queue, func() {
						p.convolve(k, beta)
						if backward {
							p.convolveBackward(k, beta)
						}
					})
					return p.done()
				})
			})
		}
	}
}

// BenchmarkDistilLayerFromHost is whole steps with their targets in the Go heap,
// by the clock: layer 1, and layer 2 with the frozen prefix's output kept.
func BenchmarkDistilLayerFromHost(b *testing.B) {
	c := pythia().Student(checkpoint.DefaultHyena(), 1024)
	batch := zipf(c, 60, 1024)
	ids := make([]int64, batch.Rows)
	for i := range ids {
		ids[i] = int64(i)
	}
	for layer := range 2 {
		s := gpu.Step{Batch: batch, IDs: ids, Objective: gpu.LayerMSE, Layer: layer, Targets: targets(c, batch, layer), Rate: 1e-4}
		b.Run(fmt.Sprint(layer+1), func(b *testing.B) {
			e, err := open("0")
			if err != nil {
				b.Fatal(err)
			}
			defer e.Close()
			m, err := e.Open(randomModel(c), gpu.Options{Precision: gpu.BFloat16, Train: true, PrefixCache: 1 << 30})
			if err != nil {
				b.Fatal(err)
			}
			for i := range b.N + 3 {
				if i == 3 {
					b.ResetTimer()
				}
				if _, err := m.Step(s); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(len(batch.Tokens)*b.N)/b.Elapsed().Seconds(), "tokens/s")
		})
	}
}

// BenchmarkLength is what a token costs by the length of its sequence, with
// 131,072 tokens a batch at each.
func BenchmarkLength(b *testing.B) {
	const tokens = 131072
	report := func(b *testing.B, m *model) {
		b.ReportMetric(b.Elapsed().Seconds()*1e9/float64(b.N)/tokens, "ns/token")
		b.ReportMetric(float64(m.work.size)/(1<<30), "GiB-workspace")
		if free, total, err := cu.MemInfo(); err == nil {
			b.ReportMetric(float64(total-free)/(1<<30), "GiB-device")
		}
	}
	for length := 1024; length <= tokens; length *= 2 {
		teacher := pythia()
		teacher.Context = length
		for _, c := range []checkpoint.Config{teacher.Student(checkpoint.DefaultHyena(), length), teacher} {
			name := "student"
			if c.Architecture == checkpoint.GPTNeoX {
				name = "teacher"
			}
			batch := zipf(c, tokens/length, length)
			b.Run(fmt.Sprintf("%s/L=%d/forward", name, length), func(b *testing.B) {
				bench(b, c, false, func(e *engine, m *model) error {
					p, err := m.pass(job{rows: batch.Rows, length: batch.Length, top: c.Layers - 1, from: c.Layers, keep: []int{c.Layers - 1}})
					if err != nil {
						return err
					}
					put(p.queue, p.b.tokens, batch.Tokens)
					median(b, p.queue, func() {
						p.forward()
						p.kept(c.Layers - 1)
					})
					report(b, m)
					return p.done()
				})
			})
			b.Run(fmt.Sprintf("%s/L=%d/cross-entropy", name, length), func(b *testing.B) {
				bench(b, c, true, func(e *engine, m *model) error {
					s := gpu.Step{Batch: batch, Objective: gpu.CrossEntropy, Rate: 1e-4}
					p, err := m.pass(m.plan(s))
					if err != nil {
						return err
					}
					p.reuse(s, true)
					median(b, p.queue, func() { p.replay(s, nil, true) })
					report(b, m)
					return p.done()
				})
			})
		}
	}
}
