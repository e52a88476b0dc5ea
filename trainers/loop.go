package trainers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"time"

	"github.com/scavenge/scavenge/gpu"
	"github.com/scavenge/scavenge/schemas/checkpoint"
	"github.com/scavenge/scavenge/schemas/report"
)

// stage is a part of a run with a source and a learning-rate schedule of its
// own.
type stage struct {
	layer int // the block it distils; −1: none
	steps int64
	rate  Schedule
	open  func(ctx context.Context, at Position) (Source, error)
	step  func(b *Batch) gpu.Step // without the rate
}

// lossesKept is how many of the last losses a checkpoint tells.
const lossesKept = 10

// loop is a training run on its device: the steps of all stages, with
// metrics, checkpoints and the way back from them.
type loop struct {
	Run
	kind   string
	stages []stage
	model  gpu.Model
	state  checkpoint.Trainer // after the last step

	metrics *report.Metrics
	monitor *monitor
	bar     *report.Bar
	saved   int64 // step of the last checkpoint; −1: none
	dir     string
	logged  time.Time // when a step was last logged as JSON
}

// train runs the stages from where the run's folder says, or from start where
// it is empty. It owns the model that it opens on the engine, not the engine.
func (l *loop) train(ctx context.Context, e gpu.Engine, f *folder, start *checkpoint.Model, o gpu.Options) (s Summary, err error) {
	model, optimizer := start, (*checkpoint.Optimizer)(nil)
	l.state, l.saved, l.dir = f.fresh, -1, ""
	for _, g := range l.stages {
		l.state.Steps += g.steps
	}
	if f.dir != "" {
		if model, optimizer, l.state, err = f.resume(); err != nil {
			return s, err
		}
		l.saved, l.dir = l.state.Step, f.dir
		if l.state.Step == l.state.Steps {
			s = l.summary()
			s.Already = true
			return s, nil
		}
		l.say("%s: going on after step %d of %d", l.Dir, l.state.Step, l.state.Steps)
	}
	o.Train, o.Precision = true, l.Precision
	if l.model, err = e.Open(model, o); err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, l.model.Close()) }()
	if optimizer != nil {
		if err := l.model.Restore(optimizer); err != nil {
			return s, fmt.Errorf("%s: %w", l.dir, err)
		}
	}
	if l.metrics, err = report.OpenMetrics(filepath.Join(l.Dir, "metrics.jsonl"), l.state.Step); err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, l.metrics.Close()) }()
	if l.monitor, err = watch(l.Run.Metrics); err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, l.monitor.close()) }()
	l.monitor.begin(l.state)
	if !l.Quiet && l.Log != LogJSON {
		l.bar = report.NewBar(l.name(), l.state.Steps)
		defer l.bar.Done()
	}
	if err = l.run(ctx); err == nil {
		err = l.save()
	}
	return l.summary(), err
}

// run takes the steps that are left.
func (l *loop) run(ctx context.Context) error {
	for i, g := range l.stages {
		if i < l.state.Layer || i == l.state.Layer && l.state.LayerStep == g.steps {
			continue
		}
		if i > l.state.Layer {
			l.enter(i)
		}
		if err := l.stage(ctx, g); err != nil {
			return err
		}
	}
	return nil
}

// enter begins a stage: its source starts at the first epoch's beginning.
func (l *loop) enter(i int) {
	l.state.Layer, l.state.LayerStep = i, 0
	l.state.Epoch, l.state.Index, l.state.Seen, l.state.Offsets = 0, 0, 0, nil
}

func (l *loop) stage(ctx context.Context, g stage) (err error) {
	source, err := g.open(ctx, Position{Epoch: l.state.Epoch, Index: l.state.Index, Offsets: l.state.Offsets})
	if err != nil {
		return l.interrupted(ctx, err)
	}
	l.monitor.reads(source)
	defer func() {
		l.monitor.reads(nil)
		err = errors.Join(err, source.Close())
	}()
	for l.state.LayerStep < g.steps {
		began := time.Now()
		batch, err := source.Next(ctx)
		if err != nil {
			return l.interrupted(ctx, err)
		}
		waited := time.Since(began)
		step := g.step(batch)
		step.Rate = g.rate.At(l.state.LayerStep + 1)
		result, err := l.model.Step(step)
		if err != nil {
			return fmt.Errorf("step %d%s: %w", l.state.Step+1, g.where(), err)
		}
		if err := finite(result); err != nil {
			return fmt.Errorf("step %d%s: %w: training diverged (a lower --rate may help); %s", l.state.Step+1, g.where(), err, l.lastGood())
		}
		if err := l.count(g, batch, source.Position(), step.Rate, result, time.Since(began)); err != nil {
			return err
		}
		l.monitor.step(l.state, step.Rate, result, time.Since(began), waited)
		batch.Release()
		if l.state.Step%l.every() == 0 {
			if err := l.save(); err != nil {
				return err
			}
		}
	}
	return l.save() // before the source lets go of what only this stage needs
}

// count moves the run's state past a step.
func (l *loop) count(g stage, b *Batch, after Position, rate float64, r gpu.Result, took time.Duration) error {
	s := &l.state
	s.Step++
	s.LayerStep++
	s.Epoch, s.Index, s.Seen, s.Offsets = after.Epoch, after.Index, after.Index, after.Offsets
	s.Tokens += int64(b.Rows) * int64(b.Length)
	s.Seconds += took.Seconds()
	s.Losses = append(s.Losses[max(0, len(s.Losses)+1-lossesKept):], r.Loss)
	l.bar.Set(s.Step, s.Tokens, r.Loss)
	if l.Log == LogJSON && !l.Quiet && (time.Since(l.logged) > logEvery || s.Step == s.Steps) {
		l.logged = time.Now()
		logger(os.Stderr).Info("step", "stage", l.name(), "layer", g.layer, "step", s.Step, "steps", s.Steps, "loss", r.Loss, "rate", rate, "norm", r.Norm, "tokens", s.Tokens, "seconds", s.Seconds)
	}
	return l.metrics.Append(report.Metric{Stage: l.name(), Layer: g.layer, Step: s.Step, Loss: r.Loss, Rate: rate, Norm: r.Norm, Tokens: s.Tokens, Seconds: s.Seconds})
}

// interrupted keeps what was reached when data ends early: by Ctrl-C, or
// because a source failed.
func (l *loop) interrupted(ctx context.Context, cause error) error {
	if l.state.Step > 0 {
		if err := l.save(); err != nil {
			return errors.Join(cause, err)
		}
	}
	if ctx.Err() != nil {
		return fmt.Errorf("stopped after step %d of %d; the same command goes on from there: %w", l.state.Step, l.state.Steps, context.Cause(ctx))
	}
	return fmt.Errorf("step %d: %w", l.state.Step+1, cause)
}

// save writes a checkpoint of the state after the last step, once.
func (l *loop) save() error {
	if l.saved == l.state.Step {
		return nil
	}
	model, err := l.model.Model()
	if err != nil {
		return err
	}
	optimizer, err := l.model.Optimizer()
	if err != nil {
		return err
	}
	// metrics first: those beyond the checkpoint are dropped at a resume,
	// missing ones would not come back
	if err := l.metrics.Sync(); err != nil {
		return err
	}
	dir, err := checkpoint.SaveTraining(l.Dir, model, optimizer, l.state)
	if err != nil {
		return err
	}
	l.dir, l.saved = dir, l.state.Step
	return nil
}

func (l *loop) summary() Summary {
	s := Summary{Steps: l.state.Step, Tokens: l.state.Tokens, Seconds: l.state.Seconds, Loss: math.NaN(), Checkpoint: l.dir}
	if n := len(l.state.Losses); n > 0 {
		s.Loss = l.state.Losses[n-1]
	}
	return s
}

func (l *loop) name() string {
	if l.Stage == "" {
		return l.kind
	}
	return l.Stage
}

func (l *loop) every() int64 {
	if l.SaveEvery == 0 {
		return 500
	}
	return l.SaveEvery
}

func (l *loop) lastGood() string {
	if l.saved < 0 {
		return "no checkpoint was written yet"
	}
	return "the last good checkpoint is " + l.dir
}

// logEvery is how often a step is logged as JSON.
const logEvery = 10 * time.Second

func logger(w io.Writer) *slog.Logger { return slog.New(slog.NewJSONHandler(w, nil)) }

// say tells people what the run does, on standard error.
func (r Run) say(format string, args ...any) {
	switch {
	case r.Quiet:
	case r.Log == LogJSON:
		logger(os.Stderr).Info(fmt.Sprintf(format, args...), "run", r.Dir)
	default:
		fmt.Fprintf(os.Stderr, format+"\n", args...)
	}
}

func (g stage) where() string {
	if g.layer < 0 {
		return ""
	}
	return fmt.Sprintf(" (layer %d)", g.layer)
}

// finite fails on a loss or gradient that no weights survive.
func finite(r gpu.Result) error {
	if math.IsNaN(r.Loss) || math.IsInf(r.Loss, 0) {
		return fmt.Errorf("the loss is %g", r.Loss)
	}
	if math.IsNaN(r.Norm) || math.IsInf(r.Norm, 0) {
		return fmt.Errorf("the gradient's norm is %g", r.Norm)
	}
	return nil
}
