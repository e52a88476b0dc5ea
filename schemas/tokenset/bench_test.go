package tokenset

import (
	"math/rand/v2"
	"os"
	"syscall"
	"testing"
)

// BenchmarkRead reads a real token set, the folder SCAVENGE_TOKENSET. In
// canonical order, as training does, and from its first sequence to its last,
// it is opened anew each time, so that each page is verified once; at random,
// over the whole set, most pages have been looked at before. Bytes are two a
// token. On a machine that is shared compare MB/cpu-s, the bytes for a second
// of processor time.
//
//	SCAVENGE_TOKENSET=data/owt go test ./schemas/tokenset -run xxx -bench Read -benchtime 3x
func BenchmarkRead(b *testing.B) {
	dir := os.Getenv("SCAVENGE_TOKENSET")
	if dir == "" {
		b.Skip("SCAVENGE_TOKENSET is not set")
	}
	open := func() *Set {
		s, err := Open(dir)
		if err != nil {
			b.Fatal(err)
		}
		return s
	}
	var sum int64
	var tokens []int32
	read := func(s *Set, id int64) {
		var err error
		tokens, err = s.AppendSequence(tokens[:0], Train, id)
		if err != nil {
			b.Fatal(err)
		}
		for _, t := range tokens {
			sum += int64(t)
		}
	}
	s := open()
	size := 2 * int64(s.Manifest.SeqLen)
	for _, c := range []struct {
		name string
		ids  []int64
	}{{"canonical order", s.Order(Train, 1, 0)}, {"sequential", s.IDs(Train)}} {
		b.Run(c.name, func(b *testing.B) {
			b.SetBytes(size * int64(len(c.ids)))
			defer perSecond(b, size*int64(len(c.ids)))()
			for b.Loop() {
				s := open()
				for _, id := range c.ids {
					read(s, id)
				}
			}
		})
	}
	b.Run("random", func(b *testing.B) {
		ids := s.IDs(Train)
		b.SetBytes(size)
		defer perSecond(b, size)()
		for b.Loop() {
			read(s, ids[rand.IntN(len(ids))])
		}
	})
}

// perSecond reports the bytes of each loop for a second of processor time.
func perSecond(b *testing.B, size int64) (stop func()) {
	used := func() int64 {
		var u syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
			b.Fatal(err)
		}
		return u.Utime.Nano() + u.Stime.Nano()
	}
	before := used()
	return func() { b.ReportMetric(float64(size)*float64(b.N)*1e3/float64(used()-before), "MB/cpu-s") }
}
