package trainers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/scavenge/scavenge/schemas/activation"
)

// produce reads the next batch, all layers side by side.
func (s *stream) produce(ctx context.Context) (*Batch, Position, error) {
	var places []place
	rows := make([][]*activation.Record, len(s.topics))
	for len(places) < s.plan.Batch {
		n := s.plan.Batch - len(places)
		if s.plan.Follow {
			if more, err := s.grown(ctx); err != nil {
				return nil, Position{}, err
			} else if !more {
				break
			}
			// what comes after this epoch is known once its records are read
			n = int(min(int64(n), s.order.length-s.order.index))
		}
		next := s.order.take(n)
		if len(next) == 0 {
			break
		}
		err := s.gather(ctx, next, rows)
		if errors.Is(err, errEnded) { // inside the epoch
			whole := len(rows[0])
			for i := range rows {
				whole = min(whole, len(rows[i]))
			}
			for i := range rows {
				rows[i] = rows[i][:whole]
			}
			kept := whole - len(places)
			s.order.back(len(next) - kept)
			places = append(places, next[:kept]...)
			break
		}
		if err != nil {
			return nil, Position{}, err
		}
		places = append(places, next...)
	}
	if len(places) == 0 {
		return nil, Position{}, io.EOF
	}
	left, rows := without(places, rows)
	if len(left) == 0 {
		return nil, Position{}, fmt.Errorf("topic %s: every record of the batch from %v on was rejected: there is nothing left to train on", s.topics[0].name, places[0])
	}
	b, err := s.assemble(left, rows)
	if err != nil {
		return nil, Position{}, err
	}
	return b, s.position(), nil
}

// gather appends the records of some places to each topic's.
func (s *stream) gather(ctx context.Context, places []place, rows [][]*activation.Record) error {
	defer func() {
		for _, t := range s.topics {
			t.sated.Store(s.order.left == 0 || t.shelf.full())
		}
	}()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	errs := make([]error, len(s.topics))
	var work sync.WaitGroup
	for i, t := range s.topics {
		work.Go(func() {
			var list []*activation.Record
			list, errs[i] = s.records(ctx, t, places)
			rows[i] = append(rows[i], list...)
			if errs[i] != nil && !errors.Is(errs[i], errEnded) { // each layer reads to its end
				cancel() // the other layers would wait for nothing
			}
		})
	}
	work.Wait()
	return firstCause(errs)
}

// firstCause prefers an error of its own to the stream's end, and both to the
// cancellation that it caused.
func firstCause(errs []error) error {
	rank := func(err error) int {
		switch {
		case err == nil:
			return 0
		case errors.Is(err, context.Canceled):
			return 1
		case errors.Is(err, errEnded):
			return 2
		}
		return 3
	}
	var found error
	for _, err := range errs {
		if rank(err) > rank(found) {
			found = err
		}
	}
	return found
}
