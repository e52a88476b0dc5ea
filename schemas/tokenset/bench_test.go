package tokenset

import (
	"math/rand/v2"
	"os"
	"testing"
)

// BenchmarkRead reads a real token set, the folder SCAVENGE_TOKENSET: once in
// the canonical order, as training does, shards verified and decoded as they
// come; and one sequence after the other of a shard that is in memory, drawn at
// random. Bytes are two a token.
//
//	SCAVENGE_TOKENSET=data/owt go test ./schemas/tokenset -run xxx -bench Read -benchtime 3x
func BenchmarkRead(b *testing.B) {
	dir := os.Getenv("SCAVENGE_TOKENSET")
	if dir == "" {
		b.Skip("SCAVENGE_TOKENSET is not set")
	}
	s, err := Open(dir)
	if err != nil {
		b.Fatal(err)
	}
	read := func(id int64) []int32 {
		tokens, err := s.Sequence(Train, id)
		if err != nil {
			b.Fatal(err)
		}
		return tokens
	}
	order := s.Order(Train, 1, 0)
	b.Run("canonical order", func(b *testing.B) {
		b.SetBytes(2 * int64(s.Manifest.SeqLen) * int64(len(order)))
		var sum int64
		for b.Loop() {
			s.cache = nil
			for _, id := range order {
				for _, t := range read(id) {
					sum += int64(t)
				}
			}
		}
	})
	b.Run("random, in memory", func(b *testing.B) {
		rows := s.Manifest.Splits[Train].Shards[0].Rows
		b.SetBytes(2 * int64(s.Manifest.SeqLen))
		read(0)
		for b.Loop() {
			read(ID(0, rand.Int64N(rows)))
		}
	})
}
