package tokenset

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"sync"
	"sync/atomic"

	"github.com/parquet-go/parquet-go/encoding/thrift"
	"github.com/parquet-go/parquet-go/format"

	"github.com/scavenge/scavenge/schemas/store"
)

// A paged shard is read a sequence at a time, from where it lies in the file.
// What it keeps in memory is where the pages are.
type paged struct {
	f     shardFile // closed when nothing refers to it any more
	name  string
	rows  int64
	l     layout
	pages []page
}

// page is one page of tokens.
type page struct {
	at      int64 // where its content begins in the file
	ids     int64 // and its ids
	sum     uint32
	checked atomic.Bool
}

// openPaged opens a shard and verifies its index, by which all of its pages
// are known.
func openPaged(path string, want Shard, seqLen, vocab int) (p *paged, err error) {
	l, err := newLayout(seqLen, vocab)
	if err != nil {
		return nil, err
	}
	f, err := openShard(path, want)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	index := make([]byte, want.IndexBytes)
	if _, err := f.ReadAt(index, want.Bytes-want.IndexBytes); err != nil {
		return nil, fmt.Errorf("truncated: %w", err)
	}
	if sum := sha256.Sum256(index); hex.EncodeToString(sum[:]) != want.IndexSHA256 {
		return nil, errors.New("the sha256 of its index is not the manifest's: damaged, or changed since it was written")
	}
	pages, err := parseIndex(index, want.Bytes-want.IndexBytes, want.Rows, l)
	if err != nil {
		return nil, fmt.Errorf("its index: %w", err)
	}
	return &paged{f: f, name: store.Base(path), rows: want.Rows, l: l, pages: pages}, nil
}

// parseIndex finds the pages of a shard in its index, which begins at byte
// start of the file.
func parseIndex(index []byte, start, rows int64, l layout) (pages []page, err error) {
	defer recovered(&err)
	meta, offsets, err := parseFooter(index, start)
	if err != nil {
		return nil, err
	}
	if meta.NumRows != rows {
		return nil, fmt.Errorf("%d rows, the manifest says %d", meta.NumRows, rows)
	}
	var sums []byte
	for _, kv := range meta.KeyValueMetadata {
		if kv.Key == pagesKey {
			if sums, err = base64.StdEncoding.DecodeString(kv.Value); err != nil {
				return nil, fmt.Errorf("note %s: %w", pagesKey, err)
			}
		}
	}
	n := (rows + int64(l.pageRows) - 1) / int64(l.pageRows)
	if int64(len(sums)) != 4*n {
		return nil, fmt.Errorf("note %s: checksums of %d pages, want %d", pagesKey, len(sums)/4, n)
	}
	pages = make([]page, n)
	var next int
	var row int64
	for i, g := range meta.RowGroups {
		if g.NumRows < 1 || g.NumRows > rows-row || row%int64(l.pageRows) != 0 {
			return nil, fmt.Errorf("row group %d: %d rows at row %d", i, g.NumRows, row)
		}
		for j, loc := range offsets[i].PageLocations {
			first := int64(j) * int64(l.pageRows)
			if next == len(pages) || loc.FirstRowIndex != first || first >= g.NumRows {
				return nil, fmt.Errorf("row group %d: page %d begins with row %d", i, j, loc.FirstRowIndex)
			}
			head, size := l.pageBytes(int(min(g.NumRows-first, int64(l.pageRows))))
			p := &pages[next]
			p.at = loc.Offset + int64(loc.CompressedPageSize) - int64(size)
			p.ids, p.sum = p.at+int64(head), binary.LittleEndian.Uint32(sums[4*next:])
			if loc.Offset < int64(len(parquetMagic)) || p.at < loc.Offset || p.at+int64(size) > start {
				return nil, fmt.Errorf("row group %d: page %d: %d bytes at byte %d", i, j, loc.CompressedPageSize, loc.Offset)
			}
			next++
		}
		row += g.NumRows
	}
	if row != rows || next != len(pages) {
		return nil, fmt.Errorf("%d rows in %d pages, want %d in %d", row, next, rows, len(pages))
	}
	return pages, nil
}

// parseFooter reads a file's footer out of its index, and the offset index of
// the tokens of each row group.
func parseFooter(index []byte, start int64) (meta format.FileMetaData, offsets []format.OffsetIndex, err error) {
	end := len(index) - 8
	if end < 0 || string(index[end+4:]) != parquetMagic {
		return meta, nil, errors.New("it does not end as a Parquet file")
	}
	size := int64(binary.LittleEndian.Uint32(index[end:]))
	if size > int64(end) {
		return meta, nil, fmt.Errorf("a footer of %d bytes", size)
	}
	protocol := new(thrift.CompactProtocol)
	if err := thrift.Unmarshal(protocol, index[int64(end)-size:end], &meta); err != nil {
		return meta, nil, fmt.Errorf("footer: %w", err)
	}
	offsets = make([]format.OffsetIndex, len(meta.RowGroups))
	for i, g := range meta.RowGroups {
		if len(g.Columns) != 2 {
			return meta, nil, fmt.Errorf("row group %d: %d columns", i, len(g.Columns))
		}
		c := g.Columns[1]
		from := c.OffsetIndexOffset - start
		to := from + int64(c.OffsetIndexLength)
		if from < 0 || to < from || to > int64(end) {
			return meta, nil, fmt.Errorf("row group %d: %d bytes of offset index at byte %d", i, c.OffsetIndexLength, c.OffsetIndexOffset)
		}
		if err := thrift.Unmarshal(protocol, index[from:to], &offsets[i]); err != nil {
			return meta, nil, fmt.Errorf("row group %d: offset index: %w", i, err)
		}
	}
	return meta, offsets, nil
}

// buffers keeps what is read of files.
var buffers = sync.Pool{New: func() any { return new([]byte) }}

// read reads a row into seqLen tokens. The first time, all of its page is read
// and verified.
func (p *paged) read(tokens []int32, row int64) error {
	i := row / int64(p.l.pageRows)
	first := i * int64(p.l.pageRows)
	pg := &p.pages[i]
	at := pg.ids + (row-first)*int64(p.l.rowBytes())
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	if pg.checked.Load() {
		*buf = grown(*buf, p.l.rowBytes())
		if _, err := p.f.ReadAt(*buf, at); err != nil {
			return fmt.Errorf("page %d: %w", i, plain(err))
		}
		p.l.readRow(tokens, *buf)
		return nil
	}
	rows := int(min(p.rows-first, int64(p.l.pageRows)))
	_, size := p.l.pageBytes(rows)
	*buf = grown(*buf, size)
	if _, err := p.f.ReadAt(*buf, pg.at); err != nil {
		return fmt.Errorf("page %d: %w", i, plain(err))
	}
	if crc32.ChecksumIEEE(*buf) != pg.sum {
		return fmt.Errorf("page %d, rows %d to %d: damaged: its checksum differs", i, first, first+int64(rows)-1)
	}
	if err := p.l.check(*buf, rows); err != nil {
		return fmt.Errorf("page %d, rows %d to %d: %w", i, first, first+int64(rows)-1, err)
	}
	pg.checked.Store(true)
	p.l.readRow(tokens, (*buf)[at-pg.at:])
	return nil
}

func grown(b []byte, n int) []byte {
	if cap(b) < n {
		return make([]byte, n)
	}
	return b[:n]
}

// plain takes the path, which the caller names, out of a file's error.
func plain(err error) error {
	var path *os.PathError
	if errors.As(err, &path) {
		return path.Err
	}
	return err
}

// describeIndex says where the index of a shard begins, counted from the
// file's end, and what its sha256 is.
func describeIndex(f io.ReaderAt, size int64, meta *format.FileMetaData) (bytes int64, sum string, err error) {
	var last [8]byte
	if _, err := f.ReadAt(last[:], size-8); err != nil {
		return 0, "", err
	}
	bytes = 8 + int64(binary.LittleEndian.Uint32(last[:]))
	if len(meta.RowGroups) > 0 {
		bytes = size - meta.RowGroups[0].Columns[0].OffsetIndexOffset
	}
	if bytes < 8 || bytes > size {
		return 0, "", fmt.Errorf("of %d bytes", bytes)
	}
	index := make([]byte, bytes)
	if _, err := f.ReadAt(index, size-bytes); err != nil {
		return 0, "", err
	}
	h := sha256.Sum256(index)
	return bytes, hex.EncodeToString(h[:]), nil
}
