package trainers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/segmentio/kafka-go"

	"github.com/scavenge/scavenge/infra/cluster"
	"github.com/scavenge/scavenge/schemas/activation"
)

// partition reads the messages of one Kafka partition in order, each exactly
// once, over broker restarts. It trusts kafka-go's Reader for fetching and
// reconnecting and checks what that Reader would pass over in silence: an
// offset that retention has deleted (it jumps to the earliest), one past the
// log's end (it waits for ever).
type partition struct {
	topic  string
	number int
	next   atomic.Int64  // offset wanted, or fromBeginning before it is open
	stall  time.Duration // longest wait for a message
	broker *broker
	reader *kafka.Reader // nil before it is open

	mu   sync.Mutex
	last string // the Reader's latest complaint
}

// readerBytes bounds a fetch; a single larger record still comes whole.
const readerBytes = 8 << 20

// fromBeginning stands for the offset at which a partition's log begins.
const fromBeginning = -1

// open makes the reader at the offset wanted.
func (p *partition) open(recordBytes int) error {
	p.reader = kafka.NewReader(kafka.ReaderConfig{
		Brokers: p.broker.addresses, Topic: p.topic, Partition: p.number, Dialer: p.broker.dialer(),
		MaxBytes:      max(readerBytes, 2*recordBytes),
		QueueCapacity: min(1024, max(8, readerBytes/max(1, recordBytes))),
		// A fetch that is cut off by MaxWait begins again: at 100 ms a
		// megabyte record may never arrive.
		MaxWait:        2 * time.Second,
		ReadBackoffMax: 500 * time.Millisecond,
		ErrorLogger:    kafka.LoggerFunc(p.complain),
	})
	return p.reader.SetOffset(p.next.Load())
}

func (p *partition) close() error {
	if p.reader == nil {
		return nil
	}
	return p.reader.Close()
}

func (p *partition) complain(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.last = fmt.Sprintf(format, args...)
}

func (p *partition) complaint() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.last
}

// fetch is the next message. An error names the topic, partition and offset;
// wanted says for people which record the caller expects there. Time during
// which the broker is away counts against patience with it, not against stall.
func (p *partition) fetch(ctx context.Context, wanted place) (kafka.Message, error) {
	var away time.Time // since when the broker has not answered; zero: it does
	for began := time.Now(); ; {
		wait, cancel := context.WithTimeout(ctx, min(5*time.Second, p.stall/2, p.broker.patience/2))
		m, err := p.reader.FetchMessage(wait)
		quiet := wait.Err() != nil
		cancel()
		switch {
		case err == nil:
			if !away.IsZero() {
				p.broker.isBack(away)
			}
			if m.Offset != p.next.Load() {
				return m, fmt.Errorf("%v: the broker answered with offset %d: what lies between was deleted (retention?) before %v was read", p, m.Offset, wanted)
			}
			p.next.Add(1)
			return m, nil
		case ctx.Err() != nil:
			return m, ctx.Err()
		case !quiet:
			if final(err) {
				return m, fmt.Errorf("%v: %w", p, err)
			}
			p.complain("%v", err)
			sleep(ctx, 200*time.Millisecond)
		}
		answers, err := p.inside(ctx)
		switch {
		case err != nil:
			return m, err
		case answers && !away.IsZero():
			p.broker.isBack(away)
			away, began = time.Time{}, time.Now()
		case !answers && away.IsZero():
			away = time.Now()
			p.broker.isAway(p.complaint())
		case !answers && time.Since(away) >= p.broker.patience:
			return m, fmt.Errorf("%v: broker %s has been away for %v (--broker-timeout): %s", p, strings.Join(p.broker.addresses, ","), time.Since(away).Round(time.Second), p.complaint())
		}
		if waited := time.Since(began); away.IsZero() && waited >= p.stall {
			why := ""
			if c := p.complaint(); c != "" {
				why = "; last trouble: " + c
			}
			return m, fmt.Errorf("%v: no record for %v, waiting for %v: is the producer still at work, and is it to send that many? (--stall-timeout sets how long to wait)%s",
				p, waited.Round(time.Second), wanted, why)
		}
	}
}

func (p *partition) String() string {
	return fmt.Sprintf("topic %s: partition %d: offset %d", p.topic, p.number, p.next.Load())
}

// inside tells whether the broker answers, and fails if the wanted offset is
// outside the log.
func (p *partition) inside(ctx context.Context) (answers bool, err error) {
	bounded, cancel := context.WithTimeout(ctx, min(10*time.Second, p.broker.patience))
	defer cancel()
	first, end, err := p.broker.bounds(bounded, p.topic, p.number)
	if err != nil {
		p.complain("%v", err)
		return false, ctx.Err()
	}
	return true, within(p, first, end)
}

func within(p *partition, first, end int64) error {
	switch next := p.next.Load(); {
	case next < first:
		return fmt.Errorf("%v was deleted: the log begins at %d now (retention?)", p, first)
	case next > end:
		return fmt.Errorf("%v is past the log's end at %d: the topic was made anew, or is another one", p, end)
	}
	return nil
}

// final tells an error of the broker that waiting does not mend.
func final(err error) bool {
	var k kafka.Error
	return errors.As(err, &k) && !k.Temporary() && k != kafka.Unknown && k != kafka.OffsetOutOfRange
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// broker is the way to a Kafka cluster.
type broker struct {
	addresses []string
	client    *kafka.Client
	transport *kafka.Transport // with the login
	dial      func(ctx context.Context, network, address string) (net.Conn, error)
	patience  time.Duration // how long it may be away
	notice    func(string)  // may be nil

	mu     sync.Mutex
	away   bool // people know it
	closed bool
	conns  map[net.Conn]bool // of the readers
}

// defaultPatience is longer than a cluster takes to restart or to fail over.
const defaultPatience = 10 * time.Minute

// dialBroker opens the connections of all brokers; tests make it fail.
var dialBroker = (&net.Dialer{Timeout: 5 * time.Second}).DialContext

func newBroker(a cluster.Access) (*broker, error) {
	t := &kafka.Transport{Dial: dialBroker, DialTimeout: 5 * time.Second, ClientID: "scavenge-trainer"}
	var err error
	if t.TLS, t.SASL, err = a.Login(); err != nil {
		return nil, err
	}
	return &broker{addresses: a.Brokers, transport: t, dial: dialBroker, conns: map[net.Conn]bool{}, patience: defaultPatience,
		client: &kafka.Client{Addr: kafka.TCP(a.Brokers...), Timeout: 10 * time.Second, Transport: t}}, nil
}

// isAway says once, whichever partition found out, that nothing answers.
func (b *broker) isAway(why string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.away && b.notice != nil {
		b.notice(fmt.Sprintf("broker %s does not answer (%s): trying again for up to %v", strings.Join(b.addresses, ","), why, b.patience))
	}
	b.away = true
}

// isBack says once that it answers again.
func (b *broker) isBack(since time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.away && b.notice != nil {
		b.notice(fmt.Sprintf("broker %s answers again after %v", strings.Join(b.addresses, ","), time.Since(since).Round(100*time.Millisecond)))
	}
	b.away = false
}

// dialer keeps hold of the readers' connections: a Reader that is closed waits
// for its fetch to end, which takes up to MaxWait unless the connection goes.
func (b *broker) dialer() *kafka.Dialer {
	return &kafka.Dialer{ClientID: "scavenge-trainer", Timeout: 10 * time.Second, DualStack: true, TLS: b.transport.TLS, SASLMechanism: b.transport.SASL,
		DialFunc: func(ctx context.Context, network, address string) (net.Conn, error) {
			c, err := b.dial(ctx, network, address)
			if err != nil {
				return nil, err
			}
			b.mu.Lock()
			defer b.mu.Unlock()
			if b.closed {
				c.Close()
				return nil, net.ErrClosed
			}
			b.conns[c] = true
			return heldConn{c, b}, nil
		}}
}

type heldConn struct {
	net.Conn
	b *broker
}

func (c heldConn) Close() error {
	c.b.mu.Lock()
	delete(c.b.conns, c.Conn)
	c.b.mu.Unlock()
	return c.Conn.Close()
}

// hangUp closes the readers' connections and lets no new ones be made.
func (b *broker) hangUp() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	for c := range b.conns {
		c.Close()
	}
}

// partitions counts a topic's partitions; 0 for a topic that is not there.
func (b *broker) partitions(ctx context.Context, topic string) (int, error) {
	r, err := b.client.Metadata(ctx, &kafka.MetadataRequest{Topics: []string{topic}})
	if err != nil {
		return 0, err
	}
	for _, t := range r.Topics {
		if t.Name != topic {
			continue
		}
		if errors.Is(t.Error, kafka.UnknownTopicOrPartition) || errors.Is(t.Error, kafka.LeaderNotAvailable) {
			return 0, nil
		}
		return len(t.Partitions), t.Error
	}
	return 0, nil
}

// bounds are a partition's first offset and the one after its last. They are
// asked for in two calls: brokers answer one question a partition.
func (b *broker) bounds(ctx context.Context, topic string, number int) (first, end int64, err error) {
	for _, q := range []kafka.OffsetRequest{kafka.FirstOffsetOf(number), kafka.LastOffsetOf(number)} {
		r, err := b.client.ListOffsets(ctx, &kafka.ListOffsetsRequest{Topics: map[string][]kafka.OffsetRequest{topic: {q}}})
		if err != nil {
			return 0, 0, err
		}
		answers := r.Topics[topic]
		if len(answers) != 1 {
			return 0, 0, fmt.Errorf("topic %s: partition %d: the broker gives no offsets", topic, number)
		}
		if answers[0].Error != nil {
			return 0, 0, fmt.Errorf("topic %s: partition %d: %w", topic, number, answers[0].Error)
		}
		if q.Timestamp == kafka.FirstOffset {
			first = answers[0].FirstOffset
		} else {
			end = answers[0].LastOffset
		}
	}
	return first, end, nil
}

// at is the message at an offset.
func (b *broker) at(ctx context.Context, topic string, partition int, offset int64) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	r, err := b.client.Fetch(ctx, &kafka.FetchRequest{Topic: topic, Partition: partition, Offset: offset, MinBytes: 1, MaxBytes: readerBytes, MaxWait: 2 * time.Second})
	if err != nil {
		return nil, err
	}
	if r.Error != nil {
		return nil, r.Error
	}
	for { // a batch may begin before the offset
		m, err := r.Records.ReadRecord()
		if err != nil {
			return nil, fmt.Errorf("no message: %w", err)
		}
		if m.Offset == offset {
			return io.ReadAll(m.Value)
		}
	}
}

// publish tells the broker how far a trainer has read, for tools that show lag
// and producers that wait for it. The trainer itself never reads it.
// beat is a number that changes with each call, which tells that it lives.
func (b *broker) publish(ctx context.Context, trainer string, beat int64, offsets map[string]map[int]int64) {
	for topic, list := range offsets {
		var commits []kafka.OffsetCommit
		for number, offset := range list {
			commits = append(commits, kafka.OffsetCommit{Partition: number, Offset: offset, Metadata: strconv.FormatInt(beat, 10)})
		}
		// best effort: training does not depend on it
		_, _ = b.client.OffsetCommit(ctx, &kafka.OffsetCommitRequest{GroupID: activation.ProgressGroup(topic, trainer), GenerationID: -1,
			Topics: map[string][]kafka.OffsetCommit{topic: commits}})
	}
}

// forget takes back what publish told of a topic: no producer need wait for
// this trainer there. It tells whether the broker has done so.
func (b *broker) forget(ctx context.Context, trainer, topic string) bool {
	group := activation.ProgressGroup(topic, trainer)
	r, err := b.client.DeleteGroups(ctx, &kafka.DeleteGroupsRequest{GroupIDs: []string{group}})
	return err == nil && (r.Errors[group] == nil || errors.Is(r.Errors[group], kafka.GroupIdNotFound))
}
