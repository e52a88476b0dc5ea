package tokenset

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/parquet-go/parquet-go"
)

// Any byte of a shard may be wrong: what Sequence gives is right or an error
// that names the shard, never a panic; and Verify finds every one.
func TestFlippedBytesAreErrorsThatNameTheShard(t *testing.T) {
	dir := t.TempDir()
	m := set(t, dir, 30)
	info := m.Splits[Train].Shards[0]
	path := filepath.Join(dir, info.Name)
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	oneLine := func(err error) bool {
		return strings.Contains(err.Error(), info.Name) && !strings.Contains(err.Error(), "\n")
	}
	pages, groups := 0, 0
	for i := range raw {
		for _, flip := range []byte{1, 0x80} {
			bad := bytes.Clone(raw)
			bad[i] ^= flip
			// The decoders stand on their own: a manifest may agree with a bad file.
			if tokens, err := decode(bytes.NewReader(bad), int64(len(bad)), 30, 0, seqLen, vocab); err == nil && len(tokens) != 30*seqLen {
				t.Fatalf("byte %d flipped: %d tokens without an error", i, len(tokens))
			}
			parseIndex(bad[info.Bytes-info.IndexBytes:], info.Bytes-info.IndexBytes, 30, testLayout(t))
			if (i+int(flip))%6 != 0 {
				continue
			}
			if err := os.WriteFile(path, bad, 0o666); err != nil {
				t.Fatal(err)
			}
			s, err := Open(dir)
			if err != nil {
				t.Fatal(err)
			}
			for _, id := range []int64{29, 0} {
				tokens, err := s.Sequence(Train, id)
				switch {
				case err == nil && !slices.Equal(tokens, sequence(id)):
					t.Fatalf("byte %d flipped: sequence %d: %v, want %v or an error", i, id, tokens, sequence(id))
				case err != nil && !oneLine(err):
					t.Fatalf("byte %d flipped: %q is not one line that names the shard", i, err)
				case err != nil && strings.Contains(err.Error(), "page 0, rows 0 to 29"):
					pages++
				}
			}
			err = s.Verify(Train, 0)
			if err == nil {
				t.Fatalf("byte %d flipped: verified without an error", i)
			}
			if !oneLine(err) {
				t.Fatalf("byte %d flipped: %q is not one line that names the shard", i, err)
			}
			if strings.Contains(err.Error(), "row group 0") {
				groups++
			}
		}
	}
	if pages == 0 || groups == 0 {
		t.Errorf("%d errors named their page and %d their row group", pages, groups)
	}
}

func testLayout(t testing.TB) layout {
	l, err := newLayout(seqLen, vocab)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// Pages and row groups that are full, begun or padded, ids of two and of four
// bytes: each sequence is where the reader looks for it, in whatever order, and
// the file is what another reader of Parquet makes of it.
func TestEveryFormOfPageIsReadInPlace(t *testing.T) {
	for _, c := range []struct{ seqLen, vocab, rows, groupPages int }{
		{16, 300, 2 * pageTokens / 16, 1}, // full pages, a row group each
		{16, 300, 5*pageTokens/16 + 1, 2}, // the last group has one row
		{1000, 50277, 100, 100},           // not a multiple of 8 tokens
		{1001, 1 << 16, 40, 1},            // the largest vocabulary of two bytes; a padded page
		{1001, 1<<16 + 1, 40, 1},          // four bytes
		{1, 7, 100, 1},                    // a row has no second token
		{pageTokens + 3, 1 << 20, 3, 1},   // a page is one row
	} {
		path := filepath.Join(t.TempDir(), ShardName(Train, 2, 3))
		w, err := NewWriter(path, 2, c.seqLen, c.vocab)
		if err != nil {
			t.Fatal(err)
		}
		defer w.Abort()
		w.p.layout.groupRows = int64(c.groupPages * w.p.layout.pageRows)
		r := rand.New(rand.NewPCG(uint64(c.seqLen), uint64(c.vocab)))
		var want [][]int32
		for range c.rows {
			row := make([]int32, c.seqLen)
			for i := range row {
				row[i] = int32(r.IntN(c.vocab))
			}
			row[0] = int32(c.vocab - 1)
			want = append(want, row)
			if len(want)%2 == 0 { // either way
				err = w.Append(row)
			} else {
				var raw []byte
				for _, id := range row {
					raw = append(raw, binary.LittleEndian.AppendUint32(nil, uint32(id))[:Width(c.vocab)]...)
				}
				err = w.AppendBytes(raw)
			}
			if err != nil {
				t.Fatal(c, err)
			}
		}
		info, err := w.Close()
		if err != nil {
			t.Fatal(c, err)
		}
		p, err := openPaged(path, info, c.seqLen, c.vocab)
		if err != nil {
			t.Fatal(c, err)
		}
		got := make([]int32, c.seqLen)
		for _, i := range slices.Concat(r.Perm(c.rows), r.Perm(c.rows)) { // pages not looked at before, and others
			if err := p.read(got, int64(i)); err != nil || !slices.Equal(got, want[i]) {
				t.Fatalf("%+v: row %d: %v", c, i, err)
			}
		}
		tokens, err := readShard(path, info, 2, c.seqLen, c.vocab)
		if err != nil || !slices.Equal(tokens, slices.Concat(want...)) {
			t.Errorf("%+v: as Parquet: %v", c, err)
		}
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := parquet.OpenFile(f, info.Bytes); err != nil { // with its page index
			t.Errorf("%+v: as Parquet, with its page index: %v", c, err)
		}
		if again, _, err := Describe(path); err != nil || again != info {
			t.Errorf("%+v: described as %+v, %v; want %+v", c, again, err, info)
		}
	}
}

func TestWriterRefusesIDsOutsideTheVocabulary(t *testing.T) {
	for _, id := range []int32{-1, vocab} {
		w, err := NewWriter(filepath.Join(t.TempDir(), "a.parquet"), 0, seqLen, vocab)
		if err != nil {
			t.Fatal(err)
		}
		defer w.Abort()
		row := make([]int32, seqLen)
		row[3] = id
		if err := w.Append(row); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("token id %d is outside", id)) {
			t.Errorf("id %d: %v", id, err)
		}
		raw := make([]byte, 2*seqLen)
		raw[6], raw[7] = byte(id), byte(id>>8)
		if err := w.AppendBytes(raw); err == nil || !strings.Contains(err.Error(), "is outside") {
			t.Errorf("id %d, as bytes: %v", id, err)
		}
		if err := w.AppendBytes(raw[1:]); err == nil || !strings.Contains(err.Error(), "31 bytes") {
			t.Errorf("half a token: %v", err)
		}
	}
}

func TestTruncatedAnywhereIsAnError(t *testing.T) {
	dir := t.TempDir()
	info := shard(t, dir, Train, 0, 1, 30)
	raw, _ := os.ReadFile(filepath.Join(dir, info.Name))
	for n := range raw {
		if _, err := decode(bytes.NewReader(raw[:n]), int64(n), 30, 0, seqLen, vocab); err == nil {
			t.Fatalf("%d of %d bytes were read without an error", n, len(raw))
		}
	}
}

// FuzzIndex: a damaged index is an error, or its pages lie before it.
func FuzzIndex(f *testing.F) {
	dir := f.TempDir()
	info := shard(f, dir, Train, 0, 1, 4)
	raw, err := os.ReadFile(filepath.Join(dir, info.Name))
	if err != nil {
		f.Fatal(err)
	}
	start := info.Bytes - info.IndexBytes
	f.Add(raw[start:])
	l := testLayout(f)
	f.Fuzz(func(t *testing.T, index []byte) {
		pages, err := parseIndex(index, start, 4, l)
		if err != nil {
			return
		}
		_, size := l.pageBytes(4)
		if len(pages) != 1 || pages[0].at < 4 || pages[0].at+int64(size) > start || pages[0].ids < pages[0].at {
			t.Fatalf("%d pages, the first at byte %d", len(pages), pages[0].at)
		}
	})
}

// FuzzShard: a damaged shard is an error or whole rows of known ids.
func FuzzShard(f *testing.F) {
	dir := f.TempDir()
	info := shard(f, dir, Train, 0, 1, 4)
	raw, err := os.ReadFile(filepath.Join(dir, info.Name))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Fuzz(func(t *testing.T, data []byte) {
		tokens, err := decode(bytes.NewReader(data), int64(len(data)), 4, 0, seqLen, vocab)
		if err == nil && len(tokens) != 4*seqLen {
			t.Fatalf("%d tokens without an error", len(tokens))
		}
	})
}
