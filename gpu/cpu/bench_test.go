//go:build unix

package cpu

import (
	"fmt"
	"math/rand/v2"
	"syscall"
	"testing"

	"github.com/scavenge/scavenge/gpu"
	"github.com/scavenge/scavenge/schemas/checkpoint"
	"github.com/scavenge/scavenge/schemas/dtype"
)

// cpuSeconds is what this process has computed for: on a shared machine wall
// time misleads.
func cpuSeconds() float64 {
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		return 0
	}
	return float64(r.Utime.Sec+r.Stime.Sec) + float64(r.Utime.Usec+r.Stime.Usec)/1e6
}

// benchConfig is the reference shape: about the default experiment's models.
func benchConfig(vocab int) checkpoint.Config {
	return checkpoint.Config{Architecture: checkpoint.GPTNeoX, Vocab: vocab, Dim: 128, Hidden: 512, Layers: 4, Context: 128, Eps: 1e-5,
		Attention: checkpoint.Attention{Heads: 4, RotaryPct: 0.25, RotaryBase: 10000}}
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
				before := cpuSeconds()
				for b.Loop() {
					if err := f(m, teacher); err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric((cpuSeconds()-before)*1e3/float64(b.N), "cpu-ms/op")
				used, _ := e.Memory()
				b.ReportMetric(float64(used)/1e6, "MB")
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

func BenchmarkProduct(b *testing.B) {
	r := rand.New(rand.NewPCG(5, 6))
	for _, s := range [][3]int{{1024, 512, 128}, {2048, 2048, 128}, {2048, 128, 2048}, {2048, 128, 512}, {1024, 1024, 1024}, {128, 128, 32}} {
		m, n, k := s[0], s[1], s[2]
		x, y, c := random[float32](r, m*k), random[float32](r, k*n), make([]float32, m*n)
		for _, form := range []struct {
			name string
			a, b matrix[float32]
		}{{"NN", rows(x, k), rows(y, n)}, {"NT", rows(x, k), across(y, k)}, {"TN", across(x, m), rows(y, n)}} {
			for _, w := range []workers{1, 2} {
				b.Run(fmt.Sprintf("%s/%dx%dx%d/%dthreads", form.name, m, k, n, w), func(b *testing.B) {
					before := cpuSeconds()
					for b.Loop() {
						product(w, m, n, k, form.a, form.b, c, n, false)
					}
					work := 2 * float64(m) * float64(n) * float64(k) * float64(b.N) / 1e9
					b.ReportMetric(work/b.Elapsed().Seconds(), "GFLOP/s")
					b.ReportMetric(work/(cpuSeconds()-before), "GFLOP/s/core")
				})
			}
		}
	}
	x, y, c := random[float64](r, 256*64), random[float64](r, 64*64), make([]float64, 256*64)
	b.Run("float64/256x64x64", func(b *testing.B) {
		for b.Loop() {
			product(1, 256, 64, 64, rows(x, 64), across(y, 64), c, 64, false)
		}
		b.ReportMetric(2*256*64*64*float64(b.N)/b.Elapsed().Seconds()/1e9, "GFLOP/s")
	})
}

// BenchmarkLongConvolution is one forward pass of 128 channels.
func BenchmarkLongConvolution(b *testing.B) {
	const d = 128
	r := rand.New(rand.NewPCG(7, 8))
	for _, l := range []int{64, 128, 256, 1024, 4096} {
		n := max(1, 2048/l)
		u, h, s := random[float32](r, d*n*l), random[float32](r, d*l), make([]float32, d*n*l)
		b.Run(fmt.Sprintf("%dx%d", n, l), func(b *testing.B) {
			before := cpuSeconds()
			for b.Loop() {
				longConvolution(1, s, u, h, n, l, d)
			}
			b.ReportMetric((cpuSeconds()-before)*1e9/float64(b.N*d*n*l), "cpu-ns/element")
		})
	}
}
