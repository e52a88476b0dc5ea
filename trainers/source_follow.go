package trainers

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/scavenge/scavenge/schemas/activation"
	"github.com/scavenge/scavenge/schemas/tokenset"
)

// Where a source that follows a stream may begin, as the Epoch of a Position.
const (
	Earliest = -1 - iota // with the first place of which the topics still hold everything
	Latest               // behind what the topics hold now
)

// begin finds the plan's start, and the order from there on.
func (s *stream) begin(ctx context.Context) (err error) {
	start := &s.plan.Start
	if start.Epoch < 0 {
		if !s.plan.Follow {
			return fmt.Errorf("position %d: only a stream that is followed may begin anywhere", start.Epoch)
		}
		found := place{}
		if s.order, err = newOrder(Plan{Tokens: s.plan.Tokens, Seed: s.plan.Seed, Follow: true}); err != nil {
			return err
		}
		for _, layer := range s.Layers {
			if err := s.furthest(ctx, activation.Topic(s.Topic, layer), start.Epoch, &found); err != nil {
				return err
			}
		}
		// a window is read whole
		length := int64(len(s.order.canonical(found.epoch)))
		if at := s.plan.Shuffle.start(found.index); at != found.index && found.index != length {
			found.index = min(at+int64(s.plan.Shuffle.Window), length)
		}
		*start = Position{Epoch: found.epoch, Index: found.index}
	}
	s.order, err = newOrder(s.plan)
	return err
}

// furthest moves a place on to where a topic's partitions all begin (Earliest)
// or end (Latest).
func (s *stream) furthest(ctx context.Context, topic string, from int64, found *place) error {
	n, err := s.await(ctx, topic)
	if err != nil {
		return err
	}
	for number := range n {
		p := &partition{topic: topic, number: number}
		first, end, err := s.settled(ctx, p)
		if err != nil {
			return err
		}
		var at place
		switch {
		case from == Earliest && first == 0 || end == 0:
			continue // the beginning of all
		case first == end:
			return fmt.Errorf("topic %s: partition %d: its %d records have been deleted (retention?), so it does not tell where to begin: wait for the producer's next ones, or take another --topic", topic, number, end)
		}
		told := false
		if from == Earliest {
			at, told, err = s.placeFrom(ctx, p, first, end, 1)
		} else {
			at, told, err = s.placeFrom(ctx, p, end-1, first-1, -1)
			at.index++
		}
		if err != nil {
			return err
		}
		if !told {
			return fmt.Errorf("topic %s: partition %d: none of its messages %d to %d tells where to begin: take another --topic", topic, number, first, end-1)
		}
		if at.epoch > found.epoch || at.epoch == found.epoch && at.index > found.index {
			*found = at
		}
	}
	// behind an epoch's last place is its end
	found.index = min(found.index, int64(len(s.order.canonical(found.epoch))))
	return nil
}

// placeFrom is the place of the first message from an offset on that tells one,
// looking on by step, short of limit. That of an end of epoch is its last place.
func (s *stream) placeFrom(ctx context.Context, p *partition, offset, limit, step int64) (found place, told bool, err error) {
	for at := offset; at != limit; at += step {
		r, err := s.look(ctx, p, at)
		if err != nil {
			return found, false, err
		}
		if r == nil || r.Control == activation.EndOfStream { // which may have gone on
			continue
		}
		found = place{epoch: int64(r.Epoch), id: r.SequenceID}
		if _, err := s.tokenSet(found.epoch); err != nil {
			return found, false, fmt.Errorf("topic %s: partition %d: offset %d: %w", p.topic, p.number, at, err)
		}
		if r.Control == activation.EndOfEpoch {
			found.index = int64(len(s.order.canonical(found.epoch))) - 1
			return found, true, nil
		}
		if found.index, told = s.order.find(found.epoch, found.id); !told {
			return found, false, fmt.Errorf("topic %s: partition %d: offset %d: sequence %d is none of the token set's training split", p.topic, p.number, at, found.id)
		}
		return found, true, nil
	}
	return found, false, nil
}

// look is the record at an offset; nil for a damaged one.
func (s *stream) look(ctx context.Context, p *partition, offset int64) (r *activation.Record, err error) {
	var value []byte
	if err := s.persist(ctx, func(ctx context.Context) error {
		value, _, err = s.broker.at(ctx, p.topic, p.number, offset)
		return err
	}); err != nil {
		return nil, fmt.Errorf("topic %s: partition %d: offset %d: %w", p.topic, p.number, offset, err)
	}
	if r, err = activation.Unmarshal(value); errors.Is(err, activation.ErrDamaged) {
		return nil, nil
	}
	return r, err
}

// seek is an offset of a partition, of those from first to before end, from
// which on it holds all its records of a place and after. A record that was
// written twice has its repetition behind it, with all that followed: so it does
// no harm that places do not quite ascend.
func (s *stream) seek(ctx context.Context, p *partition, first, end int64, target place) (int64, error) {
	if target.epoch == 0 && target.index == 0 {
		return first, nil
	}
	before, behind := first-1, end // the record at before is of an earlier place, that at behind is not
	for behind-before > 1 {
		middle := before + (behind-before)/2
		at, told, err := s.placeFrom(ctx, p, middle, before, -1)
		if err != nil {
			return 0, err
		}
		if !told || at.epoch < target.epoch || at.epoch == target.epoch && at.index < target.index {
			before = middle
		} else {
			behind = middle
		}
	}
	if behind < end {
		return behind, nil
	}
	for at := end - 1; at >= max(first, end-stragglers); at-- { // the stream's end, which the reader has to hear of
		r, err := s.look(ctx, p, at)
		if err != nil || r != nil && r.Control == activation.EndOfStream {
			return at, err
		}
		if r != nil && r.Control == activation.EndOfEpoch {
			break
		}
	}
	return end, nil
}

// tokenSet is the fingerprint that an epoch's records must carry.
func (s *stream) tokenSet(epoch int64) (string, error) {
	if s.Course == nil {
		return s.TokenSet, nil
	}
	set, err := s.Course.Epoch(epoch)
	if err != nil {
		return "", err
	}
	return set.Fingerprint(), nil
}

// next says what is waited for at an epoch's end.
type next int64

func (n next) String() string { return fmt.Sprintf("epoch %d, or the end of the stream", int64(n)) }

// grown waits at an epoch's end until the producer has gone on to the next one
// (true) or has ended the stream (false). The topics' first partition tells: it
// has something of every epoch, if only its end.
func (s *stream) grown(ctx context.Context) (bool, error) {
	for s.order.ended() {
		epoch := s.order.epoch
		told := time.AfterFunc(5*time.Second, func() {
			s.notice("epoch %d of topic %s has been read: waiting for the next one, or the end of the stream", epoch, s.topics[0].name)
		})
		more, err := s.follows(ctx, s.topics[0], epoch)
		told.Stop()
		if err != nil || !more {
			return false, err
		}
		s.order.enter(epoch + 1)
		s.order.index = 0
		// what it held of this epoch had been handed out, some of it by a run
		// that stopped inside a window
		if c := s.topics[0].cursors[0]; c.epoch <= epoch {
			c.epoch, c.index = epoch+1, 0
		}
	}
	return true, nil
}

// follows reads a topic's first partition up to what comes after an epoch.
func (s *stream) follows(ctx context.Context, t *topic, epoch int64) (bool, error) {
	for p := t.partitions[0]; ; {
		m, err := p.peek(ctx, next(epoch+1))
		if err != nil {
			return false, err
		}
		where := fmt.Sprintf("topic %s: partition %d: offset %d", t.name, p.number, m.offset)
		r := m.record
		switch {
		case errors.Is(m.bad, activation.ErrDamaged):
			return true, s.part(ctx, epoch+1) // it is rejected where it is wanted
		case m.bad != nil:
			return false, fmt.Errorf("%s: %w", where, m.bad)
		case r.Control == activation.EndOfStream:
			if ended, err := s.last(ctx, p, m.offset, place{epoch: epoch + 1}); ended || err != nil {
				return false, err
			}
		case int64(r.Epoch) > epoch+1:
			return false, fmt.Errorf("%s: it holds a record of epoch %d where epoch %d should begin: records are missing", where, r.Epoch, epoch+1)
		case int64(r.Epoch) > epoch:
			return true, s.part(ctx, epoch+1)
		case r.Control == 0:
			s.duplicates.Add(1)
		}
		p.pass()
		s.memory.give(m.value)
	}
}

// errEnded says that the producer has ended the stream.
var errEnded = errors.New("the stream has ended")

// stragglers bounds the repeated records that may lie behind the end of a
// stream: a producer that was killed had them on their way to the broker, and
// they came when the one after it had ended the stream.
const stragglers = 64

// last tells whether an end of stream, at an offset, is that of all that is
// there: whether nothing from a place on lies behind it.
func (s *stream) last(ctx context.Context, p *partition, offset int64, from place) (bool, error) {
	_, end, err := s.settled(ctx, p)
	if err != nil || end-offset > stragglers {
		return false, err
	}
	for at := offset + 1; at < end; at++ {
		r, err := s.look(ctx, p, at)
		if err != nil {
			return false, err
		}
		if r == nil || r.Control == activation.EndOfStream {
			continue
		}
		index := from.index // an end of epoch comes behind its places
		if r.Control == 0 && int64(r.Epoch) == from.epoch {
			index, _ = s.order.find(from.epoch, r.SequenceID)
		}
		if epoch := int64(r.Epoch); epoch > from.epoch || epoch == from.epoch && index >= from.index {
			return false, nil
		}
	}
	return true, nil
}

// partTakes is how long a part that the producer has read may take to be seen
// here, on a file system that the two share.
const partTakes = time.Minute

// part waits for an epoch's token set.
func (s *stream) part(ctx context.Context, epoch int64) error {
	for began := time.Now(); ; {
		_, err := s.tokenSet(epoch)
		if !errors.Is(err, tokenset.ErrNoPart) || ctx.Err() != nil {
			return errors.Join(err, ctx.Err())
		}
		if time.Since(began) > min(partTakes, s.Stall) {
			return fmt.Errorf("%w, and the topics have records of it: is --dataset the producer's?", err)
		}
		sleep(ctx, 200*time.Millisecond)
	}
}

// finished is told a source of which no more is wanted: the producer need not
// wait for this trainer there.
type finished interface{ finish() }

func (s *stream) finish() {
	for _, t := range s.topics {
		t.sated.Store(true)
	}
}
