package tokenizer

import (
	"slices"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
	"golang.org/x/text/unicode/rangetable"
)

// unicode9 is what Unicode 9.0 had assigned.
var unicode9 = rangetable.Assigned("9.0.0")

// appendNFC appends the canonical composition of s (valid UTF-8) to dst as
// Hugging Face tokenizers computes it. That differs from norm.NFC in two
// points: it does not insert U+034F after 30 combining marks (Unicode's
// Stream-Safe format, which norm always applies), and it knows the combining
// classes and compositions of Unicode 9 only. Text that is already composed, which
// is nearly all there is, is found so by norm and copied.
func appendNFC(dst, s []byte) []byte {
	for len(s) > 0 {
		n := norm.NFC.QuickSpan(s)
		dst = append(dst, s[:n]...)
		if s = s[n:]; len(s) == 0 {
			break
		}
		// From here to the next character that cannot interact with what is
		// before it, the composition is computed in full.
		end := norm.NFD.Properties(s).Size()
		for end < len(s) {
			p := norm.NFC.Properties(s[end:])
			if p.BoundaryBefore() {
				break
			}
			end += p.Size()
		}
		dst = compose(dst, s[:end])
		s = s[end:]
	}
	return dst
}

// isNFC says whether appendNFC would copy s.
func isNFC(s []byte) bool { return norm.NFC.QuickSpan(s) == len(s) }

// A mark is a decomposed character with its canonical combining class.
type mark struct {
	r   rune
	ccc uint8
}

// compose appends the canonical composition of s by the book (Unicode Standard
// Annex 15): decompose, order the marks, compose.
func compose(dst, s []byte) []byte {
	marks := make([]mark, 0, len(s))
	for len(s) > 0 {
		p := norm.NFD.Properties(s)
		d := p.Decomposition()
		if d == nil {
			d = s[:p.Size()]
		}
		if r, _ := utf8.DecodeRune(s); isHangul(r) { // norm decomposes it by arithmetic only
			d = norm.NFD.Bytes(s[:p.Size()])
		}
		s = s[p.Size():]
		for len(d) > 0 {
			r, n := utf8.DecodeRune(d)
			m := mark{r: r, ccc: norm.NFD.Properties(d).CCC()}
			if m.ccc != 0 && !unicode.Is(unicode9, r) {
				m.ccc = 0
			}
			marks = append(marks, m)
			d = d[n:]
		}
	}
	for i := 0; i < len(marks); {
		j := i
		for j < len(marks) && marks[j].ccc != 0 {
			j++
		}
		slices.SortStableFunc(marks[i:j], func(a, b mark) int { return int(a.ccc) - int(b.ccc) })
		i = j + 1
	}
	starter, last := -1, uint8(0) // last: class of the mark kept last after the starter
	out := marks[:0]
	for _, m := range marks {
		adjacent := starter == len(out)-1
		if starter >= 0 && (adjacent || last != 0 && last < m.ccc) {
			if r, ok := composePair(out[starter].r, m.r); ok {
				out[starter].r = r
				continue
			}
		}
		if m.ccc == 0 {
			starter = len(out)
		}
		last = m.ccc
		out = append(out, m)
	}
	for _, m := range out {
		dst = utf8.AppendRune(dst, m.r)
	}
	return dst
}

// composePair is the primary composite of two characters, if there is one.
func composePair(a, b rune) (rune, bool) {
	var buf, sum [2 * utf8.UTFMax]byte
	pair := utf8.AppendRune(utf8.AppendRune(buf[:0], a), b)
	both := norm.NFC.Append(sum[:0], pair...)
	r, n := utf8.DecodeRune(both)
	return r, n == len(both) && unicode.Is(unicode9, r)
}

func isHangul(r rune) bool { return 0xAC00 <= r && r < 0xAC00+11172 }
