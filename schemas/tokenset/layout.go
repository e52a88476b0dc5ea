package tokenset

import (
	"encoding/binary"
	"fmt"
	"slices"
)

// How much goes into a page and into a row group, in tokens. A page is what a
// reader has to look at for one sequence, the first time; a row group is what
// pyarrow and DuckDB read at once.
const (
	pageTokens  = 32 << 10
	groupTokens = 16 << 20
)

// Width is how many bytes an id of a vocabulary takes: two, or four of a large
// one.
func Width(vocab int) int {
	if vocab <= 1<<16 {
		return 2
	}
	return 4
}

// layout is what a page of the column tokens looks like: a function of the
// sequence length and the vocabulary.
//
//	4 bytes, n         of the repetition levels, RLE: of each row a 0 and seqLen-1 times 1
//	4 bytes, n         of the definition levels, RLE: all 1
//	16, header         the width of an index, and one bit-packed run: only with two bytes an id
//	ids                seqLen · rows, little-endian, 2 or 4 bytes each
//	padding            to a multiple of 8 indices: only with two bytes an id
//
// With two bytes an id the encoding is RLE_DICTIONARY over the dictionary 0, 1,
// 2, … vocab-1, so that indices are ids and lie in the file as they are; with
// four it is PLAIN. In both a sequence is one stretch of the file.
type layout struct {
	seqLen, vocab int
	width         int   // bytes an id
	pageRows      int   // of a full page
	fullHead      int   // bytes of its head
	groupRows     int64 // of a full row group, whole pages
}

func newLayout(seqLen, vocab int) (l layout, err error) {
	if seqLen < 1 || seqLen > maxSeqLen || vocab < 1 || vocab > 1<<31-1 {
		return l, fmt.Errorf("sequences of %d tokens of a vocabulary of %d: out of range", seqLen, vocab)
	}
	l = layout{seqLen: seqLen, vocab: vocab, width: Width(vocab), pageRows: max(1, pageTokens/seqLen)}
	l.fullHead = len(l.head(l.pageRows))
	l.groupRows = int64(max(1, groupTokens/seqLen/l.pageRows) * l.pageRows)
	return l, nil
}

// head is what a page of so many rows has before its ids.
func (l layout) head(rows int) []byte {
	var levels []byte
	if l.seqLen == 1 {
		levels = append(binary.AppendUvarint(levels, uint64(rows)<<1), 0)
	} else {
		row := append(binary.AppendUvarint([]byte{1 << 1, 0}, uint64(l.seqLen-1)<<1), 1)
		levels = slices.Repeat(row, rows)
	}
	head := append(binary.LittleEndian.AppendUint32(nil, uint32(len(levels))), levels...)
	levels = append(binary.AppendUvarint(levels[:0], uint64(rows*l.seqLen)<<1), 1)
	head = append(binary.LittleEndian.AppendUint32(head, uint32(len(levels))), levels...)
	if l.width == 2 {
		head = binary.AppendUvarint(append(head, 16), uint64(rows*l.seqLen+7)/8<<1|1)
	}
	return head
}

// pageBytes is the size of a page of so many rows, and of its head.
func (l layout) pageBytes(rows int) (head, all int) {
	head = l.fullHead
	if rows != l.pageRows {
		head = len(l.head(rows))
	}
	return head, head + rows*l.rowBytes() + l.padding(rows)
}

// padding is how many bytes such a page has after its ids.
func (l layout) padding(rows int) int {
	if l.width == 4 {
		return 0
	}
	return -(rows * l.seqLen) & 7 * l.width
}

// rowBytes is the size of a sequence.
func (l layout) rowBytes() int { return l.seqLen * l.width }

// appendRow appends a sequence's bytes; an id outside the vocabulary is an
// error.
func (l layout) appendRow(dst []byte, tokens []int32) ([]byte, error) {
	at := len(dst)
	dst = slices.Grow(dst, l.rowBytes())[:at+l.rowBytes()]
	var most uint32
	if b := dst[at:]; l.width == 2 {
		for i, t := range tokens {
			most = max(most, uint32(t))
			binary.LittleEndian.PutUint16(b[2*i:], uint16(t))
		}
	} else {
		for i, t := range tokens {
			most = max(most, uint32(t))
			binary.LittleEndian.PutUint32(b[4*i:], uint32(t))
		}
	}
	if err := l.known(most); err != nil {
		return dst[:at], err
	}
	return dst, nil
}

// readRow is appendRow's inverse for seqLen ids.
func (l layout) readRow(tokens []int32, src []byte) {
	tokens, src = tokens[:l.seqLen], src[:l.rowBytes()]
	if l.width == 4 {
		for i := range tokens {
			tokens[i] = int32(binary.LittleEndian.Uint32(src[4*i:]))
		}
		return
	}
	for ; len(tokens) >= 4 && len(src) >= 8; tokens, src = tokens[4:], src[8:] { // three times as fast as one by one
		x := binary.LittleEndian.Uint64(src)
		tokens[0], tokens[1], tokens[2], tokens[3] = int32(x&0xFFFF), int32(x>>16&0xFFFF), int32(x>>32&0xFFFF), int32(x>>48)
	}
	for i := range tokens {
		tokens[i] = int32(binary.LittleEndian.Uint16(src[2*i:]))
	}
}

// check says what of a page's content is not as the Writer makes it.
func (l layout) check(page []byte, rows int) error {
	head := l.head(rows)
	if len(page) != len(head)+rows*l.rowBytes()+l.padding(rows) || string(page[:len(head)]) != string(head) {
		return fmt.Errorf("its form is not that of %d rows of %d tokens", rows, l.seqLen)
	}
	return l.known(l.most(page[len(head) : len(page)-l.padding(rows)]))
}

// most is the largest of some ids.
func (l layout) most(ids []byte) uint32 {
	if l.width == 4 {
		var most uint32
		for ; len(ids) >= 4; ids = ids[4:] {
			most = max(most, binary.LittleEndian.Uint32(ids))
		}
		return most
	}
	var most [4]uint64
	for ; len(ids) >= 8; ids = ids[8:] {
		x := binary.LittleEndian.Uint64(ids)
		most[0], most[1], most[2], most[3] = max(most[0], x&0xFFFF), max(most[1], x>>16&0xFFFF), max(most[2], x>>32&0xFFFF), max(most[3], x>>48)
	}
	for ; len(ids) >= 2; ids = ids[2:] {
		most[0] = max(most[0], uint64(binary.LittleEndian.Uint16(ids)))
	}
	return uint32(slices.Max(most[:]))
}

// known is an error for an id outside the vocabulary.
func (l layout) known(most uint32) error {
	if most >= uint32(l.vocab) {
		return fmt.Errorf("token id %d is outside the vocabulary of %d", int32(most), l.vocab)
	}
	return nil
}

// dictionary is the dictionary page's content, for two bytes an id.
func (l layout) dictionary() []byte {
	d := make([]byte, 0, 4*l.vocab)
	for id := range l.vocab {
		d = binary.LittleEndian.AppendUint32(d, uint32(id))
	}
	return d
}
