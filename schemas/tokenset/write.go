package tokenset

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"path"

	"github.com/scavenge/scavenge/schemas/store"
)

// ShardName is the name of a split's i-th shard of n.
func ShardName(split Split, i, n int) string {
	return fmt.Sprintf("%s-%05d-of-%05d.parquet", split, i, n)
}

// IsShardName says whether a file's name is one that ShardName gives.
func IsShardName(name string) bool {
	for _, split := range []Split{Train, Validation} {
		if ok, _ := path.Match(string(split)+"-?????-of-?????.parquet", name); ok {
			return true
		}
	}
	return false
}

// Writer writes one shard. The file has its name only after Close. It holds
// one page in memory, and of the file's index 30 bytes a page.
type Writer struct {
	file  store.Upload
	hash  hash.Hash
	p     parquetWriter
	name  string
	first int64
	rows  int64
	page  []byte // in the making, with its head for a full page
	head  int    // bytes of that
	done  bool
}

// NewWriter starts the shard of index shard at path, of ids below vocab; its
// folder must exist.
func NewWriter(path string, shard, seqLen, vocab int) (*Writer, error) {
	l, err := newLayout(seqLen, vocab)
	if err == nil && (shard < 0 || shard >= maxShards) {
		err = fmt.Errorf("shard %d: out of range", shard)
	}
	if err != nil {
		return nil, fmt.Errorf("token set: %w", err)
	}
	f, err := store.Create(context.Background(), path)
	if err != nil {
		return nil, fmt.Errorf("token set: %w", err)
	}
	w := &Writer{file: f, hash: sha256.New(), name: store.Base(path), first: ID(shard, 0), page: l.head(l.pageRows)}
	w.head = len(w.page)
	w.p = parquetWriter{w: io.MultiWriter(f, w.hash), layout: l}
	return w, w.wrap(w.p.begin())
}

func (w *Writer) wrap(err error) error {
	if err != nil {
		return fmt.Errorf("token set: %s: %w", w.name, err)
	}
	return nil
}

// Note keeps a word about the shard's making in the file, for Describe. The
// same notes in another order give other bytes.
func (w *Writer) Note(key, value string) { w.p.note(key, value) }

// Append adds a sequence of exactly seqLen tokens, which it copies.
func (w *Writer) Append(tokens []int32) (err error) {
	l := &w.p.layout
	if err := w.room(len(tokens)); err != nil {
		return err
	}
	if w.page, err = l.appendRow(w.page, tokens); err != nil {
		return fmt.Errorf("token set: %s: row %d: %w", w.name, w.rows, err)
	}
	return w.added()
}

// AppendBytes is Append for ids as they will lie in the file: little-endian,
// Width bytes each.
func (w *Writer) AppendBytes(ids []byte) error {
	l := &w.p.layout
	if len(ids)%l.width != 0 {
		return fmt.Errorf("token set: %s: row %d has %d bytes, not whole tokens of %d", w.name, w.rows, len(ids), l.width)
	}
	if err := w.room(len(ids) / l.width); err != nil {
		return err
	}
	if err := l.known(l.most(ids)); err != nil {
		return fmt.Errorf("token set: %s: row %d: %w", w.name, w.rows, err)
	}
	w.page = append(w.page, ids...)
	return w.added()
}

// room says whether a row of so many tokens may come.
func (w *Writer) room(tokens int) error {
	if want := w.p.layout.seqLen; tokens != want {
		return fmt.Errorf("token set: %s: row %d has %d tokens, want %d", w.name, w.rows, tokens, want)
	}
	if w.rows == maxRows {
		return fmt.Errorf("token set: %s: more than %d rows", w.name, int64(maxRows))
	}
	return nil
}

// added counts a row, and writes the page that it fills.
func (w *Writer) added() error {
	if w.rows++; w.rows%int64(w.p.layout.pageRows) == 0 {
		return w.wrap(w.flush(w.p.layout.pageRows))
	}
	return nil
}

// flush writes the page, which has so many rows.
func (w *Writer) flush(rows int) error {
	l, page := w.p.layout, w.page
	if rows < l.pageRows { // the last one of all
		page = append(l.head(rows), page[w.head:]...)
	}
	page = append(page, make([]byte, l.padding(rows))...)
	err := w.p.tokens(page, rows)
	w.page = w.page[:w.head]
	if err == nil && w.p.groupRows == l.groupRows {
		err = w.p.endGroup(w.first + w.rows)
	}
	return err
}

// Close gives the shard its name and returns its line of the manifest. After
// an error nothing of it is left.
func (w *Writer) Close() (Shard, error) {
	if w.done {
		return Shard{}, errors.New("token set: the shard is closed")
	}
	w.done = true
	index, err := w.finish()
	if err != nil {
		w.file.Abort()
		return Shard{}, w.wrap(err)
	}
	if err := w.file.Commit(); err != nil {
		return Shard{}, fmt.Errorf("token set: %w", err)
	}
	sum := sha256.Sum256(index)
	return Shard{Name: w.name, Rows: w.rows, Bytes: w.p.at, SHA256: hex.EncodeToString(w.hash.Sum(nil)),
		IndexBytes: int64(len(index)), IndexSHA256: hex.EncodeToString(sum[:])}, nil
}

// finish writes what is left, and returns the file's index.
func (w *Writer) finish() (index []byte, err error) {
	if rest := int(w.rows % int64(w.p.layout.pageRows)); rest > 0 {
		err = w.flush(rest)
	}
	if err == nil && w.p.groupRows > 0 {
		err = w.p.endGroup(w.first + w.rows)
	}
	if err == nil {
		index, err = w.p.end(w.rows)
	}
	return index, err
}

// Abort gives the shard up. It may be called after Close, where it does
// nothing.
func (w *Writer) Abort() {
	if !w.done {
		w.done = true
		w.file.Abort()
	}
}
