package transforms

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"

	"github.com/scavenge/scavenge/infra"
	"github.com/scavenge/scavenge/schemas/activation"
	"github.com/scavenge/scavenge/schemas/checkpoint"
	"github.com/scavenge/scavenge/schemas/dtype"
	"github.com/scavenge/scavenge/schemas/tokenset"
)

func TestEachPartitionHoldsItsPartOfTheCanonicalOrder(t *testing.T) {
	addr := broker(t)
	for _, c := range []struct{ partitions, workers int }{{1, 1}, {3, 1}, {3, 2}} {
		l := lesson(t, addr, c.partitions)
		l.Workers = c.workers
		if n, err := give(t.Context(), l); err != nil || n != 60 {
			t.Fatalf("%d sequences computed, want 60; %v", n, err)
		}
		complete(t, l)
		if n, err := give(t.Context(), l); err != nil || n != 0 {
			t.Fatalf("a second run computed %d sequences; %v", n, err)
		}
		complete(t, l)
	}
}

// Token records need no teacher, and go on where they ended; beside layers
// they come from the same walk.
func TestTokensAreSentWithoutATeacher(t *testing.T) {
	addr := broker(t)
	l := lesson(t, addr, 2)
	alone := l
	alone.Teacher, alone.Sink.Layers, alone.Sink.Dim, alone.Sink.Type = "", []int{activation.Tokens}, 0, ""
	alone = alone.upTo(33)
	if n, err := give(t.Context(), alone); err != nil || n != 0 {
		t.Fatalf("%d sequences went through a teacher; %v", n, err)
	}
	l.Sink.Layers = []int{activation.Tokens, 0, 3}
	if n, err := give(t.Context(), l); err != nil || n != 60 {
		t.Fatalf("%d computed; %v", n, err)
	}
	set, err := tokenset.Open(l.Dataset)
	if err != nil {
		t.Fatal(err)
	}
	for p := range 2 {
		want := lessonOf(t, l, p)
		var got []entry // but for the end of the stream after 33
		list := records(t, addr, activation.Topic(l.Sink.Run, activation.Tokens), p)
		for i, r := range entries(list) {
			if r.control != activation.EndOfStream || i == len(list)-1 {
				got = append(got, r)
			}
		}
		if !slices.Equal(got, want) || len(list) != len(want)+1 {
			t.Fatalf("partition %d:\n got %v\nwant %v", p, entries(list), want)
		}
		for i, r := range list {
			row, err := set.Sequence(tokenset.Train, r.SequenceID)
			if r.Control != 0 {
				row = nil
			}
			if err != nil || r.Layer != activation.Tokens || r.TokenSet != set.Fingerprint() || !slices.Equal(r.Tokens, row) {
				t.Fatalf("partition %d: record %d is %+v; %v", p, i, r, err)
			}
		}
	}
	l.Sink.Layers = []int{0, 3}
	complete(t, l)
}

// A lesson that ends anywhere is gone on with: only the rest is computed and
// no lane has a gap or a record twice.
func TestRerunMakesOnlyTheRest(t *testing.T) {
	addr := broker(t)
	defer failAfter.Store(0)
	for n := int64(1); n < 60; n += 13 {
		l := lesson(t, addr, 2)
		failAfter.Store(computed.Load() + n)
		if _, err := give(t.Context(), l); !errors.Is(err, errFake) {
			t.Fatalf("cut after %d: %v", n, err)
		}
		failAfter.Store(0)
		rest, err := give(t.Context(), l)
		if err != nil {
			t.Fatal(err)
		}
		if done := 60 - rest; done > n || done < n-int64(l.Batch) {
			t.Errorf("cut after %d sequences: the rerun computed %d of 60", n, rest)
		}
		complete(t, l)
	}
}

// Lanes that are further than others are not written to again: each goes on
// after its own last record.
func TestLanesGoOnEachFromItsOwnEnd(t *testing.T) {
	addr := broker(t)
	l := lesson(t, addr, 2)
	few := l.upTo(17)
	few.Sink.Layers = []int{1}
	if _, err := give(t.Context(), few); err != nil {
		t.Fatal(err)
	}
	few = few.upTo(40)
	few.Sink.Layers = []int{0, 1}
	if n, err := give(t.Context(), few); err != nil || n != 40 {
		t.Fatalf("%d computed; %v", n, err)
	}
	if _, err := give(t.Context(), l); err != nil {
		t.Fatal(err)
	}
	for _, layer := range l.Sink.Layers {
		for p := range 2 {
			list := records(t, addr, activation.Topic(l.Sink.Run, layer), p)
			right(t, l, layer, list)
			// each time that the stream was ended says so
			ends := map[int]int{0: 2, 1: 3, 3: 1}[layer]
			var got []entry
			for i, e := range entries(list) {
				if e.control != activation.EndOfStream || i == len(list)-1 {
					got = append(got, e)
				}
			}
			if want := lessonOf(t, l, p); !slices.Equal(got, want) || len(list) != len(want)+ends-1 {
				t.Fatalf("layer %d partition %d:\n got %v\nwant %v and %d more ends", layer, p, entries(list), want, ends-1)
			}
		}
	}
}

func TestOtherLessonsInTheTopicAreRefused(t *testing.T) {
	addr := broker(t)
	l := lesson(t, addr, 1).upTo(8)
	if _, err := give(t.Context(), l); err != nil {
		t.Fatal(err)
	}
	other := lesson(t, addr, 1)
	m, err := checkpoint.Load(other.Teacher)
	if err != nil {
		t.Fatal(err)
	}
	m.Weights[checkpoint.EmbedIn][0] = 1
	if err := m.Save(other.Teacher); err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string]func(*Lesson){
		"another teacher": func(x *Lesson) { x.Teacher = other.Teacher },
		"another --seed":  func(x *Lesson) { x.Seed++ },
		"of type F16":     func(x *Lesson) { x.Sink.Type = dtype.BFloat16 },
		"1 partitions, want 2": func(x *Lesson) {
			x.Sink.Partitions = 2
		},
	} {
		x := l
		change(&x)
		_, err := give(t.Context(), x)
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), l.Sink.Run+".layer-") || strings.Contains(err.Error(), "\n") {
			t.Errorf("%v, want one line with %q", err, want)
		}
	}
	complete(t, l)
}

func TestTooSmallATopicIsRefusedBeforeTheFirstRecord(t *testing.T) {
	addr := broker(t)
	l := lesson(t, addr, 1)
	c := connected(t, l.Sink).current()
	topic := activation.Topic(l.Sink.Run, 1)
	if _, err := c.CreateTopics(t.Context(), &kafka.CreateTopicsRequest{Topics: []kafka.TopicConfig{{Topic: topic, NumPartitions: 1, ReplicationFactor: 1,
		ConfigEntries: []kafka.ConfigEntry{{ConfigName: "max.message.bytes", ConfigValue: "1048588"}}}}}); err != nil {
		t.Fatal(err)
	}
	l.Sink.Length, l.Sink.Dim = 1024, 512
	err := l.Sink.Prepare(t.Context(), nil)
	if err == nil || !strings.Contains(err.Error(), "1048588") || !strings.Contains(err.Error(), fmt.Sprint(activation.MaxMessageBytes(1024, 512, dtype.Float16))) || !strings.Contains(err.Error(), topic) {
		t.Errorf("%v, want the topic and both numbers", err)
	}
}

func TestAbsentBrokerIsOneClearLineInTime(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	begin := time.Now()
	sink := lesson(t, addr, 1).Sink
	sink.Patience = time.Second
	err = sink.Prepare(t.Context(), nil)
	if err == nil || !strings.Contains(err.Error(), addr) || !strings.Contains(err.Error(), "refused") || strings.Contains(err.Error(), "\n") {
		t.Errorf("error %v", err)
	}
	if d := time.Since(begin); d > 3*time.Second {
		t.Errorf("it took %v", d)
	}
}

// A connection that breaks while records are written leaves no gap; a record
// whose acknowledgement was lost may be there twice, in order.
func TestBrokenConnectionsLeaveNoGap(t *testing.T) {
	addr := broker(t)
	l := lesson(t, addr, 2)
	if err := l.Sink.Prepare(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	k := connected(t, l.Sink)
	k.limits = map[string]int{activation.Topic(l.Sink.Run, 0): batchBytes}
	// Every connection dies after some bytes.
	var dials atomic.Int64
	k.dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := (&net.Dialer{}).DialContext(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return &mortal{Conn: c, left: 3000 + 700*dials.Add(1)}, nil
	}
	k.renew(k.current())
	topic := activation.Topic(l.Sink.Run, 0)
	for i := range int64(60) {
		r := &activation.Record{Layer: 0, SequenceID: i, Length: lessonLength, Dim: 4, Type: dtype.Float32, Tokens: make([]int32, lessonLength), Values: make([]byte, lessonLength*16)}
		v, err := activation.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		if err := k.write(t.Context(), topic, 0, [][]byte{v}, [][]byte{activation.Key(i)}); err != nil {
			t.Fatalf("record %d: %v", i, err)
		}
	}
	if dials.Load() < 3 {
		t.Fatalf("only %d connections: none broke", dials.Load())
	}
	next := int64(0)
	for _, r := range records(t, addr, topic, 0) {
		if r.SequenceID > next {
			t.Fatalf("record %d comes before %d", r.SequenceID, next)
		}
		if r.SequenceID == next {
			next++
		}
	}
	if next != 60 {
		t.Fatalf("%d records of 60", next)
	}
}

// mortal is a connection that breaks after some bytes.
type mortal struct {
	net.Conn
	left int64
}

func (m *mortal) Write(b []byte) (int, error) {
	if m.left -= int64(len(b)); m.left < 0 {
		m.Conn.Close()
		return 0, io.ErrClosedPipe
	}
	return m.Conn.Write(b)
}

// Records of the paper's size pass, though one is over the usual broker's
// limit for a message.
func TestRecordsOverTheUsualLimitPass(t *testing.T) {
	s := lesson(t, broker(t), 1).Sink
	s.Length, s.Dim, s.Layers = 1024, 512, []int{0}
	if err := s.Prepare(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	k, err := s.open(t.Context(), false, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer k.close()
	var values, keys [][]byte
	for i := range int64(20) {
		v, err := activation.Marshal(&activation.Record{SequenceID: i, Length: 1024, Dim: 512, Type: dtype.Float16, Tokens: make([]int32, 1024), Values: make([]byte, 1<<20)})
		if err != nil {
			t.Fatal(err)
		}
		values, keys = append(values, v), append(keys, activation.Key(i))
	}
	if err := k.write(t.Context(), activation.Topic(s.Run, 0), 0, values, keys); err != nil {
		t.Fatal(err)
	}
	list := records(t, s.Brokers[0], activation.Topic(s.Run, 0), 0)
	for i, r := range list {
		if r.SequenceID != int64(i) {
			t.Fatalf("record %d is sequence %d", i, r.SequenceID)
		}
	}
	if len(list) != 20 {
		t.Fatalf("%d records of 20", len(list))
	}
}

// A broker that goes away in the middle and comes back after a while delays a
// lesson and takes nothing from it; one that stays away ends it with an error.
func TestBrokerThatComesBackLosesNothing(t *testing.T) {
	if len(external.Brokers) > 0 {
		t.Skip("the broker is not ours to stop")
	}
	dir := t.TempDir()
	b, err := infra.StartBroker(infra.BrokerOptions{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	l := lesson(t, b.Addr(), 2)
	l.Batch, l.MaxLead = 2, int64(30*l.Sink.recordBytes()) // it waits for a trainer until told to go on
	ended := make(chan error, 1)
	go func() { _, err := give(t.Context(), l); ended <- err }()
	k := connected(t, l.Sink)
	for {
		if total(t, k) >= 24 { // of 30, and two batches of 6 in three layers do not fit any more
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Second)
	if b, err = infra.StartBroker(infra.BrokerOptions{Dir: dir, Listen: b.Addr()}); err != nil {
		t.Fatal(err)
	}
	defer func() { b.Close() }()
	for _, topic := range l.Sink.topics() { // the trainer says that it is far ahead
		var all []kafka.OffsetCommit
		for p := range 2 {
			all = append(all, kafka.OffsetCommit{Partition: p, Offset: 1000})
		}
		if err := k.ask(t.Context(), func(ctx context.Context, c *kafka.Client) error {
			_, err := c.OffsetCommit(ctx, &kafka.OffsetCommitRequest{GroupID: activation.ProgressGroup(topic, "far"), GenerationID: -1, Topics: map[string][]kafka.OffsetCommit{topic: all}})
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	complete(t, l)

	l.Sink.Patience = 500 * time.Millisecond
	gone, err := l.Sink.open(t.Context(), false, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer gone.close()
	b.Close()
	err = gone.write(t.Context(), l.Sink.topics()[0], 0, [][]byte{{1}}, [][]byte{{1}})
	if err == nil || !strings.Contains(err.Error(), "not written within 500ms") || !strings.Contains(err.Error(), b.Addr()) {
		t.Errorf("a broker that stays away: %v", err)
	}
}
