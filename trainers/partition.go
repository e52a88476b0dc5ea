package trainers

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/segmentio/kafka-go"
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
	bytes  atomic.Int64  // of the messages read
	read   atomic.Int64  // how many they are
	end    atomic.Int64  // of the log, as of the last one
	stall  time.Duration // longest wait for a message
	broker *broker
	reader *kafka.Reader  // nil before it is open
	held   *kafka.Message // by peek

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
func (p *partition) fetch(ctx context.Context, wanted fmt.Stringer) (kafka.Message, error) {
	m, err := p.peek(ctx, wanted)
	if err == nil {
		p.pass()
	}
	return m, err
}

// pass moves behind the message that peek gave.
func (p *partition) pass() {
	p.read.Add(1)
	p.bytes.Add(int64(len(p.held.Value)))
	p.next.Add(1)
	p.held = nil
}

// peek is the message that fetch will give next.
func (p *partition) peek(ctx context.Context, wanted fmt.Stringer) (kafka.Message, error) {
	if p.held != nil {
		return *p.held, nil
	}
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
			p.end.Store(m.HighWaterMark)
			p.held = &m
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
