package transforms

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"unicode/utf16"
	"unicode/utf8"
)

// jsonText finds the member "text" in a line that is a JSON object: the last
// one, should there be several, as Python's json does. It is nil where there is
// none or where it is null. The result lies in the line or, where the string
// has escapes, in buf, whose memory is used; surrogate says that one of them is half of
// a surrogate pair, which no text can hold.
//
// It reads the whole line, which encoding/json does at a third of a
// tokenizer's speed: all of RFC 8259 is checked, in valid UTF-8, and nothing
// but the one string is kept.
func jsonText(line []byte, buf *[]byte) (text []byte, surrogate bool, err error) {
	p := jsonParser{s: line}
	p.space()
	if !p.take('{') {
		return nil, false, p.unexpected("an object")
	}
	for first := true; ; first = false {
		p.space()
		if first && p.take('}') {
			break
		}
		key, escaped, err := p.str()
		if err != nil {
			return nil, false, err
		}
		wanted := string(key) == "text"
		if escaped {
			name, _ := unescape(nil, key)
			wanted = string(name) == "text"
		}
		p.space()
		if !p.take(':') {
			return nil, false, p.unexpected("a colon")
		}
		p.space()
		if !wanted {
			if err := p.value(0); err != nil {
				return nil, false, err
			}
		} else if text, surrogate, err = p.textValue(buf); err != nil {
			return nil, false, err
		}
		p.space()
		if p.take('}') {
			break
		}
		if !p.take(',') {
			return nil, false, p.unexpected("a comma or the end of the object")
		}
	}
	if p.space(); p.i < len(p.s) {
		return nil, false, p.unexpected("the end of the line")
	}
	return text, surrogate, nil
}

type jsonParser struct {
	s []byte
	i int
}

func (p *jsonParser) textValue(buf *[]byte) (text []byte, surrogate bool, err error) {
	switch {
	case p.i < len(p.s) && p.s[p.i] == '"':
		raw, escaped, err := p.str()
		if err != nil {
			return nil, false, err
		}
		if !escaped {
			return raw[:len(raw):len(raw)], false, nil
		}
		*buf, surrogate = unescape((*buf)[:0], raw)
		return *buf, surrogate, nil
	case p.i < len(p.s) && p.s[p.i] == 'n':
		return nil, false, p.value(0)
	}
	return nil, false, errors.New("its \"text\" is no string")
}

func (p *jsonParser) unexpected(want string) error {
	if p.i >= len(p.s) {
		return fmt.Errorf("it ends at byte %d where %s should be", p.i, want)
	}
	return fmt.Errorf("%q at byte %d where %s should be", p.s[p.i], p.i, want)
}

func (p *jsonParser) space() {
	for p.i < len(p.s) && (p.s[p.i] == ' ' || p.s[p.i] == '\t' || p.s[p.i] == '\n' || p.s[p.i] == '\r') {
		p.i++
	}
}

func (p *jsonParser) take(c byte) bool {
	if p.i < len(p.s) && p.s[p.i] == c {
		p.i++
		return true
	}
	return false
}

// str reads a string and gives what is between its quotes.
func (p *jsonParser) str() (raw []byte, escaped bool, err error) {
	if !p.take('"') {
		return nil, false, p.unexpected("a string")
	}
	start := p.i
	for {
		p.i += ordinary(p.s[p.i:])
		if p.i >= len(p.s) {
			return nil, false, p.unexpected("the end of a string")
		}
		switch c := p.s[p.i]; {
		case c == '"':
			p.i++
			return p.s[start : p.i-1], escaped, nil
		case c < ' ':
			return nil, false, p.unexpected("the rest of a string")
		}
		escaped = true
		if p.i++; p.i >= len(p.s) {
			return nil, false, p.unexpected("an escape")
		}
		switch p.s[p.i] {
		case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
			p.i++
		case 'u':
			p.i++
			if _, ok := hex4(p.s[p.i:]); !ok {
				return nil, false, p.unexpected("four hexadecimal digits")
			}
			p.i += 4
		default:
			return nil, false, p.unexpected("an escape")
		}
	}
}

// ordinary is how many bytes at the start of s are neither a quote, nor a
// backslash, nor a control character, eight at a time.
func ordinary(s []byte) int {
	const ones, tops = 0x0101010101010101, 0x8080808080808080
	i := 0
	for ; i+8 <= len(s); i += 8 {
		x := binary.LittleEndian.Uint64(s[i:])
		quote, slash := x^(ones*'"'), x^(ones*'\\')
		// A byte is zero, or less than 32, if it borrows and had no top bit:
		// the lowest one found is right, those above may be borrowers of it.
		found := ((quote-ones)&^quote | (slash-ones)&^slash | (x-ones*' ')&^x) & tops
		if found != 0 {
			return i + bits.TrailingZeros64(found)/8
		}
	}
	for ; i < len(s) && s[i] != '"' && s[i] != '\\' && s[i] >= ' '; i++ {
	}
	return i
}

func hex4(s []byte) (r rune, ok bool) {
	if len(s) < 4 {
		return 0, false
	}
	for _, c := range s[:4] {
		switch {
		case c >= '0' && c <= '9':
			c -= '0'
		case c >= 'a' && c <= 'f':
			c -= 'a' - 10
		case c >= 'A' && c <= 'F':
			c -= 'A' - 10
		default:
			return 0, false
		}
		r = r<<4 | rune(c)
	}
	return r, true
}

// unescape appends the content of a string that str has read.
func unescape(dst, raw []byte) (text []byte, surrogate bool) {
	for {
		i := bytes.IndexByte(raw, '\\')
		if i < 0 {
			return append(dst, raw...), surrogate
		}
		dst = append(dst, raw[:i]...)
		c := raw[i+1]
		raw = raw[i+2:]
		switch c {
		case 'b':
			c = '\b'
		case 'f':
			c = '\f'
		case 'n':
			c = '\n'
		case 'r':
			c = '\r'
		case 't':
			c = '\t'
		case 'u':
			r, _ := hex4(raw)
			raw = raw[4:]
			if utf16.IsSurrogate(r) {
				pair := rune(utf8.RuneError)
				if len(raw) >= 6 && raw[0] == '\\' && raw[1] == 'u' {
					low, _ := hex4(raw[2:])
					pair = utf16.DecodeRune(r, low)
				}
				if r = pair; r == utf8.RuneError {
					surrogate = true
				} else {
					raw = raw[6:]
				}
			}
			dst = utf8.AppendRune(dst, r)
			continue
		}
		dst = append(dst, c)
	}
}

// maxNesting is how deep arrays and objects may be nested.
const maxNesting = 1000

// value reads a value and checks its form.
func (p *jsonParser) value(depth int) error {
	if p.i >= len(p.s) {
		return p.unexpected("a value")
	}
	if depth > maxNesting {
		return fmt.Errorf("more than %d arrays and objects in one another", maxNesting)
	}
	switch c := p.s[p.i]; c {
	case '"':
		_, _, err := p.str()
		return err
	case '{', '[':
		return p.members(c, depth)
	case 't':
		return p.word("true")
	case 'f':
		return p.word("false")
	case 'n':
		return p.word("null")
	}
	return p.number()
}

// members reads an array or an object.
func (p *jsonParser) members(open byte, depth int) error {
	p.i++
	end := open + 2 // ] after [ and } after {, in ASCII
	for first := true; ; first = false {
		p.space()
		if first && p.take(end) {
			return nil
		}
		if open == '{' {
			if _, _, err := p.str(); err != nil {
				return err
			}
			if p.space(); !p.take(':') {
				return p.unexpected("a colon")
			}
			p.space()
		}
		if err := p.value(depth + 1); err != nil {
			return err
		}
		p.space()
		if p.take(end) {
			return nil
		}
		if !p.take(',') {
			return p.unexpected("a comma or an end")
		}
	}
}

func (p *jsonParser) word(w string) error {
	if len(p.s)-p.i < len(w) || string(p.s[p.i:p.i+len(w)]) != w {
		return p.unexpected("a value")
	}
	p.i += len(w)
	return nil
}

func (p *jsonParser) number() error {
	digits := func() bool {
		start := p.i
		for p.i < len(p.s) && p.s[p.i] >= '0' && p.s[p.i] <= '9' {
			p.i++
		}
		return p.i > start
	}
	p.take('-')
	if !p.take('0') && !digits() {
		return p.unexpected("a value")
	}
	if p.take('.') && !digits() {
		return p.unexpected("a digit")
	}
	if p.take('e') || p.take('E') {
		if !p.take('+') {
			p.take('-')
		}
		if !digits() {
			return p.unexpected("a digit")
		}
	}
	return nil
}
