package transforms

import (
	"context"
	"errors"
	"io"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/scavenge/scavenge/schemas/activation"
)

// once are entries without those that are there already, and without ends of
// the stream behind which it went on.
func once(all []entry) (kept []entry) {
	seen := map[entry]bool{}
	for i, e := range all {
		if !seen[e] && (e.control != activation.EndOfStream || i == len(all)-1) {
			kept = append(kept, e)
			seen[e] = true
		}
	}
	return kept
}

// lanesOf calls use with every lane of a lesson and its entries.
func lanesOf(t *testing.T, l Lesson, use func(l lane, all []entry)) {
	t.Helper()
	for _, layer := range l.Sink.Layers {
		for p := range l.Sink.Partitions {
			use(lane{layer, p}, entries(records(t, l.Sink.Brokers[0], activation.Topic(l.Sink.Run, layer), p)))
		}
	}
}

func TestControlRecordsEndEpochsAndTheStream(t *testing.T) {
	addr := broker(t)
	for _, partitions := range []int{1, 3} {
		for _, sequences := range []int64{1, 29, 30, 31, 60} {
			l := lesson(t, addr, partitions).upTo(sequences)
			l.Sink.Layers = []int{1}
			if _, err := give(t.Context(), l); err != nil {
				t.Fatal(err)
			}
			complete(t, l)
			before := total(t, connected(t, l.Sink))
			if _, err := give(t.Context(), l); err != nil {
				t.Fatal(err)
			}
			if n := total(t, connected(t, l.Sink)); n != before {
				t.Errorf("%d sequences: a second run sent %d records", sequences, n-before)
			}
		}
	}
}

// A stream that has ended goes on behind its end, with no record twice and none
// missing, wherever in an epoch it ended: also where a partition has all of the
// epoch and no word of it.
func TestStreamGoesOnBehindItsEnd(t *testing.T) {
	addr := broker(t)
	for _, stops := range [][]int64{{29, 30, 31, 60}, {1, 2, 3, 60}, {30, 60}, {28, 29, 60}, {45, 44, 46, 59, 60}} {
		l := lesson(t, addr, 3)
		l.Sink.Layers = []int{0, 1}
		for _, n := range stops {
			if _, err := give(t.Context(), l.upTo(n)); err != nil {
				t.Fatal(err)
			}
		}
		lanesOf(t, l, func(at lane, all []entry) {
			if got, want := once(all), lessonOf(t, l, at.partition); !slices.Equal(got, want) {
				t.Fatalf("%v, stops %v:\n got %v\nwant %v", at, stops, all, want)
			}
			sent := map[entry]int{}
			for _, e := range all {
				if sent[e]++; sent[e] > 1 && e.control != activation.EndOfStream {
					t.Errorf("%v, stops %v: %v is there twice: %v", at, stops, e, all)
				}
			}
		})
	}
}

// killer ends a lesson at a write to the broker: before it, or after the broker
// has acknowledged it and before the lesson hears so.
type killer struct {
	kill   context.CancelFunc
	left   atomic.Int64 // writes until then
	answer bool         // at the acknowledgement
	one    sync.Mutex   // one write is on its way at a time: another would come to the broker after the lesson's end, as it may in life
	dead   atomic.Bool
}

func (k *killer) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	c, err := (&net.Dialer{}).DialContext(ctx, network, addr)
	return &killed{Conn: c, killer: k}, err
}

func (k *killer) now() error {
	k.dead.Store(true)
	k.kill()
	return io.ErrClosedPipe
}

type killed struct {
	net.Conn
	*killer
	armed, waits atomic.Bool
}

// Write sees requests of Kafka's protocol: their size, four bytes, and then
// their kind, two bytes, which is 0 for records.
func (k *killed) Write(b []byte) (int, error) {
	if k.dead.Load() {
		return 0, io.ErrClosedPipe
	}
	if len(b) > 6 && b[4] == 0 && b[5] == 0 {
		k.one.Lock()
		last := !k.dead.Load() && k.left.Add(-1) == 0
		if k.dead.Load() || last && !k.answer {
			k.one.Unlock()
			return 0, k.now()
		}
		k.waits.Store(true)
		k.armed.Store(last)
	}
	n, err := k.Conn.Write(b)
	if err != nil && k.waits.Swap(false) {
		k.one.Unlock()
	}
	return n, err
}

func (k *killed) Read(b []byte) (int, error) {
	n, err := k.Conn.Read(b)
	if k.waits.Swap(false) {
		defer k.one.Unlock()
	}
	if k.armed.Load() {
		return 0, k.now()
	}
	return n, err
}

// killedAt gives a lesson's first worker until a write. It tells whether the
// lesson came that far.
func killedAt(t *testing.T, l Lesson, write int64, answer bool) bool {
	t.Helper()
	if err := l.Sink.Prepare(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	teacher, err := l.open(ctx, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer teacher.close()
	if teacher.sink.tls != nil {
		t.Skip("what is written inside TLS is not seen here")
	}
	k := &killer{kill: cancel, answer: answer}
	k.left.Store(write)
	teacher.sink.dial = k.dial
	teacher.sink.renew(teacher.sink.current())
	_, task := LaunchID("").Begin(ctx)
	err = teacher.teach(ctx, task)
	if killed := k.dead.Load(); killed != (err != nil) {
		t.Fatalf("write %d: killed %v, and the error is %v", write, killed, err)
	}
	return err != nil
}

// Killed at any write, of sequences or of control records, with the broker's
// acknowledgement lost or the record never sent, the same command ends with what
// an undisturbed one gives. Only what was in doubt may be there twice.
func TestKilledAtEveryWriteEndsTheSame(t *testing.T) {
	addr := broker(t)
	for _, answer := range []bool{false, true} {
		write := int64(1)
		for ; ; write++ {
			l := lesson(t, addr, 2).upTo(43)
			l.Sink.Layers, l.Batch = []int{3}, 15
			if !killedAt(t, l, write, answer) {
				break
			}
			if _, err := give(t.Context(), l); err != nil {
				t.Fatal(err)
			}
			lanesOf(t, l, func(at lane, all []entry) {
				if got, want := once(all), lessonOf(t, l, at.partition); !slices.Equal(got, want) {
					t.Fatalf("killed at write %d (acknowledged: %v), %v:\n got %v\nwant %v", write, answer, at, all, want)
				}
			})
			before := total(t, connected(t, l.Sink))
			if n, err := give(t.Context(), l); err != nil || n != 0 || total(t, connected(t, l.Sink)) != before {
				t.Fatalf("killed at write %d: a third run computed %d sequences and sent %d records; %v", write, n, total(t, connected(t, l.Sink))-before, err)
			}
		}
		// two lanes: two batches and an end in the first epoch, a batch and an end in the second
		if want := int64(2*(2+1+1+1)) + 1; write != want {
			t.Errorf("an undisturbed lesson writes %d times, want %d", write-1, want-1)
		}
	}
}

// partly gives a lesson without control records but those of a kind.
func partly(t *testing.T, l Lesson, kind activation.Control) {
	t.Helper()
	if err := l.Sink.Prepare(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	teacher, err := l.open(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer teacher.close()
	if err := teacher.walk(t.Context(), nil, func(p portion) error {
		switch {
		case p.control != 0 && p.control == kind:
			return teacher.sendControl(t.Context(), p, teacher.lackControl(p))
		case len(p.rows) == 0:
			return nil
		}
		b, layers, hidden, err := teacher.compute(t.Context(), p)
		return errors.Join(err, teacher.send(t.Context(), p, b, layers, hidden))
	}); err != nil {
		t.Fatal(err)
	}
}

// The topics of a version that sent no control records go on. They get those
// that they lack at their ends.
func TestTopicsWithoutControlRecordsGoOn(t *testing.T) {
	addr := broker(t)
	for _, c := range []struct{ old, all int64 }{{30, 30}, {20, 20}, {20, 60}, {29, 60}, {30, 60}, {45, 60}, {60, 60}} {
		l := lesson(t, addr, 3)
		l.Sink.Layers = []int{0, 1}
		partly(t, l.upTo(c.old), 0)
		l = l.upTo(c.all)
		for range 2 {
			if _, err := give(t.Context(), l); err != nil {
				t.Fatal(err)
			}
		}
		lanesOf(t, l, func(at lane, all []entry) {
			want := lessonOf(t, l, at.partition)
			if c.old > 30 { // the first epoch's end is behind them
				want = slices.DeleteFunc(want, func(e entry) bool { return e.control == activation.EndOfEpoch && e.epoch == 0 })
			}
			if !slices.Equal(all, want) {
				t.Fatalf("%d of %d sequences, %v:\n got %v\nwant %v", c.old, c.all, at, all, want)
			}
		})
	}
}

// A trainer that has read all sequences, and not the control records behind them,
// is no reason to wait, with as little lead as there may be: in the run that sent
// them, and in the next one.
func TestControlRecordsAreNoLead(t *testing.T) {
	const partitions = 6
	addr := broker(t)
	for name, before := range map[string]func(l Lesson){
		"one run": func(Lesson) {}, "killed before the stream's end": func(l Lesson) { partly(t, l.upTo(30), activation.EndOfEpoch) },
	} {
		l := lesson(t, addr, partitions)
		l.Sink.Layers, l.Batch = []int{0}, 10
		before(l)
		l.MaxLead = 2 * l.batchSize()
		ended := make(chan error, 1)
		go func() { _, err := give(t.Context(), l); ended <- err }()
		k := connected(t, l.Sink)
		topic := k.topics()[0]
		for total(t, k) < 0 { // the topic is being made
			time.Sleep(10 * time.Millisecond)
		}
		// The trainer has read all of an epoch up to the record that ends it, until
		// it sees a sequence of the next.
		for done, epoch := false, int64(0); !done; {
			var offsets []int64
			next := epoch
			for p := range partitions {
				all := entries(records(t, addr, topic, p))
				n := slices.IndexFunc(all, func(e entry) bool { return e.control != 0 && e.epoch == epoch })
				if n < 0 {
					n = len(all)
				}
				offsets = append(offsets, int64(n))
				if slices.ContainsFunc(all, func(e entry) bool { return e.control == 0 && e.epoch == 1 }) {
					next = 1
				}
			}
			tell(t, k, topic, "reader", offsets...)
			epoch = next
			select {
			case err := <-ended:
				if err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				done = true
			default:
			}
		}
		complete(t, l)
	}
}
