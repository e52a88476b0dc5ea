package trainers

import (
	"fmt"
	"hash/fnv"
	"math"
	"math/rand/v2"
	"strings"

	"github.com/scavenge/scavenge/schemas/checkpoint"
)

// Init names what a student starts with.
type Init string

// The starts of a student. What a start does not take from the teacher is
// random.
const (
	// InitTeacher takes everything but the mixers.
	InitTeacher Init = "teacher"
	// InitAttention takes the mixers' projections too: in_proj from the
	// de-interleaved query_key_value, out_proj from dense; the short filter
	// lets its input through.
	InitAttention Init = "attention"
	// InitEmbeddings takes the token embedding, the final norm and the output
	// embedding.
	InitEmbeddings Init = "embeddings"
	// InitRandom takes nothing.
	InitRandom Init = "random"
)

// Validate says whether a start is known.
func (i Init) Validate() error {
	switch i {
	case InitTeacher, InitAttention, InitEmbeddings, InitRandom:
		return nil
	}
	return fmt.Errorf("--init %q: want %s, %s, %s or %s", i, InitTeacher, InitAttention, InitEmbeddings, InitRandom)
}

// RandomModel is a model with random weights: N(0, 0.02) for embeddings and
// matrices, N(0, 0.02/√(2·layers)) for the projections back into the residual
// stream, zero biases, unit norms; the student's short filter and filter FFN
// uniform in ±1/√fan-in with their biases, φ constant, β from N(0, 1). Each
// weight has a generator of its own, keyed by the seed and its name, so a
// weight does not depend on which others a model has.
func RandomModel(c checkpoint.Config, seed int64) (*checkpoint.Model, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	m := &checkpoint.Model{Config: c, Weights: map[string][]float32{}}
	for _, s := range c.Specs() {
		m.Weights[s.Name] = randomWeight(c, s, seed)
	}
	return m, nil
}

func randomWeight(c checkpoint.Config, s checkpoint.Spec, seed int64) []float32 {
	w := make([]float32, s.Size())
	g := newGenerator(seed, s.Name)
	switch {
	case strings.HasSuffix(s.Name, "norm.weight"):
		fill(w, 1)
	case strings.HasSuffix(s.Name, "filter.freq"):
		fill(w, float32(c.Hyena.SineFreq))
	case strings.HasSuffix(s.Name, "hyena.filter.bias"): // β
		g.normal(w, 1)
	case strings.Contains(s.Name, "short_filter"): // depthwise: each output sees ShortFilter inputs
		g.uniform(w, 1/math.Sqrt(checkpoint.ShortFilter))
	case strings.Contains(s.Name, "filter.mlp.0."):
		g.uniform(w, 1/math.Sqrt(float64(c.Hyena.Features)))
	case strings.Contains(s.Name, "filter.mlp."):
		g.uniform(w, 1/math.Sqrt(float64(c.Hyena.Width)))
	case strings.HasSuffix(s.Name, "out_proj.weight"), strings.HasSuffix(s.Name, "attention.dense.weight"), strings.HasSuffix(s.Name, "dense_4h_to_h.weight"):
		g.normal(w, c.InitScale())
	case len(s.Shape) >= 2:
		g.normal(w, 0.02)
	}
	return w
}

// NewStudent is a student of a configuration with the given start. The teacher
// may be nil for InitRandom.
func NewStudent(c checkpoint.Config, teacher *checkpoint.Model, start Init, seed int64) (*checkpoint.Model, error) {
	if err := start.Validate(); err != nil {
		return nil, err
	}
	m, err := RandomModel(c, seed)
	if err != nil || start == InitRandom {
		return m, err
	}
	if teacher == nil {
		return nil, fmt.Errorf("--init %s needs a teacher", start)
	}
	if err := fits(c, teacher.Config); err != nil {
		return nil, err
	}
	for _, s := range c.Specs() {
		mixer := strings.Contains(s.Name, ".hyena.")
		if mixer || start == InitEmbeddings && s.Layer >= 0 {
			continue
		}
		copy(m.Weights[s.Name], teacher.Weights[s.Name])
	}
	if start == InitAttention {
		for i := range c.Layers {
			startFromAttention(m, teacher, i)
		}
	}
	return m, nil
}

// fits says what keeps a student from taking a teacher's place block by block.
func fits(student, teacher checkpoint.Config) error {
	if teacher.Architecture != checkpoint.GPTNeoX {
		return fmt.Errorf("teacher: its model_type is %s, want %s", teacher.Architecture, checkpoint.GPTNeoX)
	}
	if student.Architecture != checkpoint.HyenaNeoX {
		return fmt.Errorf("student: its model_type is %s, want %s", student.Architecture, checkpoint.HyenaNeoX)
	}
	for _, f := range []struct {
		name             string
		student, teacher int
	}{{"vocab_size", student.Vocab, teacher.Vocab}, {"hidden_size", student.Dim, teacher.Dim},
		{"intermediate_size", student.Hidden, teacher.Hidden}, {"num_hidden_layers", student.Layers, teacher.Layers}} {
		if f.student != f.teacher {
			return fmt.Errorf("student and teacher do not fit: %s is %d in the student, %d in the teacher", f.name, f.student, f.teacher)
		}
	}
	return nil
}

// startFromAttention sets block i's mixer from the teacher's attention.
// query_key_value has head-major rows [head 0: q k v][head 1: q k v]…; in_proj
// has [q of all heads][k of all heads][v of all heads].
func startFromAttention(m, teacher *checkpoint.Model, i int) {
	d := m.Config.Dim
	heads := teacher.Config.Attention.Heads
	hd := d / heads
	a, h := checkpoint.Block(i)+"attention.", checkpoint.Block(i)+"hyena."
	w, b := teacher.Weights[a+"query_key_value.weight"], teacher.Weights[a+"query_key_value.bias"]
	for head := range heads {
		for part := range 3 {
			from, to := (head*3+part)*hd, part*d+head*hd
			copy(m.Weights[h+"in_proj.weight"][to*d:(to+hd)*d], w[from*d:(from+hd)*d])
			copy(m.Weights[h+"in_proj.bias"][to:to+hd], b[from:from+hd])
		}
	}
	copy(m.Weights[h+"out_proj.weight"], teacher.Weights[a+"dense.weight"])
	copy(m.Weights[h+"out_proj.bias"], teacher.Weights[a+"dense.bias"])
	short := m.Weights[h+"short_filter.weight"]
	for k := range short {
		short[k] = 0
		if k%checkpoint.ShortFilter == checkpoint.ShortFilter-1 { // the last tap is the present
			short[k] = 1
		}
	}
	fill(m.Weights[h+"short_filter.bias"], 0)
}

func fill(w []float32, v float32) {
	for i := range w {
		w[i] = v
	}
}

// generator draws the elements of one weight, in order.
type generator struct{ r *rand.PCG }

func newGenerator(seed int64, name string) generator {
	h := fnv.New64a()
	h.Write([]byte(name))
	return generator{rand.NewPCG(uint64(seed), h.Sum64())}
}

// unit is uniform in (0, 1).
func (g generator) unit() float64 { return (float64(g.r.Uint64()>>11) + 0.5) / (1 << 53) }

func (g generator) uniform(w []float32, bound float64) {
	for i := range w {
		w[i] = float32(bound * (2*g.unit() - 1))
	}
}

// normal draws from N(0, std²) in pairs (Box and Muller 1958).
func (g generator) normal(w []float32, std float64) {
	for i := 0; i < len(w); i += 2 {
		radius := std * math.Sqrt(-2*math.Log(g.unit()))
		sin, cos := math.Sincos(2 * math.Pi * g.unit())
		w[i] = float32(radius * cos)
		if i+1 < len(w) {
			w[i+1] = float32(radius * sin)
		}
	}
}
