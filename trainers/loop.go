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
		l.bar.Grow(l.state.Step)
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
		l.say("step %d%s: held-out loss %.5g, best %.5g, %d evaluation(s) since", s.Step, g.where(), s.HeldOut.Loss, s.HeldOut.Best, s.HeldOut.Waited)
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
