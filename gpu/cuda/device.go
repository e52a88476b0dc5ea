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

// queue issues work on one of the device's streams. The first error sticks and
// what follows is not issued, so that a model reads like its equations; done
// returns it.
type queue struct {
	*device
	beside bool // on the side stream
	err    error
}

func (q *queue) on() cu.Stream {
	if q.beside {
		return q.side
	}
	return q.stream
}

// mark names what the queue was given so far as event i.
func (q *queue) mark(i int) {
	if q.err != nil {
		return
	}
	e, err := q.event(i)
	if err == nil {
		err = e.Record(q.on())
	}
	q.note(err)
}

// await has what the queue is given from now on wait for event i.
func (q *queue) await(i int) {
	if q.err != nil {
		return
	}
	e, err := q.event(i)
	if err == nil {
		err = q.on().Wait(e, 0)
	}
	q.note(err)
}

// after has what q is given from now on wait for what other was given so far.
func (q *queue) after(other *queue, i int) {
	q.note(other.err)
	other.mark(i)
	q.await(i)
}

// launch runs a kernel over a grid. Arguments are ptr, int, int64, float32 or
// float64, each in an 8-byte slot of which the kernel reads what it needs, or a
// tensorMap.
func (q *queue) launch(name string, grid [3]int, block [2]int, shared int, args ...any) {
	if q.err != nil {
		return
	}
	f, err := q.function(name, shared)
	if err != nil {
		q.err = err
		return
	}
	var packed arguments
	for i, a := range args {
		switch v := a.(type) {
		case ptr:
			packed.add(uint64(v))
		case int:
			packed.add(uint64(v))
		case int64:
			packed.add(uint64(v))
		case float32:
			packed.add(uint64(math.Float32bits(v)))
		case float64:
			packed.add(math.Float64bits(v))
		case tensorMap:
			packed.add(v[:]...)
		default:
			q.err = fmt.Errorf("kernel %s: argument %d is a %T", name, i, a)
			return
		}
	}
	if err := launchKernel(f, grid, block, shared, q.on(), packed); err != nil {
		q.err = fmt.Errorf("kernel %s: %w", name, err)
	}
}

// each runs a kernel of one thread an element.
func (q *queue) each(name string, n int, args ...any) {
	q.launch(name, [3]int{ceil(n, 256), 1, 1}, [2]int{256, 1}, 0, args...)
}

// reduce adds up rows of partial sums, stride apart, into out and, where it is
// not 0, out2.
func (q *queue) reduce(partial, out, out2 ptr, rows, stride, cols int) {
	q.launch("reduce_slices", [3]int{ceil(cols, 32), 1, 1}, [2]int{32, 8}, 0, partial, out, out2, rows, int64(stride), cols)
}

func (q *queue) product(p product) {
	if q.err == nil {
		q.err = q.blas.run(p, q.on(), q.beside)
	}
}

func (q *queue) zero(p ptr, bytes int64) {
	if q.err == nil && bytes > 0 {
		q.err = cu.MemsetD8Async(p, 0, bytes, q.on())
	}
}

// stage starts copying a large host slice to device memory beside what the
// stream does; staged has the stream wait for all of them. The slice may be
// changed when it returns.
func (q *queue) stage(p ptr, v []byte) {
	if q.err == nil {
		q.err = q.staging.put(p, v)
	}
}

func (q *queue) staged() {
	if q.err != nil {
		return
	}
	e, err := q.event(eventStaged)
	if err == nil {
		err = e.Record(q.staging.stream)
	}
	if err == nil {
		err = q.stream.Wait(e, 0)
	}
	q.note(err)
}

// put copies a host slice to device memory. The slice may be changed when it
// returns.
func put[T any](q *queue, p ptr, v []T) {
	if q.err == nil && len(v) > 0 {
		q.err = cu.MemcpyHtoDAsync(p, unsafe.Pointer(&v[0]), int64(len(v))*int64(unsafe.Sizeof(v[0])), q.stream)
	}
}

// get copies device memory to a host slice, once all work issued before is
// done.
func get[T any](q *queue, v []T, p ptr) {
	if q.err == nil && len(v) > 0 {
		q.err = cu.MemcpyDtoHAsync(unsafe.Pointer(&v[0]), p, int64(len(v))*int64(unsafe.Sizeof(v[0])), q.stream)
	}
	q.wait()
}

func (q *queue) wait() {
	if q.err == nil {
		q.err = q.stream.Synchronize()
	}
}

// done is the first error.
func (q *queue) done() error {
	if q.err != nil {
		return fmt.Errorf("cuda:%d: %w", q.ordinal, q.err)
	}
	return nil
}

func ceil(a, b int) int { return (a + b - 1) / b }

func round(a, b int) int { return ceil(a, b) * b }
