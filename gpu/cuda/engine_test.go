//go:build cuda

package cuda

import (
	"fmt"
	"math"
	"os"
	"strings"
	"testing"

	"github.com/scavenge/scavenge/gpu"
	_ "github.com/scavenge/scavenge/gpu/cpu"
	"github.com/scavenge/scavenge/gpu/enginetest"
	"github.com/scavenge/scavenge/schemas/checkpoint"
)

func opener(t *testing.T) func() gpu.Engine {
	return func() gpu.Engine {
		e, err := open("0")
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
}

// fourier is the leak that convolution by float32 transforms has, and the
// lengths that they reach.
func fourier(tol enginetest.Tolerances) enginetest.Tolerances {
	tol.Leak, tol.Longest = tol.Output/20, maxLength
	return tol
}

func TestEngineInFloat32(t *testing.T) { enginetest.Run(t, opener(t), fourier(enginetest.Float32())) }

func TestEngineInBFloat16ByTransforms(t *testing.T) {
	enginetest.Run(t, func() gpu.Engine {
		e := opener(t)().(*engine)
		e.transforms = true
		return e
	}, fourier(enginetest.BFloat16()))
}

func TestEngineInBFloat16(t *testing.T) { enginetest.Run(t, opener(t), fourier(enginetest.BFloat16())) }

// TestLongSequencesAgreeWithTheReference compares float32 with the cpu engine's
// float64 where transforms go through device memory.
func TestLongSequencesAgreeWithTheReference(t *testing.T) {
	reference, err := gpu.Open("cpu")
	if err != nil {
		t.Fatal(err)
	}
	defer reference.Close()
	e := opener(t)()
	defer e.Close()
	for _, shape := range [][2]int{{3, 8193}, {1, 20001}} {
		c := pythia().Student(checkpoint.Hyena{Width: 8, Features: 5, SineFreq: 14, Fast: 0.3, Slow: 1.5, Target: 0.01}, shape[1])
		c.Vocab, c.Dim, c.Hidden, c.Layers = 67, 8, 16, 1
		src := randomModel(c)
		for _, spec := range c.Specs() {
			w := src.Weights[spec.Name]
			if len(spec.Shape) > 1 {
				for i := range w {
					w[i] *= float32(50 / math.Sqrt(float64(len(w)/spec.Shape[0])))
				}
			} else if strings.HasSuffix(spec.Name, ".freq") || strings.HasSuffix(spec.Name, "filter.bias") {
				for i := range w {
					w[i] += 1.3
				}
			}
		}
		b := zipf(c, shape[0], shape[1])
		s := gpu.Step{Batch: b, Objective: gpu.CrossEntropy}
		compute := func(e gpu.Engine, p gpu.Precision) (float64, map[string][]float32) {
			m, err := e.Open(src, gpu.Options{Precision: p, Train: true})
			if err != nil {
				t.Fatal(err)
			}
			defer m.Close()
			h, err := m.Hidden(b, []int{0})
			if err != nil {
				t.Fatal(err)
			}
			r, g, err := m.Gradients(s)
			if err != nil {
				t.Fatal(err)
			}
			g["the block's output"] = h[0]
			return r.Loss, g
		}
		loss, got := compute(e, gpu.Float32)
		wantLoss, want := compute(reference, gpu.Float64)
		if math.Abs(loss-wantLoss) > 1e-5*wantLoss {
			t.Errorf("%d × %d: loss %.8g, want %.8g", shape[0], shape[1], loss, wantLoss)
		}
		worst, at := 0.0, ""
		for name, w := range want {
			d, n := 0.0, 0.0
			for i, v := range w {
				d += math.Pow(float64(got[name][i])-float64(v), 2)
				n += float64(v) * float64(v)
			}
			off := math.Sqrt(d / n)
			if !(off <= 1e-4) {
				t.Errorf("%d × %d: %s: off by %.3g", shape[0], shape[1], name, off)
			}
			if off > worst {
				worst, at = off, name
			}
		}
		t.Logf("%d × %d: largest error %.2g (%s)", shape[0], shape[1], worst, at)
	}
}

// resident is the process's memory in bytes.
func resident(t *testing.T) int64 {
	t.Helper()
	data, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		t.Fatal(err)
	}
	var size, pages int64
	if _, err := fmt.Sscan(string(data), &size, &pages); err != nil {
		t.Fatal(err)
	}
	return pages * int64(os.Getpagesize())
}

func TestMemoryIsFlatOverTenThousandSteps(t *testing.T) {
	c := pythia().Student(checkpoint.DefaultHyena(), 64)
	c.Vocab, c.Dim, c.Hidden, c.Layers = 256, 64, 128, 2
	e := opener(t)()
	defer e.Close()
	m, err := e.Open(randomModel(c), gpu.Options{Precision: gpu.BFloat16, Train: true})
	if err != nil {
		t.Fatal(err)
	}
	var device, host int64
	for i := range 10000 {
		if _, err := m.Step(gpu.Step{Batch: zipf(c, 2, 64), Objective: gpu.CrossEntropy, Rate: 1e-5}); err != nil {
			t.Fatalf("step %d: %v", i, err)
		}
		if i == 1000 {
			device, _ = e.Memory()
			host = resident(t)
		}
	}
	if used, _ := e.Memory(); used > device {
		t.Errorf("device memory grew from %d to %d bytes over 9000 steps", device, used)
	}
	if used := resident(t); used > host+8<<20 {
		t.Errorf("host memory grew from %d to %d bytes over 9000 steps", host, used)
	}
}

func TestBatchTooLargeForMemorySaysWhichFits(t *testing.T) {
	c := pythia().Student(checkpoint.DefaultHyena(), 1024)
	e := opener(t)()
	defer e.Close()
	m, err := e.Open(randomModel(c), gpu.Options{Precision: gpu.BFloat16, Train: true})
	if err != nil {
		t.Fatal(err)
	}
	step := func(rows int) error {
		_, err := m.Step(gpu.Step{Batch: zipf(c, rows, 1024), Objective: gpu.CrossEntropy, Rate: 1e-5})
		return err
	}
	err = step(8000)
	var fits int
	if err != nil {
		t.Log(err)
		if i := strings.Index(err.Error(), "a batch of "); i >= 0 {
			fmt.Sscanf(err.Error()[i:], "a batch of %d sequences would fit", &fits)
		}
	}
	if fits < 1 || fits >= 8000 {
		t.Fatalf("8000 sequences of 1024 tokens: %v", err)
	}
	if err := step(fits * 9 / 10); err != nil {
		t.Errorf("nine tenths of what is said to fit does not: %v", err)
	}
}
