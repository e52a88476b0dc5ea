//go:build cuda

package cuda

import "github.com/scavenge/scavenge/schemas/checkpoint"

// fold is a projection behind a norm, with the norm's affine part in it (see
// fold.cu): what the matrix products read instead of the weights themselves.
type fold struct {
	norm, layer string // names without "weight" and "bias"
	out, in     int
	weight      ptr // W' [out, in] as matrix products want it
	wide, bias  ptr // b' [out] in float32 and in its type
}

// newFolds makes room for both projections of every block.
func newFolds(d *device, c checkpoint.Config, e element) (folds []fold, all ptr, err error) {
	lay := func(l *layout) {
		folds = nil
		for i := range c.Layers {
			name := checkpoint.Block(i)
			mixer := name + "attention.query_key_value."
			if c.Architecture == checkpoint.HyenaNeoX {
				mixer = name + "hyena.in_proj."
			}
			for _, f := range []fold{{norm: name + "input_layernorm.", layer: mixer, out: 3 * c.Dim}, {norm: name + "post_attention_layernorm.", layer: name + "mlp.dense_h_to_4h.", out: c.Hidden}} {
				f.in = c.Dim
				f.weight, f.wide, f.bias = l.take(e.size()*int64(f.out)*int64(f.in)), l.take(4*int64(f.out)), l.take(e.size()*int64(f.out))
				folds = append(folds, f)
			}
		}
	}
	var count layout
	lay(&count)
	if all, err = d.alloc(count.used+31*e.size()*int64(c.Dim), "the weights behind norms"); err != nil {
		return nil, 0, err
	}
	lay(&layout{base: all})
	return folds, all, nil
}

// projections are those behind the norms of block i: into the mixer and into the MLP.
func (w *weights) projections(i int) (mixer, mlp *fold) { return &w.folds[2*i], &w.folds[2*i+1] }

// fold brings a block's projections up to date with its weights.
func (w *weights) fold(q *queue, i int) {
	for _, f := range w.folds[2*i : 2*i+2] {
		q.launch("fold"+w.element.suffix(), [3]int{ceil(f.out, 8), 1, 1}, [2]int{256, 1}, 0, w.at(f.layer+"weight"), w.at(f.layer+"bias"), w.at(f.norm+"weight"), w.at(f.norm+"bias"),
			f.weight, f.wide, f.bias, f.out, f.in)
	}
}

// unfold turns the gradients of a projection, left in its weight's and bias's
// places, into those of the weight and of the norm's parameters.
func (p *pass) unfold(f *fold) {
	p.launch("unfold", [3]int{ceil(f.in, 32), unfoldSlices, 1}, columns, 0, p.at(f.layer+"weight"), p.gradient(f.layer+"bias"), p.at(f.norm+"weight"), p.at(f.norm+"bias"),
		p.gradient(f.layer+"weight"), p.partial, f.out, f.in)
	for i, name := range []string{"weight", "bias"} {
		p.reduce(p.partial+ptr(4*i*f.in), p.gradient(f.norm+name), 0, unfoldSlices, 2*f.in, f.in)
	}
}

// unfoldSlices is how many parts a projection's rows are cut into.
const unfoldSlices = 32
