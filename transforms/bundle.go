package transforms

import (
	"context"
	"errors"
	"sync"
)

// A bundle works on its elements side by side, as many in the process at a time
// as there are cores. Runners may put all of a stage's elements into one bundle
// and hand them to its DoFn one after the other (Prism divides a bundle only
// when one element has taken a tenth of a second): so ProcessElement starts an
// element and comes back, and FinishBundle waits for all.
type bundle[T any] struct {
	work sync.WaitGroup
	mu   sync.Mutex
	done []T
	errs []error
}

// start waits for room and starts an element.
func (b *bundle[T]) start(ctx context.Context, s *step, element func(ctx context.Context, task *Task) (T, error)) error {
	ctx, task, end, err := s.begin(ctx)
	if err != nil {
		return errors.Join(err, b.wait())
	}
	b.work.Go(func() {
		var err error
		defer end(&err)
		var result T
		result, err = element(ctx, task)
		b.mu.Lock()
		defer b.mu.Unlock()
		if err != nil {
			b.errs = append(b.errs, err)
		} else {
			b.done = append(b.done, result)
		}
	})
	b.mu.Lock()
	failed := len(b.errs) > 0
	b.mu.Unlock()
	if failed {
		return b.wait()
	}
	return nil
}

// wait is the first error of the elements, all of which have ended then.
func (b *bundle[T]) wait() error {
	b.work.Wait()
	if len(b.errs) > 0 {
		return b.errs[0]
	}
	return nil
}

// finish emits the results of all elements, and makes the bundle new.
func (b *bundle[T]) finish(emit func(T)) error {
	err := b.wait()
	if err == nil {
		for _, result := range b.done {
			emit(result)
		}
	}
	b.done, b.errs = nil, nil
	return err
}
