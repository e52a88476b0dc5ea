package trainers

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"strings"
	"time"

	"github.com/segmentio/kafka-go"

	"github.com/scavenge/scavenge/infra/cluster"
	"github.com/scavenge/scavenge/schemas/activation"
)

// offsets are the next ones of the partitions.
func (t *topic) offsets() map[int]int64 {
	next := map[int]int64{}
	for _, p := range t.partitions {
		next[p.number] = p.next.Load()
	}
	return next
}

// persist asks the broker something until it answers, for as long as it may be
// away.
func (s *stream) persist(ctx context.Context, ask func(ctx context.Context) error) error {
	for away := (time.Time{}); ; {
		bounded, cancel := context.WithTimeout(ctx, min(10*time.Second, s.broker.patience))
		err := ask(bounded)
		cancel()
		switch {
		case err == nil && !away.IsZero():
			s.broker.isBack(away)
			return nil
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case final(err) || cluster.Refused(err):
			return fmt.Errorf("broker %s: %w", strings.Join(s.Brokers, ","), cluster.Explain(err))
		case !away.IsZero() && time.Since(away) >= s.broker.patience:
			return fmt.Errorf("broker %s has been away for %v (--broker-timeout): %w", strings.Join(s.Brokers, ","), time.Since(away).Round(time.Second), cluster.Explain(err))
		}
		var passing kafka.Error
		if away.IsZero() {
			away = time.Now()
			if !errors.As(err, &passing) { // it answers, but is not ready
				s.broker.isAway(cluster.Explain(err).Error())
			}
		}
		sleep(ctx, min(200*time.Millisecond, s.broker.patience/4))
	}
}

// position is the one behind the places taken so far.
func (s *stream) position() Position {
	at := Position{Epoch: s.order.epoch, Index: s.order.index, Offsets: map[string]map[int]int64{}}
	whole := at.Index == s.order.window(at.Index) // a window ends here
	for _, t := range s.topics {
		if whole {
			at.Offsets[t.name] = t.offsets()
		} else {
			at.Offsets[t.name] = maps.Clone(t.window)
		}
	}
	return at
}

const (
	// progressEvery is how often progress is published if there is any, and
	// lifeEvery if there is none.
	progressEvery = 250 * time.Millisecond
	lifeEvery     = 5 * time.Second
	// tellingTakes is how long the broker may take to hear it.
	tellingTakes = time.Second
)

// tell publishes progress at once, until the source closes, and once more
// then. It counts records as they are read: a producer that lets a trainer fall
// only so far behind would otherwise wait for a batch that waits for it. Once
// all that is wanted of a topic has been read, the trainer is forgotten there.
func (s *stream) tell() {
	defer close(s.told)
	tick := time.NewTicker(progressEvery)
	defer tick.Stop()
	var last map[string]map[int]int64
	var at time.Time // of the last publishing
	forgotten := map[string]bool{}
	for closing := false; s.Trainer != ""; {
		now := map[string]map[int]int64{}
		ctx, cancel := context.WithTimeout(context.Background(), tellingTakes)
		for _, layer := range s.Former {
			if name := activation.Topic(s.Topic, layer); !forgotten[name] {
				forgotten[name] = s.broker.forget(ctx, s.Trainer, name)
			}
		}
		for _, t := range s.topics {
			switch {
			case forgotten[t.name]:
			case t.sated.Load():
				forgotten[t.name] = s.broker.forget(ctx, s.Trainer, t.name)
			default:
				now[t.name] = t.offsets()
			}
		}
		if len(now) > 0 && (!reflect.DeepEqual(now, last) || time.Since(at) > lifeEvery) {
			if s.broker.publish(ctx, s.Trainer, time.Now().UnixNano(), now) {
				last, at = now, time.Now()
			}
		}
		cancel()
		if closing {
			return
		}
		select {
		case <-tick.C:
		case <-s.ahead.stopped:
			closing = true
		}
	}
}

// Counts is what is known of the feed; it may be called at any time.
func (s *stream) Counts() Counts {
	c := Counts{Duplicates: s.duplicates.Load(), Rejected: s.rejected.Load()}
	for _, t := range s.topics {
		for _, p := range t.partitions {
			c.Records += p.read.Load()
			c.Bytes += p.bytes.Load()
			c.LagRecords += max(0, p.end.Load()-p.next.Load())
		}
	}
	if c.Records > 0 {
		c.LagBytes = c.LagRecords * (c.Bytes / c.Records)
	}
	return c
}
