package trainers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"
	"sync"
	"time"

	"github.com/segmentio/kafka-go"

	"github.com/scavenge/scavenge/gpu"
	"github.com/scavenge/scavenge/infra/cluster"
	"github.com/scavenge/scavenge/schemas/activation"
	"github.com/scavenge/scavenge/schemas/dtype"
)

// Stream is where activation records come from and what they must be.
type Stream struct {
	cluster.Access
	Topic  string // the producer's run: layer i's topic is activation.Topic(Topic, i)
	Layers []int  // ascending; all are read in lock step
	Dim    int    // width of the teacher's residual stream

	Teacher, TokenSet string // fingerprints that records must carry

	Stall  time.Duration // longest wait for a record
	Notice func(string)  // told once that a topic is waited for; may be nil
}

// stream reads records of several layers. The producer writes each partition
// in the canonical order, so the record of a place is the next one of
// partition id mod partitions; see accept for what else may lie there.
type stream struct {
	*ahead
	Stream
	plan   Plan
	order  *order
	broker *broker
	topics []*topic
	dtype  dtype.Type // of the first record, and so of all
	told   chan bool  // closed when progress is no longer published
}

type topic struct {
	layer      int
	partitions []*partition
}

// NewStreamSource opens the topics of a stream and reads ahead. It waits up to
// s.Stall for topics that are not there yet, but not for a broker: that has to
// answer at the start.
func NewStreamSource(ctx context.Context, s Stream, p Plan) (Source, error) {
	o, err := newOrder(p)
	if err != nil {
		return nil, err
	}
	b, err := newBroker(s.Access)
	if err != nil {
		return nil, err
	}
	src := &stream{Stream: s, plan: p, order: o, broker: b, told: make(chan bool)}
	for _, layer := range s.Layers {
		t, err := src.open(ctx, layer)
		if err != nil {
			src.closeReaders()
			return nil, err
		}
		src.topics = append(src.topics, t)
	}
	src.ahead = readAhead(p.Start, src.produce)
	go src.tell()
	return src, nil
}

// open makes the readers of a layer's topic, at the offsets of the plan's
// start or else at the log's beginning, whose consumed records are passed over
// as duplicates.
func (s *stream) open(ctx context.Context, layer int) (*topic, error) {
	name := activation.Topic(s.Topic, layer)
	n, err := s.await(ctx, name)
	if err != nil {
		return nil, err
	}
	offsets := s.plan.Start.Offsets[name]
	if offsets != nil && len(offsets) != n {
		return nil, fmt.Errorf("topic %s: it has %d partitions now, %d when the checkpoint was written", name, n, len(offsets))
	}
	t := &topic{layer: layer}
	for number := range n {
		first, end, err := s.settled(ctx, name, number)
		if err != nil {
			return nil, err
		}
		next := first
		if offsets != nil {
			next = offsets[number]
		}
		p, err := newPartition(s.broker, name, number, next, s.recordBytes(), s.Stall)
		if err != nil {
			return nil, fmt.Errorf("topic %s: partition %d: %w", name, number, err)
		}
		t.partitions = append(t.partitions, p)
		if err := within(p, first, end); err != nil {
			return t, errors.Join(err, s.closeTopic(t))
		}
	}
	return t, nil
}

// recordBytes is about a record's size at its widest.
func (s *stream) recordBytes() int {
	return activation.MaxMessageBytes(s.plan.Length, s.Dim, dtype.Float32)
}

// await is the number of a topic's partitions, once it is there.
func (s *stream) await(ctx context.Context, name string) (int, error) {
	for began, tries := time.Now(), 0; ; tries++ {
		n, err := s.broker.partitions(ctx, name)
		switch {
		case err == nil && n > 0:
			return n, nil
		case ctx.Err() != nil:
			return 0, ctx.Err()
		case err != nil && tries >= 3:
			return 0, fmt.Errorf("broker %s: %w", strings.Join(s.Brokers, ","), cluster.Explain(err))
		case time.Since(began) > s.Stall:
			return 0, fmt.Errorf("topic %s: not there after %v: has the producer (pipelines/teach --topic %s) been started?", name, s.Stall, s.Topic)
		case err == nil && tries == 0 && s.Notice != nil:
			s.Notice(fmt.Sprintf("waiting up to %v for topic %s", s.Stall, name))
		}
		sleep(ctx, min(500*time.Millisecond, s.Stall/4))
	}
}

// settled are a partition's bounds once it has a leader: a new topic has none
// for a moment.
func (s *stream) settled(ctx context.Context, name string, number int) (first, end int64, err error) {
	for began := time.Now(); ; {
		first, end, err = s.broker.bounds(ctx, name, number)
		var k kafka.Error
		if err == nil || !errors.As(err, &k) || !k.Temporary() || time.Since(began) > s.Stall {
			return first, end, err
		}
		sleep(ctx, 50*time.Millisecond)
	}
}

// produce reads the next batch, all layers side by side.
func (s *stream) produce(ctx context.Context) (*Batch, Position, error) {
	places := s.order.take(s.plan.Batch)
	if len(places) == 0 {
		return nil, Position{}, io.EOF
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	rows := make([][]*activation.Record, len(s.topics))
	errs := make([]error, len(s.topics))
	var work sync.WaitGroup
	var mu sync.Mutex // over the order's ranks
	for i, t := range s.topics {
		work.Go(func() {
			rows[i], errs[i] = s.records(ctx, t, places, &mu)
			if errs[i] != nil {
				cancel() // the other layers would wait for nothing
			}
		})
	}
	work.Wait()
	if err := firstCause(errs); err != nil {
		return nil, Position{}, err
	}
	b, err := s.assemble(places, rows)
	if err != nil {
		return nil, Position{}, err
	}
	return b, Position{Epoch: s.order.epoch, Index: s.order.index, Offsets: s.offsets()}, nil
}

// offsets are the next ones of all partitions, as far as they were read.
func (s *stream) offsets() map[string]map[int]int64 {
	all := map[string]map[int]int64{}
	for _, t := range s.topics {
		next := map[int]int64{}
		for _, p := range t.partitions {
			next[p.number] = p.next.Load()
		}
		all[activation.Topic(s.Topic, t.layer)] = next
	}
	return all
}

// firstCause prefers an error of its own to the cancellation that it caused.
func firstCause(errs []error) error {
	var found error
	for _, err := range errs {
		if err != nil && (found == nil || errors.Is(found, context.Canceled)) {
			found = err
		}
	}
	return found
}

// records are one layer's records of the places, in their order.
func (s *stream) records(ctx context.Context, t *topic, places []place, mu *sync.Mutex) ([]*activation.Record, error) {
	list := make([]*activation.Record, 0, len(places))
	for _, want := range places {
		p := t.partitions[activation.Partition(want.id, len(t.partitions))]
		for taken := false; !taken; {
			m, err := p.fetch(ctx, want)
			if err != nil {
				return nil, err
			}
			where := fmt.Sprintf("topic %s: partition %d: offset %d", p.topic, p.number, m.Offset)
			r, err := activation.Unmarshal(m.Value)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", where, err)
			}
			if err = s.check(r, t.layer); err == nil {
				mu.Lock()
				taken, err = s.accept(r, want)
				mu.Unlock()
			}
			if err != nil {
				return nil, fmt.Errorf("%s: %w", where, err)
			}
			if taken {
				list = append(list, r)
			}
		}
	}
	return list, nil
}

// accept tells whether a record is the wanted one (true) or one that was
// trained on before, which a producer that retries may write again (false).
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
	if r.TokenSet != s.TokenSet {
		return fmt.Errorf("the record is of token set %.12s, want %.12s", r.TokenSet, s.TokenSet)
	}
	if r.Layer != layer {
		return fmt.Errorf("the record is of layer %d, want %d", r.Layer, layer)
	}
	if r.Length != s.plan.Length || r.Dim != s.Dim {
		return fmt.Errorf("the record is of %d tokens × %d, want %d × %d", r.Length, r.Dim, s.plan.Length, s.Dim)
	}
	return nil
}

// assemble copies records into one batch.
func (s *stream) assemble(places []place, rows [][]*activation.Record) (*Batch, error) {
	b := newBatch(places, s.plan.Length)
	for i, t := range s.topics {
		target := gpu.Target{Layer: t.layer}
		for row, r := range rows[i] {
			if s.dtype == "" {
				s.dtype = r.Type
			}
			if r.Type != s.dtype {
				return nil, fmt.Errorf("topic %s: %v: the record's values are %s, those before it %s", activation.Topic(s.Topic, t.layer), places[row], r.Type, s.dtype)
			}
			if i == 0 {
				b.Tokens = append(b.Tokens, r.Tokens...)
			} else if k := differ(b.Tokens[row*s.plan.Length:], r.Tokens); k >= 0 {
				return nil, fmt.Errorf("topic %s: %v: token %d is not that of layer %d", activation.Topic(s.Topic, t.layer), places[row], k, s.topics[0].layer)
			}
			if target.Values == nil {
				target.Type, target.Values = r.Type, make([]byte, 0, len(rows[i])*len(r.Values))
			}
			target.Values = append(target.Values, r.Values...)
			target.Scales = append(target.Scales, r.Scales...)
		}
		b.Targets = append(b.Targets, target)
	}
	return b, nil
}

// differ is the first index at which b is not a's beginning; −1 if it is.
func differ(a, b []int32) int {
	for i, v := range b {
		if i >= len(a) || a[i] != v {
			return i
		}
	}
	return -1
}

// progressEvery is how often progress is published.
const progressEvery = time.Second

// tell publishes progress until the source closes, and once more then. It
// counts records as they are read: a producer that lets a trainer fall only so
// far behind would otherwise wait for a batch that waits for it.
func (s *stream) tell() {
	defer close(s.told)
	tick := time.NewTicker(progressEvery)
	defer tick.Stop()
	for last := (map[string]map[int]int64)(nil); ; {
		closing := false
		select {
		case <-tick.C:
		case <-s.ahead.stopped:
			closing = true
		}
		if now := s.offsets(); !reflect.DeepEqual(now, last) {
			ctx, cancel := context.WithTimeout(context.Background(), progressEvery)
			s.broker.publish(ctx, now)
			cancel()
			last = now
		}
		if closing {
			return
		}
	}
}

// Close publishes the last progress and ends the readers.
func (s *stream) Close() error {
	s.ahead.cancel()
	<-s.told
	err := s.closeReaders()
	return errors.Join(err, s.ahead.Close())
}

func (s *stream) closeReaders() error {
	errs := make([]error, len(s.topics))
	var work sync.WaitGroup
	for i, t := range s.topics {
		work.Go(func() { errs[i] = s.closeTopic(t) })
	}
	s.broker.hangUp()
	work.Wait()
	s.broker.transport.CloseIdleConnections()
	return errors.Join(errs...)
}

func (s *stream) closeTopic(t *topic) error {
	var errs []error
	for _, p := range t.partitions {
		errs = append(errs, p.reader.Close())
	}
	return errors.Join(errs...)
}
