package transforms

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"strings"

	"github.com/klauspost/compress/zstd"

	"github.com/scavenge/scavenge/schemas/tokenizer"
)

// The layouts of a text file.
const (
	layoutText  = "text"  // the file is one document
	layoutLines = "lines" // each line is a JSON object {"text": "…"} and a document
	layoutGuess = ""      // the name does not tell: by content, when it is read
)

// Piece is a text file, or the part of a JSON-lines file whose lines begin at
// bytes Start to End.
type Piece struct {
	Name   string // as the user's glob gave it
	Path   string // absolute
	Size   int64  // of the whole file, bytes
	Start  int64
	End    int64
	Layout string
}

// whole says that the piece is all of its file.
func (p Piece) whole() bool { return p.Start == 0 && p.End == p.Size }

// maxDocument is the longest document, in bytes, that is read: one document at
// a time is in memory.
const maxDocument = 1 << 30

// gatherer receives a piece's documents and how much of the input, in bytes of
// the file, was read since the last call.
type gatherer interface {
	document(text []byte) error // valid only during the call
	read(bytes int64)
}

// documents is what a piece gave.
type documents struct {
	SHA256   string // of the whole file; empty for a part of one
	Replaced int64  // invalid parts of UTF-8, each read as U+FFFD
}

// read hands the piece's documents over, in order. Compression is told by
// content, not by name. Errors name the file and the place in it.
func (p Piece) read(ctx context.Context, to gatherer) (d documents, err error) {
	defer func() {
		if err != nil && ctx.Err() == nil {
			err = fmt.Errorf("input %s: %w", p.Name, plain(err))
		}
	}()
	f, err := os.Open(p.Path)
	if err != nil {
		return d, err
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil {
		return d, err
	} else if st.Size() != p.Size {
		return d, fmt.Errorf("it has %d bytes and had %d when this run was planned: it is being written to", st.Size(), p.Size)
	}
	src := &source{ctx: ctx, f: f, to: to, left: p.End - p.Start}
	if p.whole() {
		src.hash = sha256.New()
	} else if _, err := f.Seek(max(0, p.Start-1), io.SeekStart); err != nil {
		return d, err
	}
	r, closeReader, err := decompress(src)
	if err != nil {
		return d, err
	}
	defer closeReader()
	head, _ := r.Peek(512)
	if name := unreadable(head); name != "" {
		return d, fmt.Errorf("it holds %s: only plain text and JSON lines are read, as they are or compressed with gzip or zstd", name)
	}
	lines := p.Layout == layoutLines
	if p.Layout == layoutGuess {
		head, _ := r.Peek(r.Size())
		lines = looksLikeLines(head)
	}
	if lines {
		d.Replaced, err = p.readLines(r, to)
	} else {
		d.Replaced, err = readText(r, to)
	}
	if err != nil || !p.whole() {
		return d, err
	}
	if _, err := io.Copy(io.Discard, r); err != nil { // the hash is over the whole file
		return d, err
	}
	d.SHA256 = hex.EncodeToString(src.hash.Sum(nil))
	return d, nil
}

// source reads the file, hashes it, and tells how much was read.
type source struct {
	ctx  context.Context
	f    *os.File
	hash hash.Hash // nil for a part of a file
	to   gatherer
	left int64 // of the piece: what is read beyond it is another piece's progress
}

func (s *source) Read(b []byte) (int, error) {
	if err := s.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := s.f.Read(b)
	if s.hash != nil {
		s.hash.Write(b[:n])
	}
	if own := min(int64(n), s.left); own > 0 {
		s.left -= own
		s.to.read(own)
	}
	return n, err
}

// readBuffer is how much is read at a time, bytes.
const readBuffer = 1 << 18

// decompress is the text in src.
func decompress(src io.Reader) (*bufio.Reader, func(), error) {
	r := bufio.NewReaderSize(src, readBuffer)
	head, err := r.Peek(4)
	if err != nil && err != io.EOF {
		return nil, nil, err
	}
	switch compression(head) {
	case "gzip":
		z, err := gzip.NewReader(r)
		if err != nil {
			return nil, nil, err
		}
		return bufio.NewReaderSize(z, readBuffer), func() { z.Close() }, nil
	case "zstd":
		z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(1<<31))
		if err != nil {
			return nil, nil, err
		}
		return bufio.NewReaderSize(z, readBuffer), z.Close, nil
	}
	return r, func() {}, nil
}

// compression of a file that begins with head: gzip, zstd or none.
func compression(head []byte) string {
	switch {
	case len(head) >= 2 && head[0] == 0x1F && head[1] == 0x8B:
		return "gzip"
	case len(head) >= 4 && string(head[1:4]) == "\xB5\x2F\xFD" && head[0] == 0x28,
		len(head) >= 4 && string(head[1:4]) == "\x2A\x4D\x18" && head[0]&0xF0 == 0x50: // a frame to skip comes first
		return "zstd"
	}
	return ""
}

// unreadable names what a file that begins with head is, if it is one of the
// forms that text comes in and that are not read here.
func unreadable(head []byte) string {
	for _, f := range []struct {
		at          int
		magic, name string
	}{
		{0, "\xFD7zXZ\x00", "an xz archive"}, {0, "BZh", "a bzip2 archive"}, {0, "PK\x03\x04", "a zip archive"},
		{0, "7z\xBC\xAF", "a 7z archive"}, {0, "\x04\x22\x4D\x18", "an lz4 archive"}, {0, "PAR1", "a Parquet file"},
		{257, "ustar", "a tar archive"}, {0, "\xFF\xFE", "UTF-16 text"}, {0, "\xFE\xFF", "UTF-16 text"},
		{0, "\x1F\x8B", "a gzip archive in an archive"}, {0, "\x28\xB5\x2F\xFD", "a zstd archive in an archive"},
	} {
		if len(head) >= f.at+len(f.magic) && string(head[f.at:f.at+len(f.magic)]) == f.magic {
			return f.name
		}
	}
	return ""
}

// looksLikeLines says of text that begins with head whether it is JSON lines.
func looksLikeLines(head []byte) bool {
	head = bytes.TrimPrefix(head, byteOrderMark)
	line, _, whole := bytes.Cut(head, []byte("\n"))
	if !whole {
		return bytes.HasPrefix(line, []byte(`{"`)) && bytes.Contains(line, []byte(`"text"`))
	}
	var first row
	return json.Unmarshal(line, &first) == nil && first.Text != nil
}

var byteOrderMark = []byte("\uFEFF")

// A row is a line of JSON lines; other keys are ignored.
type row struct {
	Text *string `json:"text"`
}

// readText reads one document.
func readText(r io.Reader, to gatherer) (replaced int64, err error) {
	text, err := io.ReadAll(io.LimitReader(r, maxDocument+1))
	if err != nil {
		return 0, err
	}
	if len(text) > maxDocument {
		return 0, fmt.Errorf("a plain text file is one document, and this one is longer than %d bytes: cut it up, or make it JSON lines", maxDocument)
	}
	text, n := tokenizer.ReplaceInvalid(text)
	return int64(n), to.document(text)
}

// readLines reads a document a line.
func (p Piece) readLines(r *bufio.Reader, to gatherer) (replaced int64, err error) {
	at := p.Start // where the next line begins
	if p.Start > 0 {
		// The line that goes over the border is the part's before; reading
		// from one byte earlier tells whether a line begins right at Start.
		n, err := skipLine(r, p.End-p.Start+1)
		if err != nil {
			return 0, ignoreEOF(err)
		}
		at += n - 1
	}
	var long []byte
	for number := 1; p.whole() || at < p.End; number++ {
		line, err := nextLine(r, &long)
		if err == io.EOF && len(line) == 0 {
			return replaced, nil
		}
		if err != nil && err != io.EOF {
			return replaced, err
		}
		where := fmt.Sprintf("line %d", number)
		if p.Start > 0 {
			where = fmt.Sprintf("the line at byte %d", at)
		}
		if len(line) > maxDocument {
			return replaced, fmt.Errorf("%s is longer than %d bytes", where, maxDocument)
		}
		if at == 0 {
			line = bytes.TrimPrefix(line, byteOrderMark)
		}
		at += int64(len(line))
		if line = bytes.TrimSpace(line); len(line) == 0 {
			continue
		}
		line, n := tokenizer.ReplaceInvalid(line)
		replaced += int64(n)
		var doc row
		if err := json.Unmarshal(line, &doc); err != nil {
			return replaced, fmt.Errorf("%s: not a JSON object with a \"text\": %w", where, err)
		}
		if doc.Text == nil {
			return replaced, fmt.Errorf("%s: no \"text\"", where)
		}
		if err := to.document([]byte(*doc.Text)); err != nil {
			return replaced, err
		}
	}
	return replaced, nil
}

// nextLine reads to the end of a line, or a little over maxDocument of it. The
// result is valid until the next call.
func nextLine(r *bufio.Reader, long *[]byte) ([]byte, error) {
	line, err := r.ReadSlice('\n')
	if err != bufio.ErrBufferFull {
		return line, err
	}
	*long = append((*long)[:0], line...)
	for err == bufio.ErrBufferFull && len(*long) <= maxDocument {
		line, err = r.ReadSlice('\n')
		*long = append(*long, line...)
	}
	if err == bufio.ErrBufferFull {
		err = nil
	}
	return *long, err
}

// skipLine reads to the end of a line, or at least limit bytes of it.
func skipLine(r *bufio.Reader, limit int64) (n int64, err error) {
	for err = bufio.ErrBufferFull; err == bufio.ErrBufferFull && n < limit; {
		var line []byte
		line, err = r.ReadSlice('\n')
		n += int64(len(line))
	}
	if err == bufio.ErrBufferFull {
		err = nil
	}
	return n, err
}

func ignoreEOF(err error) error {
	if err == io.EOF {
		return nil
	}
	return err
}

// plain says in words what decoders say of damaged archives, and takes the
// path out of errors that name it again.
func plain(err error) error {
	var path *os.PathError
	switch {
	case errors.As(err, &path):
		return path.Err
	case errors.Is(err, io.ErrUnexpectedEOF):
		return errors.New("truncated: the compressed data ends early")
	case errors.Is(err, gzip.ErrHeader), errors.Is(err, gzip.ErrChecksum), errors.Is(err, zstd.ErrMagicMismatch), errors.Is(err, zstd.ErrCRCMismatch),
		strings.HasPrefix(err.Error(), "flate:"):
		return fmt.Errorf("damaged: %w", err)
	}
	return err
}
