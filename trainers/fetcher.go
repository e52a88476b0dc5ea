package trainers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/segmentio/kafka-go"

	"github.com/scavenge/scavenge/schemas/activation"
)

// message is a Kafka message whose value should be a record. The record is a
// part of the value, whose memory is the fetcher's again after give.
type message struct {
	offset int64
	end    int64 // of its partition's log when it came
	value  []byte
	record *activation.Record // nil where bad says why there is none
	bad    error              // activation.ErrDamaged or about its version
}

// arrival is a message, or why there is none.
type arrival struct {
	message
	err error
}

const (
	// fetchBytes bounds what the broker sends at a time; a single larger record
	// still comes whole. It is not held in memory.
	fetchBytes = 16 << 20
	// aheadBytes is how much is read ahead of each partition. Batches are made
	// ahead too: more here would only push messages out of the processor's cache
	// before they are used (eight megabytes took a sixth more processor time).
	aheadBytes = 2 << 20
	// fetchSlack is more than what Kafka's format adds to an answer's messages.
	fetchSlack = 64 << 10
	// fetchWait is how long the broker waits for a message to come.
	fetchWait = 2 * time.Second
	// fetchTimeout is how long it may take for an answer, or for a part of one,
	// beyond that.
	fetchTimeout = 10 * time.Second
	// largestMessage is Kafka's own bound.
	largestMessage = 1 << 30
)

// fetch reads the partition from an offset on and hands over what arrives, until
// its context ends. Messages are read into memory that was used before, where
// batches leave them, and are checked at once, while they are in the processor's
// cache: each of making room, checking and copying costs as much as half of the
// reading otherwise.
func (p *partition) fetch(ctx context.Context, offset int64) {
	defer close(p.ended)
	for pause := 50 * time.Millisecond; ctx.Err() == nil; pause = min(2*pause, 500*time.Millisecond) {
		from := offset
		err := p.connection(ctx, &offset)
		if !p.deliver(ctx, arrival{err: err}) {
			return
		}
		if offset > from {
			pause = 50 * time.Millisecond
		}
		sleep(ctx, pause)
	}
}

// connection reads over one connection from *offset on, which it moves, until
// that breaks.
func (p *partition) connection(ctx context.Context, offset *int64) error {
	conn, err := p.leader(ctx)
	if err != nil {
		return err
	}
	hungUp := context.AfterFunc(ctx, func() { conn.Close() }) // ends a wait for the broker
	defer func() {
		if hungUp() {
			conn.Close()
		}
	}()
	if _, err := conn.Seek(*offset, kafka.SeekAbsolute|kafka.SeekDontCheck); err != nil {
		return err
	}
	for most := fetchBytes; ; {
		before := *offset
		err := p.answer(ctx, conn, offset, &most)
		switch {
		case err == nil, errors.Is(err, kafka.RequestTimedOut): // nothing came in fetchWait
		case errors.Is(err, io.ErrShortBuffer) && p.size < largestMessage:
			p.size = min(2*p.size, largestMessage)
			continue
		default:
			return err
		}
		if *offset == before { // should the broker not wait
			sleep(ctx, 20*time.Millisecond)
		}
	}
}

// leader connects to the broker that leads the partition, whichever knows it.
func (p *partition) leader(ctx context.Context) (conn *kafka.Conn, err error) {
	for _, address := range p.broker.addresses {
		if conn, err = p.broker.dialer().DialLeader(ctx, "tcp", address, p.topic, p.number); err == nil {
			return conn, nil
		}
	}
	return nil, err
}

// answer asks for messages from *offset on, at most so many bytes, and delivers
// those that come. What the producer wrote together is cut where the bytes end,
// and comes again with the next answer: *most becomes what was whole, which is
// mostly a number of the producer's batches, all of one size.
func (p *partition) answer(ctx context.Context, conn *kafka.Conn, offset *int64, most *int) error {
	conn.SetReadDeadline(time.Now().Add(fetchWait + fetchTimeout))
	batch := conn.ReadBatchWith(kafka.ReadBatchConfig{MinBytes: 1, MaxBytes: *most, MaxWait: fetchWait})
	defer batch.Close()
	for whole := 0; ; {
		// a trainer may have let the connection wait for long
		conn.SetReadDeadline(time.Now().Add(fetchTimeout))
		value := p.memory.take(p.size)
		n, err := batch.Read(value)
		if err != nil {
			p.memory.give(value)
			if !errors.Is(err, io.EOF) {
				return err
			}
			*most = fetchBytes
			if whole += fetchSlack; *offset < batch.HighWaterMark() && whole > fetchBytes/2 && whole < fetchBytes {
				*most = whole
			}
			return nil
		}
		whole += n + 32
		m := message{offset: batch.Offset() - 1, end: batch.HighWaterMark(), value: value[:n]}
		if m.offset < *offset { // what was written together comes together
			p.memory.give(value)
			continue
		}
		m.record, m.bad = activation.Unmarshal(m.value)
		if m.bad == nil && m.record.Control == 0 && 3*n < 2*p.size { // of a narrower type
			p.size = n + n/32 + 1024
		}
		if !p.deliver(ctx, arrival{message: m}) {
			return ctx.Err()
		}
		*offset = m.offset + 1
	}
}

// deliver waits for room among the arrivals. It fails when the context ends.
func (p *partition) deliver(ctx context.Context, a arrival) bool {
	select {
	case p.arrivals <- a:
		return true
	case <-ctx.Done():
		return false
	}
}

// reread asks the broker once more for a message, by itself: with its key, and
// checked again, in case it was damaged on its way.
func (s *stream) reread(ctx context.Context, topic string, number int, offset int64) (message, []byte, error) {
	for began := time.Now(); ; {
		value, key, err := s.broker.at(ctx, topic, number, offset)
		if err == nil {
			m := message{offset: offset, value: value}
			m.record, m.bad = activation.Unmarshal(value)
			return m, key, nil
		}
		if ctx.Err() != nil {
			return message{}, nil, ctx.Err()
		}
		if final(err) || errors.Is(err, kafka.OffsetOutOfRange) || time.Since(began) > s.Stall {
			return message{}, nil, fmt.Errorf("topic %s: partition %d: offset %d: %w", topic, number, offset, err)
		}
		sleep(ctx, 200*time.Millisecond)
	}
}
