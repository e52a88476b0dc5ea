package transforms

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"unicode/utf8"
)

// lines reads a document a line: of a part of a file, the lines that begin in
// it.
func (in *reading) lines(r *bufio.Reader, where string) error {
	p := in.part
	whole := p == Piece{} || p.whole()
	at := p.Start // where the next line begins
	if p.Start > 0 {
		// The line that goes over the border is the part's before; reading
		// from one byte earlier tells whether a line begins right at Start.
		n, err := skipLine(r, p.End-p.Start+1)
		if err != nil {
			return ignoreEOF(err)
		}
		at += n - 1
	}
	if where != "" {
		where += ": "
	}
	limit := 2*in.rules.maxDocument() + 1<<20 // what JSON adds to a text: escapes and other members
	var long, unescaped []byte
	for number := 1; whole || at < p.End; number++ {
		line, size, err := nextLine(r, &long, limit)
		if err == io.EOF && size == 0 {
			return nil
		}
		if err != nil && err != io.EOF {
			return damaged(err, where[:max(0, len(where)-2)])
		}
		place := fmt.Sprintf("%sline %d", where, number)
		if p.Start > 0 {
			place = fmt.Sprintf("the line at byte %d", at)
		}
		first := at == 0
		at += size
		if size > int64(limit) {
			if err := in.leaveOut(&badDocument{badLong, place, fmt.Sprintf("a line of %d bytes: --max-document would let in more than %d", size, in.rules.maxDocument())}); err != nil {
				return err
			}
			continue
		}
		if first {
			line = bytes.TrimPrefix(line, byteOrderMark)
		}
		if line = bytes.TrimSpace(line); len(line) == 0 {
			continue
		}
		text, bad := lineText(line, &unescaped)
		if bad != nil {
			bad.where = place
			if err := in.leaveOut(bad); err != nil {
				return err
			}
			continue
		}
		if err := in.document(text, place, true); err != nil {
			return err
		}
	}
	return nil
}

// lineText is the text of a line of JSON. It lies in the line or, where it had
// to be unescaped, in buf, whose memory is kept.
func lineText(line []byte, buf *[]byte) (text []byte, bad *badDocument) {
	if !utf8.Valid(line) {
		return nil, &badDocument{kind: badUTF8, why: fmt.Sprintf("invalid UTF-8 at byte %d of it", invalidAt(line))}
	}
	text, surrogate, err := jsonText(line, buf)
	switch {
	case err != nil:
		return nil, &badDocument{kind: badJSON, why: "not a JSON object with a \"text\": " + err.Error()}
	case surrogate:
		return nil, &badDocument{kind: badUTF8, why: "half of a surrogate pair: no Unicode text"}
	case text == nil:
		return nil, &badDocument{kind: badNoText, why: "no \"text\""}
	}
	return text, nil
}

// nextLine reads to the end of a line and says how long that is. Of a line
// longer than limit it keeps nothing. The result is valid until the next call.
func nextLine(r *bufio.Reader, long *[]byte, limit int) (line []byte, size int64, err error) {
	line, err = r.ReadSlice('\n')
	if err != bufio.ErrBufferFull {
		return line, int64(len(line)), err
	}
	*long = append((*long)[:0], line...)
	size = int64(len(line))
	for err == bufio.ErrBufferFull {
		line, err = r.ReadSlice('\n')
		if size += int64(len(line)); size <= int64(limit) {
			*long = append(*long, line...)
		}
	}
	return *long, size, err
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
