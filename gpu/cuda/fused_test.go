//go:build cuda

package cuda

import (
	"fmt"
	"math"
	"testing"

	"github.com/scavenge/scavenge/gpu"
	"github.com/scavenge/scavenge/gpu/enginetest"
	"github.com/scavenge/scavenge/schemas/checkpoint"
)

func TestEngineInBFloat16ByCublas(t *testing.T) {
	enginetest.Run(t, func() gpu.Engine {
		e := opener(t)().(*engine)
		e.cublas = true
		return e
	}, fourier(enginetest.BFloat16()))
}

// fused opens a model of a width and an MLP and a pass that trains it on rows ×
// length tokens, on a Hopper.
func fused(t testing.TB, dim, hidden, vocab, rows, length int, f func(p *pass)) {
	t.Helper()
	e, err := open("0")
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	if !e.device.hopper {
		t.Skipf("%s is not a Hopper, or the kernels were not built for sm_90a", e.device.name)
	}
	c := pythia()
	c.Dim, c.Hidden, c.Vocab, c.Layers, c.Context = dim, hidden, vocab, 1, length
	c.Attention.Heads = dim / min(64, dim/2)
	opened, err := e.Open(randomModel(c), gpu.Options{Precision: gpu.BFloat16, Train: true})
	if err != nil {
		t.Fatal(err)
	}
	m := opened.(*model)
	s := gpu.Step{Batch: zipf(c, rows, length), Objective: gpu.CrossEntropy}
	err = e.do(func() error {
		p, err := m.pass(m.plan(s))
		if err != nil {
			return err
		}
		p.reuse(s, false)
		p.replay(s, nil, false) // leaves real inputs
		f(p)
		return p.done()
	})
	if err != nil {
		t.Fatal(err)
	}
}

// floats are n values of a type on the device, as float32.
func floats(p *pass, v ptr, e element, n int) []float32 {
	if e == float32s {
		out := make([]float32, n)
		get(p.queue, out, v)
		return out
	}
	raw, out := make([]uint16, n), make([]float32, n)
	get(p.queue, raw, v)
	for i, w := range raw {
		out[i] = math.Float32frombits(uint32(w) << 16)
	}
	return out
}

// near compares ‖got − want‖ with at most tol · ‖want‖.
func near(t *testing.T, what string, got, want []float32, tol float64) {
	t.Helper()
	var d, n float64
	for i, w := range want {
		d += math.Pow(float64(got[i])-float64(w), 2)
		n += float64(w) * float64(w)
	}
	if e := math.Sqrt(d / n); !(e <= tol) {
		t.Errorf("%s: off by %.3g of its norm, at most %g is allowed", what, e, tol)
	}
}

func TestGeluInTheProductIsGeluAfterIt(t *testing.T) {
	for _, c := range []struct{ dim, hidden, rows, length int }{{16, 40, 2, 37}, {512, 2048, 3, 200}, {256, 264, 1, 130}} {
		t.Run(fmt.Sprintf("%+v", c), func(t *testing.T) {
			fused(t, c.dim, c.hidden, 300, c.rows, c.length, func(p *pass) {
				b, k, n := p.b, &p.b.blocks[0], p.b.n
				_, up := p.projections(0)
				down := p.operand(checkpoint.Block(0) + "mlp.dense_4h_to_h.weight")
				results := func() (v [][]float32) {
					p.sums(0, c.hidden, c.hidden, up.layer+"bias", "")
					for _, m := range []ptr{k.a, k.g, b.dg} {
						v = append(v, floats(p, m, bf16s, n*c.hidden))
						p.zero(m, int64(2*n*c.hidden))
					}
					return append(v, floats(p, p.gradient(up.layer+"bias"), float32s, c.hidden))
				}
				p.project(k.a, k.h, up)
				p.kernel("gelu_forward", [3]int{ceil(n*c.hidden, 2048), 1, 1}, [2]int{256, 1}, 0, k.a, k.g, int64(n)*int64(c.hidden))
				p.inputGradient(b.dg, b.dx, c.dim, 0, down, c.hidden)
				p.kernel("gelu_backward", [3]int{ceil(c.hidden, 256), sumParts, 1}, columns, 0, k.a, b.dg, p.partial, n, c.hidden)
				want := results()
				p.geluUp(k, up, true)
				p.geluDown(k, down)
				got := results()
				for i, what := range []string{"a", "g", "da", "db"} {
					near(t, what, got[i], want[i], 5e-3)
				}
			})
		})
	}
}

// BenchmarkProducts compares products with epilogues of our own with cuBLASLt's
// and passes over what they write.
func BenchmarkProducts(b *testing.B) {
	teacher := pythia()
	student := teacher.Student(checkpoint.DefaultHyena(), 1024)
	batch := zipf(student, 60, 1024)
	ce := gpu.Step{Batch: batch, Objective: gpu.CrossEntropy, Rate: 1e-4}
	for _, c := range []struct {
		name   string
		config checkpoint.Config
		step   gpu.Step
		head   bool // the head alone
	}{
		{"head", student, ce, true},
		{"CE of the student", student, ce, false},
		{"CE of the teacher", teacher, ce, false},
		{"joint", student, gpu.Step{Batch: batch, Objective: gpu.JointMSE, Targets: targets(student, batch, 0, 1, 2, 3, 4, 5), Rate: 1e-4}, false},
	} {
		for _, cublas := range []bool{true, false} {
			b.Run(fmt.Sprintf("%s/cublas=%v", c.name, cublas), func(b *testing.B) {
				bench(b, c.config, true, func(e *engine, m *model) error {
					e.cublas = cublas
					p, err := m.pass(m.plan(c.step))
					if err != nil {
						return err
					}
					p.reuse(c.step, true)
					p.replay(c.step, nil, true)
					median(b, p.queue, func() {
						if c.head {
							p.head(c.step, nil)
						} else {
							p.replay(c.step, nil, true)
						}
					})
					return p.done()
				})
			})
		}
	}
}
