package tokenizer

import "unicode/utf8"

// A class is what GPT-2's split tells characters apart by.
type class uint8

const (
	other  class = iota // [^\s\p{L}\p{N}]
	letter              // \p{L}
	number              // \p{N}
	space               // \s
)

// classes looks a code point up in two steps: a page number for each 256 code
// points, and the pages, of which equal ones are stored once.
type classes struct {
	page  [(utf8.MaxRune + 1) >> 8]uint8
	pages [][256]class
}

var (
	unicodeClasses = newClasses()
	asciiClass     = func() (t [256]class) { // bytes from 0x80 are not looked up
		for c := range rune(utf8.RuneSelf) {
			t[c] = unicodeClasses.of(c)
		}
		return t
	}()
)

func newClasses() *classes {
	t := new(classes)
	seen := map[[256]class]uint8{}
	run, now := 0, other
	for p := range t.page {
		var page [256]class
		for i := range page {
			if c := uint32(p<<8 | i); run < len(classRuns) && classRuns[run]>>2 == c {
				now = class(classRuns[run] & 3)
				run++
			}
			page[i] = now
		}
		n, ok := seen[page]
		if !ok {
			n = uint8(len(t.pages))
			seen[page] = n
			t.pages = append(t.pages, page)
		}
		t.page[p] = n
	}
	return t
}

func (t *classes) of(r rune) class { return t.pages[t.page[r>>8]][r&0xff] }

// classAt is the class of the character at s[i] and its length in bytes. s is
// valid UTF-8.
func classAt(s []byte, i int) (class, int) {
	if c := s[i]; c < utf8.RuneSelf {
		return asciiClass[c], 1
	}
	r, n := utf8.DecodeRune(s[i:])
	return unicodeClasses.of(r), n
}

// runEnd is where the run of class k that goes through s[i] ends.
func runEnd(s []byte, i int, k class) int {
	for i < len(s) {
		if c := s[i]; c < utf8.RuneSelf {
			if asciiClass[c] != k {
				return i
			}
			i++
			continue
		}
		r, n := utf8.DecodeRune(s[i:])
		if unicodeClasses.of(r) != k {
			return i
		}
		i += n
	}
	return i
}

// nextSplit is the end of the pre-token that starts at s[i], which GPT-2's
// regular expression finds:
//
//	's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
//
// Every character belongs to some alternative, so pre-tokens follow each other
// without a gap. The lookahead gives the last white space of a run to what
// comes after it: a run before other text ends one character early, unless it
// is that one character.
func nextSplit(s []byte, i int) int {
	if s[i] == '\'' {
		if n := contraction(s[i+1:]); n > 0 {
			return i + 1 + n
		}
	}
	k, n := classAt(s, i)
	if k != space {
		return runEnd(s, i+n, k)
	}
	if s[i] == ' ' && i+1 < len(s) { // the optional space of " ?"
		if after, m := classAt(s, i+1); after != space {
			return runEnd(s, i+1+m, after)
		}
	}
	last, end := i, i+n // first bytes of the run's last character and of what follows
	for end < len(s) {
		k, m := classAt(s, end)
		if k != space {
			if last > i {
				return last
			}
			return end
		}
		last, end = end, end+m
	}
	return end
}

// contraction is the length of what follows the apostrophe of an English
// contraction at the start of s, or 0.
func contraction(s []byte) int {
	if len(s) == 0 {
		return 0
	}
	switch s[0] {
	case 's', 't', 'm', 'd':
		return 1
	}
	if len(s) > 1 {
		switch string(s[:2]) {
		case "re", "ve", "ll":
			return 2
		}
	}
	return 0
}
