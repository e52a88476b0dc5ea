package tokenrun

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// build makes a run of n random documents, a few of them long, and says what
// is in it, in order.
func build(t testing.TB, path string, vocab, n int) (docs []Doc, tokens [][]int32) {
	t.Helper()
	r := rand.New(rand.NewPCG(uint64(n), uint64(vocab)))
	b := NewBuilder(vocab, 1<<30)
	type doc struct {
		Doc
		ids []int32
	}
	var all []doc
	for i := range n {
		d := doc{Doc: Doc{Key: r.Uint64()}}
		if i%10 == 3 {
			d.Key = all[i-1].Key // equal keys, told apart by the ids
		}
		binary.LittleEndian.PutUint64(d.ID[:], r.Uint64())
		size := 1 + r.IntN(50)
		if i%500 == 0 {
			size = chunkTokens + r.IntN(1000) // over the border of a chunk
		}
		for range size {
			d.ids = append(d.ids, int32(r.IntN(vocab)))
		}
		d.Tokens = uint32(size)
		all = append(all, d)
		b.Add(d.Key, d.ID, d.ids)
	}
	if b.Len() != n {
		t.Fatalf("%d documents wait, want %d", b.Len(), n)
	}
	if err := b.Write(path); err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(all, func(a, b doc) int { return Compare(a.Doc, b.Doc) })
	for _, d := range all {
		docs, tokens = append(docs, d.Doc), append(tokens, d.ids)
	}
	return docs, tokens
}

// decoded is the ids of a run's bytes.
func decoded(r *Run, b []byte) (ids []int32) {
	for ; len(b) > 0; b = b[r.Width():] {
		id := int32(binary.LittleEndian.Uint16(b))
		if r.Width() == 4 {
			id = int32(binary.LittleEndian.Uint32(b))
		}
		ids = append(ids, id)
	}
	return ids
}

func TestDocumentsComeBackSorted(t *testing.T) {
	for _, vocab := range []int{300, 1 << 16, 1<<16 + 1} {
		path := filepath.Join(t.TempDir(), "run")
		docs, tokens := build(t, path, vocab, 1200)
		r, err := Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		if err := r.Verify(); err != nil {
			t.Fatal(err)
		}
		at := 0
		for bucket := range Buckets {
			got, err := r.AppendDocs(nil, bucket)
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range got {
				if d.Key != docs[at].Key || d.ID != docs[at].ID || d.Tokens != docs[at].Tokens || Bucket(d.Key) != bucket {
					t.Fatalf("vocabulary %d: document %d is %+v, want %+v", vocab, at, d, docs[at])
				}
				ids, err := d.AppendTokens(nil, 0, d.Tokens)
				if err != nil || !slices.Equal(decoded(r, ids), tokens[at]) {
					t.Fatalf("vocabulary %d: tokens of document %d differ: %v", vocab, at, err)
				}
				if part, err := d.AppendTokens([]byte{7}, d.Tokens/2, d.Tokens); err != nil || !slices.Equal(decoded(r, part[1:]), tokens[at][d.Tokens/2:]) {
					t.Fatalf("vocabulary %d: the second half of document %d differs: %v", vocab, at, err)
				}
				if _, err := d.AppendTokens(nil, 0, d.Tokens+1); err == nil {
					t.Fatal("more tokens than the document has")
				}
				at++
			}
		}
		if at != len(docs) {
			t.Fatalf("vocabulary %d: %d documents, want %d", vocab, at, len(docs))
		}
	}
}

func TestABuilderIsUsedAgain(t *testing.T) {
	dir := t.TempDir()
	b := NewBuilder(300, 2000)
	var first []byte
	for i := range 3 {
		for j := range 20 {
			if b.Full() {
				t.Fatal("full too early")
			}
			b.Add(uint64(j)<<54, [16]byte{byte(j)}, make([]int32, 100))
		}
		if !b.Full() {
			t.Fatal("2000 tokens and not full")
		}
		path := filepath.Join(dir, "run")
		if err := b.Write(path); err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			first = data
		} else if !bytes.Equal(data, first) {
			t.Error("the second run of the same documents differs")
		}
	}
	if !b.Fits(300, 2000) || b.Fits(300, 99) || b.Fits(1<<17, 2000) {
		t.Error("Fits")
	}
}

func TestDamageIsNoticed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run")
	docs, _ := build(t, path, 300, 40)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var tokens int
	for _, d := range docs {
		tokens += int(d.Tokens)
	}
	for _, at := range []int{2 * tokens, 2*tokens + 30, len(whole) - footerSize, len(whole) - footerSize + 800, len(whole) - 14, len(whole) - 10, len(whole) - 3} {
		damaged := bytes.Clone(whole)
		damaged[at] ^= 4
		os.WriteFile(path, damaged, 0o666)
		r, err := Open(path)
		if err == nil {
			err = r.Verify()
			r.Close()
		}
		if err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("byte %d of %d changed: %v", at, len(whole), err)
		}
	}
	for _, n := range []int{0, 10, footerSize, len(whole) - 1} {
		os.WriteFile(path, whole[:n], 0o666)
		if r, err := Open(path); err == nil {
			r.Close()
			t.Errorf("cut to %d bytes: no error", n)
		}
	}
}

// Whatever a file holds, it opens and reads or it is an error.
func FuzzOpen(f *testing.F) {
	path := filepath.Join(f.TempDir(), "run")
	build(f, path, 300, 3)
	whole, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	// The long document makes way: what matters is the end.
	f.Add(whole[len(whole)-footerSize-3*entrySize:])
	f.Add([]byte(magic))
	f.Fuzz(func(t *testing.T, data []byte) {
		if err := os.WriteFile(path, data, 0o666); err != nil {
			t.Fatal(err)
		}
		r, err := Open(path)
		if err != nil {
			return
		}
		defer r.Close()
		r.Verify()
		for bucket := range Buckets {
			docs, err := r.AppendDocs(nil, bucket)
			if err != nil {
				return
			}
			for _, d := range docs {
				d.AppendTokens(nil, 0, d.Tokens)
			}
		}
	})
}
