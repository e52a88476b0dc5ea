package checkpoint

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
)

// The two architectures, by the model_type of their config.json.
const (
	GPTNeoX   = "gpt_neox"   // softmax attention: the teacher
	HyenaNeoX = "hyena_neox" // Hyena operators of order 2: the student
)

// Config is what a config.json says of a model. Both architectures are stacks
// of Layers blocks x ← x + mixer(LN₁ x) + mlp(LN₂ x) on a residual stream of
// width Dim; they differ in the mixer.
type Config struct {
	Architecture string // GPTNeoX or HyenaNeoX
	Vocab        int
	Dim          int     // width of the residual stream
	Hidden       int     // width of the MLP
	Layers       int     // blocks
	Context      int     // longest sequence, tokens (L_max of the filters)
	Eps          float64 // of the layer norms

	Attention Attention // of a GPTNeoX
	Hyena     Hyena     // of a HyenaNeoX
}

// Attention holds what only softmax attention needs.
type Attention struct {
	Heads      int
	RotaryPct  float64 // share of each head's dimensions that are rotated
	RotaryBase float64
}

// RotaryDims is how many leading dimensions of a head are rotated.
func (c Config) RotaryDims() int {
	return int(float64(c.Dim/c.Attention.Heads) * c.Attention.RotaryPct)
}

// Hyena holds the filter's constants (Poli et al. 2023, appendix; the values
// in DefaultHyena are those of its published code).
type Hyena struct {
	Width    int     // W, of the filter's FFN
	Features int     // E, positional features: odd, 1 + 2 bands
	SineFreq float64 // initial φ
	Fast     float64 // fast_decay_pct
	Slow     float64 // slow_decay_pct
	Target   float64 // decay target
}

// DefaultHyena is W = 64, E = 33, φ = 14, decays 0.3 and 1.5 to 0.01.
func DefaultHyena() Hyena {
	return Hyena{Width: 64, Features: 33, SineFreq: 14, Fast: 0.3, Slow: 1.5, Target: 0.01}
}

// Student is the Hyena twin of a teacher's configuration, for sequences of at
// most context tokens.
func (c Config) Student(h Hyena, context int) Config {
	s := c
	s.Architecture, s.Hyena, s.Attention, s.Context = HyenaNeoX, h, Attention{}, context
	return s
}

// Validate says what of a configuration no engine can run.
func (c Config) Validate() error {
	for _, f := range []struct {
		name string
		v    int
	}{{"vocab_size", c.Vocab}, {"hidden_size", c.Dim}, {"intermediate_size", c.Hidden}, {"num_hidden_layers", c.Layers}, {"max_position_embeddings", c.Context}} {
		if f.v <= 0 || f.v > 1<<30 {
			return fmt.Errorf("config: %s is %d", f.name, f.v)
		}
	}
	if c.Layers > 1<<16 { // a list of their weights must fit in memory, whatever a file says
		return fmt.Errorf("config: num_hidden_layers is %d: more than %d", c.Layers, 1<<16)
	}
	if !(c.Eps > 0) {
		return fmt.Errorf("config: layer_norm_eps is %g", c.Eps)
	}
	switch c.Architecture {
	case GPTNeoX:
		if c.Attention.Heads <= 0 || c.Dim%c.Attention.Heads != 0 {
			return fmt.Errorf("config: hidden_size %d does not divide into %d heads", c.Dim, c.Attention.Heads)
		}
		if c.Attention.RotaryPct < 0 || c.Attention.RotaryPct > 1 || c.RotaryDims()%2 != 0 {
			return fmt.Errorf("config: rotary_pct %g of head dimension %d is not an even number of dimensions", c.Attention.RotaryPct, c.Dim/c.Attention.Heads)
		}
		if !(c.Attention.RotaryBase > 0) {
			return fmt.Errorf("config: rotary base is %g", c.Attention.RotaryBase)
		}
	case HyenaNeoX:
		h := c.Hyena
		if h.Width <= 0 || h.Features < 3 || h.Features%2 == 0 {
			return fmt.Errorf("config: hyena_filter_width %d, hyena_filter_emb_dim %d: want a positive width and an odd number of features from 3", h.Width, h.Features)
		}
		if !(h.Fast > 0) || !(h.Slow > 0) || !(h.Target > 0 && h.Target < 1) {
			return fmt.Errorf("config: hyena decay fast %g slow %g target %g", h.Fast, h.Slow, h.Target)
		}
	default:
		return fmt.Errorf("config: model_type %q: want %s or %s", c.Architecture, GPTNeoX, HyenaNeoX)
	}
	return nil
}

// fields are the keys of a config.json that this package reads or writes;
// pointers tell a missing key from a zero.
type fields struct {
	Architectures []string `json:"architectures,omitempty"`
	ModelType     string   `json:"model_type"`
	Vocab         int      `json:"vocab_size"`
	Dim           int      `json:"hidden_size"`
	Hidden        int      `json:"intermediate_size"`
	Layers        int      `json:"num_hidden_layers"`
	Heads         int      `json:"num_attention_heads,omitempty"`
	Context       int      `json:"max_position_embeddings"`
	Eps           *float64 `json:"layer_norm_eps"`
	Act           string   `json:"hidden_act"`
	Parallel      *bool    `json:"use_parallel_residual"`
	Tied          bool     `json:"tie_word_embeddings"`
	AttentionBias *bool    `json:"attention_bias,omitempty"`
	Bos           *int     `json:"bos_token_id,omitempty"`
	Eos           *int     `json:"eos_token_id,omitempty"`
	Torch         string   `json:"torch_dtype,omitempty"`
	// both spellings of the rotary settings
	RotaryPct  *float64 `json:"rotary_pct,omitempty"`
	RotaryBase *float64 `json:"rotary_emb_base,omitempty"`
	Rope       *rope    `json:"rope_parameters,omitempty"`
	// transformers' older way to stretch positions, which no engine here has
	RopeScaling json.RawMessage `json:"rope_scaling,omitempty"`

	Order    *int     `json:"hyena_order,omitempty"`
	Width    int      `json:"hyena_filter_width,omitempty"`
	Features int      `json:"hyena_filter_emb_dim,omitempty"`
	SineFreq *float64 `json:"hyena_filter_sine_freq,omitempty"`
	ShortLen *int     `json:"hyena_short_filter_len,omitempty"`
	Fast     float64  `json:"hyena_fast_decay_pct,omitempty"`
	Slow     float64  `json:"hyena_slow_decay_pct,omitempty"`
	Target   float64  `json:"hyena_decay_target,omitempty"`
}

type rope struct {
	Pct  *float64 `json:"partial_rotary_factor"`
	Base *float64 `json:"rope_theta"`
	Type string   `json:"rope_type"`
}

// ParseConfig reads a config.json, of a Hugging Face GPT-NeoX in either
// spelling of its rotary settings or of a student of ours. It refuses by name
// what the engines do not compute.
func ParseConfig(data []byte) (Config, error) {
	var f fields
	if err := json.Unmarshal(data, &f); err != nil {
		return Config{}, fmt.Errorf("config: %w", err)
	}
	c := Config{Architecture: f.ModelType, Vocab: f.Vocab, Dim: f.Dim, Hidden: f.Hidden, Layers: f.Layers, Context: f.Context, Eps: 1e-5}
	if f.Eps != nil {
		c.Eps = *f.Eps
	}
	if f.Act != "gelu" && f.Act != "" {
		return c, fmt.Errorf("config: hidden_act %q: only gelu (exact) is computed", f.Act)
	}
	if f.Parallel != nil && !*f.Parallel {
		return c, errors.New("config: use_parallel_residual is false: only the parallel residual is computed")
	}
	if f.Tied {
		return c, errors.New("config: tie_word_embeddings is true: only an untied output embedding is computed")
	}
	switch f.ModelType {
	case GPTNeoX:
		if f.AttentionBias != nil && !*f.AttentionBias {
			return c, errors.New("config: attention_bias is false: only biased projections are computed")
		}
		if len(f.RopeScaling) > 0 && string(f.RopeScaling) != "null" {
			return c, errors.New("config: rope_scaling is set: only plain rotary embeddings are computed")
		}
		c.Attention = Attention{Heads: f.Heads, RotaryPct: 0.25, RotaryBase: 10000}
		if f.RotaryPct != nil {
			c.Attention.RotaryPct = *f.RotaryPct
		}
		if f.RotaryBase != nil {
			c.Attention.RotaryBase = *f.RotaryBase
		}
		if r := f.Rope; r != nil {
			if r.Type != "" && r.Type != "default" {
				return c, fmt.Errorf("config: rope_parameters.rope_type %q: only default is computed", r.Type)
			}
			if r.Pct != nil {
				c.Attention.RotaryPct = *r.Pct
			}
			if r.Base != nil {
				c.Attention.RotaryBase = *r.Base
			}
		}
	case HyenaNeoX:
		if f.Order != nil && *f.Order != 2 {
			return c, fmt.Errorf("config: hyena_order is %d: only 2 is computed", *f.Order)
		}
		if f.ShortLen != nil && *f.ShortLen != ShortFilter {
			return c, fmt.Errorf("config: hyena_short_filter_len is %d: only %d is computed", *f.ShortLen, ShortFilter)
		}
		c.Hyena = Hyena{Width: f.Width, Features: f.Features, SineFreq: 14, Fast: f.Fast, Slow: f.Slow, Target: f.Target}
		if f.SineFreq != nil {
			c.Hyena.SineFreq = *f.SineFreq
		}
	}
	return c, c.Validate()
}

// MarshalJSON writes the config.json that ParseConfig reads; a GPTNeoX's
// loads in transformers.
func (c Config) MarshalJSON() ([]byte, error) {
	yes, zero, two, three := true, 0, 2, ShortFilter
	f := fields{ModelType: c.Architecture, Vocab: c.Vocab, Dim: c.Dim, Hidden: c.Hidden, Layers: c.Layers, Context: c.Context,
		Eps: &c.Eps, Act: "gelu", Parallel: &yes, Bos: &zero, Eos: &zero, Torch: "float32"}
	switch c.Architecture {
	case GPTNeoX:
		f.Architectures = []string{"GPTNeoXForCausalLM"}
		f.Heads, f.RotaryPct, f.RotaryBase = c.Attention.Heads, &c.Attention.RotaryPct, &c.Attention.RotaryBase
	case HyenaNeoX:
		f.Architectures = []string{"HyenaNeoXForCausalLM"}
		f.Order, f.Width, f.Features, f.SineFreq = &two, c.Hyena.Width, c.Hyena.Features, &c.Hyena.SineFreq
		f.ShortLen, f.Fast, f.Slow, f.Target = &three, c.Hyena.Fast, c.Hyena.Slow, c.Hyena.Target
	}
	return json.MarshalIndent(f, "", "  ")
}

// UnmarshalJSON is ParseConfig.
func (c *Config) UnmarshalJSON(data []byte) error {
	p, err := ParseConfig(data)
	if err == nil {
		*c = p
	}
	return err
}

// Parameters counts a configuration's weights.
func (c Config) Parameters() int {
	n := 0
	for _, s := range c.Specs() {
		n += s.Size()
	}
	return n
}

// InitScale is the standard deviation of a random matrix that projects back
// into the residual stream: 0.02/√(2·layers) (GPT-2's rule).
func (c Config) InitScale() float64 { return 0.02 / math.Sqrt(2*float64(c.Layers)) }
