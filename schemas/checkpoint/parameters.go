package checkpoint

import (
	"fmt"
	"strings"
)

// ShortFilter is the length of the student's depthwise causal convolution.
const ShortFilter = 3

// Names of the weights outside the blocks, as the Hub's Pythia files have them.
const (
	EmbedIn    = "gpt_neox.embed_in.weight"         // [Vocab, Dim]
	FinalScale = "gpt_neox.final_layer_norm.weight" // [Dim]
	FinalBias  = "gpt_neox.final_layer_norm.bias"   // [Dim]
	EmbedOut   = "embed_out.weight"                 // [Vocab, Dim]
)

// Spec names one weight of a model and its shape.
type Spec struct {
	Name  string
	Shape []int
	Layer int // the block it belongs to; -1 outside the blocks
}

// Size is the number of elements.
func (s Spec) Size() int {
	n := 1
	for _, d := range s.Shape {
		n *= d
	}
	return n
}

// Decays tells whether AdamW's weight decay applies: on weights of two or more
// dimensions outside the implicit filter.
func (s Spec) Decays() bool { return len(s.Shape) >= 2 && !strings.Contains(s.Name, ".filter.") }

// Block is the prefix of a block's weight names, "gpt_neox.layers.<i>.".
func Block(i int) string { return fmt.Sprintf("gpt_neox.layers.%d.", i) }

// Specs lists a model's weights in the order that files and engines keep them:
// token embedding, block after block, final norm, output embedding.
func (c Config) Specs() []Spec {
	d := c.Dim
	var list []Spec
	add := func(layer int, name string, shape ...int) { list = append(list, Spec{name, shape, layer}) }
	add(-1, EmbedIn, c.Vocab, d)
	for i := range c.Layers {
		b := Block(i)
		add(i, b+"input_layernorm.weight", d)
		add(i, b+"input_layernorm.bias", d)
		add(i, b+"post_attention_layernorm.weight", d)
		add(i, b+"post_attention_layernorm.bias", d)
		if c.Architecture == HyenaNeoX {
			w, e := c.Hyena.Width, c.Hyena.Features
			add(i, b+"hyena.in_proj.weight", 3*d, d)
			add(i, b+"hyena.in_proj.bias", 3*d)
			add(i, b+"hyena.short_filter.weight", 3*d, 1, ShortFilter)
			add(i, b+"hyena.short_filter.bias", 3*d)
			add(i, b+"hyena.out_proj.weight", d, d)
			add(i, b+"hyena.out_proj.bias", d)
			add(i, b+"hyena.filter.freq", w)
			add(i, b+"hyena.filter.bias", d)
			add(i, b+"hyena.filter.mlp.0.weight", w, e)
			add(i, b+"hyena.filter.mlp.0.bias", w)
			add(i, b+"hyena.filter.mlp.1.weight", w, w)
			add(i, b+"hyena.filter.mlp.1.bias", w)
			add(i, b+"hyena.filter.mlp.2.weight", w, w)
			add(i, b+"hyena.filter.mlp.2.bias", w)
			add(i, b+"hyena.filter.mlp.3.weight", d, w)
		} else {
			add(i, b+"attention.query_key_value.weight", 3*d, d)
			add(i, b+"attention.query_key_value.bias", 3*d)
			add(i, b+"attention.dense.weight", d, d)
			add(i, b+"attention.dense.bias", d)
		}
		add(i, b+"mlp.dense_h_to_4h.weight", c.Hidden, d)
		add(i, b+"mlp.dense_h_to_4h.bias", c.Hidden)
		add(i, b+"mlp.dense_4h_to_h.weight", d, c.Hidden)
		add(i, b+"mlp.dense_4h_to_h.bias", d)
	}
	add(-1, FinalScale, d)
	add(-1, FinalBias, d)
	add(-1, EmbedOut, c.Vocab, d)
	return list
}

// Model is a configuration and its weights, row-major float32 in host memory.
type Model struct {
	Config  Config
	Weights map[string][]float32 // by Spec.Name, each Spec.Size() long
}

// Check says which weight is missing, unknown or of the wrong size.
func (m *Model) Check() error {
	if err := m.Config.Validate(); err != nil {
		return err
	}
	specs := m.Config.Specs()
	for _, s := range specs {
		w, ok := m.Weights[s.Name]
		if !ok {
			return fmt.Errorf("weight %s is missing", s.Name)
		}
		if len(w) != s.Size() {
			return fmt.Errorf("weight %s has %d elements, want %v = %d", s.Name, len(w), s.Shape, s.Size())
		}
	}
	if len(m.Weights) != len(specs) {
		known := map[string]bool{}
		for _, s := range specs {
			known[s.Name] = true
		}
		for name := range m.Weights {
			if !known[name] {
				return fmt.Errorf("weight %s is unknown to a %s", name, m.Config.Architecture)
			}
		}
	}
	return nil
}

// Optimizer is AdamW's state of one training run.
type Optimizer struct {
	Mean     map[string][]float32 // first moments, of the weights trained so far
	Variance map[string][]float32 // second moments
	Steps    map[string]int64     // updates each of those weights has had
}
