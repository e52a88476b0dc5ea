package trainers

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"testing"

	"github.com/scavenge/scavenge/gpu"
	"github.com/scavenge/scavenge/schemas/activation"
	"github.com/scavenge/scavenge/schemas/dtype"
	"github.com/scavenge/scavenge/schemas/tokenset"
)

func testPlan(t testing.TB, dir string, batch int, total int64) Plan {
	t.Helper()
	set, err := tokenset.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return Plan{Tokens: set, Length: testLength, Seed: 4, Batch: batch, Total: total}
}

// drain reads a source to its end.
func drain(t testing.TB, s Source, err error) (list []*Batch, positions []Position) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	for {
		b, err := s.Next(context.Background())
		if errors.Is(err, io.EOF) {
			return list, positions
		}
		if err != nil {
			t.Fatal(err)
		}
		list, positions = append(list, b), append(positions, s.Position())
	}
}

func sameBatches(t testing.TB, what string, got, want []*Batch) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%s: %d batches, want %d", what, len(got), len(want))
	}
	for i := range want {
		if g, w := words(got[i]), words(want[i]); g != w {
			t.Fatalf("%s: batch %d is\n%.300s\nwant\n%.300s", what, i, g, w)
		}
	}
}

// words are all that a batch holds; targets in pieces read like those in one.
func words(b *Batch) string {
	var targets []gpu.Target
	for _, t := range b.Targets {
		t.Values, t.Rows = bytes.Join(t.Pieces(), nil), nil
		targets = append(targets, t)
	}
	return fmt.Sprint(b.Batch, b.IDs, targets)
}

func TestSourceFollowsTheCanonicalOrderOverEpochs(t *testing.T) {
	p := testPlan(t, testSet(t, 5, 3), 3, 19)
	s, err := NewTokenSource(p)
	batches, positions := drain(t, s, err)
	var ids []int64
	for _, b := range batches {
		if b.Rows != len(b.IDs) || len(b.Tokens) != b.Rows*testLength {
			t.Fatalf("batch of %d rows has %d ids and %d tokens", b.Rows, len(b.IDs), len(b.Tokens))
		}
		for row, id := range b.IDs {
			want, err := p.Tokens.AppendSequence(nil, tokenset.Train, id)
			if err != nil || !slices.Equal(want, b.Tokens[row*testLength:(row+1)*testLength]) {
				t.Fatalf("sequence %d has other tokens (%v)", id, err)
			}
		}
		ids = append(ids, b.IDs...)
	}
	want := append(slices.Concat(p.Tokens.Order(tokenset.Train, 4, 0), p.Tokens.Order(tokenset.Train, 4, 1)), p.Tokens.Order(tokenset.Train, 4, 2)[:3]...)
	if !slices.Equal(ids, want) {
		t.Errorf("order\n%v, want\n%v", ids, want)
	}
	if last := batches[len(batches)-1].Rows; last != 1 {
		t.Errorf("the last batch has %d rows, want 1", last)
	}
	for i, at := range positions { // from any position the rest is the same
		rest := p
		rest.Start = at
		s, err := NewTokenSource(rest)
		got, _ := drain(t, s, err)
		sameBatches(t, fmt.Sprintf("after batch %d", i), got, batches[i+1:])
	}
}

func TestReadingAheadDoesNotMoveThePosition(t *testing.T) {
	s, err := NewTokenSource(testPlan(t, testSet(t, 8), 2, 8))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for i := range int64(4) {
		if at := s.Position(); at.Index != 2*i || at.Epoch != 0 {
			t.Fatalf("position before batch %d is %+v", i, at)
		}
		if _, err := s.Next(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := s.Next(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// teachersBatches are what every source of targets must give.
func teachersBatches(t testing.TB, p Plan, layers []int, kind dtype.Type) []*Batch {
	t.Helper()
	e, err := gpu.Open("cpu")
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	teacher, err := e.Open(testTeacher(t), gpu.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer teacher.Close()
	s, err := NewTokenSource(p)
	list, _ := drain(t, s, err)
	for _, b := range list {
		hidden, err := teacher.Hidden(b.Batch, layers)
		if err != nil {
			t.Fatal(err)
		}
		for i, layer := range layers {
			target := gpu.Target{Layer: layer, Type: kind}
			if target.Values, target.Scales, err = activation.Encode(kind, hidden[i], teacher.Config().Dim); err != nil {
				t.Fatal(err)
			}
			b.Targets = append(b.Targets, target)
		}
	}
	return list
}
