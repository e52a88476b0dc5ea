package activation

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"slices"

	"github.com/scavenge/scavenge/schemas/dtype"
)

// The last float32 that do not round to infinity.
var (
	largestFloat16  = math.Float32frombits(0x477fefff)
	largestBFloat16 = math.Float32frombits(0x7f7f7fff)
)

// blockBytes is how many float32 are worked on at a time: they, and what
// becomes of them, stay in the first-level cache between the steps.
const blockBytes = 16 << 10

// Encode turns float32 activations, dim a token, into a record's values: one
// of the float types rounded to nearest even, or int8 with the scale max|x|/127
// of each token. What the type cannot hold is an error that names the place.
func Encode(t dtype.Type, x []float32, dim int) (values []byte, scales []float32, err error) {
	if types[t] == 0 {
		return nil, nil, fmt.Errorf("activations: values of type %q", t)
	}
	if scales, err = scalesOf(t, x, dim); err != nil {
		return nil, nil, err
	}
	values, err = encode(make([]byte, 0, len(x)*t.Size()), t, x, dim, scales, func([]byte) {})
	return values, scales, err
}

// AppendMarshal is Marshal of a record whose values are x encoded in its type,
// in one pass: it appends to dst. The record's own Values and Scales are not
// read; Scales are set.
func AppendMarshal(dst []byte, r *Record, x []float32) ([]byte, error) {
	if types[r.Type] == 0 || r.Control != 0 {
		return dst, fmt.Errorf("activations: values of type %q in a %v", r.Type, r.Control)
	}
	if len(x) != r.Length*r.Dim {
		return dst, fmt.Errorf("activations: %d values, want %d × %d", len(x), r.Length, r.Dim)
	}
	var err error
	if r.Scales, err = scalesOf(r.Type, x, r.Dim); err != nil {
		return dst, err
	}
	size := len(x) * r.Type.Size()
	if err := r.validate(size); err != nil {
		return dst, err
	}
	begin := len(dst)
	dst, at := r.appendHead(dst, size)
	sum := r.checksum()
	if dst, err = encode(dst, r.Type, x, r.Dim, r.Scales, func(block []byte) { sum = crc32.Update(sum, castagnoli, block) }); err != nil {
		return dst[:begin], err
	}
	binary.LittleEndian.PutUint32(dst[at:], sum)
	return dst, nil
}

// scalesOf are the scales of int8 values; none of other types.
func scalesOf(t dtype.Type, x []float32, dim int) ([]float32, error) {
	if dim < 1 || len(x)%dim != 0 {
		return nil, fmt.Errorf("activations: %d values are not rows of %d", len(x), dim)
	}
	if t != dtype.Int8 {
		return nil, nil
	}
	scales := make([]float32, 0, len(x)/dim)
	for row := range slices.Chunk(x, dim) {
		top := dtype.MaxAbs(row)
		if !(top <= math.MaxFloat32) {
			return nil, outside(t, x, dim, math.MaxFloat32)
		}
		scales = append(scales, top/127)
	}
	return scales, nil
}

// encode appends the encoding of x to dst, block by block, and lets use see
// each block while it is in the cache.
func encode(dst []byte, t dtype.Type, x []float32, dim int, scales []float32, use func(block []byte)) (_ []byte, err error) {
	largest := float32(math.MaxFloat32)
	switch t {
	case dtype.Float16:
		largest = largestFloat16
	case dtype.BFloat16:
		largest = largestBFloat16
	}
	rows := max(1, blockBytes/4/dim)
	dst = slices.Grow(dst, len(x)*t.Size())
	for from := 0; from < len(x); from += rows * dim {
		block, at := x[from:min(from+rows*dim, len(x))], len(dst)
		if t == dtype.Int8 {
			for i := 0; i < len(block); i += dim {
				dst = dtype.EncodeInt8(dst, block[i:i+dim], scales[(from+i)/dim])
			}
		} else {
			if !(dtype.MaxAbs(block) <= largest) {
				return dst, outside(t, x, dim, largest)
			}
			if dst, err = dtype.Encode(dst, t, block); err != nil {
				return dst, err
			}
		}
		use(dst[at:])
	}
	return dst, nil
}

// outside names the first value that a type cannot hold.
func outside(t dtype.Type, x []float32, dim int, largest float32) error {
	for i, v := range x {
		if !(v <= largest && v >= -largest) {
			return fmt.Errorf("activations: token %d, channel %d is %g: outside %s", i/dim, i%dim, v, t)
		}
	}
	return nil
}

// Decode is a record's values as float32, Length·Dim of them.
func (r *Record) Decode() ([]float32, error) {
	if err := r.Validate(); err != nil {
		return nil, err
	}
	if r.Layer == Tokens || r.Control != 0 {
		return nil, errors.New("token or control record: it has no activations")
	}
	x := make([]float32, r.Length*r.Dim)
	if r.Type != dtype.Int8 {
		return x, dtype.Decode(x, r.Type, r.Values)
	}
	for i, scale := range r.Scales {
		dtype.DecodeInt8(x[i*r.Dim:(i+1)*r.Dim], r.Values[i*r.Dim:(i+1)*r.Dim], scale)
	}
	return x, nil
}
