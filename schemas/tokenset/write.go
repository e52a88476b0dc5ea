package tokenset

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"path/filepath"

	"github.com/parquet-go/parquet-go"
	"github.com/parquet-go/parquet-go/compress/zstd"

	"github.com/scavenge/scavenge/schemas/durable"
)

// record is a row of a shard.
type record struct {
	SequenceID int64   `parquet:"sequence_id"`
	Tokens     []int32 `parquet:"tokens,list" parquet-element:",dict"`
}

// groupTokens is the size of a row group: what a Writer keeps in memory.
const groupTokens = 4 << 20

// ShardName is the name of a split's i-th shard of n.
func ShardName(split Split, i, n int) string {
	return fmt.Sprintf("%s-%05d-of-%05d.parquet", split, i, n)
}

// Writer writes one shard. The file has its name only after Close.
type Writer struct {
	file   *durable.File
	buf    *bufio.Writer
	hash   hash.Hash
	bytes  counter
	w      *parquet.GenericWriter[record]
	name   string
	first  int64
	rows   int64
	seqLen int
	row    [1]record
	done   bool
}

type counter int64

func (c *counter) Write(b []byte) (int, error) { *c += counter(len(b)); return len(b), nil }

// NewWriter starts the shard of index shard at path; its folder must exist.
func NewWriter(path string, shard, seqLen int) (*Writer, error) {
	if shard < 0 || shard >= maxShards || seqLen < 1 || seqLen > maxSeqLen {
		return nil, fmt.Errorf("token set: shard %d of sequences of %d tokens: out of range", shard, seqLen)
	}
	f, err := durable.Create(path)
	if err != nil {
		return nil, fmt.Errorf("token set: %w", err)
	}
	w := &Writer{file: f, hash: sha256.New(), name: filepath.Base(path), first: ID(shard, 0), seqLen: seqLen}
	w.buf = bufio.NewWriterSize(io.MultiWriter(f, w.hash, &w.bytes), 1<<20)
	w.w = parquet.NewGenericWriter[record](w.buf,
		parquet.Compression(&zstd.Codec{Level: zstd.SpeedFastest, Concurrency: 1}),
		parquet.DataPageStatistics(false),
		parquet.PageBufferSize(1<<20),
		parquet.MaxRowsPerRowGroup(int64(max(1, groupTokens/seqLen))),
		parquet.CreatedBy("scavenge", fmt.Sprint(Version), "-"))
	return w, nil
}

// Note keeps a word about the shard's making in the file, for Describe. The
// same notes in another order give other bytes.
func (w *Writer) Note(key, value string) { w.w.SetKeyValueMetadata(key, value) }

// Append adds a sequence of exactly seqLen tokens, which it copies.
func (w *Writer) Append(tokens []int32) error {
	if len(tokens) != w.seqLen {
		return fmt.Errorf("token set: %s: row %d has %d tokens, want %d", w.name, w.rows, len(tokens), w.seqLen)
	}
	if w.rows == maxRows {
		return fmt.Errorf("token set: %s: more than %d rows", w.name, int64(maxRows))
	}
	w.row[0] = record{w.first + w.rows, tokens}
	if _, err := w.w.Write(w.row[:]); err != nil {
		return fmt.Errorf("token set: %s: row %d: %w", w.name, w.rows, err)
	}
	w.rows++
	return nil
}

// Close gives the shard its name and returns its line of the manifest. After
// an error nothing of it is left.
func (w *Writer) Close() (Shard, error) {
	if w.done {
		return Shard{}, errors.New("token set: the shard is closed")
	}
	w.done = true
	err := w.w.Close()
	if err == nil {
		err = w.buf.Flush()
	}
	if err != nil {
		w.file.Abort()
		return Shard{}, fmt.Errorf("token set: %s: %w", w.name, err)
	}
	if err := w.file.Commit(); err != nil {
		return Shard{}, fmt.Errorf("token set: %w", err)
	}
	return Shard{Name: w.name, Rows: w.rows, Bytes: int64(w.bytes), SHA256: hex.EncodeToString(w.hash.Sum(nil))}, nil
}

// Abort gives the shard up. It may be called after Close, where it does
// nothing.
func (w *Writer) Abort() {
	if !w.done {
		w.done = true
		w.file.Abort()
	}
}
