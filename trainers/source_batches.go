package trainers

import (
	"context"
	"errors"
	"io"
	"sync"
)

// produce reads the next batch, all layers side by side.
func (s *stream) produce(ctx context.Context) (*Batch, Position, error) {
	var places []place
	parts := make([]*part, len(s.topics))
	for i, t := range s.topics {
		parts[i] = &part{stream: s, topic: t}
	}
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
		err := s.gather(ctx, next, parts)
		if errors.Is(err, errEnded) { // inside the epoch
			whole := parts[0].done
			for _, p := range parts {
				whole = min(whole, p.done)
			}
			for _, p := range parts {
				p.truncate(whole)
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
	b, err := s.assemble(places, parts)
	if err != nil {
		return nil, Position{}, err
	}
	return b, s.position(), nil
}

// gather appends the records of some places to each topic's part.
func (s *stream) gather(ctx context.Context, places []place, parts []*part) error {
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
			errs[i] = s.records(ctx, t, places, parts[i])
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
