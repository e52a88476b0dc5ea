package trainers

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"github.com/segmentio/kafka-go"

	"github.com/scavenge/scavenge/schemas/activation"
)

// records are one layer's records of the places, in their order; with an error,
// those before it.
func (s *stream) records(ctx context.Context, t *topic, places []place) ([]*activation.Record, error) {
	list := make([]*activation.Record, 0, len(places))
	for _, want := range places {
		if want.index == s.plan.Shuffle.start(want.index) {
			t.shelf.clear()
			t.window = t.offsets()
		}
		r, err := s.record(ctx, t, want)
		if err != nil {
			return list, err
		}
		list = append(list, r)
	}
	return list, nil
}

// record is the record of a place: from the shelf, or else the partition is
// read up to it. It is nil where it was rejected.
func (s *stream) record(ctx context.Context, t *topic, want place) (*activation.Record, error) {
	if r, there, err := t.shelf.get(ctx, want.id); there || err != nil {
		return r, err
	}
	number := activation.Partition(want.id, len(t.partitions))
	p, c := t.partitions[number], t.cursors[number]
	for {
		next := c.next()
		r, m, err := s.read(ctx, t, p, next)
		if err != nil {
			return nil, err
		}
		c.pass()
		if err := t.shelf.put(next.id, r, m, next.id == want.id); err != nil {
			return nil, err
		}
		if next.id == want.id {
			return r, nil
		}
	}
}

// read reads a partition until it gives the record of a place, which must be
// its next one but for repeated records; nil, if that one is damaged.
func (s *stream) read(ctx context.Context, t *topic, p *partition, want place) (*activation.Record, kafka.Message, error) {
	for {
		m, err := p.peek(ctx, want)
		if err != nil {
			return nil, m, err
		}
		r, err := activation.Unmarshal(m.Value)
		if err == nil && r.Control == activation.EndOfStream && s.plan.Follow {
			if ended, err := s.last(ctx, p, m); ended || err != nil { // it stays there, for whoever comes back
				return nil, m, cmp.Or(err, errEnded)
			}
		}
		p.pass()
		if errors.Is(err, activation.ErrDamaged) {
			if lost, err := s.reject(ctx, t, m, want, err); lost || err != nil {
				return nil, m, err
			}
			continue
		}
		taken := false
		if err == nil {
			err = s.check(r, t.layer)
		}
		if err == nil && r.Control != 0 {
			if err = s.control(r, m, want); err == nil {
				continue
			}
		}
		if err == nil {
			taken, err = s.accept(r, want)
		}
		if err != nil {
			return nil, m, fmt.Errorf("topic %s: partition %d: offset %d: %w", p.topic, p.number, m.Offset, err)
		}
		if taken {
			return r, m, nil
		}
		s.duplicates.Add(1)
	}
}

// control hears what a control record tells where a place's record is wanted.
// A producer that has ended may go on later, so its end is no error.
func (s *stream) control(r *activation.Record, m kafka.Message, want place) error {
	epoch := int64(r.Epoch)
	switch {
	case r.Control == activation.EndOfEpoch && epoch >= want.epoch:
		return fmt.Errorf("epoch %d ends here, and %v has not come: records are missing, or the producer's --seed is not this run's %d", epoch, want, s.plan.Seed)
	case r.Control == activation.EndOfStream && m.Offset+1 >= m.HighWaterMark:
		s.notice("topic %s: partition %d: the producer has ended the stream, and this run wants more (%v): waiting up to %v for it to go on (pipelines/teach with more --epochs or --sequences)", m.Topic, m.Partition, want, s.Stall)
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
