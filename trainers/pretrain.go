package trainers

import (
	"context"
	"errors"
	"fmt"

	"github.com/scavenge/scavenge/gpu"
	"github.com/scavenge/scavenge/schemas/checkpoint"
	"github.com/scavenge/scavenge/schemas/tokenset"
)

// The mixers that a model can be pre-trained with.
const (
	MixerHyena     = "hyena"
	MixerAttention = "attention"
)

// PretrainOptions are those of Pretrain. Sizes that are 0 are Pythia-70M's.
type PretrainOptions struct {
	Run
	Mixer string // MixerHyena or MixerAttention; "": hyena

	Vocab   int // 0: the token set's, rounded up to a multiple of 128
	Dim     int // 0: 512
	Layers  int // 0: 6
	Heads   int // attention; 0: 8
	MLP     int // 0: 4·Dim
	Context int // 0: the token set's sequence length

	Width int // hyena: of the filter FFN; 0: 64
	Bands int // hyena: positional features of the filters; 0: 33

	Clip float64 // bound on the gradients' norm; 0: 1
}

// Validate says which option no pre-training can have.
func (o PretrainOptions) Validate() error {
	if err := o.Run.Validate(); err != nil {
		return err
	}
	if err := o.checkLength(); err != nil {
		return err
	}
	if o.Mixer != "" && o.Mixer != MixerHyena && o.Mixer != MixerAttention {
		return fmt.Errorf("--mixer %q: want %s or %s", o.Mixer, MixerHyena, MixerAttention)
	}
	for _, f := range []struct {
		flag string
		v    int
	}{{"vocab", o.Vocab}, {"dim", o.Dim}, {"layers", o.Layers}, {"heads", o.Heads}, {"mlp", o.MLP}, {"context", o.Context}, {"filter-width", o.Width}, {"filter-features", o.Bands}} {
		if f.v < 0 {
			return fmt.Errorf("--%s %d: want a positive number", f.flag, f.v)
		}
	}
	if !(o.Clip >= 0) {
		return fmt.Errorf("--clip %g: want a positive number", o.Clip)
	}
	return nil
}

// Config is the model that these options train over a token set.
func (o PretrainOptions) Config(m *tokenset.Manifest) (checkpoint.Config, error) {
	or := func(v, otherwise int) int {
		if v == 0 {
			return otherwise
		}
		return v
	}
	dim := or(o.Dim, 512)
	c := checkpoint.Config{Architecture: checkpoint.GPTNeoX, Vocab: or(o.Vocab, (m.Tokenizer.Vocab+127)/128*128), Dim: dim, Hidden: or(o.MLP, 4*dim),
		Layers: or(o.Layers, 6), Context: or(o.Context, m.SeqLen), Eps: 1e-5,
		Attention: checkpoint.Attention{Heads: or(o.Heads, 8), RotaryPct: 0.25, RotaryBase: 10000}}
	if o.Mixer != MixerAttention {
		c = c.Student(StudentOptions{Width: o.Width, Bands: o.Bands}.hyena(), c.Context)
	}
	if err := c.Validate(); err != nil {
		return c, err
	}
	return c, suits("the model's sizes", c, m)
}

// Pretrain trains a model with random weights on next-token cross entropy: the
// baseline, or a teacher where none can be had.
func Pretrain(ctx context.Context, o PretrainOptions) (s Summary, err error) {
	if err := o.Validate(); err != nil {
		return s, err
	}
	set, err := openSet(o.Dataset)
	if err != nil {
		return s, err
	}
	if err := o.Evaluation.check(set); err != nil {
		return s, err
	}
	config, err := o.Config(set.Manifest)
	if err != nil {
		return s, err
	}
	model, err := RandomModel(config, o.Seed)
	if err != nil {
		return s, err
	}
	optimizer := gpu.PaperAdamW()
	if optimizer.Clip = o.Clip; o.Clip == 0 {
		optimizer.Clip = 1
	}
	chosen := o.shared()
	chosen["clip"], chosen["mixer"] = optimizer.Clip, config.Architecture
	for name, v := range map[string]int{"vocab": config.Vocab, "dim": config.Dim, "layers": config.Layers, "heads": config.Attention.Heads,
		"mlp": config.Hidden, "context": config.Context, "filter-width": config.Hyena.Width, "filter-features": config.Hyena.Features} {
		chosen[name] = v
	}
	f, err := openFolder(o.Dir, checkpoint.Trainer{Kind: "pretrain", Seed: o.Seed, TokenSet: set.Fingerprint()}, chosen)
	if err != nil {
		return s, err
	}
	defer f.close()
	e, err := device(o.Device)
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, e.Close()) }()
	stages, err := onTokens(o.Run, Feed{}, set, crossEntropy, func(int64) Schedule { return o.Rate.fromScratch() })
	if err != nil {
		return s, err
	}
	l := &loop{Run: o.Run, kind: "pretrain", stages: stages}
	return l.train(ctx, e, f, model, gpu.Options{Optimizer: optimizer})
}
