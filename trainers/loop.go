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
	layer int   // the block it distils; −1: none
	steps int64 // at most; unbounded: as many as come
	rate  Schedule
	open  func(ctx context.Context, at Position) (Source, error)
	step  func(b *Batch) gpu.Step // without the rate
	// follow says that the source's end is the stream's, not the stage's.
	follow  bool
	advance Advance
	// heldOut makes the stage's evaluator; nil, or none: it is not evaluated.
	heldOut func() (evaluator, error)
}

// unbounded is more steps than will be.
const unbounded = math.MaxInt64

// complete tells whether a stage that a run is in has come to its end.
func (g stage) complete(t checkpoint.Trainer) bool {
	return t.LayerStep == g.steps || g.advance.enough(t)
}

// bounded tells whether a stage ends, with data enough.
func (g stage) bounded() bool { return g.steps != unbounded || g.advance.Rule != "" }

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
	l.state.Steps = 0
	for _, g := range l.stages {
		if g.steps == unbounded || g.advance.Rule != "" {
			l.state.Steps = 0
			break
		}
		l.state.Steps += g.steps
	}
	if f.dir != "" {
		if model, optimizer, l.state, err = f.resume(); err != nil {
			return s, err
		}
		l.saved, l.dir = l.state.Step, f.dir
		if last := len(l.stages) - 1; l.state.Layer == last && l.stages[last].complete(l.state) {
			s = l.summary()
			s.Already = true
			return s, nil
		}
		l.say("%s: going on after %s", l.Dir, at(l.state))
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
		if i < l.state.Layer || i == l.state.Layer && g.complete(l.state) {
			continue
		}
		if i > l.state.Layer {
			l.enter(i, g)
		}
		if err := l.stage(ctx, g); err != nil {
			return err
		}
	}
	return nil
}

// enter begins a stage: its source starts at the first epoch's beginning, or,
// where a stream is followed, with what comes after the stage before.
func (l *loop) enter(i int, g stage) {
	l.state.Layer, l.state.LayerStep, l.state.LayerTokens, l.state.HeldOut = i, 0, 0, nil
	l.state.Seen, l.state.Offsets = 0, nil
	if !g.follow {
		l.state.Epoch, l.state.Index = 0, 0
	}
}

// stage trains until a stage is complete. A stream that ends before is read
// again from its beginning, if the stage has an end.
func (l *loop) stage(ctx context.Context, g stage) error {
	var held evaluator
	if g.heldOut != nil {
		var err error
		if held, err = g.heldOut(); err != nil {
			return err
		}
	}
	for again := false; ; again = true {
		from := l.state.LayerStep
		ended, err := l.pass(ctx, g, held)
		if !ended || err != nil || !g.bounded() {
			return err
		}
		if again && from == l.state.LayerStep {
			return l.interrupted(ctx, fmt.Errorf("the stream has ended%s and holds nothing to train on", g.where()))
		}
		l.say("the stream has ended and%s is not trained enough: reading what it holds again", g.where())
		l.state.Epoch, l.state.Index, l.state.Seen, l.state.Offsets = Earliest, 0, 0, nil
	}
}

// pass trains until a stage is complete or its stream has ended.
func (l *loop) pass(ctx context.Context, g stage, held evaluator) (ended bool, err error) {
	source, err := g.open(ctx, Position{Epoch: l.state.Epoch, Index: l.state.Index, Offsets: l.state.Offsets})
	if err != nil {
		return false, l.interrupted(ctx, err)
	}
	l.monitor.reads(source)
	defer func() {
		l.monitor.reads(nil)
		err = errors.Join(err, source.Close())
	}()
	for !g.complete(l.state) {
		began := time.Now()
		batch, err := source.Next(ctx)
		if g.follow && errors.Is(err, io.EOF) {
			return true, l.save()
		}
		if err != nil {
			return false, l.interrupted(ctx, err)
		}
		waited := time.Since(began)
		step := g.step(batch)
		step.Rate = g.rate.At(l.state.LayerStep + 1)
		result, err := l.model.Step(step)
		if err != nil {
			return false, fmt.Errorf("step %d%s: %w", l.state.Step+1, g.where(), err)
		}
		if err := finite(result); err != nil {
			return false, fmt.Errorf("step %d%s: %w: training diverged (a lower --rate may help); %s", l.state.Step+1, g.where(), err, l.lastGood())
		}
		took := time.Since(began)
		loss, err := l.evaluate(g, held)
		if err != nil {
			return false, err
		}
		if err := l.count(g, batch, source.Position(), step.Rate, result, loss, took); err != nil {
			return false, err
		}
		l.monitor.step(l.state, step.Rate, result, took, waited)
		batch.Release()
		if l.state.Step%l.every() == 0 {
			if err := l.save(); err != nil {
				return false, err
			}
		}
	}
	if err := l.save(); err != nil { // before the source lets go of what only this stage needs
		return false, err
	}
	if f, ok := source.(finished); ok {
		f.finish()
	}
	return false, nil
}

// evaluate is the loss on held-out sequences, if it is due after the step that
// is about to be counted; else nil. It is not broken off by Ctrl-C: the step
// has been made, and a run that goes on does not make it again.
func (l *loop) evaluate(g stage, held evaluator) (*float64, error) {
	if held == nil || (l.state.LayerStep+1)%l.Evaluation.Every != 0 {
		return nil, nil
	}
	loss, err := held(l.model)
	if err == nil && (math.IsNaN(loss) || math.IsInf(loss, 0)) {
		err = fmt.Errorf("it is %g: training diverged (a lower --rate may help); %s", loss, l.lastGood())
	}
	if err != nil {
		return nil, fmt.Errorf("step %d%s: held-out loss: %w", l.state.Step+1, g.where(), err)
	}
	return &loss, nil
}

// count moves the run's state past a step.
func (l *loop) count(g stage, b *Batch, after Position, rate float64, r gpu.Result, heldOut *float64, took time.Duration) error {
	s := &l.state
	s.Step++
	s.LayerStep++
	s.Epoch, s.Index, s.Seen, s.Offsets = after.Epoch, after.Index, after.Index, after.Offsets
	s.Tokens += int64(b.Rows) * int64(b.Length)
	s.LayerTokens += int64(b.Rows) * int64(b.Length)
	s.Seconds += took.Seconds()
	s.Losses = append(s.Losses[max(0, len(s.Losses)+1-lossesKept):], r.Loss)
	l.bar.Set(s.Step, s.Tokens, r.Loss)
	if l.Log == LogJSON && !l.Quiet && (time.Since(l.logged) > logEvery || s.Step == s.Steps) {
		l.logged = time.Now()
		logger(os.Stderr).Info("step", "stage", l.name(), "layer", g.layer, "step", s.Step, "steps", s.Steps, "loss", r.Loss, "rate", rate, "norm", r.Norm, "tokens", s.Tokens, "seconds", s.Seconds)
	}
	if heldOut != nil {
		s.HeldOut = g.advance.hear(s.HeldOut, s.Step, *heldOut)
		l.say("step %d%s: held-out loss %.5g, best %.5g, %d evaluations since", s.Step, g.where(), s.HeldOut.Loss, s.HeldOut.Best, s.HeldOut.Waited)
	}
	return l.metrics.Append(report.Metric{Stage: l.name(), Layer: g.layer, Step: s.Step, Loss: r.Loss, Rate: rate, Norm: r.Norm, Tokens: s.Tokens, Seconds: s.Seconds, HeldOut: heldOut})
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
		return fmt.Errorf("stopped after %s; the same command goes on from there: %w", at(l.state), context.Cause(ctx))
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

// at says which step of a run was the last.
func at(t checkpoint.Trainer) string {
	if t.Steps == 0 {
		return fmt.Sprintf("step %d", t.Step)
	}
	return fmt.Sprintf("step %d of %d", t.Step, t.Steps)
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
