//go:build cuda

package cuda

import (
	"errors"
	"fmt"
	"math"
	"runtime"

	"gorgonia.org/cu"

	"github.com/scavenge/scavenge/gpu"
	"github.com/scavenge/scavenge/schemas/checkpoint"
)

func init() {
	gpu.Register("cuda", func(ordinal string) (gpu.Engine, error) { return open(ordinal) })
}

var errClosed = errors.New("cuda: the model or its engine is closed")

// engine owns a device and the goroutine, locked to a thread, that all its CUDA
// calls are made on: a CUDA context is current on a thread, and goroutines move
// between threads.
type engine struct {
	device *device
	calls  chan func()
	done   chan struct{}
	models map[*model]bool
	// transforms makes bf16 convolve by transforms at every length, as it does
	// where longconv_tensor.cu's tiles do not fit in shared memory.
	transforms bool
	// cublas makes all matrix products cuBLASLt's, on a Hopper too.
	cublas bool
}

func open(ordinal string) (*engine, error) {
	e := &engine{calls: make(chan func()), done: make(chan struct{}), models: map[*model]bool{}}
	opened := make(chan error)
	go func() {
		defer close(e.done)
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		var err error
		e.device, err = openDevice(ordinal)
		opened <- err
		if err != nil {
			return
		}
		for call := range e.calls {
			call()
		}
	}()
	return e, <-opened
}

// do runs f on the engine's thread.
func (e *engine) do(f func() error) error {
	if e.device == nil {
		return errClosed
	}
	result := make(chan error)
	e.calls <- func() { result <- f() }
	return <-result
}

func (e *engine) Device() string {
	if e.device == nil {
		return "cuda (closed)"
	}
	return e.device.name
}

// Memory is what is used on the device, by every program.
func (e *engine) Memory() (used, total int64) {
	err := e.do(func() error {
		free, all, err := cu.MemInfo()
		used, total = all-free, all
		return err
	})
	if err != nil {
		return 0, 0
	}
	return used, total
}

// dropPrefixes gives the memory of the models' prefix caches back, where there is any.
func (e *engine) dropPrefixes() (dropped bool) {
	for m := range e.models {
		if m.prefix.cache != 0 {
			dropped = m.dropPrefix() == nil || dropped
		}
	}
	return dropped
}

// Close frees everything, open models too.
func (e *engine) Close() error {
	if e.device == nil {
		return nil
	}
	err := e.do(func() error {
		var errs []error
		for m := range e.models {
			errs = append(errs, m.release())
		}
		return errors.Join(append(errs, e.device.close())...)
	})
	close(e.calls)
	<-e.done
	e.device = nil
	return err
}

func (e *engine) Open(src *checkpoint.Model, o gpu.Options) (gpu.Model, error) {
	if err := src.Check(); err != nil {
		return nil, fmt.Errorf("cuda: open: %w", err)
	}
	if o.Optimizer == (gpu.AdamW{}) {
		o.Optimizer = gpu.PaperAdamW()
	}
	if err := o.Optimizer.Validate(); err != nil {
		return nil, fmt.Errorf("cuda: open: %w", err)
	}
	if o.Precision == "" {
		o.Precision = gpu.Float32
	}
	if o.Precision != gpu.Float32 && o.Precision != gpu.BFloat16 {
		return nil, fmt.Errorf("cuda: open: precision %q: this engine computes in %s or %s", o.Precision, gpu.Float32, gpu.BFloat16)
	}
	c := src.Config
	if c.Dim > maxDim {
		return nil, fmt.Errorf("cuda: open: hidden_size %d: this engine takes up to %d", c.Dim, maxDim)
	}
	if c.Dim%8 != 0 || c.Hidden%8 != 0 {
		return nil, fmt.Errorf("cuda: open: hidden_size %d and intermediate_size %d: this engine wants multiples of 8", c.Dim, c.Hidden)
	}
	if c.Architecture == checkpoint.HyenaNeoX && c.Context > maxLength {
		return nil, fmt.Errorf("cuda: open: context %d: this engine's convolution covers up to %d tokens", c.Context, maxLength)
	}
	if c.Architecture == checkpoint.GPTNeoX && c.Dim/c.Attention.Heads > 128 {
		return nil, fmt.Errorf("cuda: open: heads of %d dimensions: this engine's attention takes up to 128", c.Dim/c.Attention.Heads)
	}
	if c.Architecture == checkpoint.GPTNeoX && o.Precision == gpu.BFloat16 && c.Dim/c.Attention.Heads%8 != 0 {
		return nil, fmt.Errorf("cuda: open: heads of %d dimensions: in bf16 this engine's attention wants a multiple of 8", c.Dim/c.Attention.Heads)
	}
	m := &model{engine: e, config: c, options: o, graphs: map[kind]*captured{}}
	err := e.do(func() error {
		var err error
		if m.weights, err = newWeights(e.device, src, o); err != nil {
			return err
		}
		if err := m.constants(); err != nil {
			return errors.Join(err, m.release())
		}
		e.models[m] = true
		return nil
	})
	if err != nil {
		return nil, err
	}
	return m, nil
}

// constants uploads what depends on the configuration alone, computed in
// float64: the filters' features [Context, E] (float64) and decays [D], or the
// rotary table [Context, half, 2].
func (m *model) constants() error {
	c, d := m.config, m.engine.device
	var err error
	if c.Architecture == checkpoint.GPTNeoX {
		half := c.RotaryDims() / 2
		table := make([]float32, 0, 2*c.Context*half)
		for n := range c.Context {
			for i := range half {
				sin, cos := math.Sincos(float64(n) * math.Pow(c.Attention.RotaryBase, -float64(i)/float64(half)))
				table = append(table, float32(cos), float32(sin))
			}
		}
		m.rotary, err = upload(d, table, "the rotary table")
		return err
	}
	h := c.Hyena
	bands := (h.Features - 1) / 2
	features := make([]float64, c.Context*h.Features)
	for n := range c.Context {
		row := features[n*h.Features:][:h.Features]
		row[0] = float64(n) / float64(max(c.Context-1, 1))
		for j := range bands {
			f := 1e-4
			if bands > 1 {
				f += float64(j) * (float64(bands-1) - 1e-4) / float64(bands-1)
			}
			sin, cos := math.Sincos(f * 2 * math.Pi * float64(n) / float64(c.Context))
			row[1+j], row[1+bands+j] = cos, -sin
		}
	}
	if m.features, err = upload(d, features, "the filters' features"); err != nil {
		return err
	}
	decays := make([]float32, c.Dim)
	low, high := math.Log(h.Target)/h.Slow, math.Log(h.Target)/h.Fast
	for i := range decays {
		decays[i] = float32(math.Abs(low + (high-low)*float64(i)/float64(max(c.Dim-1, 1))))
	}
	m.decays, err = upload(d, decays, "the filters' decays")
	return err
}
