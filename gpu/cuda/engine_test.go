//go:build cuda

package cuda

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/scavenge/scavenge/gpu"
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

// fourier is the leak that convolution by float32 transforms has.
func fourier(tol enginetest.Tolerances) enginetest.Tolerances {
	tol.Leak = tol.Output / 20
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
