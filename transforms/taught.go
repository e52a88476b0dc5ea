package transforms

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/scavenge/scavenge/gpu"
)

// Taught is what the teachers in this process have done since their launch
// began. Times are sums: of workers side by side, and for Encoding and Writing
// of the partitions that are written side by side.
type Taught struct {
	Records, Bytes, Tokens int64         // acknowledged by the brokers
	Retries                int64         // of what a broker did not answer, or refused for the moment
	Waiting                time.Duration // for trainers, by MaxLead
	Computing              time.Duration // in the teacher
	Encoding, Writing      time.Duration
}

// taught is a Taught that many goroutines add to.
type taught struct {
	records, bytes, tokens, retries       atomic.Int64
	waiting, computing, encoding, writing atomic.Int64 // nanoseconds
}

// Taught is what the launch's teachers in this process have done; it may be
// called at any time.
func (l *Launch) Taught() Taught {
	t := &l.taught
	return Taught{Records: t.records.Load(), Bytes: t.bytes.Load(), Tokens: t.tokens.Load(), Retries: t.retries.Load(), Waiting: time.Duration(t.waiting.Load()),
		Computing: time.Duration(t.computing.Load()), Encoding: time.Duration(t.encoding.Load()), Writing: time.Duration(t.writing.Load())}
}

// taught is the launch's; in other processes one that nobody reads.
func (t *Task) taught() *taught {
	if t.launch == nil {
		return &taught{}
	}
	return &t.launch.taught
}

// since adds the time that has passed.
func since(sum *atomic.Int64, began time.Time) { sum.Add(int64(time.Since(began))) }

// sent adds records that the brokers have.
func (t *taught) sent(values [][]byte, length int) {
	t.records.Add(int64(len(values)))
	t.tokens.Add(int64(len(values) * length))
	for _, v := range values {
		t.bytes.Add(int64(len(v)))
	}
}

// timed computes a batch and counts the time.
func (t *teacher) timed(ctx context.Context, p portion) (gpu.Batch, []int, [][]float32, error) {
	defer since(&t.taught.computing, time.Now())
	return t.compute(ctx, p)
}

// Lead is how far a lesson's producers are ahead of the slowest trainer that is
// registered on its topics; of the topics' beginning, where none is.
type Lead struct {
	Records, Bytes int64  // Bytes at most, as MaxLead counts them
	Trainer        string // the slowest; "": none is registered
	Trainers       int    // registered
}

// Meter measures a lesson's lead over a connection of its own. Its methods are
// called from one goroutine at a time.
type Meter struct{ t *teacher }

// Meter connects to the lesson's topics, which must be there.
func (l Lesson) Meter(ctx context.Context) (*Meter, error) {
	k, err := l.Sink.open(ctx, false, nil)
	if err != nil {
		return nil, err
	}
	t := &teacher{Lesson: l, sink: k}
	for p := range l.Sink.Partitions {
		t.partitions = append(t.partitions, p)
	}
	return &Meter{t}, nil
}

// Measure asks the brokers.
func (m *Meter) Measure(ctx context.Context) (Lead, error) {
	followers, err := m.t.sink.followers(ctx)
	if err != nil {
		return Lead{}, err
	}
	records, name, err := m.t.lead(ctx)
	return Lead{Records: records, Bytes: records * int64(m.t.Sink.recordBytes()), Trainer: name, Trainers: len(followers)}, err
}

// Close ends the connection.
func (m *Meter) Close() { m.t.sink.close() }
