package tokenizer

import (
	"math/bits"
	"slices"
)

// A pairTable maps a pair of token ids to their merge: a hash table with open
// addressing, because it is asked for every pair of neighbours in every
// pre-token that is not in the cache.
type pairTable struct {
	slots []pairSlot
	shift uint
	ranks int // ranks are below this
}

type pairSlot struct {
	key   uint64 // left<<32 | right, plus one so that 0 is an empty slot
	merge merge
}

// A merge is its rank (lower is earlier) in the upper half and the id of the
// token that it makes in the lower, so that merges compare as their ranks do.
type merge uint64

// noMerge is the merge of a pair that does not merge: later than all others.
const noMerge = ^merge(0)

func (m merge) rank() uint32 { return uint32(m >> 32) }
func (m merge) id() int32    { return int32(uint32(m)) }

func newPairTable(n int) *pairTable {
	logSize := bits.Len(uint(2*n + 1))
	return &pairTable{slots: make([]pairSlot, 1<<logSize), shift: uint(64 - logSize), ranks: n}
}

func pairKey(a, b int32) uint64 { return uint64(uint32(a))<<32 | uint64(uint32(b)) + 1 }

func (t *pairTable) at(key uint64) *pairSlot {
	for i := key * 0x9E3779B97F4A7C15 >> t.shift; ; i++ {
		s := &t.slots[i&uint64(len(t.slots)-1)]
		if s.key == key || s.key == 0 {
			return s
		}
	}
}

// set gives the pair a rank; of two ranks for one pair the later set stays,
// as in Hugging Face's.
func (t *pairTable) set(a, b int32, rank uint32, id int32) {
	key := pairKey(a, b)
	*t.at(key) = pairSlot{key: key, merge: merge(rank)<<32 | merge(uint32(id))}
}

func (t *pairTable) get(a, b int32) merge {
	if s := t.at(pairKey(a, b)); s.key != 0 {
		return s.merge
	}
	return noMerge
}

// merges is what merging needs to know of a tokenizer.
type merges struct {
	pairs  *pairTable
	byteID [256]int32
	bytes  [1 << 16]merge // of two bytes, left<<8 | right: the first look at each word
}

// setBytes fills m.bytes when the rest is set.
func (m *merges) setBytes() {
	for i := range m.bytes {
		m.bytes[i] = m.pairs.get(m.byteID[i>>8], m.byteID[i&0xFF])
	}
}

// A merger merges pre-tokens; its slices are kept from one to the next.
type merger struct {
	*merges
	ids   []int32
	nexts []merge // nexts[i] is that of ids[i], ids[i+1]
	// of mergeLong:
	links   []link
	buckets []bucket
	slot    []int32  // by rank: index plus one of the bucket that takes new positions
	heap    []uint64 // of rank<<32 | bucket
}

// longPretoken is the length in bytes from which buckets beat looking for the
// lowest rank among all pairs.
const longPretoken = 80

// merge applies to word, one token a byte, the merge of lowest rank, the
// leftmost of equal ones, until none applies, and returns what is left. The
// result is valid until the next call.
func (m *merger) merge(word []byte) []int32 {
	if len(word) >= longPretoken {
		return m.mergeLong(word)
	}
	ids, nexts := m.ids[:0], m.nexts[:0]
	for i, c := range word {
		ids = append(ids, m.byteID[c])
		if i > 0 {
			nexts = append(nexts, m.bytes[int(word[i-1])<<8|int(c)])
		}
	}
	m.ids, m.nexts = ids, nexts
	for {
		low, at := noMerge, -1
		for i, n := range nexts {
			if n < low {
				low, at = n, i
			}
		}
		if at < 0 {
			return ids
		}
		id := low.id()
		ids[at] = id
		ids = append(ids[:at+1], ids[at+2:]...)
		nexts = append(nexts[:at], nexts[at+1:]...)
		if at > 0 {
			nexts[at-1] = m.pairs.get(ids[at-1], id)
		}
		if at < len(nexts) {
			nexts[at] = m.pairs.get(id, ids[at+1])
		}
	}
}

// A link is a token of a long pre-token, in a doubly linked list. A token that
// was merged into the one before it has id -1.
type link struct{ id, prev, next int32 }

// A bucket is the positions at which a merge of one rank may apply. Some have
// gone stale by the time it is their turn.
type bucket struct{ at []int32 }

// mergeLong is merge without its quadratic search: positions wait in a bucket
// a rank, and a heap holds the few ranks that there are. A megabyte of one
// letter has a megabyte of positions but hardly ten ranks, so that a heap of
// positions would be ten times slower.
func (m *merger) mergeLong(word []byte) []int32 {
	if m.slot == nil {
		m.slot = make([]int32, m.pairs.ranks)
	}
	links := m.links[:0]
	for i, c := range word {
		links = append(links, link{id: m.byteID[c], prev: int32(i) - 1, next: int32(i) + 1})
	}
	links[len(links)-1].next = -1
	m.links, m.buckets, m.heap = links, m.buckets[:0], m.heap[:0]
	for i := 0; i+1 < len(links); i++ {
		m.offer(int32(i), links[i].id, links[i+1].id)
	}
	for len(m.heap) > 0 {
		top := m.popHeap()
		rank, b := uint32(top>>32), int32(uint32(top))
		m.slot[rank] = 0
		at := m.buckets[b].at
		if !slices.IsSorted(at) {
			slices.Sort(at)
		}
		for n, i := range at {
			if !m.apply(rank, i) {
				continue
			}
			// A merge can make a pair of lower rank, where a token has two
			// ways to come about: that one goes first.
			if len(m.heap) > 0 && uint32(m.heap[0]>>32) < rank {
				m.postpone(rank, b, at[n+1:])
				break
			}
		}
	}
	ids := m.ids[:0]
	for i := int32(0); i >= 0; i = links[i].next {
		ids = append(ids, links[i].id)
	}
	m.ids = ids
	if len(word) > keptScratch { // a document of one long word must not hold its memory for good
		m.ids, m.links, m.buckets, m.heap = nil, nil, nil, nil
	}
	return ids
}

// keptScratch is the longest pre-token, in bytes, whose working memory is kept.
const keptScratch = 1 << 16

// apply merges the token at position i with the next one if that is still the
// merge of this rank.
func (m *merger) apply(rank uint32, i int32) bool {
	l := &m.links[i]
	if l.id < 0 || l.next < 0 {
		return false
	}
	now := m.pairs.get(l.id, m.links[l.next].id)
	if now.rank() != rank {
		return false
	}
	id := now.id()
	gone := &m.links[l.next]
	l.id, l.next, gone.id = id, gone.next, -1
	if l.prev >= 0 {
		m.offer(l.prev, m.links[l.prev].id, id)
	}
	if l.next >= 0 {
		m.links[l.next].prev = i
		m.offer(i, id, m.links[l.next].id)
	}
	return true
}

// offer notes position i, with tokens a and b, if they merge.
func (m *merger) offer(i, a, b int32) {
	n := m.pairs.get(a, b)
	if n == noMerge {
		return
	}
	rank := n.rank()
	if m.slot[rank] == 0 {
		b := len(m.buckets)
		if b < cap(m.buckets) { // with the memory of an earlier bucket
			m.buckets = m.buckets[:b+1]
			m.buckets[b].at = m.buckets[b].at[:0]
		} else {
			m.buckets = append(m.buckets, bucket{})
		}
		m.open(rank, int32(b))
	}
	to := &m.buckets[m.slot[rank]-1]
	to.at = append(to.at, i)
}

func (m *merger) open(rank uint32, b int32) {
	m.slot[rank] = b + 1
	m.pushHeap(uint64(rank)<<32 | uint64(b))
}

// postpone puts the rest of bucket b back.
func (m *merger) postpone(rank uint32, b int32, rest []int32) {
	m.buckets[b].at = rest
	if s := m.slot[rank]; s != 0 {
		m.buckets[s-1].at = append(m.buckets[s-1].at, rest...)
	} else if len(rest) > 0 {
		m.open(rank, b)
	}
}

func (m *merger) popHeap() uint64 {
	h := m.heap
	top, last := h[0], len(h)-1
	v := h[last]
	h = h[:last]
	m.heap = h
	i := 0
	for {
		c := 2*i + 1
		if c >= last {
			break
		}
		if c+1 < last && h[c+1] < h[c] {
			c++
		}
		if h[c] >= v {
			break
		}
		h[i] = h[c]
		i = c
	}
	if last > 0 {
		h[i] = v
	}
	return top
}

func (m *merger) pushHeap(v uint64) {
	h := append(m.heap, v)
	m.heap = h
	i := len(h) - 1
	for i > 0 {
		p := (i - 1) / 2
		if h[p] <= v {
			break
		}
		h[i] = h[p]
		i = p
	}
	h[i] = v
}
