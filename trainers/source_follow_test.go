package trainers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/scavenge/scavenge/schemas/activation"
	"github.com/scavenge/scavenge/schemas/tokenset"
)

// growing is a token set that grows, and the producer of its activations.
type growing struct {
	*producer
	dir    string
	series *tokenset.Series
	parts  int64
}

func newGrowing(t testing.TB, b *testBroker, rows ...int64) *growing {
	t.Helper()
	g := &growing{dir: t.TempDir()}
	g.grow(t, rows...)
	var err error
	if g.series, err = tokenset.OpenSeries(g.dir); err != nil {
		t.Fatal(err)
	}
	g.producer = newProducer(t, b, filepath.Join(g.dir, tokenset.PartName(0)))
	return g
}

// grow adds a part.
func (g *growing) grow(t testing.TB, rows ...int64) {
	t.Helper()
	writeSet(t, filepath.Join(g.dir, tokenset.PartName(g.parts)), g.parts, rows...)
	g.parts++
}

// teach writes a part's records and the ends of its epoch.
func (g *growing) teach(t testing.TB, n int64) {
	t.Helper()
	var err error
	if g.set, err = g.series.Epoch(n); err != nil {
		t.Fatal(err)
	}
	g.from, g.to = n, n+1
	g.write(t)
	g.control(t, activation.EndOfEpoch, n)
}

// control writes a control record to every partition of every layer.
func (p *producer) control(t testing.TB, kind activation.Control, epoch int64) {
	t.Helper()
	c := p.teacher.Config
	client := p.broker.client(t)
	for layer := range c.Layers {
		for number := range p.partitions {
			r := activation.Record{Teacher: p.teacher.Fingerprint(), TokenSet: p.set.Fingerprint(), Layer: layer, Epoch: int(epoch), Length: testLength, Dim: c.Dim, Type: p.kind, Control: kind}
			for _, id := range p.set.Order(tokenset.Train, 4, epoch) {
				if activation.Partition(id, p.partitions) == number {
					r.Records++
				}
			}
			value, err := activation.Marshal(&r)
			if err != nil {
				t.Fatal(err)
			}
			produce(t, client, activation.Topic(p.run, layer), number, [][]byte{nil}, [][]byte{value})
		}
	}
}

func (g *growing) source(t testing.TB, p Plan, layers ...int) (Source, error) {
	t.Helper()
	s := g.stream(layers...)
	s.Course = g.series
	return NewStreamSource(context.Background(), s, p)
}

func (g *growing) plan(batch int) Plan {
	return Plan{Tokens: g.series, Length: testLength, Seed: 4, Batch: batch, Follow: true}
}

// order is what a stream of the parts from one on gives.
func (g *growing) order(s Shuffle, parts int64) (ids []int64) {
	for n := range parts {
		o := &order{tokens: g.series, seed: 4, shuffle: s}
		ids = append(ids, o.shuffled(n)...)
	}
	return ids
}

func idsOf(list []*Batch) (ids []int64) {
	for _, b := range list {
		ids = append(ids, b.IDs...)
	}
	return ids
}

func TestAFollowedStreamGivesTheParts(t *testing.T) {
	b := startBroker(t)
	for _, c := range []struct {
		partitions int
		shuffle    Shuffle
		layers     []int
	}{{1, Shuffle{}, []int{0}}, {3, Shuffle{Window: 4, Seed: 9}, []int{0, 1}}, {2, Shuffle{}, []int{1}}} {
		g := newGrowing(t, b, 5, 3)
		g.partitions = c.partitions
		g.teach(t, 0)
		p := g.plan(3)
		p.Shuffle = c.shuffle
		s, err := g.source(t, p, c.layers...)
		if err != nil {
			t.Fatal(err)
		}
		var list []*Batch
		var positions []Position
		read := func(n int) {
			t.Helper()
			for range n {
				b, err := s.Next(context.Background())
				if err != nil {
					t.Fatal(err)
				}
				list, positions = append(list, b), append(positions, s.Position())
			}
		}
		read(2)
		ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
		if _, err := s.Next(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("a batch that the next part completes: %v", err)
		}
		cancel()
		for n, rows := range [][]int64{{4}, {}, {2, 6}} { // a part may be empty
			g.grow(t, rows...)
			g.teach(t, int64(n)+1)
		}
		read(4) // 18 of 20
		g.control(t, activation.EndOfStream, 3)
		read(1)
		if _, err := s.Next(context.Background()); !errors.Is(err, io.EOF) {
			t.Fatalf("at the stream's end: %v", err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		want := g.order(c.shuffle, 4)
		if got := idsOf(list); !slices.Equal(got, want) {
			t.Fatalf("%d partitions: %v, want %v", c.partitions, got, want)
		}
		// from any position on the rest is the same, also where the topic has to be
		// searched for it, as by the layer that comes next
		for i, at := range positions {
			for _, offsets := range []bool{true, false} {
				rest := p
				rest.Start = at.clone()
				if !offsets {
					rest.Start.Offsets = nil
				}
				s, err := g.source(t, rest, c.layers...)
				got, _ := drain(t, s, err)
				sameBatches(t, fmt.Sprintf("%d partitions, after batch %d, offsets %v", c.partitions, i, offsets), got, list[i+1:])
			}
		}
		// a stream that goes on after its end
		g.grow(t, 3)
		g.teach(t, 4)
		g.control(t, activation.EndOfStream, 4)
		rest := p
		rest.Start = positions[len(positions)-1]
		s, err = g.source(t, rest, c.layers...)
		got, _ := drain(t, s, err)
		if want := g.order(c.shuffle, 5)[20:]; !slices.Equal(idsOf(got), want) {
			t.Errorf("after its end: %v, want %v", idsOf(got), want)
		}
	}
}

// A stream that ends inside an epoch gives all that it has, and goes on from
// there when there is more.
func TestAFollowedStreamMayEndInsideAnEpoch(t *testing.T) {
	dir := testSet(t, 5, 6)
	p := newProducer(t, startBroker(t), dir)
	p.to = 1
	order := p.set.Order(tokenset.Train, 4, 0)
	part := func(from, to int) {
		p.change = func(_, _ int, list []*activation.Record) []*activation.Record {
			return slices.DeleteFunc(slices.Clone(list), func(r *activation.Record) bool {
				i := slices.Index(order, r.SequenceID)
				return i < from || i >= to
			})
		}
		p.write(t)
		p.control(t, activation.EndOfStream, 0)
	}
	part(0, 8)
	plan := testPlan(t, dir, 3, 0)
	plan.Follow = true
	source := func() (Source, error) {
		s := p.stream(0, 1)
		s.Course = p.set
		return NewStreamSource(context.Background(), s, plan)
	}
	s, err := source()
	got, positions := drain(t, s, err)
	if !slices.Equal(idsOf(got), order[:8]) {
		t.Fatalf("%v, want %v", idsOf(got), order[:8])
	}
	part(8, 11)
	plan.Start = positions[len(positions)-1]
	s, err = source()
	if got, _ = drain(t, s, err); !slices.Equal(idsOf(got), order[8:]) {
		t.Fatalf("gone on: %v, want %v", idsOf(got), order[8:])
	}
	// what a killed producer had on its way comes behind the end
	p.control(t, activation.EndOfEpoch, 0)
	p.control(t, activation.EndOfStream, 0)
	p.change = func(_, _ int, list []*activation.Record) []*activation.Record { return list[max(0, len(list)-2):] }
	p.write(t)
	for _, from := range []Position{{}, positions[0], {Index: 11}} {
		plan.Start = from
		s, err = source()
		if got, _ = drain(t, s, err); !slices.Equal(idsOf(got), order[from.Index:]) {
			t.Fatalf("repeated behind its end, from %d: %v, want %v", from.Index, idsOf(got), order[from.Index:])
		}
	}
}

// A run may join when the topics no longer hold their beginning, or begin with
// what comes next; also where records were written twice.
func TestAFollowedStreamBeginsWithWhatIsThere(t *testing.T) {
	b := embeddedBroker(t) // whose log can be cut
	for _, partitions := range []int{1, 2} {
		g := newGrowing(t, b, 7, 4)
		g.partitions = partitions
		g.change = func(_, _ int, list []*activation.Record) []*activation.Record { // the last batch's acknowledgement was lost
			return slices.Concat(list, list[max(0, len(list)-3):])
		}
		g.teach(t, 0)
		g.grow(t, 6)
		g.teach(t, 1)
		want := g.order(Shuffle{}, 2)
		p := g.plan(2)
		p.Start.Epoch = Latest
		s, err := g.source(t, p, 0, 1)
		if err != nil {
			t.Fatal(err)
		}
		p.Start.Epoch = Earliest
		whole, err := g.source(t, p, 0, 1)
		if err != nil {
			t.Fatal(err)
		}
		g.grow(t, 5)
		g.teach(t, 2)
		g.control(t, activation.EndOfStream, 2)
		latest, _ := drain(t, s, nil)
		if got, want := idsOf(latest), g.order(Shuffle{}, 3)[len(want):]; !slices.Equal(got, want) {
			t.Errorf("%d partitions, the latest: %v, want %v", partitions, got, want)
		}
		list, _ := drain(t, whole, nil)
		if got := idsOf(list); !slices.Equal(got, g.order(Shuffle{}, 3)) {
			t.Errorf("%d partitions, the earliest: %v, want %v", partitions, got, g.order(Shuffle{}, 3))
		}
		deleteRecords(t, b, activation.Topic(g.run, 1), int32(partitions-1), 3)
		s, err = g.source(t, p, 0, 1)
		list, _ = drain(t, s, err)
		got := idsOf(list)
		all := g.order(Shuffle{}, 3)
		if rest := all[len(all)-len(got):]; !slices.Equal(got, rest) || len(got) >= len(all) || len(got) < len(all)-3*partitions-1 {
			t.Errorf("%d partitions, cut: %v of %v", partitions, got, all)
		}
	}
}
