package trainers

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// partition reads the messages of one Kafka partition in order, each exactly
// once, over broker restarts. A fetcher on a goroutine of its own reads ahead
// and reconnects; what is said here is when to give up: an offset that retention
// has deleted, one past the log's end, a broker or a producer that is silent.
type partition struct {
	topic  string
	number int
	next   atomic.Int64  // offset wanted, or fromBeginning before it is open
	bytes  atomic.Int64  // of the messages read
	read   atomic.Int64  // how many they are
	end    atomic.Int64  // of the log, as of the last one
	stall  time.Duration // longest wait for a message
	broker *broker
	memory *spares // of messages

	size     int           // of the memory for a message, bytes
	arrivals chan arrival  // nil before it is open
	stop     func()        // ends the fetcher
	ended    chan struct{} // closed when it has ended
	held     *message      // by peek

	mu   sync.Mutex
	last string // the fetcher's latest complaint
}

// fromBeginning stands for the offset at which a partition's log begins.
const fromBeginning = -1

// open begins to read at the offset wanted. Up to 2 MiB of records are read
// ahead, or two records where these are larger; recordBytes is about a
// record's size.
func (p *partition) open(recordBytes int) {
	p.size = recordBytes
	p.arrivals, p.ended = make(chan arrival, min(1024, max(2, aheadBytes/recordBytes))), make(chan struct{})
	var ctx context.Context
	ctx, p.stop = context.WithCancel(context.Background())
	go p.fetch(ctx, p.next.Load())
}

// close ends the fetcher.
func (p *partition) close() {
	if p.arrivals == nil {
		return
	}
	p.stop()
	<-p.ended
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

// pass moves behind the message that peek gave.
func (p *partition) pass() {
	p.read.Add(1)
	p.bytes.Add(int64(len(p.held.value)))
	p.next.Add(1)
	p.held = nil
}

// peek is the next message, until pass. An error names the topic, partition and
// offset; wanted says for people which record the caller expects there. Time
// during which the broker is away counts against patience with it, not against
// stall.
func (p *partition) peek(ctx context.Context, wanted fmt.Stringer) (message, error) {
	if p.held != nil {
		return *p.held, nil
	}
	var away time.Time // since when the broker has not answered; zero: it does
	for began := time.Now(); ; {
		a, came := p.arrival(ctx, min(5*time.Second, p.stall/2, p.broker.patience/2))
		switch {
		case ctx.Err() != nil:
			return message{}, ctx.Err()
		case came && a.err == nil:
			if !away.IsZero() {
				p.broker.isBack(away)
			}
			if a.offset != p.next.Load() {
				return message{}, fmt.Errorf("%v: the broker answered with offset %d: what lies between was deleted (retention?) before %v was read", p, a.offset, wanted)
			}
			p.end.Store(a.end)
			p.held = &a.message
			return a.message, nil
		case came && final(a.err):
			return message{}, fmt.Errorf("%v: %w", p, a.err)
		case came:
			p.complain("%v", a.err)
		}
		answers, err := p.inside(ctx)
		switch {
		case err != nil:
			return message{}, err
		case answers && !away.IsZero():
			p.broker.isBack(away)
			away, began = time.Time{}, time.Now()
		case !answers && away.IsZero():
			away = time.Now()
			p.broker.isAway(p.complaint())
		case !answers && time.Since(away) >= p.broker.patience:
			return message{}, fmt.Errorf("%v: broker %s has been away for %v (--broker-timeout): %s", p, strings.Join(p.broker.addresses, ","), time.Since(away).Round(time.Second), p.complaint())
		}
		if waited := time.Since(began); away.IsZero() && waited >= p.stall {
			why := ""
			if c := p.complaint(); c != "" {
				why = "; last trouble: " + c
			}
			return message{}, fmt.Errorf("%v: no record for %v, waiting for %v: is the producer still at work, and is it to send that many? (--stall-timeout sets how long to wait)%s",
				p, waited.Round(time.Second), wanted, why)
		}
	}
}

// arrival is what the fetcher brings next, if it does so in time.
func (p *partition) arrival(ctx context.Context, wait time.Duration) (a arrival, came bool) {
	select { // mostly it is there
	case a = <-p.arrivals:
		return a, true
	default:
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case a = <-p.arrivals:
		return a, true
	case <-t.C:
	case <-ctx.Done():
	}
	return arrival{}, false
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
