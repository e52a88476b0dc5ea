package dtype

import (
	"math"
	"math/rand"
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
