// Package tokenrun is the format between the two halves of the making of a
// token set: tokenised documents, sorted. The first half reads text in any
// order and writes many runs; the second merges them, so that documents come
// out in one order whatever files and workers they came through, and so that
// no step holds more than a small part of the corpus.
//
// A run is a file of three parts, little-endian throughout:
//
//	tokens   each document's ids, 2 bytes each (4 where a vocabulary needs it)
//	entries  a document each: key (8 bytes), id (16), tokens (4)
//	footer   1025 × (entries, tokens before the bucket) as 2 × 8 bytes,
//	         bytes an id (4), CRC-32C of entries and footer so far (4), "SCVRUN1\n"
//
// Entries and tokens are sorted by (key, id). The bucket of a document is the
// upper ten bits of its key: a run's part of a bucket is one stretch of
// entries and one of tokens.
package tokenrun

import (
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/scavenge/scavenge/schemas/store"
)

// Buckets is how many parts the keys are divided into.
const Buckets = 1 << bucketBits

const (
	bucketBits = 10
	magic      = "SCVRUN1\n"
	entrySize  = 8 + 16 + 4
	tableSize  = (Buckets + 1) * 16
	footerSize = tableSize + 4 + 4 + len(magic)
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Doc is one document of a run.
type Doc struct {
	Key    uint64   // its place in the order
	ID     [16]byte // of its text; decides between equal keys
	Tokens uint32   // how many
	at     uint64   // where they begin in the run
	run    *Run
}

// Compare orders documents by key and id.
func Compare(a, b Doc) int {
	if a.Key != b.Key {
		return cmp.Compare(a.Key, b.Key)
	}
	return slices.Compare(a.ID[:], b.ID[:])
}

// Bucket is a key's bucket.
func Bucket(key uint64) int { return int(key >> (64 - bucketBits)) }

// chunkTokens is how much a Builder's memory grows at a time.
const chunkTokens = 1 << 20

// A Builder gathers documents for a run, in any order.
type Builder struct {
	width  int // bytes a token
	limit  int // tokens
	chunks [][]byte
	free   [][]byte
	docs   []Doc
	tokens int
}

// NewBuilder makes a Builder for ids below vocab that is full at about limit
// tokens.
func NewBuilder(vocab, limit int) *Builder {
	width := 2
	if vocab > 1<<16 {
		width = 4
	}
	return &Builder{width: width, limit: limit}
}

// Add takes a document of at least one token; tokens are copied.
func (b *Builder) Add(key uint64, id [16]byte, tokens []int32) {
	b.docs = append(b.docs, Doc{Key: key, ID: id, Tokens: uint32(len(tokens)), at: uint64(b.tokens)})
	b.tokens += len(tokens)
	for len(tokens) > 0 {
		n := len(b.chunks)
		if n == 0 || len(b.chunks[n-1]) == b.width*chunkTokens {
			var c []byte
			if k := len(b.free); k > 0 {
				c, b.free = b.free[k-1], b.free[:k-1]
			} else {
				c = make([]byte, 0, b.width*chunkTokens)
			}
			b.chunks = append(b.chunks, c)
			n++
		}
		c := b.chunks[n-1]
		take := min(len(tokens), chunkTokens-len(c)/b.width)
		at := len(c)
		c = c[:at+take*b.width]
		if b.width == 2 {
			for i, t := range tokens[:take] {
				binary.LittleEndian.PutUint16(c[at+2*i:], uint16(t))
			}
		} else {
			for i, t := range tokens[:take] {
				binary.LittleEndian.PutUint32(c[at+4*i:], uint32(t))
			}
		}
		b.chunks[n-1] = c
		tokens = tokens[take:]
	}
}

// Fits says that the Builder is as NewBuilder would make it.
func (b *Builder) Fits(vocab, limit int) bool {
	return b.limit == limit && (b.width == 2) == (vocab <= 1<<16)
}

// Len is how many documents wait.
func (b *Builder) Len() int { return len(b.docs) }

// Full says that it is time for Write: of tokens, or of very short documents.
func (b *Builder) Full() bool { return b.tokens >= b.limit || len(b.docs) >= b.limit/64+1 }

// Reset lets go of all documents and keeps the memory.
func (b *Builder) Reset() {
	for _, c := range b.chunks {
		b.free = append(b.free, c[:0])
	}
	b.chunks, b.docs, b.tokens = b.chunks[:0], b.docs[:0], 0
}

// Write makes a run of what was added, and lets go of it.
func (b *Builder) Write(path string) error {
	slices.SortFunc(b.docs, Compare)
	err := store.WriteFile(context.Background(), path, func(w io.Writer) error {
		for i := range b.docs {
			if err := b.copyTokens(w, &b.docs[i]); err != nil {
				return err
			}
		}
		return b.writeIndex(w)
	})
	if err != nil {
		return fmt.Errorf("run: %w", err)
	}
	b.Reset()
	return nil
}

func (b *Builder) copyTokens(w io.Writer, d *Doc) error {
	for at, end := int(d.at), int(d.at)+int(d.Tokens); at < end; {
		chunk, in := at/chunkTokens, at%chunkTokens
		n := min(end-at, chunkTokens-in)
		if _, err := w.Write(b.chunks[chunk][in*b.width : (in+n)*b.width]); err != nil {
			return err
		}
		at += n
	}
	return nil
}

func (b *Builder) writeIndex(w io.Writer) error {
	sum := crc32.New(castagnoli)
	w2 := io.MultiWriter(w, sum)
	var entry [entrySize]byte
	for i := range b.docs {
		putEntry(entry[:], &b.docs[i])
		if _, err := w2.Write(entry[:]); err != nil {
			return err
		}
	}
	footer := make([]byte, 0, footerSize)
	var entries, tokens uint64
	for bucket := range Buckets + 1 {
		for int(entries) < len(b.docs) && Bucket(b.docs[entries].Key) < bucket {
			tokens += uint64(b.docs[entries].Tokens)
			entries++
		}
		footer = binary.LittleEndian.AppendUint64(footer, entries)
		footer = binary.LittleEndian.AppendUint64(footer, tokens)
	}
	footer = binary.LittleEndian.AppendUint32(footer, uint32(b.width))
	sum.Write(footer)
	footer = binary.LittleEndian.AppendUint32(footer, sum.Sum32())
	_, err := w.Write(append(footer, magic...))
	return err
}

func putEntry(e []byte, d *Doc) {
	binary.LittleEndian.PutUint64(e, d.Key)
	copy(e[8:], d.ID[:])
	binary.LittleEndian.PutUint32(e[24:], d.Tokens)
}

// A Run is open for reading. Its methods may be called from several
// goroutines.
type Run struct {
	f     store.File
	name  string
	width int
	size  int64 // of the tokens, bytes
	table [Buckets + 1]struct{ entries, tokens uint64 }
}

// Open opens a run. Verify checks its entries.
func Open(path string) (*Run, error) {
	if r, err := opened(path); r != nil || err != nil {
		return r, err
	}
	f, err := store.Open(context.Background(), path)
	if err != nil {
		return nil, fmt.Errorf("run: %w", err)
	}
	r := &Run{f: f, name: path}
	if err := r.readFooter(); err != nil {
		f.Close()
		return nil, fmt.Errorf("run %s: %w: remove it, and the same command makes it again", path, err)
	}
	r.keep()
	return r, nil
}

func (r *Run) readFooter() error {
	info, err := r.f.Info()
	if err != nil {
		return err
	}
	size := info.Size
	footer := make([]byte, footerSize)
	if size < int64(footerSize) {
		return fmt.Errorf("%d bytes: truncated", size)
	}
	if _, err := r.f.ReadAt(footer, size-int64(footerSize)); err != nil {
		return err
	}
	if string(footer[tableSize+8:]) != magic {
		return fmt.Errorf("it does not end as a run does")
	}
	for i := range r.table {
		t := &r.table[i]
		t.entries, t.tokens = binary.LittleEndian.Uint64(footer[16*i:]), binary.LittleEndian.Uint64(footer[16*i+8:])
		if i > 0 && (t.entries < r.table[i-1].entries || t.tokens < r.table[i-1].tokens) {
			return fmt.Errorf("damaged: bucket %d", i)
		}
	}
	r.width = int(binary.LittleEndian.Uint32(footer[tableSize:]))
	last := r.table[Buckets]
	if r.width != 2 && r.width != 4 || last.entries > uint64(size) || last.tokens > uint64(size) ||
		last.tokens*uint64(r.width)+last.entries*entrySize+uint64(footerSize) != uint64(size) {
		return fmt.Errorf("damaged: %d bytes for %d documents and %d tokens of %d bytes", size, last.entries, last.tokens, r.width)
	}
	r.size = int64(last.tokens) * int64(r.width)
	return nil
}

// Verify checks the entries and the footer against their checksum.
func (r *Run) Verify() error {
	entries := int64(r.table[Buckets].entries) * entrySize
	sum := crc32.New(castagnoli)
	if _, err := io.Copy(sum, io.NewSectionReader(r.f, r.size, entries+tableSize+4)); err != nil {
		return fmt.Errorf("run %s: %w", r.name, err)
	}
	var want [4]byte
	if _, err := r.f.ReadAt(want[:], r.size+entries+tableSize+4); err != nil {
		return fmt.Errorf("run %s: %w", r.name, err)
	}
	if sum.Sum32() != binary.LittleEndian.Uint32(want[:]) {
		return fmt.Errorf("run %s: damaged, its checksum differs: remove it, and the same command makes it again", r.name)
	}
	return nil
}

// Close closes the run.
func (r *Run) Close() error { return r.f.Close() }

// AppendDocs appends the documents of a bucket, in order.
func (r *Run) AppendDocs(dst []Doc, bucket int) ([]Doc, error) {
	from, to := r.table[bucket], r.table[bucket+1]
	data := make([]byte, (to.entries-from.entries)*entrySize)
	if _, err := r.f.ReadAt(data, r.size+int64(from.entries)*entrySize); err != nil {
		return dst, fmt.Errorf("run %s: %w", r.name, err)
	}
	at := from.tokens
	for ; len(data) > 0; data = data[entrySize:] {
		d := Doc{Key: binary.LittleEndian.Uint64(data), ID: [16]byte(data[8:24]), Tokens: binary.LittleEndian.Uint32(data[24:]), at: at, run: r}
		at += uint64(d.Tokens)
		dst = append(dst, d)
	}
	if at != to.tokens {
		return dst, fmt.Errorf("run %s: damaged: bucket %d", r.name, bucket)
	}
	return dst, nil
}

// AppendTokens appends the document's tokens from to to, little-endian, in as
// many bytes each as the run has of them.
func (d *Doc) AppendTokens(dst []byte, from, to uint32) ([]byte, error) {
	if from > to || to > d.Tokens {
		return dst, fmt.Errorf("run %s: tokens %d to %d of a document of %d", d.run.name, from, to, d.Tokens)
	}
	at, n := len(dst), int(to-from)*d.run.width
	dst = slices.Grow(dst, n)[:at+n]
	if _, err := d.run.f.ReadAt(dst[at:], int64(d.at+uint64(from))*int64(d.run.width)); err != nil {
		return dst[:at], fmt.Errorf("run %s: %w", d.run.name, err)
	}
	return dst, nil
}

// known has the remote runs that this process has opened: each task opens all
// runs, and a footer is two requests. A run's name is never used again.
var (
	known   sync.Map // path → *Run, closed
	knownOf atomic.Int64
)

const maxKnown = 1 << 14 // of 16 KB each

func (r *Run) keep() {
	if store.Remote(r.name) && knownOf.Add(1) <= maxKnown {
		closed := *r
		known.Store(r.name, &closed)
	}
}

// opened opens a run whose footer is known.
func opened(path string) (*Run, error) {
	k, ok := known.Load(path)
	if !ok {
		return nil, nil
	}
	r := *k.(*Run)
	info, err := r.f.Info()
	if err == nil {
		r.f, err = store.OpenVersion(context.Background(), info)
	}
	if err != nil {
		return nil, fmt.Errorf("run: %w", err)
	}
	return &r, nil
}

// Prefetch gets ready what AppendDocs of a bucket, and AppendTokens of its
// documents, will read from a remote run.
func (r *Run) Prefetch(bucket int, tokens bool) error {
	from, to := r.table[bucket], r.table[bucket+1]
	err := store.Prefetch(r.f, r.size+int64(from.entries)*entrySize, int64(to.entries-from.entries)*entrySize)
	if err == nil && tokens {
		err = store.Prefetch(r.f, int64(from.tokens)*int64(r.width), int64(to.tokens-from.tokens)*int64(r.width))
	}
	if err != nil {
		return fmt.Errorf("run %s: %w", r.name, err)
	}
	return nil
}

// Width is how many bytes a token has in the run.
func (r *Run) Width() int { return r.width }
