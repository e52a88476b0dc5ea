package transforms

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/bzip2"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"path"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/xi2/xz"

	"github.com/scavenge/scavenge/schemas/tokenset"
)

// The forms that a file or a member of an archive is told to have by its first
// bytes. The last ones are not read; their names are for the error.
const (
	formNone  = "" // text, or what passes for it
	formGzip  = "a gzip archive"
	formZstd  = "a zstd archive"
	formXZ    = "an xz archive"
	formBzip2 = "a bzip2 archive"
	formTar   = "a tar archive"

	formParquet = "a Parquet file" // read, but not out of an archive
)

// parquetMagic begins a Parquet file.
const parquetMagic = "PAR1"

// headBytes is how much of a file tells its form.
const headBytes = 512

var forms = []struct {
	at          int
	magic, name string
}{
	{0, "\x1F\x8B", formGzip}, {0, "\x28\xB5\x2F\xFD", formZstd}, {0, "\xFD7zXZ\x00", formXZ}, {257, "ustar", formTar}, {0, parquetMagic, formParquet},
	{0, "PK\x03\x04", "a zip archive"}, {0, "7z\xBC\xAF\x27\x1C", "a 7z archive"}, {0, "\x04\x22\x4D\x18", "an lz4 archive"},
	{0, "\xFF\xFE", "UTF-16 text"}, {0, "\xFE\xFF", "UTF-16 text"}, {0, "%PDF-", "a PDF file"},
}

// formOf is the form of what begins with head.
func formOf(head []byte) string {
	for _, f := range forms {
		if len(head) >= f.at+len(f.magic) && string(head[f.at:f.at+len(f.magic)]) == f.magic {
			return f.name
		}
	}
	switch {
	case len(head) >= 4 && head[0]&0xF0 == 0x50 && string(head[1:4]) == "\x2A\x4D\x18": // a frame to skip comes first
		return formZstd
	case len(head) >= 10 && string(head[:3]) == "BZh" && head[3] >= '1' && head[3] <= '9' && string(head[4:10]) == "1AY&SY":
		return formBzip2
	}
	return formNone
}

// decompress is the content of a stream of the given form.
func decompress(form string, r *bufio.Reader) (io.Reader, func(), error) {
	nothing := func() {}
	switch form {
	case formGzip:
		z, err := gzip.NewReader(r)
		return z, nothing, err
	case formBzip2:
		return bzip2.NewReader(r), nothing, nil
	case formXZ:
		// A port of XZ Embedded: ulikunitz/xz takes a stream that is cut before
		// its index for a whole one, and makes room for any dictionary.
		z, err := xz.NewReader(r, maxDictionary)
		return z, nothing, err
	}
	// With more than one block at a time it decodes a block's sequences before it
	// copies their matches, and so does not wait for memory at each of them: 0.15 s
	// of processor time and not 0.21 for 74 MB of text. Its goroutines cannot be
	// guarded against a panic, as unpack does: it is fuzzed by its makers.
	z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(4), zstd.WithDecoderMaxWindow(maxDictionary))
	if err != nil {
		return nil, nothing, err
	}
	return z, z.Close, nil
}

// maxDictionary is the largest dictionary, or window, that an xz or zstd stream
// may ask for, in bytes: a decoder makes room for it without looking further.
// `xz -9` has 64 MB, `zstd --ultra -22` 128.
const maxDictionary = 1 << 28

// A stream that gives more than bombBytes and more than bombRatio times the
// bytes of the file, or of the member, that it comes from is a decompression
// bomb: text hardly shrinks to a twentieth, and the most repetitive log to a
// hundredth. What was read of it so far is no measure: the zstd decoder reads
// ahead, at one time more than at another.
const (
	bombBytes = 64 << 20
	bombRatio = 500
)

// expanding watches what comes out of a decompressor.
type expanding struct {
	r     io.Reader
	input int64
	bytes int64
}

func (e *expanding) Read(b []byte) (int, error) {
	n, err := e.r.Read(b)
	if e.bytes += int64(n); e.bytes > bombBytes && e.bytes/bombRatio > e.input {
		return 0, &badDocument{badBomb, "", fmt.Sprintf("a decompression bomb: %d bytes and more out of %d", e.bytes, e.input)}
	}
	return n, err
}

// damaged says in words what decoders say of an archive.
func damaged(err error, where string) error {
	var bad *badDocument
	switch {
	case err == nil:
		return nil
	case errors.As(err, &bad):
		if bad.where == "" {
			return &badDocument{bad.kind, where, bad.why}
		}
		return err
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF), errors.Is(err, xz.ErrBuf):
		return &badDocument{badCut, where, "truncated: the archive ends early"}
	}
	return &badDocument{badDamaged, where, "damaged: " + strings.ReplaceAll(err.Error(), "\n", " ")}
}

// A member in the making: what a nested archive gave, when done is closed.
type nested struct {
	holder
	where   string
	omitted tokenset.Omitted
	err     error
	done    chan struct{}
}

// inMemory is the size, in compressed bytes, up to which nested archives are
// read whole and unpacked side by side.
const inMemory = 16 << 20

// tar reads a tar's members. An archive in it gives all of its documents or,
// where it is damaged, none. The names of members are names only: nothing is
// written to the disk; those that would lead out of a folder are not taken.
func (in *reading) tar(r *bufio.Reader, where string) (err error) {
	var queue []*nested // at work, in order
	defer func() {
		for _, n := range queue {
			<-n.done
		}
	}()
	settle := func(most int) error {
		for len(queue) > most {
			n := queue[0]
			queue = queue[1:]
			if <-n.done; n.err != nil {
				return n.err
			}
			in.omitted.Merge(&n.omitted)
			for _, text := range n.docs {
				if err := in.to.document(text); err != nil {
					return err
				}
			}
		}
		return nil
	}
	end := &tail{r: r}
	t := tar.NewReader(end)
	content := bufio.NewReaderSize(nil, 1<<16)
	for {
		h, err := t.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return damaged(err, where)
		}
		member := h.Name
		if where != "" {
			member = where + ": " + h.Name
		}
		switch h.Typeflag {
		case tar.TypeReg:
		case tar.TypeDir, tar.TypeXGlobalHeader:
			continue
		default:
			if err := in.leaveOut(&badDocument{badFile, member, "a link or a device, not a file"}); err != nil {
				return err
			}
			continue
		}
		if !filepath.IsLocal(filepath.FromSlash(h.Name)) || strings.Contains(h.Name, `\`) || path.IsAbs(h.Name) {
			if err := in.leaveOut(&badDocument{badName, fmt.Sprintf("%q", member), "a name that leads out of the archive"}); err != nil {
				return err
			}
			continue
		}
		content.Reset(t)
		head, err := content.Peek(headBytes)
		if err != nil && err != io.EOF {
			return damaged(err, where)
		}
		form := formOf(head)
		if archive := form != formNone && form != formParquet && strings.HasSuffix(form, "archive"); !archive {
			if err := settle(0); err != nil {
				return err
			}
			if err := in.stream(content, member, layout(h.Name)); err != nil {
				return err
			}
			continue
		}
		n := &nested{where: member, done: make(chan struct{})}
		if h.Size > inMemory {
			n.unpack(in, content, h.Size, layout(h.Name))
		} else {
			data, err := io.ReadAll(content)
			if err != nil {
				return damaged(err, where)
			}
			go n.unpack(in, bufio.NewReaderSize(bytes.NewReader(data), 1<<16), h.Size, layout(h.Name))
		}
		queue = append(queue, n)
		if err := settle(runtime.GOMAXPROCS(0)); err != nil {
			return err
		}
	}
	if !end.zero {
		return &badDocument{badCut, where, "truncated: the tar has no end"}
	}
	if err := settle(0); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, r)
	return damaged(err, where)
}

// unpack reads a nested archive.
func (n *nested) unpack(in *reading, r *bufio.Reader, input int64, layout string) {
	defer close(n.done)
	defer func() {
		if r := recover(); r != nil { // a decoder that panics must not end the process
			n.err = &badDocument{badDamaged, n.where, fmt.Sprintf("damaged: %v", r)}
		}
		var bad *badDocument
		if errors.As(n.err, &bad) && in.rules.Skip { // none of it is taken
			n.docs, n.omitted = nil, tokenset.Omitted{}
			n.omitted.Add(bad.kind, in.name+": "+bad.Error())
			n.err = nil
		}
	}()
	below := *in
	below.to, below.omitted, below.input = &n.holder, &n.omitted, input
	if n.err = below.stream(r, n.where, layout); n.err == nil {
		_, err := io.Copy(io.Discard, r)
		n.err = damaged(err, n.where)
	} else {
		n.err = damaged(n.err, n.where)
	}
}

// tail knows whether the last block that was read is the block of zeros that
// ends a tar: archive/tar takes the end of the file for it.
type tail struct {
	r    io.Reader
	zero bool
	part []byte // of a block that was read in parts
}

func (t *tail) Read(b []byte) (int, error) {
	n, err := t.r.Read(b)
	for got := b[:n]; len(got) > 0; {
		if len(t.part) == 0 && len(got) >= 1024 { // only the end matters
			skip := (len(got)/512 - 1) * 512
			got = got[skip:]
		}
		take := min(512-len(t.part), len(got))
		t.part = append(t.part, got[:take]...)
		if got = got[take:]; len(t.part) == 512 {
			t.zero = len(bytes.Trim(t.part, "\x00")) == 0
			t.part = t.part[:0]
		}
	}
	return n, err
}

// compressedName says whether a name is that of something compressed.
func compressedName(name string) bool {
	switch strings.ToLower(path.Ext(filepath.ToSlash(name))) {
	case ".gz", ".zst", ".zstd", ".xz", ".bz2", ".tar", ".tgz", ".txz", ".parquet":
		return true
	}
	return false
}

// layout is what a file's name says of its layout.
func layout(name string) string {
	name = strings.ToLower(path.Base(filepath.ToSlash(name)))
	for _, ext := range []string{".gz", ".zst", ".zstd", ".xz", ".bz2"} {
		name = strings.TrimSuffix(name, ext)
	}
	switch path.Ext(name) {
	case ".jsonl", ".ndjson":
		return layoutLines
	case ".txt", ".text", ".md", ".raw":
		return layoutText
	}
	return layoutGuess
}
