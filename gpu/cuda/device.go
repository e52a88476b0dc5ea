//go:build cuda

package cuda

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"unsafe"

	"gorgonia.org/cu"

	"github.com/scavenge/scavenge/gpu"
	"github.com/scavenge/scavenge/gpu/kernels"
)

// sharedPerBlock is CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: what
// a block can have once allowShared has asked for it.
const sharedPerBlock cu.DeviceAttribute = 97

// ptr is an address in device memory.
type ptr = cu.DevicePtr

// device is one GPU: its primary context, two streams, the kernels and cuBLASLt.
// Its methods run on the engine's thread only.
type device struct {
	ordinal         int
	dev             cu.Device
	name            string
	shared          int  // bytes of shared memory that a block can have
	hopper          bool // what runs is the machine code for sm_90a
	multiprocessors int
	stream          cu.Stream // all work but
	side            cu.Stream // what runs beside it: the filters' small kernels
	events          []cu.Event
	module          cu.Module
	functions       map[string]kernel
	blas            *blas
	staging         *staging
	roots           ptr // exp(−2πi·k/8192), 8192 complex
	halves          ptr // exp(iπ·k/16384), 8192 complex
}

func openDevice(ordinal string) (*device, error) {
	n, err := cu.NumDevices()
	if err != nil {
		return nil, fmt.Errorf("cuda: %w", err)
	}
	i := 0
	if ordinal != "" {
		if i, err = strconv.Atoi(ordinal); err != nil {
			return nil, fmt.Errorf("device cuda:%s: want a number after the colon", ordinal)
		}
	}
	if i < 0 || i >= n {
		return nil, fmt.Errorf("device cuda:%d: %w (this machine has %d GPUs)", i, gpu.ErrDevice, n)
	}
	d := &device{ordinal: i, functions: map[string]kernel{}}
	if err := d.open(); err != nil {
		return nil, errors.Join(fmt.Errorf("device cuda:%d: %w", i, err), d.close())
	}
	return d, nil
}

func (d *device) open() error {
	var err error
	if d.dev, err = cu.GetDevice(d.ordinal); err != nil {
		return err
	}
	if d.name, err = d.dev.Name(); err != nil {
		return err
	}
	if d.shared, err = d.dev.Attribute(sharedPerBlock); err != nil {
		return err
	}
	ctx, err := d.dev.RetainPrimaryCtx()
	if err != nil {
		return fmt.Errorf("primary context: %w", err)
	}
	if err := cu.SetCurrentContext(ctx); err != nil {
		return err
	}
	if d.stream, err = cu.MakeStream(cu.NonBlocking); err != nil {
		return fmt.Errorf("stream: %w", err)
	}
	if d.side, err = cu.MakeStream(cu.NonBlocking); err != nil {
		return fmt.Errorf("stream: %w", err)
	}
	if d.staging, err = newStaging(); err != nil {
		return err
	}
	if d.module, err = cu.LoadData(kernels.Fatbin); err != nil {
		return fmt.Errorf("kernels: %w (built for another GPU?)", err)
	}
	f, err := d.function("attention_hopper_forward_64", 0)
	if err != nil {
		return err
	}
	if d.hopper, err = builtFor(f, 90); err != nil {
		return err
	}
	if d.multiprocessors, err = d.dev.Attribute(cu.MultiprocessorCount); err != nil {
		return err
	}
	if d.blas, err = newBlas(d); err != nil {
		return err
	}
	roots, halves := make([]float32, 2*tablePoints), make([]float32, 2*tablePoints)
	for k := range tablePoints {
		s, c := math.Sincos(-2 * math.Pi * float64(k) / tablePoints)
		roots[2*k], roots[2*k+1] = float32(c), float32(s)
		s, c = math.Sincos(math.Pi * float64(k) / (2 * tablePoints))
		halves[2*k], halves[2*k+1] = float32(c), float32(s)
	}
	if d.roots, err = upload(d, roots, "roots of unity"); err != nil {
		return err
	}
	d.halves, err = upload(d, halves, "roots of unity")
	return err
}

// close gives everything back; the first error is returned, and closing goes on.
func (d *device) close() error {
	var errs []error
	note := func(err error) { errs = append(errs, err) }
	for _, p := range []*ptr{&d.roots, &d.halves} {
		note(d.free(p))
	}
	if d.blas != nil {
		for i := range d.blas.workspaces {
			note(d.free(&d.blas.workspaces[i]))
		}
		note(d.blas.close())
		d.blas = nil
	}
	if d.staging != nil {
		note(d.staging.close())
		d.staging = nil
	}
	if d.module != (cu.Module{}) {
		note(d.module.Unload())
		d.module = cu.Module{}
	}
	for i := range d.events {
		note(cu.DestroyEvent(&d.events[i]))
	}
	d.events = nil
	if d.side != (cu.Stream{}) {
		note(d.side.Destroy())
		d.side = cu.Stream{}
	}
	if d.stream != (cu.Stream{}) {
		note(d.stream.Destroy())
		note(d.dev.ReleasePrimaryCtx())
		d.stream = cu.Stream{}
	}
	return errors.Join(errs...)
}

// kernel is a function and the shared memory that it may be launched with.
type kernel struct {
	cu.Function
	shared int
}

// function finds a kernel, and lets it use the shared memory it wants.
func (d *device) function(name string, shared int) (cu.Function, error) {
	k, ok := d.functions[name]
	if !ok {
		f, err := d.module.Function(name)
		if err != nil {
			return f, fmt.Errorf("kernel %s: %w", name, err)
		}
		k = kernel{f, 48 << 10}
	}
	if shared > k.shared {
		if err := allowShared(k.Function, shared); err != nil {
			return k.Function, fmt.Errorf("kernel %s: %d bytes of %w", name, shared, err)
		}
		k.shared = shared
	}
	d.functions[name] = k
	return k.Function, nil
}

// alloc reserves device memory; what says what for.
func (d *device) alloc(bytes int64, what string) (ptr, error) {
	p, err := cu.MemAlloc(max(bytes, 256))
	if err != nil {
		free, total, e := cu.MemInfo()
		if e != nil {
			return 0, fmt.Errorf("%s: %w", what, err)
		}
		return 0, fmt.Errorf("cuda:%d: %s want %s of device memory, of which %s of %s is free: %w", d.ordinal, what, size(bytes), size(free), size(total), err)
	}
	return p, nil
}

func (d *device) free(p *ptr) error {
	if *p == 0 {
		return nil
	}
	err := cu.MemFree(*p)
	*p = 0
	return err
}

func size(bytes int64) string { return fmt.Sprintf("%.2f GiB", float64(bytes)/(1<<30)) }

// upload makes a device copy of a host slice.
func upload[T any](d *device, v []T, what string) (ptr, error) {
	n := int64(len(v)) * int64(unsafe.Sizeof(*new(T)))
	p, err := d.alloc(n, what)
	if err != nil || n == 0 {
		return p, err
	}
	return p, cu.MemcpyHtoD(p, unsafe.Pointer(&v[0]), n)
}

// event is the device's i-th event; each has one use in a call.
func (d *device) event(i int) (cu.Event, error) {
	for len(d.events) <= i {
		e, err := cu.MakeEvent(cu.DisableTiming)
		if err != nil {
			return e, fmt.Errorf("event: %w", err)
		}
		d.events = append(d.events, e)
	}
	return d.events[i], nil
}

func ceil(a, b int) int { return (a + b - 1) / b }

func round(a, b int) int { return ceil(a, b) * b }
