package trainers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"time"

	"github.com/scavenge/scavenge/gpu"
	"github.com/scavenge/scavenge/schemas/checkpoint"
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
		l.say("the stream has ended%s before it was enough: reading what it holds again", g.where())
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
