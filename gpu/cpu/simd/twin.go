package simd

import "math"

// The constants of the polynomial approximations, shared by Go and assembly
// (assembly reads them from these tables, each constant eight times over).
const (
	log2e = 1.44269504088896341
	// ln 2 in two pieces, so that n·ln2Hi is exact for |n| < 2^11
	ln2Hi = 0.693145751953125
	ln2Lo = 1.42860682030941723e-6

	expLow, expHigh = -87.0, 88.0

	invSqrt2Pi = 0.398942280401432678
	tailStep   = 0.25
)

// taylor are 1/k! from k = 7 down to 0: on |r| ≤ ln2/2 the remainder is below 6e-9.
var taylor = [8]float32{1.0 / 5040, 1.0 / 720, 1.0 / 120, 1.0 / 24, 1.0 / 6, 0.5, 1, 1}

// tail fits exp(a²/2)·Φ(−a) as t·Σ tail[8−i]·t^i with t = 1/(1 + a/4), a ≥ 0: a
// least-squares fit reweighted to a minimax of relative error, 7.2e-8 in float32
// coefficients.
var tail = [9]float32{0.025723565369844437, -0.15280970931053162, 0.296122670173645, -0.20578426122665405, 0.20175908505916595,
	0.032927505671978, 0.10374680161476135, 0.09851682931184769, 0.09979747980833054}

// expTwin is e^x for clamped x: 2^n · e^r with n = round(x·log₂e).
func expTwin(x float32) float32 {
	if x < expLow {
		x = expLow
	}
	if x > expHigh {
		x = expHigh
	}
	n := float32(math.RoundToEven(float64(x * log2e)))
	r := x - n*ln2Hi
	r -= n * ln2Lo
	p := taylor[0]
	for _, c := range taylor[1:] {
		p = p*r + c
	}
	return p * math.Float32frombits(uint32(int32(n)+127)<<23)
}

func expChunkTwin(dst, x []float32, scale, shift float32) float64 {
	var lanes [8]float32
	for i, v := range x {
		e := expTwin(scale * (v - shift))
		dst[i] = e
		lanes[i&7] += e
	}
	sum := 0.0
	for _, v := range lanes {
		sum += float64(v)
	}
	return sum
}

func geluTwin(y, d, h []float32) {
	for i, v := range h {
		a := float32(math.Abs(float64(v)))
		e := expTwin(-0.5 * a * a)
		t := 1 / (1 + tailStep*a)
		q := tail[0]
		for _, c := range tail[1:] {
			q = q*t + c
		}
		phi := q * t * e // Φ(−|h|)
		if v > 0 {
			phi = 1 - phi
		}
		y[i] = v * phi
		d[i] = phi + v*e*invSqrt2Pi
	}
}

func tileTwin[T Float](n int, a []T, ra, ca int, b []T, bo, rb int, c []T, rc, cols int, add bool) {
	var s [Rows][cols32]T
	for k := range n {
		row := b[bo+k*rb:][:cols]
		for i := range Rows {
			v, si := a[i*ra+k*ca], s[i][:cols]
			for j, w := range row {
				si[j] += v * w
			}
		}
	}
	for i := range Rows {
		ci := c[i*rc:][:cols]
		for j := range ci {
			if add {
				ci[j] += s[i][j]
			} else {
				ci[j] = s[i][j]
			}
		}
	}
}

func addScaledTwin[T Float](dst, x []T, s T) {
	for i, v := range x {
		dst[i] += s * v
	}
}

func addProductTwin[T Float](dst, x, y []T) {
	for i, v := range x {
		dst[i] += v * y[i]
	}
}

func productTwin[T Float](dst, x, y []T) {
	for i, v := range x {
		dst[i] = v * y[i]
	}
}

func scaleTwin[T Float](dst, x []T, s T) {
	for i, v := range x {
		dst[i] = s * v
	}
}

func maxTwin[T Float](x []T) T {
	m := x[0]
	for _, v := range x[1:] {
		m = max(m, v)
	}
	return m
}

func copyRowsTwin[T Float](n int, dst, src []T, stride, cols int) {
	for k := range n {
		copy(dst[k*cols:(k+1)*cols], src[k*stride:])
	}
}

func gatherTwin[T Float](tiles, n int, dst, src []T, stride int) {
	for k := range n {
		for i := range tiles {
			copy(dst[(i*n+k)*Rows:(i*n+k+1)*Rows], src[k*stride+i*Rows:])
		}
	}
}
