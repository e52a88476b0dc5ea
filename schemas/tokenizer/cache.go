package tokenizer

import (
	"encoding/binary"
	"math/bits"
)

// Text repeats its words, so most pre-tokens are looked up, not merged. A
// cache belongs to one goroutine at a time and is bounded: short pre-tokens in
// a hash table of fixed size, in which a new entry pushes out an older one,
// and longer ones in a map that is emptied when full.
type cache struct {
	short []shortEntry
	long  map[string][]int32
}

const (
	shortBytes   = 15      // longest pre-token of a shortEntry
	shortIDs     = 4       // most tokens of one
	shortEntries = 1 << 16 // 2 MiB
	longBytes    = 128     // longest pre-token that is kept at all
	longEntries  = 1 << 13 // at most about 5 MiB
)

// A shortEntry is half a cache line: the bytes of the pre-token with its
// length in the last, and its tokens, unused ones -1.
type shortEntry struct {
	lo, hi uint64
	ids    [shortIDs]int32
}

func newCache() *cache {
	return &cache{short: make([]shortEntry, shortEntries), long: map[string][]int32{}}
}

// lowBytes[n] keeps the first n bytes of a little-endian word.
var lowBytes = func() (t [9]uint64) {
	for n := range t {
		t[n] = 1<<(8*n) - 1
	}
	return t
}()

// shortKey packs s[i:i+n], 0 < n ≤ shortBytes.
func shortKey(s []byte, i, n int) (lo, hi uint64) {
	var w [16]byte
	b := w[:]
	if i+16 <= len(s) {
		b = s[i : i+16]
	} else {
		copy(b, s[i:i+n])
	}
	lo = binary.LittleEndian.Uint64(b)
	if n <= 8 {
		return lo & lowBytes[n], uint64(n) << 56
	}
	hi = binary.LittleEndian.Uint64(b[8:])
	return lo, hi&lowBytes[n-8] | uint64(n)<<56
}

// slot is the first of the two neighbouring entries that a key may be in.
func (c *cache) slot(lo, hi uint64) *[2]shortEntry {
	h, l := bits.Mul64(lo^0x9E3779B97F4A7C15, hi^0xD1B54A32D192ED03)
	i := (h ^ l) % (shortEntries / 2)
	return (*[2]shortEntry)(c.short[2*i : 2*i+2])
}

func (e *shortEntry) set(lo, hi uint64, ids []int32) {
	e.lo, e.hi, e.ids = lo, hi, [shortIDs]int32{-1, -1, -1, -1}
	copy(e.ids[:], ids)
}

func (e *shortEntry) appendTo(dst []int32) []int32 {
	dst = append(dst, e.ids[0])
	for _, id := range e.ids[1:] {
		if id < 0 {
			break
		}
		dst = append(dst, id)
	}
	return dst
}

func (c *cache) setLong(word []byte, ids []int32) {
	if len(c.long) >= longEntries {
		clear(c.long)
	}
	c.long[string(word)] = append([]int32(nil), ids...)
}
