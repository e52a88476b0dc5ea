package trainers

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/scavenge/scavenge/schemas/activation"
	"github.com/scavenge/scavenge/schemas/dtype"
)

// stripped are batches without their targets.
func stripped(list []*Batch) (bare []*Batch) {
	for _, b := range list {
		c := *b
		c.Targets = nil
		bare = append(bare, &c)
	}
	return bare
}

// Stream, replay and inline give the same batches in the same order, under any
// shuffle and over any number of partitions, from the start and from every
// position of one another; a source of tokens gives the same without targets.
func TestAllSourcesGiveTheSameBatches(t *testing.T) {
	dir := testSet(t, 5, 3)
	b := startBroker(t)
	for _, c := range []struct {
		partitions int
		shuffle    Shuffle
		layers     []int
	}{
		{1, Shuffle{}, []int{0, 1}},
		{3, Shuffle{Window: 3, Seed: 1}, []int{1}},
		{2, Shuffle{Window: 100, Seed: 2}, []int{0, 1}},
		{2, Shuffle{Window: 5, Seed: 2}, []int{0}},
	} {
		plan := testPlan(t, dir, 3, 20) // two epochs and a half
		if c.shuffle.Window == 5 {
			plan.Batch = 4 // ends where an epoch does
		}
		plan.Shuffle = c.shuffle
		what := fmt.Sprintf("%d partitions, window %d: ", c.partitions, c.shuffle.Window)
		want := teachersBatches(t, plan, c.layers, dtype.Float16)
		s, err := NewTokenSource(plan)
		got, _ := drain(t, s, err)
		sameBatches(t, what+"tokens", got, stripped(want))

		all, once := newProducer(t, b, dir), newProducer(t, b, dir)
		all.partitions, all.run, all.to = c.partitions, all.run+"-all", 3
		once.partitions, once.run, once.to = c.partitions, once.run+"-once", 1 // replay needs no more
		all.write(t)
		once.write(t)
		s, err = NewStreamSource(context.Background(), all.stream(c.layers...), plan)
		got, positions := drain(t, s, err)
		sameBatches(t, what+"stream", got, want)
		cache := t.TempDir()
		s, err = NewReplaySource(context.Background(), once.stream(c.layers...), Replay{Dir: cache}, plan)
		got, _ = drain(t, s, err)
		sameBatches(t, what+"replay", got, want)
		if left, err := filepath.Glob(filepath.Join(cache, "*.cache")); err != nil || len(left) > 0 {
			t.Errorf("%sa replay that is done left %v; %v", what, left, err)
		}
		for i, at := range positions {
			plan.Start = at
			s, err := NewStreamSource(context.Background(), all.stream(c.layers...), plan)
			got, _ := drain(t, s, err)
			sameBatches(t, fmt.Sprintf("%sstream after batch %d", what, i), got, want[i+1:])
			// with no cache, as a trainer has that was moved to another machine
			s, err = NewReplaySource(context.Background(), once.stream(c.layers...), Replay{Dir: t.TempDir()}, plan)
			got, _ = drain(t, s, err)
			sameBatches(t, fmt.Sprintf("%sreplay after batch %d", what, i), got, want[i+1:])
		}
	}
}

// A stream's memory is bounded by the window: what is read too early waits on
// the shelf, and nothing stays there.
func TestShelfHoldsNoMoreThanAWindow(t *testing.T) {
	dir := testSet(t, 12)
	p := newProducer(t, startBroker(t), dir)
	p.write(t)
	plan := testPlan(t, dir, 2, 24)
	plan.Shuffle = Shuffle{Window: 5, Seed: 3}
	plan.Start = Position{Index: 3} // in the middle of a window: its first three come again
	var c *counted
	s, err := newStream(context.Background(), p.stream(0), plan, func(_ *stream, t *topic, _ int) error {
		c = &counted{memory: memory{}}
		t.shelf = c
		return nil
	})
	drain(t, s, err)
	if c.most == 0 || c.most > 5 {
		t.Errorf("the shelf held %d records, want 1 to 5", c.most)
	}
	if len(c.memory) > 0 {
		t.Errorf("%d records stayed on the shelf", len(c.memory))
	}
}

// counted is a shelf that knows how much it held at most.
type counted struct {
	memory
	most int
}

func (c *counted) put(id int64, partition int, m message, wanted bool) error {
	err := c.memory.put(id, partition, m, wanted)
	c.most = max(c.most, len(c.memory))
	return err
}

// partly drains a source of so many batches and closes it.
func partly(t *testing.T, s Source, err error, batches int) Position {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	for range batches {
		if _, err := s.Next(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	at := s.Position()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return at
}

func TestDamagedCacheIsMendedFromKafka(t *testing.T) {
	dir := testSet(t, 8)
	p := newProducer(t, startBroker(t), dir)
	p.to = 1
	p.write(t)
	plan := testPlan(t, dir, 3, 24)
	want := teachersBatches(t, plan, []int{0}, dtype.Float16)
	for name, c := range map[string]struct {
		batches int
		damage  func(data []byte) []byte
		notice  string
	}{
		"untouched":           {4, func(b []byte) []byte { return b }, ""},
		"a byte of a message": {4, func(b []byte) []byte { b[cacheHead+entryHead+200]++; return b }, "damaged"},
		"all messages": {4, func(b []byte) []byte {
			for at := cacheHead; at < len(b); {
				e, _, ok := parseEntry(b[at : at+entryHead])
				if !ok {
					t.Fatal("not an entry")
				}
				clear(b[at+entryHead : at+entryHead+e.size])
				at += entryHead + e.size
			}
			return b
		}, "reading it from"},
		"a byte of an entry's head": {4, func(b []byte) []byte { b[cacheHead+5]++; return b }, ""},
		"cut in the middle":         {4, func(b []byte) []byte { return b[:len(b)/2] }, ""},
		"cut in an entry's head":    {2, func(b []byte) []byte { return b[:cacheHead+7] }, ""},
		"nothing left":              {4, func([]byte) []byte { return nil }, ""},
		"of another run":            {4, func(b []byte) []byte { b[len(cacheMagic)]++; return b }, ""},
		"something after it":        {1, func(b []byte) []byte { return append(b, "torn"...) }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			cache := t.TempDir()
			stream := p.stream(0)
			var told strings.Builder
			stream.Notice = func(s string) { fmt.Fprintln(&told, s) }
			s, err := NewReplaySource(context.Background(), stream, Replay{Dir: cache}, plan)
			rest := plan
			rest.Start = partly(t, s, err, c.batches)
			path := filepath.Join(cache, activation.Topic(p.run, 0)+".cache")
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, c.damage(data), 0o666); err != nil {
				t.Fatal(err)
			}
			s, err = NewReplaySource(context.Background(), stream, Replay{Dir: cache}, rest)
			got, _ := drain(t, s, err)
			sameBatches(t, name, got, want[c.batches:])
			if c.notice == "" && told.Len() > 0 || !strings.Contains(told.String(), c.notice) {
				t.Errorf("told %q, want %q", told.String(), c.notice)
			}
		})
	}
}

func TestCacheThatIsTooLargeIsRefusedBeforeItIsWritten(t *testing.T) {
	dir := testSet(t, 8)
	p := newProducer(t, startBroker(t), dir)
	p.to = 1
	p.write(t)
	cache := t.TempDir()
	s, err := NewReplaySource(context.Background(), p.stream(0, 1), Replay{Dir: cache, Bytes: 20_000}, testPlan(t, dir, 3, 24))
	if err == nil {
		_, err = s.Next(context.Background())
		s.Close()
	}
	need := 2 * 8 * (activation.MaxMessageBytes(testLength, 16, dtype.Float16) + entryHead)
	if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("8 records of 2 layer(s) take up to %d bytes, --cache-bytes is 20000", need)) {
		t.Error(err)
	}
	files, _ := filepath.Glob(filepath.Join(cache, "*.cache"))
	for _, f := range files {
		if st, err := os.Stat(f); err != nil || st.Size() > int64(cacheHead) {
			t.Errorf("%s has %d bytes; %v", f, st.Size(), err)
		}
	}
}

func TestTwoTrainersDoNotShareACache(t *testing.T) {
	dir := testSet(t, 8)
	p := newProducer(t, startBroker(t), dir)
	p.to = 1
	p.write(t)
	cache := t.TempDir()
	first, err := NewReplaySource(context.Background(), p.stream(0), Replay{Dir: cache}, testPlan(t, dir, 3, 24))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := NewReplaySource(context.Background(), p.stream(0), Replay{Dir: cache}, testPlan(t, dir, 3, 24)); err == nil || !strings.Contains(err.Error(), "another trainer is at work in this folder") {
		t.Error(err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	second, err := NewReplaySource(context.Background(), p.stream(0), Replay{Dir: cache}, testPlan(t, dir, 3, 24))
	if err != nil {
		t.Fatal(err)
	}
	if err := second.Close(); err != nil {
		t.Fatal(err)
	}
}

// The losses, weights and optimiser of a student are the same from every
// source, and a replaying trainer killed in any epoch, with its cache or
// without, ends like one that was not.
func TestReplayedDistillationIsTheInlineOneAndResumes(t *testing.T) {
	dir := testSet(t, 8)
	p := newProducer(t, startBroker(t), dir)
	p.to = 1
	p.write(t)
	teacher := saved(t, p.teacher)
	distill := func(source, device, run string) error {
		o := DistillOptions{Run: Run{Dataset: dir, Dir: run, Device: device, Seed: 4, Batch: 3, Steps: 7, SaveEvery: 2, Quiet: true, Shuffle: Shuffle{Window: 5, Seed: 6}},
			StudentOptions: StudentOptions{Width: 8, Bands: 5}, Teacher: teacher, Feed: Feed{Source: source, Access: p.broker.access, Topic: p.run, Stall: 20 * time.Second}}
		_, err := Distill(context.Background(), o)
		return err
	}
	want, got := t.TempDir(), t.TempDir()
	if err := distill(FromInline, "cpu", want); err != nil {
		t.Fatal(err)
	}
	if err := distill(FromReplay, "cpu", got); err != nil {
		t.Fatal(err)
	}
	endOf(t, got).compare(t, endOf(t, want), "replay against inline")
	for _, at := range []int64{2, 4, 6, 7, 8, 13} { // step 3 reaches into the second epoch, step 8 begins layer 1
		for _, lost := range []bool{false, true} {
			run := t.TempDir()
			w := &wrapped{before: func(n int64) error {
				if n == at {
					return errKilled
				}
				return nil
			}}
			if err := distill(FromReplay, w.register(t), run); !errors.Is(err, errKilled) {
				t.Fatal(err)
			}
			if lost {
				if err := os.RemoveAll(filepath.Join(run, "cache")); err != nil {
					t.Fatal(err)
				}
			}
			if err := distill(FromReplay, "cpu", run); err != nil {
				t.Fatal(err)
			}
			endOf(t, run).compare(t, endOf(t, want), fmt.Sprintf("killed in step %d, cache lost: %v", at, lost))
		}
	}
}

// Fine-tuning ends alike on the token set's files, on token records from Kafka
// and on those of one epoch replayed, killed on the way or not.
func TestFinetuningFedByKafkaIsThatOfTheTokenSet(t *testing.T) {
	dir := testSet(t, 5, 3)
	p := newProducer(t, startBroker(t), dir)
	student := saved(t, spread(random(t, studentConfig(), 6)))
	once := *p
	once.run, once.to = p.run+"-once", 1
	p.to = 3
	p.writeTopic(t, activation.Tokens, p.tokens(t))
	once.writeTopic(t, activation.Tokens, once.tokens(t))
	tune := func(source, topic, device, run string) error {
		_, err := Finetune(context.Background(), FinetuneOptions{Run: Run{Dataset: dir, Dir: run, Device: device, Seed: 4, Batch: 3, Steps: 7, SaveEvery: 2, Quiet: true},
			StudentOptions: StudentOptions{Student: student}, Feed: Feed{Source: source, Access: p.broker.access, Topic: topic, Stall: 20 * time.Second}})
		return err
	}
	want := t.TempDir()
	if err := tune("", "", "cpu", want); err != nil {
		t.Fatal(err)
	}
	for source, topic := range map[string]string{FromStream: p.run, FromReplay: once.run} {
		for _, at := range []int64{0, 1, 4} {
			run := t.TempDir()
			w := &wrapped{before: func(n int64) error {
				if n == at {
					return errKilled
				}
				return nil
			}}
			if err := tune(source, topic, w.register(t), run); at > 0 && !errors.Is(err, errKilled) || at == 0 && err != nil {
				t.Fatal(err)
			}
			if err := tune(source, topic, "cpu", run); err != nil {
				t.Fatal(err)
			}
			endOf(t, run).compare(t, endOf(t, want), fmt.Sprintf("%s, killed in step %d", source, at))
		}
	}
	// activations are no tokens
	p.run += "-activations"
	p.writeTopic(t, activation.Tokens, p.records(t)[0])
	tokens := Stream{Access: p.broker.access, Topic: p.run, Layers: []int{activation.Tokens}, TokenSet: p.set.Fingerprint(), Stall: 2 * time.Second}
	s, err := NewStreamSource(context.Background(), tokens, testPlan(t, dir, 3, 16))
	if err == nil {
		_, err = s.Next(context.Background())
		s.Close()
	}
	if err == nil || !strings.Contains(err.Error(), "the record is of teacher") {
		t.Errorf("activations where tokens are wanted: %v", err)
	}
}

// Whatever is left of a cache file, what it gives back is what was put there.
func FuzzCache(f *testing.F) {
	f.Add(uint16(0), uint16(60000), byte(0))
	f.Add(uint16(80), uint16(60000), byte(1))
	f.Add(uint16(10), uint16(150), byte(255))
	f.Fuzz(func(t *testing.T, at, length uint16, by byte) {
		path := filepath.Join(t.TempDir(), "c")
		c, err := openCache(path, [32]byte{1})
		if err != nil {
			t.Fatal(err)
		}
		message := func(id int64) []byte { return []byte(strings.Repeat(fmt.Sprint(id), int(20+id))) }
		for id := range int64(6) {
			if err := c.append(id, int(id%2), id/2, message(id)); err != nil {
				t.Fatal(err)
			}
		}
		if err := c.close(false); err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if int(length) < len(data) {
			data = data[:length]
		}
		if int(at) < len(data) {
			data[at] += by
		}
		if err := os.WriteFile(path, data, 0o666); err != nil {
			t.Fatal(err)
		}
		if c, err = openCache(path, [32]byte{1}); err != nil {
			t.Fatal(err)
		}
		defer c.close(true)
		for id := int64(len(c.entries)); id < 6; id++ { // what was cut off is put there again, after what is left
			if _, there := c.entries[id]; there {
				t.Fatalf("sequence %d is there, but not all before it", id)
			}
			if want := id / 2; c.next[int(id%2)] != want {
				t.Fatalf("partition %d goes on at %d, want %d", id%2, c.next[int(id%2)], want)
			}
			if err := c.append(id, int(id%2), id/2, message(id)); err != nil {
				t.Fatal(err)
			}
		}
		wrong := 0
		for id := range int64(6) {
			got, err := c.read(c.entries[id], make([]byte, 0, 1<<10))
			if err != nil {
				t.Fatal(err)
			}
			if string(got) != string(message(id)) { // left to the message's own checksum
				wrong++
			}
		}
		if wrong > 1 {
			t.Errorf("%d messages differ after one byte was changed", wrong)
		}
	})
}
