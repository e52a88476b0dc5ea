package transforms

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	"github.com/segmentio/kafka-go/sasl"

	"github.com/scavenge/scavenge/infra/cluster"
	"github.com/scavenge/scavenge/schemas/activation"
	"github.com/scavenge/scavenge/schemas/dtype"
)

// Sink says where activation records go: to Kafka, one topic a layer, each
// with the same number of partitions.
type Sink struct {
	cluster.Access
	Run        string // the topics' common name; see activation.Topic
	Layers     []int  // ascending; activation.Tokens sends tokens alone
	Partitions int
	Length     int        // tokens in a record
	Dim        int        // values a token; 0 where tokens alone are sent
	Type       dtype.Type // of a value
	// Patience is how long a broker may be away, or refuse for a passing
	// reason, before a write fails.
	Patience time.Duration
	// TopicBytes is what a topic will hold in the end, at most (see Bytes), or
	// Endless. Topics that keep less, or not for ever, are refused, unless
	// AllowRetention.
	TopicBytes     int64
	AllowRetention bool
}

// Endless is the TopicBytes of a topic to which more and more is sent.
const Endless = math.MaxInt64

const (
	// answer is how long the broker may take for a question.
	answer = 10 * time.Second
	// acknowledgement is how long the broker may take for one batch.
	acknowledgement = 15 * time.Second
	// batchBytes is what a request to the broker holds where the topic allows
	// it; larger ones are not faster.
	batchBytes = 8 << 20
	// framing is more than what Kafka's format adds to a record's value.
	framing = 256
)

// Bytes is what a topic takes for so many sequences in so many epochs, at most.
func (s Sink) Bytes(sequences, epochs int64) int64 {
	control := int64(activation.MaxMessageBytes(0, 0, s.Type))
	return sequences*int64(s.recordBytes()) + (epochs+1)*int64(s.Partitions)*control
}

// recordBytes is what a topic's max.message.bytes has to be at least.
func (s Sink) recordBytes() int { return activation.MaxMessageBytes(s.Length, s.Dim, s.Type) }

func (s Sink) topics() []string {
	var names []string
	for _, l := range s.Layers {
		names = append(names, activation.Topic(s.Run, l))
	}
	return names
}

// sink is a Sink's connection. Its methods may be called from several
// goroutines.
type sink struct {
	Sink
	limits map[string]int // max.message.bytes by topic
	dial   func(ctx context.Context, network, addr string) (net.Conn, error)
	tls    *tls.Config
	sasl   sasl.Mechanism
	notice func(string) // told once that the broker does not answer; may be nil
	taught *taught

	mu     sync.Mutex
	client *kafka.Client
}

func (s Sink) connect() (*sink, error) {
	k := &sink{Sink: s, taught: &taught{}, dial: (&net.Dialer{Timeout: 5 * time.Second}).DialContext}
	var err error
	if k.tls, k.sasl, err = s.Login(); err != nil {
		return nil, err
	}
	k.renew(nil)
	return k, nil
}

// renew replaces a client whose connections broke. The client library may wait
// for ever on a connection that the broker closed while idle, so none is used
// again after an error.
func (s *sink) renew(old *kafka.Client) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.client != old {
		return // another lane has done it
	}
	if old != nil {
		hangUp(old)
	}
	// Metadata is read anew every few seconds so that a partition's new leader
	// is found well within any patience.
	s.client = &kafka.Client{Addr: kafka.TCP(s.Brokers...), Transport: &kafka.Transport{Dial: s.dial, TLS: s.tls, SASL: s.sasl, MetadataTTL: 3 * time.Second}}
}

func (s *sink) current() *kafka.Client {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.client
}

func hangUp(c *kafka.Client) { c.Transport.(*kafka.Transport).CloseIdleConnections() }

func (s *sink) close() { hangUp(s.current()) }

// ask asks the broker a question, again where the failure may pass, for as long
// as the broker may be away.
func (s *sink) ask(ctx context.Context, question func(ctx context.Context, c *kafka.Client) error) error {
	bounded, cancel := context.WithTimeout(ctx, s.Patience)
	defer cancel()
	err := s.retry(bounded, min(answer, s.Patience/3), question)
	if err == nil || ctx.Err() != nil {
		return errors.Join(err, ctx.Err())
	}
	return fmt.Errorf("broker %s: %w", strings.Join(s.Brokers, ","), cluster.Explain(err))
}

// retry calls f until it succeeds, fails for good, or ctx ends, and gives each
// attempt its own time limit. It returns the last error that says more than
// that time is up.
func (s *sink) retry(ctx context.Context, attempt time.Duration, f func(ctx context.Context, c *kafka.Client) error) error {
	var last error
	for pause := 100 * time.Millisecond; ; pause = min(2*pause, 2*time.Second) {
		c := s.current()
		bounded, cancel := context.WithTimeout(ctx, attempt)
		err := f(bounded, c)
		cancel()
		if err == nil {
			return nil
		}
		if last == nil || !errors.Is(err, context.DeadlineExceeded) {
			last = cause(err)
		}
		if !passing(err) || ctx.Err() != nil {
			return last
		}
		s.taught.retries.Add(1)
		if !errors.As(err, new(kafka.Error)) {
			s.renew(c)
			if s.notice != nil {
				s.notice(fmt.Sprintf("broker %s does not answer (%v): trying again for up to %v", strings.Join(s.Brokers, ","), cluster.Explain(last), s.Patience))
				s.notice = nil
			}
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return last
		case <-timer.C:
		}
	}
}

// passing tells errors that may go away by themselves.
func passing(err error) bool {
	var refused kafka.Error
	if errors.As(err, &refused) {
		// a Kafka that has just started may fail with the error that has no name
		return refused.Temporary() || refused == kafka.Unknown
	}
	for _, unknown := range []error{protocol.ErrNoTopic, protocol.ErrNoPartition, protocol.ErrNoLeader} {
		if errors.Is(err, unknown) { // the client has no metadata: the broker is away
			return true
		}
	}
	var network net.Error
	return errors.As(err, &network) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.ErrClosedPipe) ||
		errors.Is(err, net.ErrClosed)
}

// cause leaves out the client library's words around an error.
func cause(err error) error {
	var dial *net.OpError
	var refused kafka.Error
	switch {
	case errors.As(err, &dial):
		return dial
	case errors.As(err, &refused):
		return refused
	case errors.Is(err, context.DeadlineExceeded):
		return errors.New("no answer in time")
	}
	return err
}

// bounds are a partition's first offset and the one after its last.
func (s *sink) bounds(ctx context.Context, topic string, partition int) (first, end int64, err error) {
	all, err := s.allBounds(ctx, topic, []int{partition})
	if err != nil {
		return 0, 0, fmt.Errorf("%w (partition %d)", err, partition)
	}
	return all[partition][0], all[partition][1], nil
}

// at reads the record at an offset.
func (s *sink) at(ctx context.Context, topic string, partition int, offset int64) (*activation.Record, error) {
	var record *activation.Record
	err := s.ask(ctx, func(ctx context.Context, c *kafka.Client) error {
		r, err := c.Fetch(ctx, &kafka.FetchRequest{Topic: topic, Partition: partition, Offset: offset,
			MinBytes: 1, MaxBytes: int64(max(s.limits[topic], batchBytes)), MaxWait: 2 * time.Second})
		if err != nil {
			return err
		}
		if r.Error != nil {
			return r.Error
		}
		for { // a batch may begin before the offset
			m, err := r.Records.ReadRecord()
			if err != nil {
				return fmt.Errorf("no record is at offset %d: %w", offset, err)
			}
			if m.Offset != offset {
				continue
			}
			value, err := io.ReadAll(m.Value)
			if err != nil {
				return err
			}
			record, err = activation.Unmarshal(value)
			return err
		}
	})
	if err != nil {
		return nil, fmt.Errorf("topic %s: partition %d: offset %d: %w", topic, partition, offset, err)
	}
	return record, nil
}

// write appends records to a partition, in order. It sends the next batch only
// when the one before is acknowledged by all replicas, so that whenever it is
// cut short the partition has no gap. A batch whose acknowledgement was lost is
// there twice; consumers drop the second.
func (s *sink) write(ctx context.Context, topic string, partition int, values [][]byte, keys [][]byte) error {
	limit := min(s.limits[topic], max(batchBytes, s.recordBytes()))
	for len(values) > 0 {
		n, size := 0, framing
		for n < len(values) && (n == 0 || size+len(values[n])+framing <= limit) {
			size += len(values[n]) + framing
			n++
		}
		if _, err := s.writeBatch(ctx, topic, partition, values[:n], keys[:n]); err != nil {
			return err
		}
		values, keys = values[n:], keys[n:]
	}
	return nil
}

// clock stamps records, which nothing of ours reads; tests set it wrong.
var clock = time.Now

// writeBatch appends records to a partition in one request, and gives the
// offset of the first. A record without a key has a nil one.
func (s *sink) writeBatch(ctx context.Context, topic string, partition int, values, keys [][]byte) (first int64, err error) {
	bounded, cancel := context.WithTimeout(ctx, s.Patience)
	defer cancel()
	err = s.retry(bounded, acknowledgement, func(ctx context.Context, c *kafka.Client) error {
		records := make([]kafka.Record, len(values))
		now := clock()
		for i := range values {
			records[i] = kafka.Record{Time: now, Key: kafka.NewBytes(keys[i]), Value: kafka.NewBytes(values[i])}
		}
		r, err := c.Produce(ctx, &kafka.ProduceRequest{Topic: topic, Partition: partition, RequiredAcks: kafka.RequireAll, Records: kafka.NewRecordReader(records...)})
		if err != nil {
			return err
		}
		first = r.BaseOffset
		return r.Error
	})
	switch {
	case err == nil:
		return first, nil
	case ctx.Err() != nil:
		return 0, ctx.Err()
	case errors.Is(err, kafka.InvalidTimestamp):
		err = fmt.Errorf("%w: is this machine's clock right (%s)? Else set the topic's message.timestamp.type to %s", err, clock().Format(time.DateTime), logAppendTime)
	case bounded.Err() != nil:
		err = fmt.Errorf("not written within %v (--broker-timeout): %w", s.Patience, err)
	}
	return 0, fmt.Errorf("topic %s: partition %d: broker %s: %w", topic, partition, strings.Join(s.Brokers, ","), err)
}

// Validate says what of a sink cannot be.
func (s Sink) Validate() error {
	if err := activation.CheckRun(s.Run); err != nil {
		return fmt.Errorf("--topic: %w", err)
	}
	if len(s.Brokers) == 0 {
		return errors.New("--brokers: want host:port, several with commas")
	}
	if err := s.Access.Validate(); err != nil {
		return err
	}
	if s.Partitions < 1 || s.Partitions > 1<<16 {
		return fmt.Errorf("--partitions is %d", s.Partitions)
	}
	if len(s.Layers) == 0 || !slices.IsSorted(s.Layers) || len(slices.Compact(slices.Clone(s.Layers))) != len(s.Layers) {
		return fmt.Errorf("--layers %v: want each layer once, ascending", s.Layers)
	}
	if s.Patience <= 0 {
		return fmt.Errorf("--broker-timeout is %v", s.Patience)
	}
	return nil
}
