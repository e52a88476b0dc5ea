package trainers

import (
	"fmt"
	"slices"
	"testing"

	"github.com/scavenge/scavenge/schemas/tokenset"
)

// drawn is the order of an epoch under a shuffle.
func drawn(t *testing.T, p Plan, s Shuffle, epoch int64) []int64 {
	t.Helper()
	p.Shuffle, p.Start = s, Position{Epoch: epoch}
	o, err := newOrder(p)
	if err != nil {
		t.Fatal(err)
	}
	return slices.Clone(o.ids)
}

func TestShuffleStaysInItsWindowsAndDependsOnSeedAndEpochAlone(t *testing.T) {
	p := testPlan(t, testSet(t, 9, 8), 3, 34)
	for epoch := range int64(2) {
		canonical := p.Tokens.Order(tokenset.Train, 4, epoch)
		for _, window := range []int{0, 1} {
			if got := drawn(t, p, Shuffle{Window: window, Seed: 1}, epoch); !slices.Equal(got, canonical) {
				t.Errorf("a window of %d shuffles: %v, want %v", window, got, canonical)
			}
		}
		for _, window := range []int{2, 5, 17, 100} {
			got := drawn(t, p, Shuffle{Window: window, Seed: 1}, epoch)
			if slices.Equal(got, canonical) {
				t.Errorf("a window of %d does not shuffle", window)
			}
			for i := 0; i < len(got); i += window {
				end := min(i+window, len(got))
				a, b := slices.Sorted(slices.Values(got[i:end])), slices.Sorted(slices.Values(canonical[i:end]))
				if !slices.Equal(a, b) {
					t.Errorf("window %d at %d holds %v, want %v", window, i, a, b)
				}
			}
			if slices.Equal(got, drawn(t, p, Shuffle{Window: window, Seed: 2}, epoch)) && window > 2 {
				t.Errorf("a window of %d: two seeds shuffle alike", window)
			}
		}
	}
}

// A run is gone on with under other versions of Go: its order may not change.
func TestShuffleIsTheSameForEver(t *testing.T) {
	p := testPlan(t, testSet(t, 12), 3, 24)
	if got, want := fmt.Sprint(drawn(t, p, Shuffle{Window: 6, Seed: 7}, 1)), "[4 2 11 1 3 8 7 5 9 6 0 10]"; got != want {
		t.Errorf("order %s, want %s", got, want)
	}
}

func TestEverySequenceIsSeenOnceAnEpochWhateverTheShuffle(t *testing.T) {
	p := testPlan(t, testSet(t, 5, 3), 3, 24)
	p.Shuffle = Shuffle{Window: 3, Seed: 9}
	s, err := NewTokenSource(p)
	batches, positions := drain(t, s, err)
	var ids []int64
	for _, b := range batches {
		ids = append(ids, b.IDs...)
	}
	for epoch := range slices.Chunk(ids, 8) {
		if n := len(slices.Compact(slices.Sorted(slices.Values(epoch)))); n != 8 {
			t.Errorf("%d different sequences in an epoch of 8: %v", n, epoch)
		}
	}
	for i, at := range positions {
		rest := p
		rest.Start = at
		s, err := NewTokenSource(rest)
		got, _ := drain(t, s, err)
		sameBatches(t, fmt.Sprintf("after batch %d", i), got, batches[i+1:])
	}
}

func TestPositionOutsideTheTokenSetIsRefused(t *testing.T) {
	p := testPlan(t, testSet(t, 8), 3, 16)
	for _, at := range []Position{{Index: 9}, {Index: -1}, {Epoch: -1}} {
		p.Start = at
		if s, err := NewTokenSource(p); err == nil {
			s.Close()
			t.Errorf("%+v is no error", at)
		}
	}
}
