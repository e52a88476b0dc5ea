// Causal softmax attention with rotary embedding, without an L × L matrix in
// memory (Rabe and Staats 2021; Dao et al. 2022): tiles of queries meet tiles of
// keys in shared memory, with a running maximum and sum.
//
//   q ← Rᵢ q,  k ← Rⱼ k       (rotary on the leading dimensions, two halves)
//   P_ij = exp(q_i·k_j/√d − lse_i)  for j ≤ i,   o_i = Σ_j P_ij v_j
//   Δ_i = do_i · o_i,   dS_ij = P_ij (do_i·v_j − Δ_i) / √d
//   dv_j = Σ_i P_ij do_i,   dk_j = Σ_i dS_ij q_i,   dq_i = Σ_j dS_ij k_j
//
// qkv, dqkv: [B·L, heads, 3, d] of T, as the fused projection gives it (head-
// major); o, do: [B·L, heads, d]; rows of each are its own stride apart, in
// elements (ldqkv, ldd, ldo, lddo); lse, Δ: [B, heads, L] float32. The backward
// pass computes P again, once by columns for dk and dv and once by rows for dq,
// so that every sum has one owner and no atomics are needed.
//
// The tiles' arithmetic here is plain float32; bf16 has attention_tensor.cu, and
// attention_hopper.cu where the card is one.
#include "common.cuh"

// Rotates q and k in place by sign · position; sign is −1 to take a gradient
// back. table: [L, half, 2] of (cos, sin). A thread E pairs of dimensions
// (i, i + half) of one head's q or k; 8 where half, d and ld are multiples of 8.
template <class T, int E> __device__ void rotary(T *qkv, const float2 *table, int rows, int length, int heads, int d, int half, int ldqkv, float sign) {
  const long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x, n = (long long)rows * heads * 2 * (half / E);
  if (i >= n) return;
  const int groups = half / E, p = i % groups * E, which = i / groups % 2, head = i / (2 * groups) % heads;
  const long long row = i / ((long long)2 * groups * heads);
  const float2 *r = table + (row % length) * half + p;
  T *a = qkv + row * ldqkv + (head * 3 + which) * d + p;
  float x[E], y[E];
  if constexpr (E == 8) load8(a, x), load8(a + half, y);
  else x[0] = load(a[0]), y[0] = load(a[half]);
#pragma unroll
  for (int k = 0; k < E; k++) {
    const float u = x[k], s = sign * r[k].y;
    x[k] = u * r[k].x - y[k] * s, y[k] = y[k] * r[k].x + u * s;
  }
  if constexpr (E == 8) store8(a, x), store8(a + half, y);
  else a[0] = store<T>(x[0]), a[half] = store<T>(y[0]);
}
template <class T> __device__ void rotary_single(T *qkv, const float2 *table, int rows, int length, int heads, int d, int half, int ldqkv, float sign) { rotary<T, 1>(qkv, table, rows, length, heads, d, half, ldqkv, sign); }
template <class T> __device__ void rotary_eight(T *qkv, const float2 *table, int rows, int length, int heads, int d, int half, int ldqkv, float sign) { rotary<T, 8>(qkv, table, rows, length, heads, d, half, ldqkv, sign); }
EXPORT(rotary_single, 256, (T *qkv, const float2 *table, int rows, int length, int heads, int d, int half, int ldqkv, float sign), (qkv, table, rows, length, heads, d, half, ldqkv, sign))
EXPORT(rotary_eight, 256, (T *qkv, const float2 *table, int rows, int length, int heads, int d, int half, int ldqkv, float sign), (qkv, table, rows, length, heads, d, half, ldqkv, sign))

// d ≤ D, filled up with zeros; tiles of N × N positions; 16 × 16 threads.
template <int D> struct Tile {
  static constexpr int N = D > 64 ? 32 : 64;
  static constexpr int M = N / 16;   // positions a thread
  static constexpr int E = D / 16;   // dimensions a thread
  static constexpr int LD = D + 1;   // floats a row of a tile, off the banks
  static constexpr int LN = N + 1;
};

// Rows from … from + N − 1 of part 0, 1, 2 (q, k, v) of a head, zero past L or d.
template <int D, class T> __device__ __forceinline__ void load_tile(float *tile, const T *base, size_t stride, int from, int length, int d) {
  for (int i = threadIdx.x; i < Tile<D>::N * D; i += 256) {
    const int r = i / D, c = i % D;
    tile[r * Tile<D>::LD + c] = from + r < length && c < d ? load(base[(size_t)(from + r) * stride + c]) : 0.0f;
  }
}

// s[a][b] = Σ_c A[ty + 16a][c] · B[tx + 16b][c]
template <int D> __device__ __forceinline__ void scores(const float *A, const float *B, float (&s)[Tile<D>::M][Tile<D>::M]) {
  const int tx = threadIdx.x & 15, ty = threadIdx.x >> 4;
#pragma unroll
  for (int a = 0; a < Tile<D>::M; a++)
#pragma unroll
    for (int b = 0; b < Tile<D>::M; b++) s[a][b] = 0;
#pragma unroll 4
  for (int c = 0; c < D; c++) {
    float x[Tile<D>::M], y[Tile<D>::M];
#pragma unroll
    for (int a = 0; a < Tile<D>::M; a++) x[a] = A[(ty + 16 * a) * Tile<D>::LD + c], y[a] = B[(tx + 16 * a) * Tile<D>::LD + c];
#pragma unroll
    for (int a = 0; a < Tile<D>::M; a++)
#pragma unroll
      for (int b = 0; b < Tile<D>::M; b++) s[a][b] += x[a] * y[b];
  }
}
// o[a][e] += Σ_j W[ty + 16a][j] · V[j][tx + 16e], W by columns where TRANS.
template <int D, bool TRANS> __device__ __forceinline__ void weighted(const float *W, const float *V, float (&o)[Tile<D>::M][Tile<D>::E]) {
  const int tx = threadIdx.x & 15, ty = threadIdx.x >> 4;
#pragma unroll 4
  for (int j = 0; j < Tile<D>::N; j++) {
    float w[Tile<D>::M], v[Tile<D>::E];
#pragma unroll
    for (int a = 0; a < Tile<D>::M; a++) w[a] = TRANS ? W[j * Tile<D>::LN + ty + 16 * a] : W[(ty + 16 * a) * Tile<D>::LN + j];
#pragma unroll
    for (int e = 0; e < Tile<D>::E; e++) v[e] = V[j * Tile<D>::LD + tx + 16 * e];
#pragma unroll
    for (int a = 0; a < Tile<D>::M; a++)
#pragma unroll
      for (int e = 0; e < Tile<D>::E; e++) o[a][e] += w[a] * v[e];
  }
}
// Over the 16 threads that share a row.
__device__ __forceinline__ float row_sum(float v) {
#pragma unroll
  for (int o = 8; o > 0; o >>= 1) v += __shfl_xor_sync(0xffffffffu, v, o);
  return v;
}
__device__ __forceinline__ float row_max(float v) {
#pragma unroll
  for (int o = 8; o > 0; o >>= 1) v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, o));
  return v;
}

// Grid (tiles of queries, heads, B).
template <class T, int D>
__device__ void attention_forward(const T *qkv, T *o, float *lse, int length, int d, int ldqkv, int ldo, float scale) {
  using C = Tile<D>;
  extern __shared__ float shared_tiles[];
  float *Q = shared_tiles, *K = Q + C::N * C::LD, *V = K + C::N * C::LD, *P = V + C::N * C::LD;
  const int heads = gridDim.y, head = blockIdx.y, tx = threadIdx.x & 15, ty = threadIdx.x >> 4;
  const int i0 = (gridDim.x - 1 - blockIdx.x) * C::N;  // the longest first
  const T *base = qkv + (size_t)blockIdx.z * length * ldqkv + (size_t)head * 3 * d;
  load_tile<D>(Q, base, ldqkv, i0, length, d);
  float acc[C::M][C::E] = {}, m[C::M], l[C::M];
#pragma unroll
  for (int a = 0; a < C::M; a++) m[a] = -CUDART_INF_F, l[a] = 0;
  for (int j0 = 0; j0 <= i0 && j0 < length; j0 += C::N) {
    __syncthreads();
    load_tile<D>(K, base + d, ldqkv, j0, length, d);
    load_tile<D>(V, base + 2 * d, ldqkv, j0, length, d);
    __syncthreads();
    float s[C::M][C::M];
    scores<D>(Q, K, s);
#pragma unroll
    for (int a = 0; a < C::M; a++) {
      const int i = i0 + ty + 16 * a;
      float top = m[a];
#pragma unroll
      for (int b = 0; b < C::M; b++) {
        const int j = j0 + tx + 16 * b;
        s[a][b] = j <= i && j < length ? s[a][b] * scale : -CUDART_INF_F;
        top = fmaxf(top, s[a][b]);
      }
      top = row_max(top);  // finite: every row sees position j0 = 0 first
      const float shrink = expf(m[a] - top);
      float sum = 0;
#pragma unroll
      for (int b = 0; b < C::M; b++) {
        const float p = expf(s[a][b] - top);
        sum += p;
        P[(ty + 16 * a) * C::LN + tx + 16 * b] = p;
      }
      l[a] = l[a] * shrink + row_sum(sum), m[a] = top;
#pragma unroll
      for (int e = 0; e < C::E; e++) acc[a][e] *= shrink;
    }
    __syncthreads();
    weighted<D, false>(P, V, acc);
  }
#pragma unroll
  for (int a = 0; a < C::M; a++) {
    const int i = i0 + ty + 16 * a;
    if (i >= length) continue;
#pragma unroll
    for (int e = 0; e < C::E; e++)
      if (tx + 16 * e < d) o[((size_t)blockIdx.z * length + i) * ldo + (size_t)head * d + tx + 16 * e] = store<T>(acc[a][e] / l[a]);
    if (tx == 0) lse[((size_t)blockIdx.z * heads + head) * length + i] = m[a] + logf(l[a]);
  }
}

// delta[b, h, i] = do · o. One warp a position of a head.
template <class T> __device__ void attention_delta(const T *o, const T *dO, float *delta, int rows, int length, int heads, int d, int ldo, int lddo) {
  const long long i = (long long)blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5);
  if (i >= (long long)rows * heads) return;
  const long long row = i / heads, head = i % heads;
  const T *x = o + row * ldo + head * d, *y = dO + row * lddo + head * d;
  float s = 0;
  for (int c = threadIdx.x & 31; c < d; c += 32) s += load(x[c]) * load(y[c]);
  s = warp_sum(s);
  if ((threadIdx.x & 31) == 0) delta[(row / length * heads + head) * length + row % length] = s;
}
EXPORT(attention_delta, 256, (const T *o, const T *dO, float *delta, int rows, int length, int heads, int d, int ldo, int lddo), (o, dO, delta, rows, length, heads, d, ldo, lddo))

// P and dS of one pair of tiles, to shared memory: rows are queries i0 …,
// columns keys j0 ….
template <int D>
__device__ __forceinline__ void probabilities(const float *Q, const float *K, const float *V, const float *dO, float *P, float *dS, const float *lse, const float *delta,
                                              int i0, int j0, int length, float scale) {
  using C = Tile<D>;
  const int tx = threadIdx.x & 15, ty = threadIdx.x >> 4;
  float s[C::M][C::M], dp[C::M][C::M];
  scores<D>(Q, K, s);
  scores<D>(dO, V, dp);
#pragma unroll
  for (int a = 0; a < C::M; a++) {
    const int i = i0 + ty + 16 * a;
    const float z = i < length ? lse[i] : 0.0f, dl = i < length ? delta[i] : 0.0f;
#pragma unroll
    for (int b = 0; b < C::M; b++) {
      const int j = j0 + tx + 16 * b, at = (ty + 16 * a) * C::LN + tx + 16 * b;
      const float p = j <= i && i < length ? expf(s[a][b] * scale - z) : 0.0f;
      if (P) P[at] = p;
      dS[at] = p * (dp[a][b] - dl) * scale;
    }
  }
}

// dk and dv. Grid (tiles of keys, heads, B).
template <class T, int D>
__device__ void attention_backward_kv(const T *qkv, const T *dO, const float *lse, const float *delta, T *dqkv, int length, int d, int ldqkv, int lddo, int ldd, float scale) {
  using C = Tile<D>;
  extern __shared__ float shared_tiles[];
  float *Q = shared_tiles, *K = Q + C::N * C::LD, *V = K + C::N * C::LD, *O = V + C::N * C::LD, *P = O + C::N * C::LD, *dS = P + C::N * C::LN;
  const int heads = gridDim.y, head = blockIdx.y, tx = threadIdx.x & 15, ty = threadIdx.x >> 4, j0 = blockIdx.x * C::N;
  const size_t first = (size_t)blockIdx.z * length;
  const T *base = qkv + first * ldqkv + (size_t)head * 3 * d, *obase = dO + first * lddo + (size_t)head * d;
  const float *z = lse + ((size_t)blockIdx.z * heads + head) * length, *dl = delta + ((size_t)blockIdx.z * heads + head) * length;
  load_tile<D>(K, base + d, ldqkv, j0, length, d);
  load_tile<D>(V, base + 2 * d, ldqkv, j0, length, d);
  float dk[C::M][C::E] = {}, dv[C::M][C::E] = {};
  for (int i0 = j0; i0 < length; i0 += C::N) {
    __syncthreads();
    load_tile<D>(Q, base, ldqkv, i0, length, d);
    load_tile<D>(O, obase, lddo, i0, length, d);
    __syncthreads();
    probabilities<D>(Q, K, V, O, P, dS, z, dl, i0, j0, length, scale);
    __syncthreads();
    weighted<D, true>(P, O, dv);
    weighted<D, true>(dS, Q, dk);
  }
  T *out = dqkv + first * ldd + (size_t)head * 3 * d;
#pragma unroll
  for (int a = 0; a < C::M; a++) {
    const int j = j0 + ty + 16 * a;
    if (j >= length) continue;
#pragma unroll
    for (int e = 0; e < C::E; e++)
      if (tx + 16 * e < d) {
        out[(size_t)j * ldd + d + tx + 16 * e] = store<T>(dk[a][e]);
        out[(size_t)j * ldd + 2 * d + tx + 16 * e] = store<T>(dv[a][e]);
      }
  }
}

// dq. Grid (tiles of queries, heads, B).
template <class T, int D>
__device__ void attention_backward_q(const T *qkv, const T *dO, const float *lse, const float *delta, T *dqkv, int length, int d, int ldqkv, int lddo, int ldd, float scale) {
  using C = Tile<D>;
  extern __shared__ float shared_tiles[];
  float *Q = shared_tiles, *K = Q + C::N * C::LD, *V = K + C::N * C::LD, *O = V + C::N * C::LD, *dS = O + C::N * C::LD;
  const int heads = gridDim.y, head = blockIdx.y, tx = threadIdx.x & 15, ty = threadIdx.x >> 4;
  const int i0 = (gridDim.x - 1 - blockIdx.x) * C::N;
  const size_t first = (size_t)blockIdx.z * length;
  const T *base = qkv + first * ldqkv + (size_t)head * 3 * d, *obase = dO + first * lddo + (size_t)head * d;
  const float *z = lse + ((size_t)blockIdx.z * heads + head) * length, *dl = delta + ((size_t)blockIdx.z * heads + head) * length;
  load_tile<D>(Q, base, ldqkv, i0, length, d);
  load_tile<D>(O, obase, lddo, i0, length, d);
  float dq[C::M][C::E] = {};
  for (int j0 = 0; j0 <= i0; j0 += C::N) {
    __syncthreads();
    load_tile<D>(K, base + d, ldqkv, j0, length, d);
    load_tile<D>(V, base + 2 * d, ldqkv, j0, length, d);
    __syncthreads();
    probabilities<D>(Q, K, V, O, nullptr, dS, z, dl, i0, j0, length, scale);
    __syncthreads();
    weighted<D, false>(dS, K, dq);
  }
  T *out = dqkv + first * ldd + (size_t)head * 3 * d;
#pragma unroll
  for (int a = 0; a < C::M; a++) {
    const int i = i0 + ty + 16 * a;
    if (i >= length) continue;
#pragma unroll
    for (int e = 0; e < C::E; e++)
      if (tx + 16 * e < d) out[(size_t)i * ldd + tx + 16 * e] = store<T>(dq[a][e]);
  }
}

#define ATTENTION(D)                                                                                                                                 \
  extern "C" __global__ void __launch_bounds__(256)                                                                                                  \
      attention_forward_##D##_float32(const float *qkv, float *o, float *lse, int length, int d, int ldqkv, int ldo, float scale) {                  \
    attention_forward<float, D>(qkv, o, lse, length, d, ldqkv, ldo, scale);                                                                          \
  }                                                                                                                                                  \
  extern "C" __global__ void __launch_bounds__(256)                                                                                                  \
      attention_backward_kv_##D##_float32(const float *qkv, const float *dO, const float *lse, const float *delta, float *dqkv, int length, int d,   \
                                          int ldqkv, int lddo, int ldd, float scale) {                                                               \
    attention_backward_kv<float, D>(qkv, dO, lse, delta, dqkv, length, d, ldqkv, lddo, ldd, scale);                                                  \
  }                                                                                                                                                  \
  extern "C" __global__ void __launch_bounds__(256)                                                                                                  \
      attention_backward_q_##D##_float32(const float *qkv, const float *dO, const float *lse, const float *delta, float *dqkv, int length, int d,    \
                                         int ldqkv, int lddo, int ldd, float scale) {                                                                \
    attention_backward_q<float, D>(qkv, dO, lse, delta, dqkv, length, d, ldqkv, lddo, ldd, scale);                                                   \
  }
ATTENTION(16)
ATTENTION(32)
ATTENTION(64)
ATTENTION(128)
