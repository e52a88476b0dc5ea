// Package activation is the record that carries a teacher's activations from
// the producer to the trainers: one Kafka message is one sequence of one
// layer, or of a token set alone. Its wire format is Protobuf, documented in schemas/activation.proto;
// activationpb is the generated code for programs that want it. This package
// writes and reads the same bytes itself, because a record is a megabyte and
// its values should be copied once at most.
//
// In come float32 activations (Encode); out go bytes for the wire (Marshal).
// Unmarshal checks version, sizes and checksum: the record that it returns is
// what was written.
package activation

//go:generate protoc -I .. --go_out=activationpb --go_opt=paths=source_relative activation.proto

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"regexp"

	"github.com/scavenge/scavenge/schemas/activation/activationpb"
	"github.com/scavenge/scavenge/schemas/dtype"
)

// Version is the format version of this package, and controlVersion that of
// control records: programs that do not know them say so.
const (
	Version        = 1
	controlVersion = 2
)

// maxLength and maxDim bound a record; both are far above any model's.
const (
	maxLength = 1 << 24
	maxDim    = 1 << 20
)

// Tokens is the layer of a token record: a sequence without activations, for
// trainers that need no teacher. Its Teacher and Type are "", its Dim is 0.
const Tokens = -1

// Record is one sequence's activations after one block, before any final norm.
type Record struct {
	Teacher    string // fingerprints: hex sha256
	TokenSet   string
	Layer      int // or Tokens
	Epoch      int
	SequenceID int64
	Length     int        // tokens
	Dim        int        // values a token
	Type       dtype.Type // Float32, Float16, BFloat16, or Int8 with Scales
	Tokens     []int32    // Length
	Values     []byte     // Length·Dim elements, little-endian
	Scales     []float32  // Int8 only: one a token, value = int8 · scale

	// Control says that this is no sequence's record. It has the shape of the
	// topic's records, and neither tokens nor values.
	Control Control
	// Records, of a control record: how many sequences of its epoch are in its
	// partition before it.
	Records int64
}

// Control is what a control record tells of its partition.
type Control uint8

// The kinds of control records.
const (
	EndOfEpoch  Control = 1 + iota // all of Epoch's sequences are there
	EndOfStream                    // the producer has sent all that it was told to; the last is of Epoch
)

func (c Control) String() string {
	switch c {
	case 0:
		return "record"
	case EndOfEpoch:
		return "end of epoch"
	case EndOfStream:
		return "end of stream"
	}
	return fmt.Sprintf("control %d", uint8(c))
}

var types = map[dtype.Type]activationpb.Record_Type{
	dtype.Float32:  activationpb.Record_FLOAT32,
	dtype.Float16:  activationpb.Record_FLOAT16,
	dtype.BFloat16: activationpb.Record_BFLOAT16,
	dtype.Int8:     activationpb.Record_INT8,
}

func typeOf(n uint64) (dtype.Type, bool) {
	for t, m := range types {
		if uint64(m) == n {
			return t, true
		}
	}
	return "", false
}

// Validate says what of a record contradicts itself.
func (r *Record) Validate() error { return r.validate(len(r.Values)) }

// validate does so for a record that is to have so many bytes of values.
func (r *Record) validate(values int) error {
	if r.Control != 0 {
		return r.validateControl()
	}
	if r.Records != 0 {
		return fmt.Errorf("activation record: it counts %d records", r.Records)
	}
	if r.Layer == Tokens && (r.Teacher != "" || r.Dim != 0 || r.Type != "" || values > 0 || len(r.Scales) > 0) {
		return errors.New("token record: it has a teacher or activations")
	}
	switch {
	case r.Length < 1 || r.Length > maxLength || r.Dim < 1 && r.Layer != Tokens || r.Dim > maxDim:
		return fmt.Errorf("activation record: shape %d × %d", r.Length, r.Dim)
	case r.Layer < Tokens || r.Layer > math.MaxInt32 || r.Epoch < 0 || r.SequenceID < 0:
		return fmt.Errorf("activation record: layer %d, epoch %d, sequence %d", r.Layer, r.Epoch, r.SequenceID)
	case types[r.Type] == 0 && r.Layer != Tokens:
		return fmt.Errorf("activation record: values of type %q", r.Type)
	case len(r.Tokens) != r.Length:
		return fmt.Errorf("activation record: %d tokens, want %d", len(r.Tokens), r.Length)
	case values != r.Length*r.Dim*r.Type.Size():
		return fmt.Errorf("activation record: %d bytes of values, %d × %d of %s take %d", values, r.Length, r.Dim, r.Type, r.Length*r.Dim*r.Type.Size())
	}
	scales := 0
	if r.Type == dtype.Int8 {
		scales = r.Length
	}
	if len(r.Scales) != scales {
		return fmt.Errorf("activation record: %d scales, want %d", len(r.Scales), scales)
	}
	for i, s := range r.Scales {
		if !(s >= 0 && s <= math.MaxFloat32) {
			return fmt.Errorf("activation record: token %d has scale %g", i, s)
		}
	}
	for i, t := range r.Tokens {
		if t < 0 {
			return fmt.Errorf("activation record: token %d is id %d", i, t)
		}
	}
	return nil
}

// validateControl says what of a control record contradicts itself.
func (r *Record) validateControl() error {
	switch {
	case r.Control > EndOfStream:
		return fmt.Errorf("control record: of kind %d", r.Control)
	case r.SequenceID != 0 || len(r.Tokens)+len(r.Scales)+len(r.Values) > 0:
		return errors.New("control record: it has a sequence")
	case r.Records < 0 || r.Epoch < 0 || r.Layer < Tokens || r.Layer > math.MaxInt32:
		return fmt.Errorf("control record: %d records of layer %d in epoch %d", r.Records, r.Layer, r.Epoch)
	case r.Length < 1 || r.Length > maxLength || r.Dim < 0 || r.Dim > maxDim || (r.Dim == 0) != (r.Layer == Tokens) || (types[r.Type] == 0) != (r.Layer == Tokens):
		return fmt.Errorf("control record: layer %d of records of %d × %d of type %q", r.Layer, r.Length, r.Dim, r.Type)
	case r.Layer == Tokens && r.Teacher != "":
		return errors.New("control record: token records have no teacher")
	}
	return nil
}

// version is the field version.
func (r *Record) version() uint64 {
	if r.Control != 0 {
		return controlVersion
	}
	return Version
}

// wireLayer is the field layer.
func (r *Record) wireLayer() uint64 { return uint64(max(0, r.Layer)) }

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// checksum is the field crc32c of all but the values; see activation.proto for
// what it covers.
func (r *Record) checksum() uint32 {
	buf := make([]byte, 0, 7*8+4*len(r.Tokens)+4*len(r.Scales))
	for _, v := range []uint64{r.version(), r.wireLayer(), uint64(r.Epoch), uint64(r.SequenceID), uint64(r.Length), uint64(r.Dim), uint64(types[r.Type])} {
		buf = binary.LittleEndian.AppendUint64(buf, v)
	}
	for _, v := range r.Tokens {
		buf = binary.LittleEndian.AppendUint32(buf, uint32(v))
	}
	for _, v := range r.Scales {
		buf = binary.LittleEndian.AppendUint32(buf, math.Float32bits(v))
	}
	if r.Control != 0 {
		buf = binary.LittleEndian.AppendUint64(buf, uint64(r.Control))
		buf = binary.LittleEndian.AppendUint64(buf, uint64(r.Records))
	}
	return crc32.Checksum(buf, castagnoli)
}

// Topic is the Kafka topic of a run's layer, or of its token records.
func Topic(run string, layer int) string {
	if layer == Tokens {
		return run + ".tokens"
	}
	return fmt.Sprintf("%s.layer-%d", run, layer)
}

// RejectedTopic is where trainers put the damaged messages of a topic, with
// headers reason, topic, partition and offset.
func RejectedTopic(topic string) string { return topic + ".rejected" }

// ProgressGroup is the consumer group under which a trainer tells how far it
// has read a topic. Producers that wait for trainers, and tools that show lag,
// read it; a trainer goes on from its checkpoint alone, and deletes the group
// when it has read all that it wants of the topic.
func ProgressGroup(topic, trainer string) string { return topic + ".trainer." + trainer }

var runName = regexp.MustCompile(`^[a-zA-Z0-9_-][a-zA-Z0-9._-]{0,199}$`)

// CheckRun says whether topics can be named after a run.
func CheckRun(run string) error {
	if run == "" {
		return errors.New("the run has no name")
	}
	if !runName.MatchString(run) {
		return fmt.Errorf("run name %q: want up to 200 letters, digits, dots, dashes and underscores, not beginning with a dot", run)
	}
	return nil
}

// Key is the Kafka message key of a sequence: eight bytes, big-endian, as
// Kafka's own LongSerializer writes them.
func Key(id int64) []byte { return binary.BigEndian.AppendUint64(nil, uint64(id)) }

// SequenceOf is the sequence of a message by its key.
func SequenceOf(key []byte) (id int64, ok bool) {
	if len(key) != 8 {
		return 0, false
	}
	id = int64(binary.BigEndian.Uint64(key))
	return id, id >= 0
}

// Partition is the partition of n that holds a sequence.
func Partition(id int64, n int) int { return int(id % int64(n)) }

// MaxMessageBytes is what a topic's max.message.bytes must be at least for
// records of this shape (token records: dim 0, no type), one to a batch: values, scales, tokens of five bytes
// each, and a kilobyte for the record's other fields and Kafka's own headers.
func MaxMessageBytes(length, dim int, t dtype.Type) int {
	n := length*dim*t.Size() + 5*length + 1024
	if t == dtype.Int8 {
		n += 4 * length
	}
	return n
}
