package transforms

import (
	"fmt"
	"testing"
)

func TestChosenIsAFairDrawOfSeedAndText(t *testing.T) {
	const n = 20000
	var train, both, other int
	for i := range n {
		id := idOf(fmt.Append(nil, "document ", i))
		a, b := chosen(1, "validation", id, 0.25), chosen(1, "sample", id, 0.25)
		if a != chosen(1, "validation", id, 0.25) {
			t.Fatal("two draws differ")
		}
		if a {
			train++
			if !chosen(1, "validation", id, 0.5) {
				t.Fatal("a larger share does not hold the smaller")
			}
		}
		if a && b {
			both++
		}
		if a && chosen(2, "validation", id, 0.25) {
			other++
		}
	}
	for what, c := range map[string][2]float64{"chosen": {float64(train) / n, 0.25}, "by two purposes": {float64(both) / n, 0.0625}, "by two seeds": {float64(other) / n, 0.0625}} {
		if c[0] < c[1]*0.9 || c[0] > c[1]*1.1 {
			t.Errorf("%s: %.4f, want about %.4f", what, c[0], c[1])
		}
	}
	if chosen(1, "sample", docID{}, 0) || !chosen(1, "sample", docID{}, 1) {
		t.Error("shares 0 and 1 are not none and all")
	}
}

// A rank is a permutation, whose first ranks fall everywhere alike.
func TestRanksAreARandomOrder(t *testing.T) {
	for _, n := range []int64{1, 2, 3, 7, 64, 1000, 4097} {
		r, seen := newRanks(n, 5), make([]bool, n)
		for i := range n {
			k := r.rank(i)
			if k < 0 || k >= n || seen[k] {
				t.Fatalf("of %d: rank %d twice or out of range", n, k)
			}
			seen[k] = true
		}
	}
	const n, parts = 100000, 10
	r, other := newRanks(n, 1), newRanks(n, 2)
	var count, both [parts]int
	for i := range int64(n) {
		if k := r.rank(i); k < n/10 {
			count[i*parts/n]++
			if other.rank(i) < n/10 {
				both[i*parts/n]++
			}
		}
	}
	for i := range parts { // 1000 expected, with a deviation of 30; 100 in both, with 10
		if count[i] < 850 || count[i] > 1150 || both[i] < 50 || both[i] > 150 {
			t.Errorf("part %d has %d of the first tenth, %d of them by another seed too", i, count[i], both[i])
		}
	}
}
