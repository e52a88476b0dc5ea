package activation

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"slices"

	"google.golang.org/protobuf/encoding/protowire"
)

// Field numbers of activation.proto.
const (
	fieldVersion = 1 + iota
	fieldTeacher
	fieldTokenSet
	fieldLayer
	fieldEpoch
	fieldSequence
	fieldLength
	fieldDim
	fieldType
	fieldTokens
	fieldScales
	fieldChecksum
	fieldValues
	fieldControl
	fieldRecords
)

// Marshal is a record's bytes on the wire. Values are copied once.
func Marshal(r *Record) ([]byte, error) {
	if err := r.Validate(); err != nil {
		return nil, err
	}
	b, at := r.appendHead(nil, len(r.Values))
	binary.LittleEndian.PutUint32(b[at:], crc32.Update(r.checksum(), castagnoli, r.Values))
	b = append(b, r.Values...)
	b = appendVarint(b, fieldControl, uint64(r.Control))
	return appendVarint(b, fieldRecords, uint64(r.Records)), nil
}

// appendVarint appends a field; proto3 leaves zeros out.
func appendVarint(b []byte, field protowire.Number, v uint64) []byte {
	if v == 0 {
		return b
	}
	return protowire.AppendVarint(protowire.AppendTag(b, field, protowire.VarintType), v)
}

// appendHead appends all of a record before its values, and makes room for
// these. The four bytes of the checksum, at an index of what it returns, are
// left empty.
func (r *Record) appendHead(b []byte, values int) (head []byte, checksum int) {
	tokens := 0
	for _, t := range r.Tokens {
		tokens += protowire.SizeVarint(uint64(int64(t)))
	}
	b = slices.Grow(b, 160+len(r.Teacher)+len(r.TokenSet)+tokens+4*len(r.Scales)+values)
	varint := func(field protowire.Number, v uint64) { b = appendVarint(b, field, v) }
	header := func(field protowire.Number, size int) {
		b = protowire.AppendVarint(protowire.AppendTag(b, field, protowire.BytesType), uint64(size))
	}
	varint(fieldVersion, r.version())
	text := func(field protowire.Number, v string) {
		if v != "" {
			header(field, len(v))
			b = append(b, v...)
		}
	}
	text(fieldTeacher, r.Teacher)
	text(fieldTokenSet, r.TokenSet)
	varint(fieldLayer, r.wireLayer())
	varint(fieldEpoch, uint64(r.Epoch))
	varint(fieldSequence, uint64(r.SequenceID))
	varint(fieldLength, uint64(r.Length))
	varint(fieldDim, uint64(r.Dim))
	varint(fieldType, uint64(types[r.Type]))
	if tokens > 0 {
		header(fieldTokens, tokens)
	}
	for _, t := range r.Tokens {
		b = protowire.AppendVarint(b, uint64(int64(t)))
	}
	if len(r.Scales) > 0 {
		header(fieldScales, 4*len(r.Scales))
		for _, s := range r.Scales {
			b = protowire.AppendFixed32(b, math.Float32bits(s))
		}
	}
	b = protowire.AppendTag(b, fieldChecksum, protowire.Fixed32Type)
	checksum = len(b)
	b = protowire.AppendFixed32(b, 0)
	if values > 0 {
		header(fieldValues, values)
	}
	return b, checksum
}

// ErrDamaged is wrapped by Unmarshal's error about bytes that are not what
// Marshal wrote: cut, overwritten or of something else.
var ErrDamaged = errors.New("damaged")

// Unmarshal reads a record and checks its version, sizes and checksum. Its
// Values are a part of data, which must not be changed afterwards. An error is
// ErrDamaged or about the version.
func Unmarshal(data []byte) (*Record, error) {
	var r Record
	p := parser{record: &r}
	if err := p.parse(data); err != nil {
		return nil, fmt.Errorf("activation record: %w: %w", ErrDamaged, err)
	}
	if r.Layer == 0 && r.Dim == 0 && r.Type == "" {
		r.Layer = Tokens
	}
	if p.version == 0 { // no record has it: these are not a record's bytes
		return nil, fmt.Errorf("activation record: %w: it has no version", ErrDamaged)
	}
	if p.version != Version && p.version != controlVersion {
		return nil, fmt.Errorf("activation record: version %d: this program reads version %d, and %d of control records", p.version, Version, controlVersion)
	}
	if p.version != r.version() {
		return nil, fmt.Errorf("activation record: %w: version %d of a %v", ErrDamaged, p.version, r.Control)
	}
	if err := r.Validate(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if got := crc32.Update(r.checksum(), castagnoli, r.Values); got != p.checksum {
		return nil, fmt.Errorf("activation record: %w: checksum %08x, the record says %08x", ErrDamaged, got, p.checksum)
	}
	return &r, nil
}

type parser struct {
	record   *Record
	version  uint64
	checksum uint32
}

func (p *parser) parse(data []byte) error {
	for len(data) > 0 {
		field, kind, n := protowire.ConsumeTag(data)
		if n < 0 {
			return protowire.ParseError(n)
		}
		data = data[n:]
		var err error
		switch kind {
		case protowire.VarintType:
			var v uint64
			if v, n = protowire.ConsumeVarint(data); n >= 0 {
				err = p.varint(field, v)
			}
		case protowire.BytesType:
			var v []byte
			if v, n = protowire.ConsumeBytes(data); n >= 0 {
				err = p.bytes(field, v)
			}
		case protowire.Fixed32Type:
			var v uint32
			if v, n = protowire.ConsumeFixed32(data); n >= 0 && field == fieldChecksum {
				p.checksum = v
			}
		default:
			n = protowire.ConsumeFieldValue(field, kind, data)
		}
		if n < 0 {
			return protowire.ParseError(n)
		}
		if err != nil {
			return err
		}
		data = data[n:]
	}
	return nil
}

func (p *parser) varint(field protowire.Number, v uint64) error {
	r := p.record
	if v > math.MaxInt64 && (field <= fieldType || field == fieldControl || field == fieldRecords) {
		return fmt.Errorf("field %d is out of range", field)
	}
	switch field {
	case fieldVersion:
		p.version = v
	case fieldLayer:
		r.Layer = int(v)
	case fieldEpoch:
		r.Epoch = int(v)
	case fieldSequence:
		r.SequenceID = int64(v)
	case fieldLength:
		r.Length = int(v)
	case fieldDim:
		r.Dim = int(v)
	case fieldType:
		t, ok := typeOf(v)
		if !ok {
			return fmt.Errorf("values of type %d", v)
		}
		r.Type = t
	case fieldControl:
		r.Control = Control(min(v, math.MaxUint8))
	case fieldRecords:
		r.Records = int64(v)
	case fieldTokens: // one at a time: valid Protobuf, though we never write it
		return p.token(v)
	}
	return nil
}

func (p *parser) token(v uint64) error {
	t := int64(v)
	if t < 0 || t > math.MaxInt32 {
		return fmt.Errorf("token %d is id %d", len(p.record.Tokens), t)
	}
	p.record.Tokens = append(p.record.Tokens, int32(t))
	return nil
}

func (p *parser) bytes(field protowire.Number, v []byte) error {
	r := p.record
	switch field {
	case fieldTeacher:
		r.Teacher = string(v)
	case fieldTokenSet:
		r.TokenSet = string(v)
	case fieldTokens:
		if r.Tokens == nil {
			r.Tokens = make([]int32, 0, min(len(v), max(r.Length, 0)))
		}
		for len(v) > 0 {
			t, n := protowire.ConsumeVarint(v)
			if n < 0 {
				return protowire.ParseError(n)
			}
			if err := p.token(t); err != nil {
				return err
			}
			v = v[n:]
		}
	case fieldScales:
		if len(v)%4 != 0 {
			return errors.New("scales of odd size")
		}
		for ; len(v) > 0; v = v[4:] {
			s, _ := protowire.ConsumeFixed32(v)
			r.Scales = append(r.Scales, math.Float32frombits(s))
		}
	case fieldValues:
		r.Values = v
	}
	return nil
}
