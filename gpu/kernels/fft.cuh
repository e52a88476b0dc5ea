// Complex FFT of P = 2^k points by a group of P/16 threads, 16 points a thread
// in registers and shared memory between passes: Stockham's self-sorting form
// with radix 16 (Govindaraju et al. 2008), so that no pass reverses digits.
//
// Before and after a transform, register e of thread t holds point t + e·P/16.
//
// Causal convolution without padding to 2P: multiply polynomials modulo
// X^P − i instead of X^P − 1. Evaluate at X_k = w·exp(−2πik/P), w = exp(iπ/2P),
// that is, twist by wⁿ before the transform; as X_k^P = i, what wraps around
// comes back times i, and the real part of the result is the causal product.
// As |X_k| = 1, conj(FFT) evaluates at 1/X_k: the same scheme gives
// correlations.
#pragma once
#include "common.cuh"

namespace fft {

// The points of a transform serve sequences of up to 8192 tokens.
constexpr int MaxPoints = 8192;

__device__ __forceinline__ float2 mul(float2 a, float2 b) { return make_float2(a.x * b.x - a.y * b.y, a.x * b.y + a.y * b.x); }
__device__ __forceinline__ float2 mulconj(float2 a, float2 b) { return make_float2(a.x * b.x + a.y * b.y, a.y * b.x - a.x * b.y); }  // a·conj(b)
__device__ __forceinline__ float2 add(float2 a, float2 b) { return make_float2(a.x + b.x, a.y + b.y); }
__device__ __forceinline__ float2 sub(float2 a, float2 b) { return make_float2(a.x - b.x, a.y - b.y); }
__device__ __forceinline__ float2 mulnegi(float2 a) { return make_float2(a.y, -a.x); }

// exp(−2πi·k/16)
__device__ __forceinline__ float2 root16(int k) {
  constexpr float c[16] = {1.f, 0.92387953251128674f, 0.70710678118654752f, 0.38268343236508977f, 0.f, -0.38268343236508977f, -0.70710678118654752f, -0.92387953251128674f,
                           -1.f, -0.92387953251128674f, -0.70710678118654752f, -0.38268343236508977f, 0.f, 0.38268343236508977f, 0.70710678118654752f, 0.92387953251128674f};
  return make_float2(c[k & 15], c[(k + 4) & 15]);
}

// In-place transforms of v[at], v[at + S], …, in natural order.
template <int S> __device__ __forceinline__ void dft2(float2 (&v)[16], int at) {
  float2 a = v[at], b = v[at + S];
  v[at] = add(a, b), v[at + S] = sub(a, b);
}
template <int S> __device__ __forceinline__ void dft4(float2 (&v)[16], int at) {
  float2 a = add(v[at], v[at + 2 * S]), b = sub(v[at], v[at + 2 * S]);
  float2 c = add(v[at + S], v[at + 3 * S]), d = mulnegi(sub(v[at + S], v[at + 3 * S]));
  v[at] = add(a, c), v[at + S] = add(b, d), v[at + 2 * S] = sub(a, c), v[at + 3 * S] = sub(b, d);
}
// 8 = 4 × 2: n = 2·n₁ + n₂, k = k₁ + 4·k₂.
template <int S> __device__ __forceinline__ void dft8(float2 (&v)[16], int at) {
  dft4<2 * S>(v, at), dft4<2 * S>(v, at + S);
  float2 e[4], o[4];
#pragma unroll
  for (int k = 0; k < 4; k++) e[k] = v[at + 2 * k * S], o[k] = mul(v[at + (2 * k + 1) * S], root16(2 * k));
#pragma unroll
  for (int k = 0; k < 4; k++) v[at + k * S] = add(e[k], o[k]), v[at + (k + 4) * S] = sub(e[k], o[k]);
}
// 16 = 4 × 4: n = 4·n₁ + n₂, k = k₁ + 4·k₂.
__device__ __forceinline__ void dft16(float2 (&v)[16]) {
#pragma unroll
  for (int n = 0; n < 4; n++) dft4<4>(v, n);
#pragma unroll
  for (int k = 1; k < 4; k++)
#pragma unroll
    for (int n = 1; n < 4; n++) v[4 * k + n] = mul(v[4 * k + n], root16(n * k));
#pragma unroll
  for (int k = 0; k < 4; k++) dft4<1>(v, 4 * k);
#pragma unroll
  for (int i = 0; i < 4; i++)
#pragma unroll
    for (int j = i + 1; j < 4; j++) {
      float2 t = v[4 * i + j];
      v[4 * i + j] = v[4 * j + i], v[4 * j + i] = t;
    }
}
template <int RADIX> __device__ __forceinline__ void butterflies(float2 (&v)[16]) {
  constexpr int S = 16 / RADIX;
#pragma unroll
  for (int i = 0; i < S; i++) {
    if (RADIX == 16) dft16(v);
    if (RADIX == 8) dft8<2>(v, i);
    if (RADIX == 4) dft4<4>(v, i);
    if (RADIX == 2) dft2<8>(v, i);
  }
}

// A gap of one point every 16 keeps the strided stores off the same bank.
__device__ __forceinline__ int padded(int i) { return i + (i >> 4); }
template <int P> constexpr int shared_points = P + P / 16;

// One pass: multiply by the twiddles of the DONE points already transformed,
// transform RADIX points, and unless it is the last pass exchange through s.
// roots[k] = exp(−2πi·k/MaxPoints).
template <int P, int DONE, int RADIX> __device__ __forceinline__ void pass(float2 (&v)[16], float2 *s, int t, const float2 *roots) {
  constexpr int T = P / 16, S = 16 / RADIX;
  if (DONE > 1) {
#pragma unroll
    for (int i = 0; i < S; i++) {
      const int k = (t + i * T) & (DONE - 1);
      const float2 w = __ldg(roots + k * (MaxPoints / (DONE * RADIX)));
      float2 p[RADIX];
      p[1] = w;
#pragma unroll
      for (int r = 2; r < RADIX; r++) p[r] = mul(p[r / 2], p[r - r / 2]);
#pragma unroll
      for (int r = 1; r < RADIX; r++) v[i + r * S] = mul(v[i + r * S], p[r]);
    }
  }
  butterflies<RADIX>(v);
  if (DONE * RADIX < P) {
    __syncthreads();  // everyone has read what an earlier exchange left
#pragma unroll
    for (int i = 0; i < S; i++) {
      const int j = t + i * T, base = (j / DONE) * DONE * RADIX + (j & (DONE - 1));
      // padded is linear in r and e: the compiler does not see it, and would
      // compute and keep 32 addresses
      float2 *to = s + padded(base);
#pragma unroll
      for (int r = 0; r < RADIX; r++) to[r * (DONE + DONE / 16)] = v[i + r * S];
    }
    __syncthreads();
    const float2 *from = s + padded(t);
#pragma unroll
    for (int e = 0; e < 16; e++) v[e] = from[e * (T + T / 16)];
  }
}

// The same value, of which the compiler does not know that: or it would compute
// the factors of several transforms and twists once and spill them.
__device__ __forceinline__ int fresh(int x) {
  asm volatile("" : "+r"(x));
  return x;
}
__device__ __forceinline__ float2 fresh(float2 x) {
  asm volatile("" : "+f"(x.x), "+f"(x.y));
  return x;
}

template <int P> __device__ __forceinline__ void forward(float2 (&v)[16], float2 *s, int t, const float2 *roots) {
  t = fresh(t);
  pass<P, 1, 16>(v, s, t, roots);
  pass<P, 16, 16>(v, s, t, roots);
  constexpr int rest = P / 256;
  if constexpr (rest == 2 || rest == 4 || rest == 8 || rest == 16) pass<P, 256, rest>(v, s, t, roots);
  if constexpr (rest == 32) {
    pass<P, 256, 16>(v, s, t, roots);
    pass<P, 4096, 2>(v, s, t, roots);
  }
}

// wⁿ for n = t + e·P/16: the thread's own wᵗ times a constant a register.
// halves[k] = exp(iπ·k/(2·MaxPoints)).
template <int P> __device__ __forceinline__ float2 twist(float2 wt, int e) {
  // exp(iπ·e/32)
  constexpr float c[17] = {1.f, 0.99518472667219693f, 0.98078528040323044f, 0.95694033573220886f, 0.92387953251128674f, 0.88192126434835503f, 0.83146961230254524f, 0.77301045336273696f,
                           0.70710678118654752f, 0.63439328416364549f, 0.55557023301960222f, 0.47139673682599764f, 0.38268343236508977f, 0.29028467725446233f, 0.19509032201612827f, 0.098017140329560602f, 0.f};
  return mul(wt, make_float2(c[e], c[16 - e]));
}
template <int P> __device__ __forceinline__ float2 twist_base(const float2 *halves, int t) { return __ldg(halves + t * (MaxPoints / P)); }

}  // namespace fft
