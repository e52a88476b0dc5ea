// Package cpu is the reference engine, and the one that runs where there is no
// GPU: the models' forward and backward passes as coarse operators on spago's
// automatic differentiation, with matrix products and element-wise
// functions from gpu/cpu/simd. Models come in and go out as checkpoints, batches
// as token ids, targets as activations.
//
// Results do not depend on the number of threads, and a row's outputs do not
// depend on the rows beside it, bit for bit.
//
// It computes in float32, or, with Precision float64, in that from end to end:
// slower, and the reference for the rest. (Checkpoints are float32 still, so
// only a float32 run resumes to the bit.)
//
// Importing the package makes the device "cpu" known to gpu.Open; "cpu:4" is
// four threads, plain "cpu" as many as Go runs at once.
package cpu

import (
	"fmt"
	"runtime"
	"strconv"

	"github.com/scavenge/scavenge/gpu"
	"github.com/scavenge/scavenge/schemas/checkpoint"
)

func init() { gpu.Register("cpu", open) }

type engine struct {
	workers workers
	models  map[opened]bool
}

// opened is a model of either precision.
type opened interface {
	gpu.Model
	bytes() int64
}

func open(ordinal string) (gpu.Engine, error) {
	n := runtime.GOMAXPROCS(0)
	if ordinal != "" {
		var err error
		if n, err = strconv.Atoi(ordinal); err != nil || n < 1 || n > 1024 {
			return nil, fmt.Errorf("device \"cpu:%s\": %w: want a number of threads from 1 to 1024 after the colon", ordinal, gpu.ErrDevice)
		}
	}
	return &engine{workers: workers(n), models: map[opened]bool{}}, nil
}

func (e *engine) Device() string {
	if e.workers == 1 {
		return "cpu, 1 thread"
	}
	return fmt.Sprintf("cpu, %d threads", e.workers)
}

// Memory counts the open models' weights, optimiser state and buffers.
func (e *engine) Memory() (used, total int64) {
	for m := range e.models {
		used += m.bytes()
	}
	return used, 0
}

func (e *engine) Open(src *checkpoint.Model, o gpu.Options) (gpu.Model, error) {
	if err := src.Check(); err != nil {
		return nil, fmt.Errorf("cpu: open: %w", err)
	}
	if o.Optimizer == (gpu.AdamW{}) {
		o.Optimizer = gpu.PaperAdamW()
	}
	if err := o.Optimizer.Validate(); err != nil {
		return nil, fmt.Errorf("cpu: open: %w", err)
	}
	var m opened
	switch o.Precision {
	case "", gpu.Float32:
		m = newModel[float32](e, src, o)
	case gpu.Float64:
		m = newModel[float64](e, src, o)
	default:
		return nil, fmt.Errorf("cpu: open: precision %q: this engine computes in %s or %s", o.Precision, gpu.Float32, gpu.Float64)
	}
	e.models[m] = true
	return m, nil
}

func (e *engine) Close() error {
	for m := range e.models {
		m.Close()
	}
	return nil
}
