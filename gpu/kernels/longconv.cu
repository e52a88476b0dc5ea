// Gated causal long convolution of the Hyena operator, by FFT in float32 for
// both element types.
//
//   c = h ∗ u + β ⊙ u          (h ∗ u)[n] = Σ_{m≤n} h[n − m] · u[m]
//   y = q ⊙ c
//   dq = dy ⊙ c,   d = dy ⊙ q
//   du[m] = Σ_{n≥m} d[n] · h[n − m] + β · d[m]
//   dh[j] = Σ_b Σ_n d[n] · u[n − j],   dβ = Σ_b Σ_n d[n] · u[n]
//
// Channel-major: u, q, dq, du: [D, ld] float32, y, dy: [D, ld] of T, column b·L + n is position
// n of sequence b. A transform of P ≥ L points covers one channel of one
// sequence; see fft.cuh for why P need not be 2L, and longconv_stages.cu for more
// than 8192 points. H: [D, P] complex, the
// filter's transform over P. A block works for one channel on GROUPS sequences
// at a time.
#include "fft.cuh"

template <int P> struct LongConv {
  static constexpr int T = P / 16;                          // threads a sequence
  static constexpr int GROUPS = T >= 128 ? 1 : 128 / T;     // sequences at a time
  static constexpr int THREADS = T * GROUPS;
  static constexpr int FORWARD = 512 / THREADS > 0 ? 512 / THREADS : 1;   // blocks a multiprocessor, which bounds
  static constexpr int BACKWARD = 384 / THREADS > 0 ? 384 / THREADS : 1;  // the registers a thread
};

// H = FFT(wⁿ · window[n] · f[n]) / P of the implicit filter h = window ⊙ f.
// f: [D, ldf] float64; window of channel c at n is exp(−t_n · decay_c), t_n = n / (context − 1).
// One block of P/16 threads a channel.
template <int P>
__device__ void filter_spectrum(const double *f, const float *decay, float2 *H, int length, int ldf, float invspan, const float2 *roots, const float2 *halves) {
  extern __shared__ float2 shared[];
  const int t = threadIdx.x, c = blockIdx.x;
  const float2 wt = fft::twist_base<P>(halves, t);
  float2 v[16];
#pragma unroll
  for (int e = 0; e < 16; e++) {
    const int n = t + e * LongConv<P>::T;
    const float h = n < length ? (float)f[(size_t)c * ldf + n] * expf(-(n * invspan) * decay[c]) : 0.0f;
    const float2 w = fft::twist<P>(wt, e);
    v[e] = make_float2(h * w.x, h * w.y);
  }
  fft::forward<P>(v, shared, t, roots);
#pragma unroll
  for (int e = 0; e < 16; e++) H[(size_t)c * P + t + e * LongConv<P>::T] = make_float2(v[e].x * (1.0f / P), v[e].y * (1.0f / P));
}

// Grid (D, slices of the batch).
template <class T, int P>
__device__ void longconv_forward(const float *__restrict__ u, const float *__restrict__ q, const float2 *__restrict__ H, const float *__restrict__ beta, T *__restrict__ y, int batch, int length, int ld, const float2 *roots, const float2 *halves) {
  using C = LongConv<P>;
  extern __shared__ float2 shared[];
  const int t = threadIdx.x % C::T, g = threadIdx.x / C::T, c = blockIdx.x;
  float2 *s = shared + g * fft::shared_points<P>;
  float2 wt = fft::twist_base<P>(halves, t);
  const float b = beta[c];
  H += (size_t)c * P;
  for (int row = blockIdx.y * C::GROUPS; row < batch; row += gridDim.y * C::GROUPS) {
    const bool mine = row + g < batch;  // every group takes part in the barriers
    const size_t at = (size_t)c * ld + (size_t)(row + g) * length;
    float x[16];
    float2 v[16];
    wt = fft::fresh(wt);
#pragma unroll
    for (int e = 0; e < 16; e++) {
      const int n = t + e * C::T;
      x[e] = mine && n < length ? u[at + n] : 0.0f;
      const float2 w = fft::twist<P>(wt, e);
      v[e] = make_float2(x[e] * w.x, x[e] * w.y);
    }
    fft::forward<P>(v, s, t, roots);
#pragma unroll
    for (int e = 0; e < 16; e++) {
      v[e] = fft::mul(v[e], __ldg(H + t + e * C::T));
      v[e].y = -v[e].y;
    }
    fft::forward<P>(v, s, t, roots);
    wt = fft::fresh(wt);
#pragma unroll
    for (int e = 0; e < 16; e++) {
      const int n = t + e * C::T;
      const float2 w = fft::twist<P>(wt, e);
      if (mine && n < length) y[at + n] = store<T>(q[at + n] * (w.x * v[e].x - w.y * v[e].y + b * x[e]));
    }
  }
}

// dh: [slices, D, ldh] float32, dbeta: [slices, D], both a slice's own sum,
// added up by filter_gradient and reduce_slices. Grid (D, slices).
template <class T, int P>
__device__ void longconv_backward(const float *__restrict__ u, const float *__restrict__ q, const float2 *__restrict__ H, const float *__restrict__ beta, const T *__restrict__ dy, float *__restrict__ dq, float *__restrict__ du, float *__restrict__ dh, float *dbeta,
                                  int batch, int length, int ld, int ldh, const float2 *roots, const float2 *halves) {
  using C = LongConv<P>;
  extern __shared__ float2 shared[];
  __shared__ float scratch[32];
  const int t = threadIdx.x % C::T, g = threadIdx.x / C::T, c = blockIdx.x;
  float2 *s = shared + g * fft::shared_points<P>;
  float2 wt = fft::twist_base<P>(halves, t);
  const float b = beta[c];
  H += (size_t)c * P;
  float2 sum[16];  // Σ over sequences of D ⊙ conj(U), dh's transform
#pragma unroll
  for (int e = 0; e < 16; e++) sum[e] = make_float2(0, 0);
  float db = 0;
  for (int row = blockIdx.y * C::GROUPS; row < batch; row += gridDim.y * C::GROUPS) {
    const bool mine = row + g < batch;
    const size_t at = (size_t)c * ld + (size_t)(row + g) * length;
    float x[16];
    float2 U[16], v[16];
    wt = fft::fresh(wt);
#pragma unroll
    for (int e = 0; e < 16; e++) {
      const int n = t + e * C::T;
      x[e] = mine && n < length ? u[at + n] : 0.0f;
      const float2 w = fft::twist<P>(wt, e);
      U[e] = make_float2(x[e] * w.x, x[e] * w.y);
    }
    fft::forward<P>(U, s, t, roots);
#pragma unroll
    for (int e = 0; e < 16; e++) {
      v[e] = fft::mul(U[e], __ldg(H + t + e * C::T));
      v[e].y = -v[e].y;
    }
    fft::forward<P>(v, s, t, roots);
    wt = fft::fresh(wt);
#pragma unroll
    for (int e = 0; e < 16; e++) {
      const int n = t + e * C::T;
      const float2 w = fft::twist<P>(wt, e);
      const float cn = w.x * v[e].x - w.y * v[e].y + b * x[e];
      float d = 0;
      if (mine && n < length) {
        const float g = load(dy[at + n]);
        dq[at + n] = g * cn;
        d = g * q[at + n];
      }
      db += d * x[e];
      x[e] = d;
      v[e] = make_float2(d * w.x, d * w.y);
    }
    fft::forward<P>(v, s, t, roots);
#pragma unroll
    for (int e = 0; e < 16; e++) {
      const float2 p = fft::mulconj(v[e], U[e]);
      sum[e] = fft::add(sum[e], p);
      v[e] = fft::mulconj(v[e], __ldg(H + t + e * C::T));
      v[e].y = -v[e].y;
    }
    fft::forward<P>(v, s, t, roots);
    wt = fft::fresh(wt);
#pragma unroll
    for (int e = 0; e < 16; e++) {
      const int n = t + e * C::T;
      const float2 w = fft::twist<P>(wt, e);
      if (mine && n < length) du[at + n] = w.x * v[e].x - w.y * v[e].y + b * x[e];
    }
  }
  db = block_sum(db, scratch);
  if (threadIdx.x == 0) dbeta[(size_t)blockIdx.y * gridDim.x + c] = db;
  // the groups' sums, in order, then back to the time domain
  if (C::GROUPS > 1) {
    __syncthreads();
#pragma unroll
    for (int e = 0; e < 16; e++) s[fft::padded(t + e * C::T)] = sum[e];
    __syncthreads();
#pragma unroll
    for (int e = 0; e < 16; e++) {
      float2 a = make_float2(0, 0);
      for (int i = 0; i < C::GROUPS; i++) a = fft::add(a, shared[i * fft::shared_points<P> + fft::padded(t + e * C::T)]);
      sum[e] = a;
    }
  }
#pragma unroll
  for (int e = 0; e < 16; e++) sum[e].y = -sum[e].y;
  fft::forward<P>(sum, s, t, roots);
  if (g == 0) {
    wt = fft::fresh(wt);
#pragma unroll
    for (int e = 0; e < 16; e++) {
      const int n = t + e * C::T;
      const float2 w = fft::twist<P>(wt, e);
      if (n < length) dh[((size_t)blockIdx.y * gridDim.x + c) * ldh + n] = (w.x * sum[e].x - w.y * sum[e].y) * (1.0f / P);
    }
  }
}

// df = window ⊙ Σ_slices dh, the gradient of the filter's FFN output: [D, ldh]
// float64.
extern "C" __global__ void filter_gradient(const float *dh, const float *decay, double *df, int slices, int dim, int length, int ldh, float invspan) {
  const int n = blockIdx.x * blockDim.x + threadIdx.x, c = blockIdx.y;
  if (n >= length) return;
  double s = 0;
  for (int i = 0; i < slices; i++) s += dh[((size_t)i * dim + c) * ldh + n];
  df[(size_t)c * ldh + n] = s * expf(-(n * invspan) * decay[c]);
}

#define LONGCONV_OF(P, T)                                                                                                                     \
  extern "C" __global__ void __launch_bounds__(LongConv<P>::THREADS, LongConv<P>::FORWARD)                                                    \
      longconv_forward_##P##_##T(const float *__restrict__ u, const float *__restrict__ q, const float2 *__restrict__ H, const float *__restrict__ beta, T *__restrict__ y, int batch, int length, int ld, const float2 *roots, const float2 *halves) { \
    longconv_forward<T, P>(u, q, H, beta, y, batch, length, ld, roots, halves);                                                               \
  }                                                                                                                                           \
  extern "C" __global__ void __launch_bounds__(LongConv<P>::THREADS, LongConv<P>::BACKWARD)                                                   \
      longconv_backward_##P##_##T(const float *__restrict__ u, const float *__restrict__ q, const float2 *__restrict__ H, const float *__restrict__ beta, const T *__restrict__ dy, float *__restrict__ dq, float *__restrict__ du, float *__restrict__ dh, float *dbeta, \
                                  int batch, int length, int ld, int ldh, const float2 *roots, const float2 *halves) {                         \
    longconv_backward<T, P>(u, q, H, beta, dy, dq, du, dh, dbeta, batch, length, ld, ldh, roots, halves);                                      \
  }
#define LONGCONV(P)                                                                                                                           \
  extern "C" __global__ void __launch_bounds__(LongConv<P>::T) filter_spectrum_##P(const double *f, const float *decay, float2 *H, int length, int ldf, float invspan, const float2 *roots, const float2 *halves) { \
    filter_spectrum<P>(f, decay, H, length, ldf, invspan, roots, halves);                                                                     \
  }                                                                                                                                           \
  LONGCONV_OF(P, float32)                                                                                                                     \
  LONGCONV_OF(P, bf16)

typedef float float32;
LONGCONV(256)
LONGCONV(512)
LONGCONV(1024)
LONGCONV(2048)
LONGCONV(4096)
LONGCONV(8192)
