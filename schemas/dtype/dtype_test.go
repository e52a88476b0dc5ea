package dtype

import (
	"bytes"
	"encoding/binary"
	"math"
	"math/rand"
	"slices"
	"testing"
)

// Every binary16 value survives the way there and back, and every float32
// halfway between two of them goes to the even one.
func TestFloat16RoundsToNearestEven(t *testing.T) {
	for h := 0; h < 0x7c00; h++ {
		v := float16Value(uint16(h))
		if got := float16Bits(v); got != uint16(h) {
			t.Fatalf("%#04x → %g → %#04x", h, v, got)
		}
		if got := float16Bits(-v); got != uint16(h)|0x8000 {
			t.Fatalf("-%#04x → %g → %#04x", h, -v, got)
		}
		if h+1 < 0x7c00 {
			mid := float32((float64(v) + float64(float16Value(uint16(h+1)))) / 2)
			even := uint16(h + h&1)
			if got := float16Bits(mid); got != even {
				t.Fatalf("halfway above %#04x: got %#04x, want %#04x", h, got, even)
			}
			if got := float16Bits(math.Nextafter32(mid, 0)); got != uint16(h) {
				t.Fatalf("just under halfway above %#04x: got %#04x", h, got)
			}
		}
	}
	for v, want := range map[float32]uint16{65504: 0x7bff, 65519.996: 0x7bff, 65520: 0x7c00, float32(math.Inf(1)): 0x7c00} {
		if got := float16Bits(v); got != want {
			t.Errorf("%g: got %#04x, want %#04x", v, got, want)
		}
	}
	if v := float16Value(float16Bits(float32(math.NaN()))); v == v {
		t.Errorf("NaN became %g", v)
	}
}

func TestBFloat16RoundsToNearestEven(t *testing.T) {
	for v, want := range map[float32]uint16{1: 0x3f80, 1 + 1.0/256: 0x3f80, 1 + 3.0/256: 0x3f82, -2: 0xc000, float32(math.Inf(-1)): 0xff80} {
		if got := bfloat16Bits(v); got != want {
			t.Errorf("%g: got %#04x, want %#04x", v, got, want)
		}
	}
}

func TestDecodeInvertsEncode(t *testing.T) {
	r := rand.New(rand.NewSource(1))
	src := make([]float32, 1000)
	for i := range src {
		src[i] = float32(r.NormFloat64())
	}
	for typ, eps := range map[Type]float64{Float32: 0, Float16: 1.0 / 2048, BFloat16: 1.0 / 256} {
		b, err := Encode(nil, typ, src)
		if err != nil {
			t.Fatal(err)
		}
		got := make([]float32, len(src))
		if err := Decode(got, typ, b); err != nil {
			t.Fatal(err)
		}
		for i := range src {
			if d := math.Abs(float64(got[i] - src[i])); d > eps*math.Max(math.Abs(float64(src[i])), 1e-4) {
				t.Fatalf("%s: %g came back as %g", typ, src[i], got[i])
			}
		}
		if err := Decode(got, typ, b[1:]); err == nil {
			t.Errorf("%s: a short payload was decoded", typ)
		}
	}
}

// edges are float32 around which conversions differ: every upper half with
// lower halves at the roundings of 16 bits and of binary16, infinities and NaNs
// of every payload among them.
func edges() []float32 {
	var list []float32
	for upper := uint32(0); upper < 1<<16; upper++ {
		for _, lower := range []uint32{0, 1, 0xfff, 0x1000, 0x1001, 0x2fff, 0x3000, 0x3001, 0x7fff, 0x8000, 0x8001, 0xefff, 0xf000, 0xffff} {
			list = append(list, math.Float32frombits(upper<<16|lower))
		}
	}
	return list
}

func bits(x []float32) []uint32 {
	list := make([]uint32, len(x))
	for i, v := range x {
		list[i] = math.Float32bits(v)
	}
	return list
}

func TestAssemblyGivesTheTwinsBits(t *testing.T) {
	x := edges()
	for name, f := range map[string]struct {
		fast, twin func(dst []byte, src []float32)
	}{
		"float32": {encodeFloat32, encodeFloat32Twin}, "float16": {encodeFloat16, encodeFloat16Twin}, "bfloat16": {encodeBFloat16, encodeBFloat16Twin}} {
		got, want := make([]byte, 4*len(x)), make([]byte, 4*len(x)) // float32 fills them
		f.fast(got, x)
		f.twin(want, x)
		for i := range 2 * len(x) {
			if a, b := binary.LittleEndian.Uint16(got[2*i:]), binary.LittleEndian.Uint16(want[2*i:]); a != b {
				t.Fatalf("%s: %#04x at half %d, want %#04x", name, a, i, b)
			}
		}
	}
	all := make([]byte, 2<<16) // every 16 bits
	for i := range 1 << 16 {
		binary.LittleEndian.PutUint16(all[2*i:], uint16(i))
	}
	for name, f := range map[string]struct {
		fast, twin func(dst []float32, src []byte)
	}{
		"float32": {decodeFloat32, decodeFloat32Twin}, "float16": {decodeFloat16, decodeFloat16Twin}, "bfloat16": {decodeBFloat16, decodeBFloat16Twin}} {
		got, want := make([]float32, 1<<16), make([]float32, 1<<16)
		if name == "float32" { // half as many
			got, want = got[:1<<15], want[:1<<15]
		}
		f.fast(got, all)
		f.twin(want, all)
		for i, b := range bits(want) {
			if a := math.Float32bits(got[i]); a != b {
				t.Fatalf("%s: %#04x gave %#08x, want %#08x", name, i, a, b)
			}
		}
	}
}

func TestInt8AssemblyGivesTheTwinsBits(t *testing.T) {
	r := rand.New(rand.NewSource(3))
	for _, scale := range []float32{1, 2, 0.75, 1.0 / 127, 3e-39, 1e-45, 1e30, math.MaxFloat32 / 127} {
		var x []float32
		for n := -130; n <= 130; n++ { // ties, and what lies beside them
			tie := (float32(n) + 0.5) * scale
			x = append(x, tie, math.Nextafter32(tie, -1), math.Nextafter32(tie, 1), float32(n)*scale)
		}
		for range 1000 {
			x = append(x, (r.Float32()*2-1)*127*scale)
		}
		x = slices.DeleteFunc(x, func(v float32) bool { return math.IsInf(float64(v), 0) })
		got, want := make([]byte, len(x)), make([]byte, len(x))
		encodeInt8(got, x, scale)
		encodeInt8Twin(want, x, scale)
		for i := range x {
			if got[i] != want[i] {
				t.Fatalf("%g / %g gave %d, want %d", x[i], scale, int8(got[i]), int8(want[i]))
			}
		}
		all := make([]byte, 256)
		for i := range all {
			all[i] = byte(i)
		}
		back, twin := make([]float32, 256), make([]float32, 256)
		decodeInt8(back, all, scale)
		decodeInt8Twin(twin, all, scale)
		if !slices.Equal(bits(back), bits(twin)) {
			t.Fatalf("scale %g: %v, want %v", scale, back, twin)
		}
	}
}

// What is left over after whole vectors, at any length and place, is converted
// too, and nothing beyond it is touched.
func TestConversionsOfAnyLength(t *testing.T) {
	x := edges()[40000:]
	for n := range 50 {
		for _, typ := range []Type{Float32, Float16, BFloat16} {
			src := x[n : 2*n]
			b, err := Encode([]byte("before"), typ, src)
			if err != nil || string(b[:6]) != "before" || len(b) != 6+n*typ.Size() {
				t.Fatalf("%s: %d elements: %v, %q", typ, n, err, b)
			}
			room := make([]float32, n+1)
			room[n] = 7
			if err := Decode(room[:n], typ, b[6:]); err != nil || room[n] != 7 {
				t.Fatalf("%s: %d elements: %v, and %g behind them", typ, n, err, room[n])
			}
			again, err := Encode(nil, typ, room[:n])
			if err != nil || !bytes.Equal(again, b[6:]) {
				t.Fatalf("%s: %d elements: %x, want %x", typ, n, again, b[6:])
			}
		}
		q := EncodeInt8([]byte("before"), x[n:2*n], 0.5)
		if len(q) != 6+n || string(q[:6]) != "before" {
			t.Fatalf("int8: %d elements: %q", n, q)
		}
	}
	if got := EncodeInt8(nil, []float32{1e-45, 0, 3}, 0); !bytes.Equal(got, make([]byte, 3)) {
		t.Errorf("scale 0: %v", got)
	}
}

func TestMaxAbs(t *testing.T) {
	nan, inf := float32(math.NaN()), float32(math.Inf(-1))
	for n := 1; n < 40; n++ {
		for at := range n {
			for _, v := range []float32{3, -3, inf, nan, math.MaxFloat32} {
				x := make([]float32, n)
				for i := range x {
					x[i] = float32(i%5) - 2
				}
				x[at] = v
				got, want := MaxAbs(x), float32(math.Abs(float64(v)))
				if got != want && !(got != got && want != want) {
					t.Fatalf("%g at %d of %d: %g", v, at, n, got)
				}
			}
		}
	}
	if got := MaxAbs(nil); got != 0 {
		t.Errorf("of nothing: %g", got)
	}
}

func BenchmarkEncode(b *testing.B) {
	x := make([]float32, 1<<19)
	for i := range x {
		x[i] = float32(i%8191)/512 - 8
	}
	for _, typ := range []Type{Float32, Float16, BFloat16, Int8} {
		b.Run(string(typ), func(b *testing.B) {
			b.SetBytes(int64(len(x) * typ.Size()))
			var dst []byte
			for b.Loop() {
				if typ == Int8 {
					dst = EncodeInt8(dst[:0], x, 8.0/127)
				} else {
					dst, _ = Encode(dst[:0], typ, x)
				}
			}
		})
	}
}
