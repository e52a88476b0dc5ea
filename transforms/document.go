package transforms

import (
	"bytes"
	"errors"
	"fmt"
	"unicode/utf8"
)

// The kinds of bad document, as the manifest counts them.
const (
	badUTF8     = "invalid UTF-8"
	badNUL      = "NUL bytes"
	badLong     = "too long"
	badJSON     = "not a JSON object"
	badNoText   = "no text"
	badName     = "unsafe name"
	badFile     = "not a regular file"
	badForm     = "unknown form"
	badCut      = "truncated archive"
	badDamaged  = "damaged archive"
	badBomb     = "decompression bomb"
	badTooDeep  = "archives nested too deeply"
	badTooLarge = "archive too large"
)

// CleanOpenWebText is the cleaning that the Hub's loader of OpenWebText does:
// three and more newlines in a row become two, and white space around the text
// goes. It makes the published archives equal to the Hub's Parquet.
const CleanOpenWebText = "openwebtext"

// DefaultMaxDocument is the longest document, in bytes, that is taken where
// nothing else is said: one document at a time is in memory.
const DefaultMaxDocument = 32 << 20

// Rules say which documents are taken, and how.
type Rules struct {
	Clean       string // CleanOpenWebText; "": as they are
	MaxDocument int    // bytes of the longest document; 0: DefaultMaxDocument
	Skip        bool   // a bad document is left out and counted; else it is an error
}

func (r Rules) maxDocument() int {
	if r.MaxDocument == 0 {
		return DefaultMaxDocument
	}
	return r.MaxDocument
}

// A badDocument is something in the input that gives no document. It is also
// what a damaged or truncated archive is: that gives none at all.
type badDocument struct {
	kind  string
	where string // below the file: a member, a line; "": the file itself
	why   string
}

func (b *badDocument) Error() string {
	if b.where == "" {
		return b.why
	}
	return b.where + ": " + b.why
}

// leaveOut counts what an error says is bad, if the rules allow that, and else
// returns the error.
func (in *reading) leaveOut(err error) error {
	var bad *badDocument
	if !errors.As(err, &bad) || !in.rules.Skip {
		return err
	}
	in.omitted.Add(bad.kind, in.name+": "+bad.Error())
	return nil
}

// document hands on one document that was read whole; valid says that it is
// known to be UTF-8. Empty ones are counted.
func (in *reading) document(text []byte, where string, valid bool) error {
	if in.rules.Clean == CleanOpenWebText {
		text = cleanOpenWebText(text)
	}
	var kind, why string
	switch {
	case len(text) == 0:
		in.omitted.Empty++
		return nil
	case len(text) > in.rules.maxDocument():
		kind, why = badLong, tooLong(in.rules.maxDocument())
	case bytes.IndexByte(text, 0) >= 0:
		kind, why = badNUL, fmt.Sprintf("NUL byte at byte %d: not text", bytes.IndexByte(text, 0))
	case !valid && !utf8.Valid(text):
		kind, why = badUTF8, fmt.Sprintf("invalid UTF-8 at byte %d", invalidAt(text))
	default:
		return in.to.document(text)
	}
	return in.leaveOut(&badDocument{kind, where, why})
}

func tooLong(limit int) string {
	return fmt.Sprintf("a document of more than %d bytes: --max-document would let it in", limit)
}

// invalidAt is where text stops being UTF-8.
func invalidAt(text []byte) int {
	for i := 0; i < len(text); {
		r, n := utf8.DecodeRune(text[i:])
		if r == utf8.RuneError && n == 1 {
			return i
		}
		i += n
	}
	return len(text)
}

// cleanOpenWebText works in place: re.sub("\n\n\n+", "\n\n", text).strip() in
// the words of the Hub's loader, whose strip takes Unicode's white space.
func cleanOpenWebText(text []byte) []byte {
	if i := bytes.Index(text, []byte("\n\n\n")); i >= 0 {
		to, run := text[:i+2], 2 // newlines at the end of to
		for _, c := range text[i+3:] {
			if c != '\n' {
				run = 0
			} else if run++; run > 2 {
				continue
			}
			to = append(to, c)
		}
		text = to
	}
	return bytes.TrimFunc(text, isPythonSpace)
}

// isPythonSpace is str.isspace of one character: what str.strip takes.
func isPythonSpace(r rune) bool {
	switch {
	case r >= '\t' && r <= '\r', r >= 0x1C && r <= ' ', r == 0x85, r == 0xA0, r == 0x1680, r >= 0x2000 && r <= 0x200A,
		r == 0x2028, r == 0x2029, r == 0x202F, r == 0x205F, r == 0x3000:
		return true
	}
	return false
}

// gatherer receives documents and how much of the input, in bytes of the file,
// was read since the last call.
type gatherer interface {
	document(text []byte) error // valid only during the call
	read(bytes int64)
}

// holder keeps the documents of an archive until all of it was read and found
// whole.
type holder struct {
	docs  [][]byte
	bytes int
}

// maxHeld bounds an archive inside an archive, in bytes of its text. Those of
// OpenWebText have one or two megabytes.
const maxHeld = 128 << 20

func (h *holder) document(text []byte) error {
	if h.bytes += len(text); h.bytes > maxHeld {
		return &badDocument{badTooLarge, "", fmt.Sprintf("an archive in an archive with more than %d bytes of text: unpack the outer one", maxHeld)}
	}
	h.docs = append(h.docs, bytes.Clone(text))
	return nil
}

func (h *holder) read(int64) {}
