//go:build cuda

package cuda

import (
	"fmt"
	"math"
	"unsafe"

	"gorgonia.org/cu"
)

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

// note keeps an error that did not come from the queue itself.
func (q *queue) note(err error) {
	if q.err == nil {
		q.err = err
	}
}
