package trainers

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"github.com/scavenge/scavenge/schemas/activation"
)

// records appends a layer's records of the places, in their order; with an
// error, those before it.
func (s *stream) records(ctx context.Context, t *topic, places []place, to *part) error {
	for _, want := range places {
		if want.index == s.plan.Shuffle.start(want.index) {
			t.shelf.clear()
			t.window = t.offsets()
		}
		m, err := s.record(ctx, t, want)
		if err == nil {
			err = to.append(want, m)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// record is the message of a place: from the shelf, or else the partition is
// read up to it. It has no record where that was rejected.
func (s *stream) record(ctx context.Context, t *topic, want place) (message, error) {
	if m, there, err := t.shelf.get(ctx, want.id); there || err != nil {
		return m, err
	}
	number := activation.Partition(want.id, len(t.partitions))
	p, c := t.partitions[number], t.cursors[number]
	for {
		next := c.next()
		m, err := s.read(ctx, t, p, next)
		if err != nil {
			return m, err
		}
		c.pass()
		if err := t.shelf.put(next.id, number, m, next.id == want.id); err != nil {
			return m, err
		}
		if next.id == want.id {
			return m, nil
		}
	}
}

// read reads a partition until it gives the message of a place, which must be
// its next one but for repeated records; one without a record, if that is
// damaged.
func (s *stream) read(ctx context.Context, t *topic, p *partition, want place) (message, error) {
	for {
		m, err := p.peek(ctx, want)
		if err != nil {
			return m, err
		}
		if m.bad == nil && m.record.Control == activation.EndOfStream && s.plan.Follow {
			if ended, err := s.last(ctx, p, m.offset, want); ended || err != nil { // it stays there, for whoever comes back
				return m, cmp.Or(err, errEnded)
			}
		}
		p.pass()
		if errors.Is(m.bad, activation.ErrDamaged) {
			again, key, err := s.reread(ctx, t.name, p.number, m.offset)
			if err != nil {
				return m, fmt.Errorf("%w (%w)", m.bad, err)
			}
			if m = again; errors.Is(m.bad, activation.ErrDamaged) {
				if lost, err := s.reject(ctx, t, p.number, m, key, want); lost || err != nil {
					return message{offset: m.offset}, err
				}
				continue
			}
		}
		taken := false
		if err = m.bad; err == nil {
			err = s.check(m.record, t.layer)
		}
		if err == nil && m.record.Control != 0 {
			if err = s.control(p, m, want); err == nil {
				s.memory.give(m.value)
				continue
			}
		}
		if err == nil {
			taken, err = s.accept(m.record, want)
		}
		if err != nil {
			return m, fmt.Errorf("topic %s: partition %d: offset %d: %w", p.topic, p.number, m.offset, err)
		}
		if taken {
			return m, nil
		}
		s.memory.give(m.value)
		s.duplicates.Add(1)
	}
}

// control hears what a control record tells where a place's record is wanted.
// A producer that has ended may go on later, so its end is no error.
func (s *stream) control(p *partition, m message, want place) error {
	r, epoch := m.record, int64(m.record.Epoch)
	switch {
	case r.Control == activation.EndOfEpoch && epoch >= want.epoch:
		return fmt.Errorf("epoch %d ends here, and %v has not come: records are missing, or the producer's --seed is not this run's %d", epoch, want, s.plan.Seed)
	case r.Control == activation.EndOfStream && m.offset+1 >= m.end:
		s.notice("topic %s: partition %d: the producer has ended the stream, and this run wants more (%v): waiting up to %v for it to go on (pipelines/teach with more --epochs or --sequences)", p.topic, p.number, want, s.Stall)
	}
	return nil
}

// accept tells whether a record is the wanted one (true) or one that was
// read before, which a producer that retries may write again (false).
// Anything else means that records are missing.
func (s *stream) accept(r *activation.Record, want place) (bool, error) {
	if int64(r.Epoch) == want.epoch && r.SequenceID == want.id {
		return true, nil
	}
	got := place{epoch: int64(r.Epoch), id: r.SequenceID}
	index, known := s.order.find(got.epoch, got.id)
	if !known {
		return false, fmt.Errorf("sequence %d is none of the token set's training split", r.SequenceID)
	}
	got.index = index
	if got.epoch < want.epoch || got.epoch == want.epoch && got.index < want.index {
		return false, nil
	}
	return false, fmt.Errorf("it holds %v where %v should be: records are missing, or the producer's --seed is not this run's %d", got, want, s.plan.Seed)
}

// check refuses a record of another teacher, token set, layer or shape.
func (s *stream) check(r *activation.Record, layer int) error {
	if r.Teacher != s.Teacher {
		return fmt.Errorf("the record is of teacher %.12s, want %.12s", r.Teacher, s.Teacher)
	}
	set, err := s.tokenSet(int64(r.Epoch))
	if err != nil {
		return err
	}
	if r.TokenSet != set {
		return fmt.Errorf("the record is of token set %.12s, want %.12s", r.TokenSet, set)
	}
	if r.Layer != layer {
		return fmt.Errorf("the record is of layer %d, want %d", r.Layer, layer)
	}
	if r.Length != s.plan.Length || r.Dim != s.Dim {
		return fmt.Errorf("the record is of %d tokens × %d, want %d × %d", r.Length, r.Dim, s.plan.Length, s.Dim)
	}
	return nil
}
