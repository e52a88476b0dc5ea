package transforms

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"

	"github.com/scavenge/scavenge/schemas/store"
	"github.com/scavenge/scavenge/schemas/tokenset"
)

// The layouts of a text file, where its name tells one. Compression, archives
// and Parquet are told by content.
const (
	layoutText    = "text"  // the file is one document
	layoutLines   = "lines" // each line is a JSON object {"text": "…"} and a document
	layoutParquet = "parquet"
	layoutGuess   = "" // the name does not tell: by content, when it is read
)

// Piece is a file of text, or the part of a JSON-lines or Parquet file whose
// lines or row groups begin at bytes Start to End.
type Piece struct {
	Name   string // as the user's glob gave it
	Path   string // absolute
	Size   int64  // of the whole file, bytes
	Start  int64
	End    int64
	Layout string
	// Modified is when the file was last written to, in nanoseconds since 1970.
	Modified int64
	Version  string `json:",omitempty"` // of an object: it is read as it was
}

// open opens the piece's file, if it is the one that was listed.
func (p Piece) open(ctx context.Context) (store.File, error) {
	if store.Remote(p.Path) {
		return store.OpenVersion(ctx, store.Info{Path: p.Path, Size: p.Size, Modified: p.Modified, Version: p.Version})
	}
	f, err := store.Open(ctx, p.Path)
	if err != nil {
		return nil, err
	}
	i, err := f.Info()
	if err == nil && (i.Size != p.Size || i.Modified != p.Modified) {
		err = fmt.Errorf("%w, %d bytes then and %d now", errRewritten, p.Size, i.Size)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

var errRewritten = errors.New("it was written to since this run was planned")

// whole says that the piece is all of its file.
func (p Piece) whole() bool { return p.Start == 0 && p.End == p.Size }

// reading is the reading of one piece.
type reading struct {
	name    string
	rules   Rules
	to      gatherer
	omitted *tokenset.Omitted
	input   int64 // bytes of the file, or of the archive in it: what a decompression bomb is measured by
	part    Piece // of a file of lines; zero inside an archive
	depth   int   // of archives in archives
}

// read hands the piece's documents over, in order, and returns the sha256 of a
// whole file. An error that is a *badDocument says that the file is damaged
// and has to be left out whole: some of its documents may be with to already.
// Errors name the file and the place in it.
func (p Piece) read(ctx context.Context, to gatherer, rules Rules, omitted *tokenset.Omitted) (sum string, err error) {
	defer func() {
		if err != nil && ctx.Err() == nil {
			err = fmt.Errorf("input %s: %w", p.Name, plain(err))
		}
	}()
	f, err := p.open(ctx)
	if err != nil {
		return "", err
	}
	defer f.Close()
	src := &source{ctx: ctx, f: f, to: to, left: p.End - p.Start}
	in := &reading{name: p.Name, rules: rules, to: to, omitted: omitted, input: p.Size, part: p}
	if p.whole() {
		src.hash = sha256.New()
	}
	if p.Layout != layoutParquet {
		if _, err := f.Seek(max(0, p.Start-1), io.SeekStart); err != nil {
			return "", err
		}
		r := bufio.NewReaderSize(src, int(min(readBuffer, max(p.Size+1, headBytes))))
		if head, _ := r.Peek(len(parquetMagic)); p.whole() && string(head) == parquetMagic {
			p.Layout = layoutParquet // a small one, which was not looked into before
			src.hash.Reset()
			if _, err := f.Seek(0, io.SeekStart); err != nil {
				return "", err
			}
		} else if err = in.stream(r, "", p.Layout); err == nil && p.whole() {
			_, err = io.Copy(io.Discard, r) // the hash is over the whole file
		}
	}
	if p.Layout == layoutParquet && src.err == nil {
		seen := p.End - p.Start - src.left // and told of
		if store.Remote(p.Path) {          // only what is used is fetched, and so there is no hash
			if err = in.parquet(ctx, &watched{f, src}, p, seen); err == nil {
				return "", nil
			}
		} else {
			if p.whole() {
				if _, err := io.Copy(src.hash, f); err != nil {
					return "", err
				}
			}
			err = in.parquet(ctx, f, p, seen)
		}
	}
	if src.err != nil { // the disk, or a cancellation: the archive is not to blame
		return "", src.err
	}
	if err != nil || !p.whole() {
		return "", err
	}
	return hex.EncodeToString(src.hash.Sum(nil)), nil
}

// source reads the file, hashes it, and tells how much was read.
type source struct {
	ctx  context.Context
	f    io.Reader
	hash hash.Hash // nil for a part of a file
	to   gatherer
	left int64 // of the piece: what is read beyond it is another piece's progress
	err  error // of the file itself, io.EOF aside
}

func (s *source) Read(b []byte) (int, error) {
	if s.err = s.ctx.Err(); s.err != nil {
		return 0, s.err
	}
	n, err := s.f.Read(b)
	if s.hash != nil {
		s.hash.Write(b[:n])
	}
	if own := min(int64(n), s.left); own > 0 {
		s.left -= own
		s.to.read(own)
	}
	if err != nil && err != io.EOF {
		s.err = err
	}
	return n, err
}

// watched tells what went wrong with an object's bucket from damage in it.
type watched struct {
	io.ReaderAt
	src *source
}

func (w *watched) ReadAt(b []byte, at int64) (int, error) {
	n, err := w.ReaderAt.ReadAt(b, at)
	if err != nil && err != io.EOF && !errors.Is(err, fs.ErrInvalid) {
		w.src.err = err
	}
	return n, err
}

// readBuffer is how much is read at a time, bytes, and unpackBuffer how much
// is unpacked: a decoder and the tokenizer push one another's tables out of the
// core's cache, so they take turns seldom.
const (
	readBuffer   = 1 << 18
	unpackBuffer = 1 << 20
)

// maxDepth is how deep archives may be nested. OpenWebText as it is published,
// a tar.xz of xz of tar, has four.
const maxDepth = 8

// stream reads what r holds, whatever that is; where says what that is inside
// the file.
func (in *reading) stream(r *bufio.Reader, where, layout string) error {
	if in.depth > maxDepth {
		return &badDocument{badTooDeep, where, fmt.Sprintf("more than %d archives in one another", maxDepth)}
	}
	head, err := r.Peek(headBytes)
	if err != nil && err != io.EOF && err != bufio.ErrBufferFull {
		return damaged(err, where)
	}
	below := *in
	below.depth++
	switch form := formOf(head); form {
	case formGzip, formZstd, formXZ, formBzip2:
		below.part = Piece{}
		z, closeReader, err := decompress(form, r)
		if err != nil {
			return damaged(err, where)
		}
		defer closeReader()
		inner := bufio.NewReaderSize(&expanding{r: z, input: in.input}, unpackBuffer)
		if err := below.stream(inner, where, layout); err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, inner) // up to its checksum
		return damaged(err, where)
	case formTar:
		below.part = Piece{}
		return below.tar(r, where)
	case formNone:
	default:
		err := &badDocument{badForm, where, "it is " + form + ": not one of the forms that text is read from (plain, JSON lines, Parquet; tar; gzip, zstd, xz, bzip2)"}
		if where == "" {
			return err
		}
		return in.leaveOut(err)
	}
	lines := layout == layoutLines
	if layout == layoutGuess {
		head, _ := r.Peek(r.Size())
		lines = looksLikeLines(head)
	}
	if lines {
		return in.lines(r, where)
	}
	return in.text(r, where)
}

// text reads one document.
func (in *reading) text(r io.Reader, where string) error {
	limit := in.rules.maxDocument()
	text, err := io.ReadAll(io.LimitReader(r, int64(limit)+1))
	if err != nil {
		return damaged(err, where)
	}
	if len(text) > limit {
		if _, err := io.Copy(io.Discard, r); err != nil { // an archive's damage comes before its content's
			return damaged(err, where)
		}
		return in.leaveOut(&badDocument{badLong, where, tooLong(limit)})
	}
	return in.document(text, where, false)
}

// looksLikeLines says of text that begins with head whether it is JSON lines.
func looksLikeLines(head []byte) bool {
	head = bytes.TrimPrefix(head, byteOrderMark)
	line, _, whole := bytes.Cut(head, []byte("\n"))
	if !whole {
		return bytes.HasPrefix(line, []byte(`{"`)) && bytes.Contains(line, []byte(`"text"`))
	}
	text, _, err := jsonText(bytes.TrimSpace(line), new([]byte))
	return err == nil && text != nil
}

var byteOrderMark = []byte("\uFEFF")

// plain takes the path out of errors that name it again.
func plain(err error) error {
	if errors.Is(err, store.ErrChanged) {
		return errRewritten
	}
	var path *os.PathError
	if errors.As(err, &path) {
		return path.Err
	}
	return err
}
