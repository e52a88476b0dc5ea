package main

import (
	"errors"
	"flag"
	"fmt"
	"math"
	"os"
	"strings"

	"github.com/scavenge/scavenge/gpu"
	"github.com/scavenge/scavenge/infra/cluster"
	"github.com/scavenge/scavenge/schemas/checkpoint"
	"github.com/scavenge/scavenge/trainers"
)

// options of an experiment. Every default can be replaced by something real:
// text, a tokenizer, a teacher, a broker, a GPU.
type options struct {
	Run string // folder of everything the experiment leaves

	Input     []string // globs of text; none: the doc comments of the Go sources at hand
	Tokenizer string   // tokenizer.json; "": one trained on the input
	Vocab     int      // of a tokenizer trained here
	Teacher   string   // checkpoint; "": one pre-trained here
	Eval      []evalText

	Dim, Layers, Heads, MLP int // of a teacher pre-trained here
	Context                 int // tokens of a sequence
	Width, Features         int // of the student's filters
	Validation              float64

	Batch          int
	Rate           float64
	TeacherSeconds float64 // training time of a teacher pre-trained here
	StudentSeconds float64 // training time of each student

	Source         string // of the activations: trainers.FromStream or trainers.FromInline
	cluster.Access        // no brokers: the embedded one
	Device         string
	Precision      string // of training; scores are float32
	Seed           int64
}

// evalText is a text that all models are scored on beside the held-out split.
type evalText struct{ Name, Path string }

// flags declares the command's flags.
func (o *options) flags(f *flag.FlagSet) {
	f.StringVar(&o.Run, "run", "runs/experiment", "`folder` for everything the experiment makes; the same command goes on from what is there")
	f.Func("input", "`globs` of text files, several with commas: all that pipelines/tokenize reads (default the doc comments of the Go sources on this machine)", appendTo(&o.Input))
	f.StringVar(&o.Tokenizer, "tokenizer", "", "a Hugging Face `tokenizer.json` (default a byte-level BPE trained on the input)")
	f.IntVar(&o.Vocab, "vocab", 2048, "`size` of the vocabulary of a BPE trained here")
	f.StringVar(&o.Teacher, "teacher", "", "checkpoint `folder` of a GPT-NeoX (default one pre-trained here)")
	f.Func("eval", "`name=file` of a text to score every model on, beside the held-out split; repeatable", func(s string) error {
		name, path, ok := strings.Cut(s, "=")
		if !ok || name == "" || path == "" {
			return errors.New("want name=file")
		}
		o.Eval = append(o.Eval, evalText{name, path})
		return nil
	})
	f.IntVar(&o.Dim, "dim", 128, "`width` of the residual stream of a teacher pre-trained here")
	f.IntVar(&o.Layers, "layers", 4, "its `blocks`")
	f.IntVar(&o.Heads, "heads", 4, "its attention `heads`")
	f.IntVar(&o.MLP, "mlp", 0, "`width` of its MLPs (default 4 times --dim)")
	f.IntVar(&o.Context, "context", 128, "`tokens` of a sequence")
	f.IntVar(&o.Width, "filter-width", 64, "`width` of the FFN of the student's filters")
	f.IntVar(&o.Features, "filter-features", 33, "positional `features` of the student's filters, an odd number")
	f.Float64Var(&o.Validation, "validation", 0.05, "`share` of the documents that is held out")
	f.IntVar(&o.Batch, "batch", 16, "`sequences` a step")
	f.Float64Var(&o.Rate, "rate", 1e-3, "peak learning `rate` of all trainings")
	f.Float64Var(&o.TeacherSeconds, "teacher-seconds", 120, "how `long` to pre-train a teacher")
	f.Float64Var(&o.StudentSeconds, "student-seconds", 45, "how `long` to train each of the three students")
	o.Access.Flags(f, "Kafka's `host:port`, several with commas (default an embedded broker on loopback)")
	f.StringVar(&o.Source, "source", trainers.FromStream, "of the teacher's activations: stream (through Kafka) or inline (the teacher beside the student: faster than any wire on a GPU)")
	f.StringVar(&o.Device, "device", "cpu", "`where` to compute: cpu, cuda:0")
	f.StringVar(&o.Precision, "precision", string(gpu.Float32), "`arithmetic` of training: float32 or bf16; scores are float32 always")
	f.Int64Var(&o.Seed, "seed", 1, "of the split, the weights and the order of the sequences")
}

// appendTo splits a flag's value at commas.
func appendTo(list *[]string) func(string) error {
	return func(s string) error {
		for part := range strings.SplitSeq(s, ",") {
			if part = strings.TrimSpace(part); part != "" {
				*list = append(*list, part)
			}
		}
		return nil
	}
}

// validate says what of the options cannot be, and fills in what follows from others.
func (o *options) validate() error {
	if o.MLP == 0 {
		o.MLP = 4 * o.Dim
	}
	for _, f := range []struct {
		flag string
		v    int
		min  int
	}{{"vocab", o.Vocab, 258}, {"dim", o.Dim, 1}, {"layers", o.Layers, 1}, {"heads", o.Heads, 1}, {"mlp", o.MLP, 1},
		{"context", o.Context, 2}, {"filter-width", o.Width, 1}, {"filter-features", o.Features, 3}, {"batch", o.Batch, 1}} {
		if f.v < f.min {
			return fmt.Errorf("--%s %d: want at least %d", f.flag, f.v, f.min)
		}
	}
	for _, f := range []struct {
		flag     string
		v        float64
		min, max float64
	}{{"validation", o.Validation, 1e-9, 0.9}, {"rate", o.Rate, 1e-9, 1}, {"teacher-seconds", o.TeacherSeconds, 1e-3, 1e8}, {"student-seconds", o.StudentSeconds, 1e-3, 1e8}} {
		if math.IsNaN(f.v) || f.v < f.min || f.v > f.max {
			return fmt.Errorf("--%s %g: want a number from %g to %g", f.flag, f.v, f.min, f.max)
		}
	}
	if o.Source != trainers.FromStream && o.Source != trainers.FromInline {
		return fmt.Errorf("--source %q: want %s or %s", o.Source, trainers.FromStream, trainers.FromInline)
	}
	if p := gpu.Precision(o.Precision); p != gpu.Float32 && p != gpu.BFloat16 {
		return fmt.Errorf("--precision %q: want %s or %s", o.Precision, gpu.Float32, gpu.BFloat16)
	}
	if err := o.Access.Validate(); err != nil {
		return err
	}
	c := checkpoint.Config{Architecture: checkpoint.GPTNeoX, Vocab: o.Vocab, Dim: o.Dim, Hidden: o.MLP, Layers: o.Layers, Context: o.Context, Eps: 1e-5,
		Attention: checkpoint.Attention{Heads: o.Heads, RotaryPct: 0.25, RotaryBase: 10000}}
	for _, c := range []checkpoint.Config{c, c.Student(o.hyena(), o.Context)} {
		if err := c.Validate(); err != nil && o.Teacher == "" {
			return fmt.Errorf("the models' sizes: %w", err)
		}
	}
	names := map[string]bool{}
	for _, e := range o.Eval {
		if names[e.Name] {
			return fmt.Errorf("--eval: the name %q is given twice", e.Name)
		}
		names[e.Name] = true
		if _, err := os.Stat(e.Path); err != nil {
			return fmt.Errorf("--eval %s: %w", e.Name, err)
		}
	}
	return nil
}
