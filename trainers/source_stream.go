package trainers

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/scavenge/scavenge/infra/cluster"
	"github.com/scavenge/scavenge/schemas/activation"
	"github.com/scavenge/scavenge/schemas/dtype"
	"github.com/scavenge/scavenge/schemas/tokenset"
)

// Stream is where records come from and what they must be.
type Stream struct {
	cluster.Access
	Topic  string // the producer's run: layer i's topic is activation.Topic(Topic, i)
	Layers []int  // ascending; all are read in lock step
	Dim    int    // width of the teacher's residual stream

	Teacher, TokenSet string // fingerprints that records must carry
	// Course, with a Plan's Follow, is where each epoch's token set comes from, in
	// place of TokenSet.
	Course tokenset.Course

	Trainer       string        // name under which progress is published; "": it is not
	Former        []int         // layers that it is done with, of which it may not have told so yet: it was killed
	Stall         time.Duration // longest wait for a record
	BrokerTimeout time.Duration // longest absence of the broker; 0: 10 minutes
	OnBadRecord   string        // BadRecordStop or BadRecordSkip; "": stop
	Notice        func(string)  // told what people should know; may be nil
}

// stream reads records of several layers. The producer writes each partition
// in the canonical order, so the next record of a partition is known before it
// is read; see accept for what else may lie there. What comes before the
// record that is wanted goes to the topic's shelf.
type stream struct {
	*ahead
	Stream
	plan       Plan
	order      *order
	broker     *broker
	topics     []*topic
	dtype      dtype.Type // of the first record, and so of all
	memory     spares     // of messages
	told       chan bool  // closed when progress is no longer published
	duplicates atomic.Int64
	rejected   atomic.Int64
}

type topic struct {
	layer      int
	name       string
	partitions []*partition
	cursors    []*cursor // of the partitions
	shelf      shelf
	sated      atomic.Bool // nothing more is wanted of it
	// window is where each partition's part of the present window begins.
	window map[int]int64
}

// shelf keeps records that came before they were wanted.
type shelf interface {
	// get is the message of a sequence, if it is there: without a record, if that
	// was rejected. Its memory is the caller's.
	get(ctx context.Context, id int64) (m message, there bool, err error)
	// put is given the message of each sequence that is read, and its partition;
	// a wanted one will not be asked for again in this epoch, and its memory stays
	// the caller's.
	put(id int64, partition int, m message, wanted bool) error
	// full tells that the topic need not be read any more.
	full() bool
	// clear tells that a window begins: what came before will not be wanted
	// in this epoch.
	clear()
	// close lets go of everything; whole tells that nothing will be wanted again.
	close(whole bool) error
}

// memory is the shelf of a stream: at most a window's records.
type memory map[int64]message

func (m memory) get(_ context.Context, id int64) (message, bool, error) {
	kept, there := m[id]
	delete(m, id)
	return kept, there, nil
}

func (m memory) put(id int64, _ int, read message, wanted bool) error {
	if !wanted {
		m[id] = read
	}
	return nil
}

func (m memory) full() bool { return false }

func (m memory) clear() { clear(m) }

func (m memory) close(bool) error { return nil }

// NewStreamSource opens the topics of a stream and reads ahead. It waits up to
// s.Stall for topics that are not there yet, and up to s.BrokerTimeout for the
// brokers.
//
// Memory does not depend on the topic's size: three batches (in training, ready,
// in the making), the shuffle's window, and for each partition of each layer 2 MiB
// of records read ahead, or two records where these are larger, and two more.
func NewStreamSource(ctx context.Context, s Stream, p Plan) (Source, error) {
	return newStream(ctx, s, p, func(src *stream, t *topic, _ int) error {
		t.shelf = memory{}
		return nil
	})
}

// newStream makes a stream whose topics' shelves shelve makes. It may also move
// the cursors and partitions of a topic to where they go on.
func newStream(ctx context.Context, s Stream, p Plan, shelve func(src *stream, t *topic, partitions int) error) (Source, error) {
	b, err := newBroker(s.Access)
	if err != nil {
		return nil, err
	}
	if s.BrokerTimeout > 0 {
		b.patience = s.BrokerTimeout
	}
	b.notice = s.Notice
	src := &stream{Stream: s, plan: p, broker: b, told: make(chan bool), memory: spares{most: len(s.Layers) * (3*p.Batch + 64)}}
	if err := src.begin(ctx); err != nil {
		b.transport.CloseIdleConnections()
		return nil, err
	}
	for _, layer := range s.Layers {
		t := &topic{layer: layer, name: activation.Topic(s.Topic, layer)}
		src.topics = append(src.topics, t)
		if err := src.open(ctx, t, shelve); err != nil {
			return nil, errors.Join(err, src.closeTopics(false))
		}
	}
	src.ahead = readAhead(src.plan.Start, src.produce)
	go src.tell()
	return src, nil
}

// open makes the readers of a topic, at the offsets of the plan's start or else
// at the log's beginning, whose consumed records are passed over as duplicates.
func (s *stream) open(ctx context.Context, t *topic, shelve func(*stream, *topic, int) error) error {
	n, err := s.await(ctx, t.name)
	if err != nil {
		return err
	}
	offsets := s.plan.Start.Offsets[t.name]
	if offsets != nil && len(offsets) != n {
		return fmt.Errorf("topic %s: it has %d partitions now, %d when the checkpoint was written", t.name, n, len(offsets))
	}
	at := s.plan.Start
	begin := s.order.window(at.Index)
	for number := range n {
		t.cursors = append(t.cursors, &cursor{s.order, int64(number), int64(n), at.Epoch, begin})
		t.partitions = append(t.partitions, &partition{topic: t.name, number: number, stall: s.Stall, broker: s.broker, memory: &s.memory})
		if offsets != nil {
			t.partitions[number].next.Store(offsets[number])
		} else {
			t.partitions[number].next.Store(fromBeginning)
		}
	}
	if err := shelve(s, t, n); err != nil {
		return err
	}
	for _, p := range t.partitions {
		first, end, err := s.settled(ctx, p)
		if err != nil {
			return err
		}
		if s.plan.Follow && p.next.Load() == fromBeginning {
			if first, err = s.seek(ctx, p, first, end, place{epoch: at.Epoch, index: begin}); err != nil {
				return err
			}
		}
		p.next.CompareAndSwap(fromBeginning, first)
		if err := within(p, first, end); err != nil {
			return err
		}
		p.open(activation.MaxMessageBytes(s.plan.Length, s.Dim, dtype.Float16)) // what teachers send if not told otherwise
	}
	t.window = t.offsets()
	return nil
}

func (s *stream) notice(format string, args ...any) {
	if s.Notice != nil {
		s.Notice(fmt.Sprintf(format, args...))
	}
}

// await is the number of a topic's partitions, once it is there.
func (s *stream) await(ctx context.Context, name string) (n int, err error) {
	for began, tries := time.Now(), 0; ; tries++ {
		if err := s.persist(ctx, func(ctx context.Context) error {
			n, err = s.broker.partitions(ctx, name)
			return err
		}); err != nil || n > 0 {
			return n, err
		}
		if time.Since(began) > s.Stall {
			return 0, fmt.Errorf("topic %s: not there after %v: has the producer (pipelines/teach --topic %s) been started?", name, s.Stall, s.Topic)
		}
		if tries == 0 {
			if s.Stall == math.MaxInt64 {
				s.notice("waiting for topic %s", name)
			} else {
				s.notice("waiting up to %v for topic %s", s.Stall, name)
			}
		}
		sleep(ctx, min(500*time.Millisecond, s.Stall/4))
	}
}

// settled are a partition's bounds, once it has a leader: a new topic has none
// for a moment.
func (s *stream) settled(ctx context.Context, p *partition) (first, end int64, err error) {
	err = s.persist(ctx, func(ctx context.Context) error {
		first, end, err = s.broker.bounds(ctx, p.topic, p.number)
		return err
	})
	return first, end, err
}

// Close publishes the last progress and ends the readers.
func (s *stream) Close() error {
	s.ahead.cancel()
	<-s.told
	err := s.ahead.Close()
	at := s.ahead.position
	return errors.Join(err, s.closeTopics(!s.plan.Follow && at.Epoch*s.order.length+at.Index == s.plan.Total))
}

func (s *stream) closeTopics(whole bool) error {
	errs := make([]error, len(s.topics))
	var work sync.WaitGroup
	for i, t := range s.topics {
		work.Go(func() {
			for _, p := range t.partitions {
				p.close()
			}
			if t.shelf != nil {
				errs[i] = errors.Join(errs[i], t.shelf.close(whole))
			}
		})
	}
	work.Wait()
	s.broker.transport.CloseIdleConnections()
	return errors.Join(errs...)
}
