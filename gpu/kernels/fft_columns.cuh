// The outer half of a transform of P = RADIX · Row points that is too long for
// one block's shared memory (Bailey's four steps, 1990): point n = n₁·Row + n₂
// lies in column n₂, frequency k = k₁ + RADIX·k₂ in row k₁.
//
//   X[k₁ + RADIX·k₂] = Σ_n₂ exp(−2πi·n₂k₂/Row) · exp(−2πi·n₂k₁/P) · Σ_n₁ exp(−2πi·n₁k₁/RADIX) · x[n₁, n₂]
//
// A column has 2 to 32 points, so a thread transforms whole columns in registers
// and neighbours in a warp are neighbours in memory; a row is a transform of
// fft.cuh. Spectra stay as [k₁][k₂]: they are only multiplied point by point.
// Both directions of fft.cuh's scheme are forward transforms; the way back takes
// rows k₂ → n₂ first, then columns k₁ → n₁, with the same factors.
//
// The factors come from sincospi, whose arguments here are exact in float32, so
// that the error does not grow with P.
#pragma once
#include "fft.cuh"

namespace fft {

constexpr int Row = 4096;            // points
constexpr int RowThreads = Row / 16;

template <int RADIX> struct Columns {
  static constexpr int P = RADIX * Row;
  static constexpr int POINTS = RADIX > 16 ? RADIX : 16;      // a thread
  static constexpr int COUNT = POINTS / RADIX;                // columns a thread
  static constexpr int THREADS = 256;
  static constexpr int BLOCKS = Row / (COUNT * THREADS);      // a transform
};

// cos(πk/64)
__device__ __forceinline__ float cos64(int k) {
  constexpr float c[33] = {1.f, 0.99879545620517241f, 0.99518472667219693f, 0.98917650996478101f, 0.98078528040323043f, 0.97003125319454397f, 0.95694033573220882f, 0.94154406518302081f,
                           0.92387953251128674f, 0.90398929312344334f, 0.88192126434835505f, 0.85772861000027212f, 0.83146961230254524f, 0.80320753148064494f, 0.77301045336273699f, 0.74095112535495911f,
                           0.70710678118654757f, 0.67155895484701833f, 0.63439328416364549f, 0.59569930449243347f, 0.55557023301960229f, 0.51410274419322166f, 0.47139673682599781f, 0.4275550934302822f,
                           0.38268343236508984f, 0.33688985339222005f, 0.29028467725446233f, 0.24298017990326398f, 0.19509032201612833f, 0.14673047445536175f, 0.09801714032956077f, 0.049067674327418126f, 0.f};
  return k <= 32 ? c[k] : -c[64 - k];
}

// 32 = 2 × 16: n = 2·n₁ + n₂, k = k₁ + 16·k₂.
__device__ __forceinline__ void dft32(float2 (&v)[32]) {
  float2 e[16], o[16];
#pragma unroll
  for (int n = 0; n < 16; n++) e[n] = v[2 * n], o[n] = v[2 * n + 1];
  dft16(e), dft16(o);
#pragma unroll
  for (int k = 0; k < 16; k++) {
    const float2 w = make_float2(cos64(4 * k), k <= 8 ? -cos64(32 - 4 * k) : -cos64(4 * k - 32));  // exp(−2πi·k/32)
    const float2 b = k == 0 ? o[0] : k == 8 ? mulnegi(o[8]) : mul(o[k], w);
    v[k] = add(e[k], b), v[k + 16] = sub(e[k], b);
  }
}

// A thread's columns, column i's point r at v[i + r·COUNT].
template <int RADIX> __device__ __forceinline__ void transform(float2 (&v)[Columns<RADIX>::POINTS]) {
  if constexpr (RADIX == 32) dft32(v);
  else butterflies<RADIX>(v);
}

// Column i of the thread in one of the BLOCKS.
template <int RADIX> __device__ __forceinline__ int column(int block, int i) {
  using C = Columns<RADIX>;
  return block * (C::THREADS * C::COUNT) + i * C::THREADS + threadIdx.x;
}

// Where the thread's value e, column e % COUNT's point e / COUNT, is in the sequence.
template <int RADIX> __device__ __forceinline__ int position(int block, int e) {
  using C = Columns<RADIX>;
  return e / C::COUNT * Row + column<RADIX>(block, e % C::COUNT);
}

__device__ __forceinline__ float2 root(float x) {  // exp(iπx)
  float s, c;
  sincospif(x, &s, &c);
  return make_float2(c, s);
}

// The twist wⁿ, w = exp(iπ/2P), of column n₂ and row n₁: base times a constant.
template <int RADIX> __device__ __forceinline__ float2 twist_column(int n2) { return root(n2 * (0.5f / Columns<RADIX>::P)); }
template <int RADIX> __device__ __forceinline__ float2 twist_point(float2 base, int n1) {
  constexpr int STEP = 32 / RADIX;
  return mul(base, make_float2(cos64(n1 * STEP), cos64(32 - n1 * STEP)));
}

// v[k₁] times exp(−2πi·n₂k₁/P)
template <int RADIX> __device__ __forceinline__ void twiddle(float2 (&v)[Columns<RADIX>::POINTS], int block) {
  using C = Columns<RADIX>;
#pragma unroll
  for (int i = 0; i < C::COUNT; i++) {
    float2 p[RADIX];
    p[1] = root(column<RADIX>(block, i) * (-2.0f / C::P));
#pragma unroll
    for (int k = 2; k < RADIX; k++) p[k] = mul(p[k / 2], p[k - k / 2]);
#pragma unroll
    for (int k = 1; k < RADIX; k++) v[i + k * C::COUNT] = mul(v[i + k * C::COUNT], p[k]);
  }
}

// Real x at the thread's points to row k₁ of A, [RADIX, Row]; real(n) gives x[n].
template <int RADIX, class F> __device__ __forceinline__ void enter(float2 *A, int block, F real) {
  using C = Columns<RADIX>;
  float2 v[C::POINTS];
#pragma unroll
  for (int r = 0; r < RADIX; r++)  // all loads first
#pragma unroll
    for (int i = 0; i < C::COUNT; i++) v[i + r * C::COUNT].x = real(r * Row + column<RADIX>(block, i));
#pragma unroll
  for (int i = 0; i < C::COUNT; i++) {
    const float2 base = twist_column<RADIX>(column<RADIX>(block, i));
#pragma unroll
    for (int r = 0; r < RADIX; r++) {
      const float2 w = twist_point<RADIX>(base, r);
      const float x = v[i + r * C::COUNT].x;
      v[i + r * C::COUNT] = make_float2(x * w.x, x * w.y);
    }
  }
  transform<RADIX>(v);
  twiddle<RADIX>(v, block);
#pragma unroll
  for (int k = 0; k < RADIX; k++)
#pragma unroll
    for (int i = 0; i < C::COUNT; i++) A[k * Row + column<RADIX>(block, i)] = v[i + k * C::COUNT];
}

// The way back: A holds the rows' transforms of a conjugated spectrum;
// x[i + r·COUNT] becomes the real part at column i, row r.
template <int RADIX> __device__ __forceinline__ void leave(const float2 *A, int block, float (&x)[Columns<RADIX>::POINTS]) {
  using C = Columns<RADIX>;
  float2 v[C::POINTS];
#pragma unroll
  for (int k = 0; k < RADIX; k++)
#pragma unroll
    for (int i = 0; i < C::COUNT; i++) v[i + k * C::COUNT] = A[k * Row + column<RADIX>(block, i)];
  twiddle<RADIX>(v, block);
  transform<RADIX>(v);
#pragma unroll
  for (int i = 0; i < C::COUNT; i++) {
    const float2 base = twist_column<RADIX>(column<RADIX>(block, i));
#pragma unroll
    for (int r = 0; r < RADIX; r++) {
      const float2 w = twist_point<RADIX>(base, r);
      x[i + r * C::COUNT] = w.x * v[i + r * C::COUNT].x - w.y * v[i + r * C::COUNT].y;
    }
  }
}

}  // namespace fft
