package trainers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/segmentio/kafka-go"

	"github.com/scavenge/scavenge/gpu"
	"github.com/scavenge/scavenge/infra/cluster"
	"github.com/scavenge/scavenge/schemas/activation"
	"github.com/scavenge/scavenge/schemas/dtype"
)

// Stream is where records come from and what they must be.
type Stream struct {
	cluster.Access
	Topic  string // the producer's run: layer i's topic is activation.Topic(Topic, i)
	Layers []int  // ascending; all are read in lock step
	Dim    int    // width of the teacher's residual stream

	Teacher, TokenSet string // fingerprints that records must carry

	Trainer       string        // name under which progress is published; "": it is not
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
	spare      spares
	told       chan bool // closed when progress is no longer published
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
	// get is the record of a sequence, if it is there; nil for a rejected one.
	get(ctx context.Context, id int64) (r *activation.Record, there bool, err error)
	// put is given the record of each sequence that is read, nil for a rejected
	// one, and the message that it came in; a wanted one will not be asked for
	// again in this epoch.
	put(id int64, r *activation.Record, m kafka.Message, wanted bool) error
	// full tells that the topic need not be read any more.
	full() bool
	// clear tells that a window begins: what came before will not be wanted
	// in this epoch.
	clear()
	// close lets go of everything; whole tells that nothing will be wanted again.
	close(whole bool) error
}

// memory is the shelf of a stream: at most a window's records.
type memory map[int64]*activation.Record

func (m memory) get(_ context.Context, id int64) (*activation.Record, bool, error) {
	r, there := m[id]
	delete(m, id)
	return r, there, nil
}

func (m memory) put(id int64, r *activation.Record, _ kafka.Message, wanted bool) error {
	if !wanted {
		m[id] = r
	}
	return nil
}

func (m memory) full() bool       { return false }
func (m memory) clear()           { clear(m) }
func (m memory) close(bool) error { return nil }

// NewStreamSource opens the topics of a stream and reads ahead. It waits up to
// s.Stall for topics that are not there yet, and up to s.BrokerTimeout for the
// brokers.
func NewStreamSource(ctx context.Context, s Stream, p Plan) (Source, error) {
	return newStream(ctx, s, p, func(src *stream, t *topic, _ int) error {
		t.shelf = memory{}
		return nil
	})
}

// newStream makes a stream whose topics' shelves shelve makes. It may also move
// the cursors and partitions of a topic to where they go on.
func newStream(ctx context.Context, s Stream, p Plan, shelve func(src *stream, t *topic, partitions int) error) (Source, error) {
	o, err := newOrder(p)
	if err != nil {
		return nil, err
	}
	b, err := newBroker(s.Access)
	if err != nil {
		return nil, err
	}
	if s.BrokerTimeout > 0 {
		b.patience = s.BrokerTimeout
	}
	b.notice = s.Notice
	src := &stream{Stream: s, plan: p, order: o, broker: b, told: make(chan bool)}
	for _, layer := range s.Layers {
		t := &topic{layer: layer, name: activation.Topic(s.Topic, layer)}
		src.topics = append(src.topics, t)
		if err := src.open(ctx, t, shelve); err != nil {
			return nil, errors.Join(err, src.closeTopics(false))
		}
	}
	src.ahead = readAhead(p.Start, src.produce)
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
	begin := s.order.window(s.plan.Start.Index)
	for number := range n {
		t.cursors = append(t.cursors, &cursor{s.order, int64(number), int64(n), s.plan.Start.Epoch, begin})
		t.partitions = append(t.partitions, &partition{topic: t.name, number: number, stall: s.Stall, broker: s.broker})
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
		p.next.CompareAndSwap(fromBeginning, first)
		if err := within(p, first, end); err != nil {
			return err
		}
		if err := p.open(s.recordBytes()); err != nil {
			return fmt.Errorf("%v: %w", p, err)
		}
	}
	t.window = t.offsets()
	return nil
}

// offsets are the next ones of the partitions.
func (t *topic) offsets() map[int]int64 {
	next := map[int]int64{}
	for _, p := range t.partitions {
		next[p.number] = p.next.Load()
	}
	return next
}

// recordBytes is about a record's size at its widest.
func (s *stream) recordBytes() int {
	return activation.MaxMessageBytes(s.plan.Length, s.Dim, dtype.Float32)
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
			s.notice("waiting up to %v for topic %s", s.Stall, name)
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

// produce reads the next batch, all layers side by side.
func (s *stream) produce(ctx context.Context) (*Batch, Position, error) {
	places := s.order.take(s.plan.Batch)
	if len(places) == 0 {
		return nil, Position{}, io.EOF
	}
	defer func() {
		for _, t := range s.topics {
			t.sated.Store(s.order.left == 0 || t.shelf.full())
		}
	}()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	rows := make([][]*activation.Record, len(s.topics))
	errs := make([]error, len(s.topics))
	var work sync.WaitGroup
	for i, t := range s.topics {
		work.Go(func() {
			rows[i], errs[i] = s.records(ctx, t, places)
			if errs[i] != nil {
				cancel() // the other layers would wait for nothing
			}
		})
	}
	work.Wait()
	if err := firstCause(errs); err != nil {
		return nil, Position{}, err
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

// assemble copies records into one batch.
func (s *stream) assemble(places []place, rows [][]*activation.Record) (*Batch, error) {
	b := newBatch(places, s.plan.Length)
	for i, t := range s.topics {
		if t.layer == activation.Tokens { // alone, or before the layers
			for _, r := range rows[i] {
				b.Tokens = append(b.Tokens, r.Tokens...)
			}
			continue
		}
		target := gpu.Target{Layer: t.layer}
		for row, r := range rows[i] {
			if s.dtype == "" {
				s.dtype = r.Type
			}
			if r.Type != s.dtype {
				return nil, fmt.Errorf("topic %s: %v: the record's values are %s, those before it %s", t.name, places[row], r.Type, s.dtype)
			}
			if i == 0 {
				b.Tokens = append(b.Tokens, r.Tokens...)
			} else if k := differ(b.Tokens[row*s.plan.Length:], r.Tokens); k >= 0 {
				return nil, fmt.Errorf("topic %s: %v: token %d is not that of layer %d", t.name, places[row], k, s.topics[0].layer)
			}
			if target.Values == nil {
				target.Type, target.Values = r.Type, s.spare.take(len(rows[i])*len(r.Values))
			}
			target.Values = append(target.Values, r.Values...)
			target.Scales = append(target.Scales, r.Scales...)
		}
		b.Targets = append(b.Targets, target)
	}
	if targets := b.Targets; len(targets) > 0 {
		b.release = func() {
			for _, t := range targets {
				s.spare.give(t.Values)
			}
		}
	}
	return b, nil
}

// spares are buffers that were used. A batch's targets take tens of megabytes:
// made anew each time, they would be cleared before they are overwritten.
type spares struct {
	mu   sync.Mutex
	list [][]byte
}

// take is an empty buffer of some capacity.
func (s *spares) take(size int) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, b := range s.list {
		if cap(b) >= size {
			s.list = slices.Delete(s.list, i, i+1)
			return b[:0]
		}
	}
	return make([]byte, 0, size)
}

// give keeps a buffer for take, up to so many as can be of use: those of the
// batches that are read ahead.
func (s *spares) give(b []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.list) < maxSpares {
		s.list = append(s.list, b)
	}
}

// maxSpares is enough for three batches of six layers.
const maxSpares = 18

// differ is the first index at which b is not a's beginning; −1 if it is.
func differ(a, b []int32) int {
	for i, v := range b {
		if i >= len(a) || a[i] != v {
			return i
		}
	}
	return -1
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
			s.broker.publish(ctx, s.Trainer, time.Now().UnixNano(), now)
			last, at = now, time.Now()
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

// Close publishes the last progress and ends the readers.
func (s *stream) Close() error {
	s.ahead.cancel()
	<-s.told
	s.broker.hangUp()
	err := s.ahead.Close()
	at := s.ahead.position
	return errors.Join(err, s.closeTopics(at.Epoch*s.order.length+at.Index == s.plan.Total))
}

func (s *stream) closeTopics(whole bool) error {
	errs := make([]error, len(s.topics))
	var work sync.WaitGroup
	s.broker.hangUp()
	for i, t := range s.topics {
		work.Go(func() {
			for _, p := range t.partitions {
				errs[i] = errors.Join(errs[i], p.close())
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
