package activation

import (
	"bytes"
	"math"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/scavenge/scavenge/schemas/activation/activationpb"
	"github.com/scavenge/scavenge/schemas/dtype"
)

var everyType = []dtype.Type{dtype.Float32, dtype.Float16, dtype.BFloat16, dtype.Int8}

func values(n int) []float32 {
	r := rand.New(rand.NewPCG(1, 2))
	x := make([]float32, n)
	for i := range x {
		x[i] = float32(r.NormFloat64() * 3)
	}
	return x
}

func record(t testing.TB, typ dtype.Type, length, dim int) (*Record, []float32) {
	t.Helper()
	x := values(length * dim)
	v, scales, err := Encode(typ, x, dim)
	if err != nil {
		t.Fatal(err)
	}
	r := &Record{Teacher: strings.Repeat("a1", 32), TokenSet: strings.Repeat("b2", 32), Layer: 5, Epoch: 3, SequenceID: 7<<32 + 12,
		Length: length, Dim: dim, Type: typ, Tokens: make([]int32, length), Values: v, Scales: scales}
	for i := range r.Tokens {
		r.Tokens[i] = int32(i * 7919 % 50304)
	}
	return r, x
}

func TestUnmarshalInvertsMarshal(t *testing.T) {
	for _, typ := range everyType {
		want, x := record(t, typ, 9, 16)
		b, err := Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		got, err := Unmarshal(b)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %+v\nwant %+v", typ, got, want)
		}
		if len(b) > MaxMessageBytes(9, 16, typ) {
			t.Errorf("%s: %d bytes, over MaxMessageBytes %d", typ, len(b), MaxMessageBytes(9, 16, typ))
		}
		y, err := got.Decode()
		if err != nil {
			t.Fatal(err)
		}
		tolerance := map[dtype.Type]float64{dtype.Float32: 0, dtype.Float16: 1.0 / 2048, dtype.BFloat16: 1.0 / 256}
		for i := range x {
			bound := tolerance[typ]*math.Abs(float64(x[i])) + 1e-7
			if typ == dtype.Int8 {
				bound = float64(got.Scales[i/16]) * 0.5001
			}
			if d := math.Abs(float64(x[i] - y[i])); d > bound {
				t.Fatalf("%s: value %d: %g came back as %g", typ, i, x[i], y[i])
			}
		}
	}
}

func TestAppendMarshalIsMarshalOfEncode(t *testing.T) {
	for _, typ := range everyType {
		for _, shape := range [][2]int{{1, 1}, {9, 16}, {3, 4097}, {700, 12}, {5, 1 << 15}} { // blocks of several rows, one, and larger than one
			r, x := record(t, typ, shape[0], shape[1])
			want, err := Marshal(r)
			if err != nil {
				t.Fatal(err)
			}
			scales := r.Scales
			r.Values, r.Scales = nil, []float32{5}
			got, err := AppendMarshal([]byte("before"), r, x)
			if err != nil {
				t.Fatal(err)
			}
			if string(got[:6]) != "before" || !bytes.Equal(got[6:], want) {
				t.Errorf("%s: %v: not the bytes of Marshal", typ, shape)
			}
			if !slices.Equal(r.Scales, scales) {
				t.Errorf("%s: %v: scales %v, want %v", typ, shape, r.Scales, scales)
			}
			x[len(x)-1] = float32(math.NaN())
			if got, err := AppendMarshal([]byte("before"), r, x); err == nil || string(got) != "before" || !strings.Contains(err.Error(), "is NaN: outside "+string(typ)) {
				t.Errorf("%s: %v: NaN gave %d bytes, %v", typ, shape, len(got), err)
			}
			if _, err := AppendMarshal(nil, r, x[1:]); err == nil {
				t.Errorf("%s: %v: a value too few is no error", typ, shape)
			}
			r.Tokens = r.Tokens[1:]
			if _, err := AppendMarshal(nil, r, make([]float32, len(x))); err == nil {
				t.Errorf("%s: %v: a token too few is no error", typ, shape)
			}
		}
	}
}

// The hand-written wire code and Protobuf's generated code are one format.
func TestGeneratedCodeReadsAndWritesTheSameRecord(t *testing.T) {
	for _, typ := range everyType {
		r, _ := record(t, typ, 5, 4)
		b, err := Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		var m activationpb.Record
		if err := proto.Unmarshal(b, &m); err != nil {
			t.Fatal(err)
		}
		if m.Version != Version || m.Teacher != r.Teacher || m.TokenSet != r.TokenSet || m.Layer != 5 || m.Epoch != 3 || m.SequenceId != r.SequenceID ||
			m.Length != 5 || m.Dim != 4 || m.Type != types[typ] || !slices.Equal(m.Tokens, r.Tokens) || !slices.Equal(m.Scales, r.Scales) || !bytes.Equal(m.Values, r.Values) {
			t.Errorf("%s: generated code reads %v", typ, &m)
		}
		if len(m.ProtoReflect().GetUnknown()) != 0 {
			t.Errorf("%s: fields unknown to the generated code", typ)
		}
		again, err := proto.MarshalOptions{Deterministic: true}.Marshal(&m)
		if err != nil {
			t.Fatal(err)
		}
		got, err := Unmarshal(again)
		if err != nil || !reflect.DeepEqual(got, r) {
			t.Errorf("%s: what generated code wrote reads as %+v, %v", typ, got, err)
		}
	}
}

func TestTokenRecordsCarryTokensAlone(t *testing.T) {
	want := &Record{TokenSet: strings.Repeat("b2", 32), Layer: Tokens, Epoch: 3, SequenceID: 7<<32 + 12, Length: 3, Tokens: []int32{5, 0, 50303}}
	b, err := Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	got, err := Unmarshal(b)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, want %+v; %v", got, want, err)
	}
	if _, err := got.Decode(); err == nil {
		t.Error("a token record has no activations to decode")
	}
	if n := MaxMessageBytes(3, 0, ""); len(b) > n {
		t.Errorf("%d bytes, over MaxMessageBytes %d", len(b), n)
	}
	var m activationpb.Record
	if err := proto.Unmarshal(b, &m); err != nil || m.Layer != 0 || m.Dim != 0 || m.Type != activationpb.Record_TYPE_UNSPECIFIED || len(m.Values) != 0 || !slices.Equal(m.Tokens, want.Tokens) {
		t.Errorf("generated code reads %v; %v", &m, err)
	}
	for what, change := range map[string]func(*Record){
		"a teacher": func(r *Record) { r.Teacher = "x" }, "a width": func(r *Record) { r.Dim = 1 }, "a type": func(r *Record) { r.Type = dtype.Int8 },
		"values": func(r *Record) { r.Values = []byte{1} }, "another layer": func(r *Record) { r.Layer = 0 }, "no layer there is": func(r *Record) { r.Layer = -2 },
	} {
		r := *want
		change(&r)
		if _, err := Marshal(&r); err == nil {
			t.Errorf("a token record with %s is no error", what)
		}
	}
	if a, b := Topic("run", Tokens), Topic("run", 0); a != "run.tokens" || b != "run.layer-0" {
		t.Errorf("topics %s and %s", a, b)
	}
}

// controls are control records of a layer's topic and of token records'.
func controls() []*Record {
	return []*Record{
		{Teacher: strings.Repeat("a1", 32), TokenSet: strings.Repeat("b2", 32), Layer: 0, Epoch: 3, Length: 9, Dim: 16, Type: dtype.Float16, Control: EndOfEpoch, Records: 77},
		{TokenSet: strings.Repeat("b2", 32), Layer: Tokens, Length: 9, Control: EndOfStream},
	}
}

func TestControlRecordsCarryNoSequence(t *testing.T) {
	for _, want := range controls() {
		b, err := Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		got, err := Unmarshal(b)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%+v, want %+v; %v", got, want, err)
		}
		if _, err := got.Decode(); err == nil {
			t.Errorf("%v: there are no activations to decode", want.Control)
		}
		if n := MaxMessageBytes(want.Length, want.Dim, want.Type); len(b) > n {
			t.Errorf("%v: %d bytes, over MaxMessageBytes %d", want.Control, len(b), n)
		}
		var m activationpb.Record
		if err := proto.Unmarshal(b, &m); err != nil || m.Version != controlVersion || m.Control != activationpb.Record_Control(want.Control) || m.Records != want.Records || len(m.ProtoReflect().GetUnknown()) != 0 {
			t.Errorf("%v: generated code reads %v; %v", want.Control, &m, err)
		}
		for what, change := range map[string]func(*Record){
			"a sequence": func(r *Record) { r.SequenceID = 1 }, "tokens": func(r *Record) { r.Tokens = []int32{1} }, "values": func(r *Record) { r.Values = []byte{1} },
			"no kind there is": func(r *Record) { r.Control = 3 }, "fewer than no records": func(r *Record) { r.Records = -1 }, "no shape": func(r *Record) { r.Length = 0 },
			"the shape of another kind": func(r *Record) { r.Dim = 16 - r.Dim }, "no control": func(r *Record) { r.Control = 0 },
		} {
			r := *want
			change(&r)
			if _, err := Marshal(&r); err == nil {
				t.Errorf("a control record with %s is no error", what)
			}
		}
	}
}

func TestEveryFlippedBitIsSeen(t *testing.T) {
	int8s, _ := record(t, dtype.Int8, 3, 4)
	for _, r := range append(controls(), int8s) {
		b, err := Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		for i := range b {
			for bit := range 8 {
				bad := bytes.Clone(b)
				bad[i] ^= 1 << bit
				got, err := Unmarshal(bad)
				// A fingerprint is compared by whoever knows the right one.
				if err == nil && got.Teacher == r.Teacher && got.TokenSet == r.TokenSet {
					t.Fatalf("%v: byte %d bit %d flipped: read as %+v", r.Control, i, bit, got)
				}
			}
			if _, err := Unmarshal(b[:i]); err == nil {
				t.Fatalf("%v: %d of %d bytes were read", r.Control, i, len(b))
			}
		}
	}
}

func TestOtherVersionsAreRefused(t *testing.T) {
	b, err := proto.Marshal(&activationpb.Record{Version: 3})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Unmarshal(b); err == nil || !strings.Contains(err.Error(), "version 3") {
		t.Errorf("error %v", err)
	}
	if _, err := Unmarshal(nil); err == nil {
		t.Error("an empty message was read")
	}
}

func TestEncodeRefusesWhatATypeCannotHold(t *testing.T) {
	for _, typ := range everyType {
		for _, bad := range []float32{float32(math.NaN()), float32(math.Inf(1)), float32(math.Inf(-1))} {
			x := make([]float32, 12)
			x[7] = bad
			if _, _, err := Encode(typ, x, 4); err == nil || !strings.Contains(err.Error(), "token 1, channel 3") {
				t.Errorf("%s: %g gave %v", typ, bad, err)
			}
		}
	}
	x := []float32{-70000}
	if _, _, err := Encode(dtype.Float16, x, 1); err == nil {
		t.Error("70000 was encoded as float16")
	}
	if _, _, err := Encode(dtype.BFloat16, x, 1); err != nil {
		t.Error(err)
	}
	for typ, edge := range map[dtype.Type]float32{dtype.Float16: largestFloat16, dtype.BFloat16: largestBFloat16} {
		r := &Record{Length: 1, Dim: 1, Type: typ, Tokens: []int32{0}}
		var err error
		if r.Values, _, err = Encode(typ, []float32{edge}, 1); err != nil {
			t.Fatal(err)
		}
		if y, err := r.Decode(); err != nil || math.IsInf(float64(y[0]), 0) {
			t.Errorf("%s: %g became %v, %v", typ, edge, y, err)
		}
		if _, _, err := Encode(typ, []float32{math.Nextafter32(edge, math.MaxFloat32)}, 1); err == nil {
			t.Errorf("%s: the value after %g was taken", typ, edge)
		}
	}
	if v, s, err := Encode(dtype.Int8, make([]float32, 4), 2); err != nil || !slices.Equal(v, make([]byte, 4)) || !slices.Equal(s, []float32{0, 0}) {
		t.Errorf("zeros: %v %v %v", v, s, err)
	}
}

func TestNamesAndPartitions(t *testing.T) {
	if got := Topic("pythia-70m", 3); got != "pythia-70m.layer-3" {
		t.Errorf("topic %s", got)
	}
	for run, ok := range map[string]bool{"a": true, "run_1.b-2": true, "": false, ".": false, "a b": false, "a/b": false, strings.Repeat("x", 201): false} {
		if err := CheckRun(run); (err == nil) != ok {
			t.Errorf("run %q: %v", run, err)
		}
	}
	if got := Partition(3<<32+5, 4); got != 1 {
		t.Errorf("partition %d", got)
	}
	if got := Key(258); !bytes.Equal(got, []byte{0, 0, 0, 0, 0, 0, 1, 2}) {
		t.Errorf("key %v", got)
	}
}

func BenchmarkMarshal(b *testing.B) {
	r, _ := record(b, dtype.Float16, 1024, 512)
	b.SetBytes(int64(len(r.Values)))
	for b.Loop() {
		if _, err := Marshal(r); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkUnmarshal(b *testing.B) {
	r, _ := record(b, dtype.Float16, 1024, 512)
	data, err := Marshal(r)
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(r.Values)))
	for b.Loop() {
		if _, err := Unmarshal(data); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkAppendMarshal(b *testing.B) {
	for _, typ := range everyType {
		b.Run(string(typ), func(b *testing.B) {
			r, x := record(b, typ, 1024, 512)
			b.SetBytes(int64(len(r.Values)))
			var dst []byte
			for b.Loop() {
				var err error
				if dst, err = AppendMarshal(dst[:0], r, x); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// FuzzUnmarshal: bytes from anywhere are an error or a whole record that is
// written and read again unchanged.
func FuzzUnmarshal(f *testing.F) {
	list := controls()
	for _, typ := range everyType {
		r, _ := record(f, typ, 2, 3)
		list = append(list, r)
	}
	for _, r := range list {
		b, err := Marshal(r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := Unmarshal(data)
		if err != nil {
			if strings.Contains(err.Error(), "\n") {
				t.Fatalf("error of several lines: %q", err)
			}
			return
		}
		if _, err := r.Decode(); err != nil && r.Layer != Tokens && r.Control == 0 {
			t.Fatal(err)
		}
		b, err := Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		again, err := Unmarshal(b)
		if err != nil || !reflect.DeepEqual(again, r) {
			t.Fatalf("written and read again: %+v, %v; was %+v", again, err, r)
		}
	})
}
