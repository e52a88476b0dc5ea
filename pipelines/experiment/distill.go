package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sync/errgroup"

	"github.com/scavenge/scavenge/infra"
	"github.com/scavenge/scavenge/infra/cluster"
	"github.com/scavenge/scavenge/pipelines"
	"github.com/scavenge/scavenge/schemas/checkpoint"
	"github.com/scavenge/scavenge/trainers"
)

// distill streams the teacher's activations through Kafka and trains a student
// on them as they come, so many steps a layer; or it runs the teacher beside
// the student. The embedded broker's log is removed when the student is there.
func (x *experiment) distill(ctx context.Context, name string, steps int64) error {
	o := trainers.DistillOptions{Run: x.training(name, steps), Teacher: x.teacher, Feed: trainers.Feed{Topic: folder(name)},
		StudentOptions: trainers.StudentOptions{Init: trainers.InitEmbeddings, Context: x.Context, Width: x.Width, Bands: x.Features}}
	if whole, err := finished(o.Dir); err != nil || whole {
		return errors.Join(err, errAlready)
	}
	if x.Source == trainers.FromInline {
		o.Source = trainers.FromInline
		return done(trainers.Distill(ctx, o))
	}
	if len(x.Brokers) > 0 {
		return x.stream(ctx, o, x.Access)
	}
	log := x.path(folder(name) + "-broker")
	b, err := infra.StartBroker(infra.BrokerOptions{Dir: log})
	if err != nil {
		return err
	}
	err = x.stream(ctx, o, cluster.Access{Brokers: []string{b.Addr()}})
	if err = errors.Join(err, b.Close()); err != nil {
		return err
	}
	if err := os.RemoveAll(log); err != nil {
		return fmt.Errorf("embedded broker's log: %w", err)
	}
	return nil
}

// stream runs the teacher and the trainer side by side until the student is
// there or one of them fails.
func (x *experiment) stream(ctx context.Context, o trainers.DistillOptions, broker cluster.Access) error {
	o.Access = broker
	both, ctx := errgroup.WithContext(ctx)
	both.Go(func() error {
		return pipelines.Teach(ctx, pipelines.TeachOptions{Dataset: x.dataset, Teacher: x.teacher, Access: broker, Topic: o.Topic,
			Sequences: o.Steps * int64(x.Batch), Batch: x.Batch, Device: x.Device, Precision: x.Precision, Seed: x.Seed, Stage: "teach for " + o.Stage})
	})
	both.Go(func() error {
		_, err := trainers.Distill(ctx, o)
		return err
	})
	return both.Wait()
}

// finished tells whether a training run's folder holds all of its steps.
func finished(dir string) (bool, error) {
	latest, ok, err := checkpoint.Latest(dir)
	if err != nil || !ok {
		return false, err
	}
	_, _, t, err := checkpoint.LoadTraining(latest)
	if err != nil {
		return false, err
	}
	return t.Step == t.Steps, nil
}
