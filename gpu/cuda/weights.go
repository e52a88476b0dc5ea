//go:build cuda

package cuda

import (
	"errors"
	"fmt"

	"github.com/scavenge/scavenge/gpu"
	"github.com/scavenge/scavenge/schemas/checkpoint"
)

const (
	// align is the elements between the starts of weights in the flat buffers:
	// 256 bytes of bf16, which is what cuBLASLt's fastest kernels want.
	align = 128
	// chunkSize bounds the elements of a weight that one block of the
	// optimiser's kernels works on.
	chunkSize = 4096
)

// chunk is the kernels' struct Chunk.
type chunk struct {
	offset        int64
	count, weight int32
}

// update is the kernels' struct Update.
type update struct {
	rate, clip float32
	norm       float64
	scale      float32
	finite     int32
}

// weights are a model's weights on the device, in the order of its Specs in one
// flat float32 buffer; gradients and moments lie in twins of it.
type weights struct {
	device  *device
	specs   []checkpoint.Spec
	index   map[string]int
	offset  []int64 // of each weight, elements
	chunk   []int   // first chunk of each weight, and one past the last
	total   int64   // elements of a flat buffer
	ffn     int64   // elements there of one filter's FFN, whose weights follow each other
	element element // of matrix products

	master ptr // float32
	copy   ptr // bf16, for the matrix products; 0 in float32
	folds  []fold
	folded ptr // what folds point into
	// where trained
	grad, mean, variance ptr
	steps, corrections   ptr // int32 and two float32 a weight
	decay                ptr // float32 a weight
	chunks               ptr
	update               ptr
	partial              ptr // float64 a chunk
}

func newWeights(d *device, m *checkpoint.Model, o gpu.Options) (*weights, error) {
	w := &weights{device: d, specs: m.Config.Specs(), index: map[string]int{}, element: float32s}
	if o.Precision == gpu.BFloat16 {
		w.element = bf16s
	}
	var chunks []chunk
	for i, s := range w.specs {
		w.index[s.Name] = i
		w.offset = append(w.offset, w.total)
		w.chunk = append(w.chunk, len(chunks))
		n := s.Size()
		for at := 0; at < n; at += chunkSize {
			chunks = append(chunks, chunk{w.total + int64(at), int32(min(chunkSize, n-at)), int32(i)})
		}
		w.total += int64(round(n, align))
	}
	w.chunk = append(w.chunk, len(chunks))
	if m.Config.Architecture == checkpoint.HyenaNeoX {
		filter := checkpoint.Block(0) + "hyena.filter.mlp."
		last := w.index[filter+"3.weight"]
		w.ffn = w.offset[last] + int64(w.specs[last].Size()) - w.offset[w.index[filter+"0.weight"]]
	}
	var err error
	alloc := func(p *ptr, bytes int64, what string) {
		if err == nil {
			*p, err = d.alloc(bytes, what)
		}
	}
	alloc(&w.master, 4*w.total, "weights")
	if o.Precision == gpu.BFloat16 {
		alloc(&w.copy, 2*(w.total+31*int64(m.Config.Dim)), "the weights' bf16 copy") // matmul reads past an operand's end
	}
	if err == nil {
		w.folds, w.folded, err = newFolds(d, m.Config, w.element)
	}
	if o.Train {
		alloc(&w.grad, 4*w.total, "gradients")
		alloc(&w.mean, 4*w.total, "first moments")
		alloc(&w.variance, 4*w.total, "second moments")
		alloc(&w.steps, 4*int64(len(w.specs)), "step counts")
		alloc(&w.corrections, 8*int64(len(w.specs)), "bias corrections")
		alloc(&w.update, 24, "the update's scalars")
		alloc(&w.partial, 8*int64(len(chunks)), "the gradients' norm")
		decay := make([]float32, len(w.specs))
		for i, s := range w.specs {
			if s.Decays() {
				decay[i] = float32(o.Optimizer.Decay)
			}
		}
		if err == nil {
			w.decay, err = upload(d, decay, "weight decay")
		}
		if err == nil {
			w.chunks, err = upload(d, chunks, "the optimiser's chunks")
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open: %w", err), w.close())
	}
	q := &queue{device: d}
	q.zero(w.master, 4*w.total)
	for i, s := range w.specs {
		put(q, w.master+ptr(4*w.offset[i]), m.Weights[s.Name])
	}
	if w.copy != 0 {
		q.launch("to_bf16", [3]int{1024, 1, 1}, [2]int{256, 1}, 0, w.master, w.copy, w.total)
	}
	for i := range m.Config.Layers {
		w.fold(q, i)
	}
	if o.Train {
		for _, p := range []ptr{w.grad, w.mean, w.variance} {
			q.zero(p, 4*w.total)
		}
		q.zero(w.steps, 4*int64(len(w.specs)))
		put(q, w.update, []update{{clip: float32(o.Optimizer.Clip)}})
	}
	q.wait()
	if err := q.done(); err != nil {
		return nil, errors.Join(err, w.close())
	}
	return w, nil
}

func (w *weights) close() error {
	var errs []error
	for _, p := range []*ptr{&w.master, &w.copy, &w.folded, &w.grad, &w.mean, &w.variance, &w.steps, &w.corrections, &w.decay, &w.chunks, &w.update, &w.partial} {
		errs = append(errs, w.device.free(p))
	}
	return errors.Join(errs...)
}

// at is a weight in float32, gradient its gradient.
func (w *weights) at(name string) ptr       { return w.master + ptr(4*w.offset[w.index[name]]) }
func (w *weights) gradient(name string) ptr { return w.grad + ptr(4*w.offset[w.index[name]]) }

// operand is a weight as matrix products want it.
func (w *weights) operand(name string) ptr {
	if w.copy == 0 {
		return w.at(name)
	}
	return w.copy + ptr(2*w.offset[w.index[name]])
}

// trained is the range of weights that a step moves: first … end − 1.
func (w *weights) trained(s gpu.Step) (first, end int) {
	first = -1
	for i, spec := range w.specs {
		if s.Trains(spec) {
			if first < 0 {
				first = i
			}
			end = i + 1
		}
	}
	return max(first, 0), end
}

// norm leaves the trained gradients' global norm, and what to scale them by, in
// the update's scalars.
func (w *weights) norm(q *queue, first, end int) {
	from, n := w.chunk[first], w.chunk[end]-w.chunk[first]
	q.launch("gradient_norm", [3]int{n, 1, 1}, [2]int{256, 1}, 0, w.chunks, from, w.grad, w.partial)
	q.launch("gradient_scale", [3]int{1, 1, 1}, [2]int{1024, 1}, 0, w.partial, n, w.update)
}

// adamw moves the trained weights, unless the gradients are not finite.
func (w *weights) adamw(q *queue, first, end int, o gpu.AdamW) {
	q.each("adamw_begin", end-first, w.steps, w.corrections, w.update, first, end-first, o.Beta1, o.Beta2)
	q.launch("adamw_update", [3]int{w.chunk[end] - w.chunk[first], 1, 1}, [2]int{256, 1}, 0, w.chunks, w.chunk[first], w.master, w.grad, w.mean, w.variance, w.copy,
		w.corrections, w.decay, w.update, float32(o.Beta1), float32(o.Beta2), float32(o.Eps))
}

// read copies a weight's part of a flat float32 buffer to host memory.
func (w *weights) read(q *queue, buffer ptr, i int) []float32 {
	v := make([]float32, w.specs[i].Size())
	get(q, v, buffer+ptr(4*w.offset[i]))
	return v
}

// state copies the optimiser's state of the weights trained so far.
func (w *weights) state() (*checkpoint.Optimizer, error) {
	o := &checkpoint.Optimizer{Mean: map[string][]float32{}, Variance: map[string][]float32{}, Steps: map[string]int64{}}
	if w.grad == 0 {
		return o, nil
	}
	q := &queue{device: w.device}
	steps := make([]int32, len(w.specs))
	get(q, steps, w.steps)
	for i, s := range w.specs {
		if steps[i] > 0 {
			o.Mean[s.Name], o.Variance[s.Name], o.Steps[s.Name] = w.read(q, w.mean, i), w.read(q, w.variance, i), int64(steps[i])
		}
	}
	return o, q.done()
}

// restore sets the optimiser's state; what o does not name starts anew.
func (w *weights) restore(o *checkpoint.Optimizer) error {
	if w.grad == 0 {
		return errors.New("restore: the model was opened without Train")
	}
	steps := make([]int32, len(w.specs))
	for name, n := range o.Steps {
		i, ok := w.index[name]
		if !ok {
			return fmt.Errorf("restore: weight %s is unknown to this model", name)
		}
		if want := w.specs[i].Size(); len(o.Mean[name]) != want || len(o.Variance[name]) != want {
			return fmt.Errorf("restore: weight %s has moments of %d and %d elements, want %d", name, len(o.Mean[name]), len(o.Variance[name]), want)
		}
		if n < 1 || n > 1<<30 {
			return fmt.Errorf("restore: weight %s has had %d updates", name, n)
		}
		steps[i] = int32(n)
	}
	for name := range o.Mean {
		if o.Steps[name] == 0 {
			return fmt.Errorf("restore: weight %s has moments but no count of updates", name)
		}
	}
	q := &queue{device: w.device}
	q.zero(w.mean, 4*w.total)
	q.zero(w.variance, 4*w.total)
	put(q, w.steps, steps)
	for i, s := range w.specs {
		if steps[i] > 0 {
			put(q, w.mean+ptr(4*w.offset[i]), o.Mean[s.Name])
			put(q, w.variance+ptr(4*w.offset[i]), o.Variance[s.Name])
		}
	}
	q.wait()
	return q.done()
}
