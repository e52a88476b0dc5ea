package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/scavenge/scavenge/gpu"
	"github.com/scavenge/scavenge/pipelines"
	"github.com/scavenge/scavenge/schemas/checkpoint"
	"github.com/scavenge/scavenge/schemas/durable"
	"github.com/scavenge/scavenge/schemas/tokenizer"
	"github.com/scavenge/scavenge/schemas/tokenset"
	"github.com/scavenge/scavenge/trainers"
	"github.com/scavenge/scavenge/transforms"
)

// experiment is a run on its way: its options, and where its parts are.
type experiment struct {
	options
	tokenizer string // path
	dataset   string // folder of the token set
	teacher   string // folder of the checkpoint
	plan      plan
	took      times
}

// times are the wall seconds each stage has taken, over all starts.
type times map[string]float64

func (o options) hyena() checkpoint.Hyena {
	h := checkpoint.DefaultHyena()
	h.Width, h.Features = o.Width, o.Features
	return h
}

// path is a name in the run's folder.
func (x *experiment) path(parts ...string) string {
	return filepath.Join(append([]string{x.Run}, parts...)...)
}

// run takes the paper's way from text to its table. Each stage leaves its
// output in the run's folder and does nothing where it is whole already.
func run(ctx context.Context, o options, out io.Writer) error {
	if err := o.validate(); err != nil {
		return err
	}
	x := &experiment{options: o, took: times{}}
	if err := os.MkdirAll(o.Run, 0o777); err != nil {
		return fmt.Errorf("--run: %w", err)
	}
	if err := readJSON(x.path("seconds.json"), &x.took); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, stage := range []struct {
		name string
		do   func(context.Context) error
	}{
		{"text", x.text},
		{"tokenizer", x.tokenise},
		{"token set", x.pack},
		{"plan", x.makePlan},
		{nameTeacher, x.pretrainTeacher},
		{namePretrained, x.pretrainStudent},
		{nameDistilled, func(ctx context.Context) error { return x.distill(ctx, nameDistilled, x.plan.Distill) }},
		{nameHalf, func(ctx context.Context) error { return x.distill(ctx, nameHalf, x.plan.Half) }},
		{nameFinetuned, x.finetune},
	} {
		if err := x.timed(ctx, stage.name, stage.do); err != nil {
			return err
		}
	}
	r, err := x.report(ctx)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "\n%s\n%s\nreport: %s\n", r.Title, r.Table(), x.path("report.html"))
	return nil
}

// timed adds a stage's wall time to what earlier starts spent on it.
func (x *experiment) timed(ctx context.Context, name string, do func(context.Context) error) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("stopped before the stage %s; the same command goes on from there: %w", name, err)
	}
	began := time.Now()
	err := do(ctx)
	if errors.Is(err, errAlready) {
		return nil
	}
	x.took[name] += time.Since(began).Seconds()
	if e := writeJSON(x.path("seconds.json"), x.took); err == nil {
		err = e
	}
	return err
}

// errAlready is what a stage returns that had nothing to do.
var errAlready = errors.New("already there")

// text extracts the default corpus.
func (x *experiment) text(ctx context.Context) error {
	if len(x.Input) > 0 {
		return errAlready
	}
	path := x.path("text", "go-doc-comments.jsonl")
	x.Input = []string{path}
	if _, err := os.Stat(path); err == nil {
		return errAlready
	}
	src, err := goSource(ctx)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o777); err != nil {
		return err
	}
	n, err := docComments(ctx, src, path)
	if err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "text: the doc comments of %d packages below %s\n", n, src)
	return nil
}

// tokenizerBytes is how much text, in bytes, a tokenizer is trained on: more
// of it hardly moves the counts of a small vocabulary.
const tokenizerBytes = 64 << 20

// tokenise trains a tokenizer where none is given.
func (x *experiment) tokenise(ctx context.Context) error {
	if x.tokenizer = x.Tokenizer; x.tokenizer != "" {
		return errAlready
	}
	x.tokenizer = x.path("tokenizer.json")
	if _, err := os.Stat(x.tokenizer); err == nil {
		return errAlready
	}
	var failed error
	t, err := tokenizer.Train(func(yield func(string) bool) {
		failed = transforms.Documents(ctx, x.Input, tokenizerBytes, yield)
	}, tokenizer.TrainOptions{Vocab: x.Vocab})
	if failed != nil {
		return failed
	}
	if err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "tokenizer: a byte-level BPE of %d ids\n", t.Vocab())
	return t.Save(x.tokenizer)
}

// pack makes the token set.
func (x *experiment) pack(ctx context.Context) error {
	x.dataset = x.path("tokens")
	return pipelines.Tokenize(ctx, pipelines.TokenizeOptions{Inputs: x.Input, Tokenizer: x.tokenizer, SeqLen: x.Context, Validation: x.Validation, Seed: x.Seed, Output: x.dataset})
}

// makePlan settles how many steps each training takes on this device.
func (x *experiment) makePlan(ctx context.Context) error {
	config, err := x.teacherConfig()
	if err != nil {
		return err
	}
	x.plan, err = loadPlan(ctx, x.options, config)
	return err
}

// teacherConfig is the teacher's configuration, be it there already or not.
func (x *experiment) teacherConfig() (checkpoint.Config, error) {
	if x.Teacher != "" {
		m, err := trainers.LoadModel("--teacher", x.Teacher)
		if err != nil {
			return checkpoint.Config{}, err
		}
		return m.Config, nil
	}
	set, err := tokenset.Open(x.dataset)
	if err != nil {
		return checkpoint.Config{}, err
	}
	return x.teacherOptions().Config(set.Manifest)
}

func (x *experiment) teacherOptions() trainers.PretrainOptions {
	o := x.pretraining(nameTeacher, x.plan.Teacher)
	o.Mixer = trainers.MixerAttention
	return o
}

// training holds what all trainings share.
func (x *experiment) training(name string, steps int64) trainers.Run {
	return trainers.Run{Dataset: x.dataset, Dir: x.path(folder(name)), Device: x.Device, Precision: gpu.Precision(x.Precision), Seed: x.Seed, Batch: x.Batch,
		Rate: trainers.Rate{Peak: x.Rate}, Steps: steps, Stage: name}
}

// pretraining is one from random weights. The paper's schedule is made for
// thousands of steps; a short run takes the one of the other trainings.
func (x *experiment) pretraining(name string, steps int64) trainers.PretrainOptions {
	o := trainers.PretrainOptions{Run: x.training(name, steps), Dim: x.Dim, Layers: x.Layers, Heads: x.Heads, MLP: x.MLP, Context: x.Context, Width: x.Width, Bands: x.Features}
	if steps < paperDecaySteps {
		o.Rate.Warmup, o.Rate.Decay = max(1, steps/40), steps
	}
	return o
}

// paperDecaySteps is the length of the paper's pre-training schedule.
const paperDecaySteps = 2000

func (x *experiment) pretrainTeacher(ctx context.Context) error {
	if x.teacher = x.Teacher; x.teacher != "" {
		return errAlready
	}
	x.teacher = x.path(folder(nameTeacher))
	return done(trainers.Pretrain(ctx, x.teacherOptions()))
}

func (x *experiment) pretrainStudent(ctx context.Context) error {
	config, err := x.teacherConfig()
	if err != nil {
		return err
	}
	o := x.pretraining(namePretrained, x.plan.Pretrain)
	o.Mixer = trainers.MixerHyena
	// a twin of the teacher, whose sizes need not be this command's
	o.Vocab, o.Dim, o.Layers, o.MLP = config.Vocab, config.Dim, config.Layers, config.Hidden
	return done(trainers.Pretrain(ctx, o))
}

func (x *experiment) finetune(ctx context.Context) error {
	o := trainers.FinetuneOptions{Run: x.training(nameFinetuned, x.plan.Finetune), StudentOptions: trainers.StudentOptions{Student: x.path(folder(nameHalf))}}
	return done(trainers.Finetune(ctx, o))
}

func done(s trainers.Summary, err error) error {
	if err == nil && s.Already {
		return errAlready
	}
	return err
}

// folder is a stage's folder in the run's.
func folder(name string) string { return strings.ReplaceAll(name, " ", "-") }

func readJSON(path string, v any) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

func writeJSON(path string, v any) error {
	return durable.WriteFile(path, func(w io.Writer) error {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(v)
	})
}
