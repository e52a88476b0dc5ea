package transforms

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"

	"github.com/scavenge/scavenge/gpu"
	"github.com/scavenge/scavenge/infra"
	"github.com/scavenge/scavenge/infra/cluster"
	"github.com/scavenge/scavenge/schemas/activation"
	"github.com/scavenge/scavenge/schemas/checkpoint"
	"github.com/scavenge/scavenge/schemas/dtype"
	"github.com/scavenge/scavenge/schemas/tokenset"
)

const lessonLength, lessonVocab = 6, 50

// fakeEngine computes hidden values that depend on layer, token and place, so
// that a record can be told from any other.
type fakeEngine struct{ gpu.Engine }

type unused = gpu.Model // under another name, as a Model has a method Model

type fakeModel struct {
	unused
	config checkpoint.Config
}

// computed counts the sequences that went through a fake model, and failAfter,
// if not 0, is how many may.
var computed, failAfter atomic.Int64

var errFake = errors.New("the device is gone")

func (fakeEngine) Open(m *checkpoint.Model, o gpu.Options) (gpu.Model, error) {
	return &fakeModel{config: m.Config}, nil
}
func (fakeEngine) Close() error { return nil }
func (*fakeModel) Close() error { return nil }

func fakeValue(layer int, token int32, place, channel int) float32 {
	return float32(layer*100) + float32(token) + float32(place)/8 + float32(channel)/64
}

func (m *fakeModel) Hidden(b gpu.Batch, layers []int) ([][]float32, error) {
	if err := b.Check(m.config); err != nil {
		return nil, err
	}
	if n := computed.Add(int64(b.Rows)); failAfter.Load() > 0 && n > failAfter.Load() {
		return nil, errFake
	}
	var out [][]float32
	for _, l := range layers {
		var x []float32
		for i, t := range b.Tokens {
			for c := range m.config.Dim {
				x = append(x, fakeValue(l, t, i%b.Length, c))
			}
		}
		out = append(out, x)
	}
	return out, nil
}

func init() { gpu.Register("fake", func(string) (gpu.Engine, error) { return fakeEngine{}, nil }) }

// external is the way to a real Kafka, in place of the embedded broker; see
// integration_test.go.
var external cluster.Access

// broker is the address of the broker under test.
func broker(t testing.TB) string {
	t.Helper()
	if len(external.Brokers) > 0 {
		return external.Brokers[0]
	}
	b, err := infra.StartBroker(infra.BrokerOptions{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b.Addr()
}

// access is the way to a broker under test.
func access(addr string) cluster.Access {
	if len(external.Brokers) > 0 && addr == external.Brokers[0] {
		return external
	}
	return cluster.Access{Brokers: []string{addr}}
}

// tokenSet makes a token set with train shards of so many rows; its tokens
// depend on the salt.
func tokenSet(t testing.TB, dir string, salt int, rows ...int64) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	train := &tokenset.Counts{}
	for i, n := range rows {
		w, err := tokenset.NewWriter(filepath.Join(dir, tokenset.ShardName(tokenset.Train, i, len(rows))), i, lessonLength, lessonVocab)
		if err != nil {
			t.Fatal(err)
		}
		for row := range n {
			tokens := make([]int32, lessonLength)
			for j := range tokens {
				tokens[j] = int32((int(row)*7 + i*17 + j*j + salt*29) % lessonVocab)
			}
			if err := w.Append(tokens); err != nil {
				t.Fatal(err)
			}
		}
		s, err := w.Close()
		if err != nil {
			t.Fatal(err)
		}
		train.Shards, train.Rows = append(train.Shards, s), train.Rows+n
	}
	train.Tokens = train.Rows * lessonLength
	if err := tokenset.WriteManifest(dir, &tokenset.Manifest{Tokenizer: tokenset.Tokenizer{Vocab: lessonVocab}, SeqLen: lessonLength,
		Splits: map[tokenset.Split]*tokenset.Counts{tokenset.Train: train}}); err != nil {
		t.Fatal(err)
	}
}

// lesson makes a token set of 30 sequences in three shards and a teacher of
// four layers; its sink is partitions × layers 0, 1 and 3.
func lesson(t testing.TB, brokers string, partitions int) Lesson {
	t.Helper()
	dir := t.TempDir()
	tokenSet(t, dir, 0, 13, 10, 7)
	c := checkpoint.Config{Architecture: checkpoint.GPTNeoX, Vocab: lessonVocab, Dim: 4, Hidden: 4, Layers: 4, Context: lessonLength, Eps: 1e-5,
		Attention: checkpoint.Attention{Heads: 1, RotaryPct: 1, RotaryBase: 10000}}
	m := &checkpoint.Model{Config: c, Weights: map[string][]float32{}}
	for _, s := range c.Specs() {
		m.Weights[s.Name] = make([]float32, s.Size())
	}
	teacher := filepath.Join(t.TempDir(), "teacher")
	if err := m.Save(teacher); err != nil {
		t.Fatal(err)
	}
	return Lesson{Dataset: dir, Seed: 5, Epochs: 2, Teacher: teacher, Device: "fake", Batch: 4, Workers: 1,
		Sink: Sink{Access: access(brokers), Run: fmt.Sprintf("%s-%d", t.Name(), time.Now().UnixNano()), Layers: []int{0, 1, 3}, Partitions: partitions, Length: lessonLength, Dim: 4, Type: dtype.Float16, Patience: 10 * time.Second}}
}

// upTo is a lesson over so many sequences of 30 an epoch.
func (l Lesson) upTo(sequences int64) Lesson {
	l.Epochs, l.Last = (sequences+29)/30, sequences%30
	return l
}

// give runs a lesson to its end and returns how many sequences were computed.
func give(ctx context.Context, l Lesson) (int64, error) {
	if err := l.Sink.Prepare(ctx, nil); err != nil {
		return 0, err
	}
	before := computed.Load()
	for w := range l.Workers {
		if err := (&teachFn{Lesson: l}).ProcessElement(ctx, w); err != nil {
			return computed.Load() - before, err
		}
	}
	return computed.Load() - before, nil
}

// connected is a sink's connection for as long as a test runs.
func connected(t testing.TB, s Sink) *sink {
	t.Helper()
	k, err := s.connect()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.close)
	return k
}

// records reads a partition from its beginning to its end.
func records(t testing.TB, addr, topic string, partition int) []*activation.Record {
	t.Helper()
	k := connected(t, Sink{Access: access(addr), Patience: 10 * time.Second})
	next, end, err := k.bounds(context.Background(), topic, partition)
	if err != nil {
		t.Fatal(err)
	}
	var list []*activation.Record
	for next < end {
		r, err := k.current().Fetch(context.Background(), &kafka.FetchRequest{Topic: topic, Partition: partition, Offset: next, MinBytes: 1, MaxBytes: 8 << 20, MaxWait: 2 * time.Second})
		if err == nil {
			err = r.Error
		}
		if err != nil {
			t.Fatal(err)
		}
		for {
			m, err := r.Records.ReadRecord()
			if err != nil {
				break
			}
			if m.Offset < next {
				continue
			}
			value, _ := kafka.ReadAll(m.Value)
			key, _ := kafka.ReadAll(m.Key)
			x, err := activation.Unmarshal(value)
			if err != nil {
				t.Fatal(err)
			}
			if m.Offset != next || x.Control == 0 && !slices.Equal(key, activation.Key(x.SequenceID)) || x.Control != 0 && key != nil {
				t.Fatalf("%s: offset %d, want %d: key %v of sequence %d (%v)", topic, m.Offset, next, key, x.SequenceID, x.Control)
			}
			list, next = append(list, x), next+1
		}
	}
	return list
}

// entry is what a record is in its lane's order.
type entry struct {
	control   activation.Control
	epoch, id int64 // id is how many records a control record counts
}

// entries are a lane's records as complete compares them.
func entries(list []*activation.Record) (all []entry) {
	for _, r := range list {
		all = append(all, entry{r.Control, int64(r.Epoch), r.SequenceID + r.Records})
	}
	return all
}

// lessonOf is what a partition is to hold in the end, by the lesson's own words.
func lessonOf(t *testing.T, l Lesson, partition int) (want []entry) {
	t.Helper()
	course, _, err := OpenCourse(l.Dataset, false)
	if err != nil {
		t.Fatal(err)
	}
	for epoch := range l.Epochs {
		set, err := course.Epoch(epoch)
		if err != nil {
			t.Fatal(err)
		}
		ids, count := set.Order(tokenset.Train, l.Seed, epoch), int64(0)
		whole := true
		if epoch == l.Epochs-1 && l.Last > 0 {
			whole, ids = l.Last >= int64(len(ids)), ids[:l.Last]
		}
		for _, id := range ids {
			if activation.Partition(id, l.Sink.Partitions) == partition {
				want, count = append(want, entry{0, epoch, id}), count+1
			}
		}
		if whole {
			want = append(want, entry{activation.EndOfEpoch, epoch, count})
		}
		if epoch == l.Epochs-1 && !l.Follow {
			want = append(want, entry{activation.EndOfStream, epoch, count})
		}
	}
	return want
}

// complete checks that every lane of a lesson holds exactly its part of the
// canonical order, with the right content, and the control records in it.
func complete(t *testing.T, l Lesson) {
	t.Helper()
	for _, layer := range l.Sink.Layers {
		for p := range l.Sink.Partitions {
			list := records(t, l.Sink.Brokers[0], activation.Topic(l.Sink.Run, layer), p)
			right(t, l, layer, list)
			if got, want := entries(list), lessonOf(t, l, p); !slices.Equal(got, want) {
				t.Fatalf("layer %d partition %d:\n got %v\nwant %v", layer, p, got, want)
			}
		}
	}
}

// right checks the content of a layer's records.
func right(t *testing.T, l Lesson, layer int, list []*activation.Record) {
	t.Helper()
	course, _, err := OpenCourse(l.Dataset, false)
	if err != nil {
		t.Fatal(err)
	}
	m, err := checkpoint.Load(l.Teacher)
	if err != nil {
		t.Fatal(err)
	}
	teacher := m.Fingerprint()
	for _, r := range list {
		set, err := course.Epoch(int64(r.Epoch))
		if err != nil {
			t.Fatal(err)
		}
		if r.Teacher != teacher || r.TokenSet != set.Fingerprint() || r.Layer != layer || r.Type != l.Sink.Type || r.Length != lessonLength || r.Dim != l.Sink.Dim {
			t.Fatalf("layer %d: record %+v", layer, r)
		}
		if r.Control != 0 {
			continue
		}
		row, err := set.Sequence(tokenset.Train, r.SequenceID)
		if err != nil || !slices.Equal(r.Tokens, row) {
			t.Fatalf("layer %d: record %+v, want tokens %v; %v", layer, r, row, err)
		}
		x, err := r.Decode()
		if err != nil {
			t.Fatal(err)
		}
		for i := range x {
			if want := fakeValue(layer, row[i/4], i/4, i%4); x[i] < want*0.999 || x[i] > want*1.001 {
				t.Fatalf("layer %d sequence %d: value %d is %g, want %g", layer, r.SequenceID, i, x[i], want)
			}
		}
	}
}
