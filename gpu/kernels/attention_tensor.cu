// Causal attention of attention.cu on the tensor cores: bf16 operands, float32
// sums and softmax. Equations, shapes and the order of sums are given there.
//
// A warp owns 16 rows of what it sums: queries in the forward pass and for dq,
// keys for dk and dv (there it works on the transposes of S, P and dS). So the
// result of one product of 16 × N is, register for register, the left operand of
// the next (Dao 2023), and P never goes through shared memory. Tiles of the other
// side come by asynchronous copies, one ahead of the arithmetic.
//
// d ≤ D is a multiple of 8, filled up with zeros.
#include "common.cuh"

namespace tensor {

// 16 × 8 += 16 × 16 · 16 × 8
__device__ __forceinline__ void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ __forceinline__ uint32_t address(const void *p) { return (uint32_t)__cvta_generic_to_shared(p); }
__device__ __forceinline__ void ldmatrix(uint32_t (&r)[4], const bf16 *p) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address(p)));
}
__device__ __forceinline__ void ldmatrix_transposed(uint32_t (&r)[4], const bf16 *p) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address(p)));
}
__device__ __forceinline__ uint32_t pack(float x, float y) {
  __nv_bfloat162 v = __floats2bfloat162_rn(x, y);
  return *reinterpret_cast<uint32_t *>(&v);
}
// 16 bytes to shared memory, zeros where there is nothing.
__device__ __forceinline__ void copy16(bf16 *to, const bf16 *from, bool there) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address(to)), "l"(from), "r"(there ? 16 : 0));
}
__device__ __forceinline__ void commit() { asm volatile("cp.async.commit_group;"); }
template <int N> __device__ __forceinline__ void wait() { asm volatile("cp.async.wait_group %0;" ::"n"(N)); }

constexpr float LOG2E = 1.4426950408889634f;

template <int D> struct Shape {
  static constexpr int THREADS = 128, ROWS = 64;     // 4 warps of 16 rows
  static constexpr int COLS = D > 64 ? 32 : 64;      // of the other side, a tile
  static constexpr int LD = D + 8;                   // elements a row in shared memory
};

// Rows from … from + N − 1 of a matrix of rows `stride` apart.
template <int D, int N> __device__ __forceinline__ void copy_tile(bf16 *tile, const bf16 *base, size_t stride, int from, int length, int d) {
  for (int i = threadIdx.x; i < N * (D / 8); i += Shape<D>::THREADS) {
    const int r = i / (D / 8), c = i % (D / 8) * 8;
    const bool there = from + r < length && c < d;
    copy16(tile + r * Shape<D>::LD + c, there ? base + (size_t)(from + r) * stride + c : base, there);
  }
}

// The warp's 16 rows of a tile as left operands.
template <int D> __device__ __forceinline__ void left(uint32_t (&a)[D / 16][4], const bf16 *tile, int row) {
  const int lane = threadIdx.x & 31;
#pragma unroll
  for (int k = 0; k < D / 16; k++) ldmatrix(a[k], tile + (row + (lane & 15)) * Shape<D>::LD + k * 16 + (lane >> 4) * 8);
}

// s[16 × N] = A[16 × D] · Bᵀ, B: [N × D] in shared memory.
template <int D, int N> __device__ __forceinline__ void dots(float (&s)[N / 8][4], const uint32_t (&a)[D / 16][4], const bf16 *B) {
  const int lane = threadIdx.x & 31;
#pragma unroll
  for (int n = 0; n < N / 8; n++) s[n][0] = s[n][1] = s[n][2] = s[n][3] = 0;
#pragma unroll
  for (int k = 0; k < D / 16; k++)
#pragma unroll
    for (int n = 0; n < N / 16; n++) {
      uint32_t b[4];
      ldmatrix(b, B + (n * 16 + (lane & 7) + ((lane >> 4) & 1) * 8) * Shape<D>::LD + k * 16 + ((lane >> 3) & 1) * 8);
      mma(s[2 * n], a[k], b[0], b[1]);
      mma(s[2 * n + 1], a[k], b[2], b[3]);
    }
}

// o[16 × D] += W[16 × N] · V, W in registers as dots leaves it, V: [N × D].
template <int D, int N> __device__ __forceinline__ void combine(float (&o)[D / 8][4], const float (&w)[N / 8][4], const bf16 *V) {
  const int lane = threadIdx.x & 31;
#pragma unroll
  for (int k = 0; k < N / 16; k++) {
    const uint32_t a[4] = {pack(w[2 * k][0], w[2 * k][1]), pack(w[2 * k][2], w[2 * k][3]), pack(w[2 * k + 1][0], w[2 * k + 1][1]), pack(w[2 * k + 1][2], w[2 * k + 1][3])};
#pragma unroll
    for (int n = 0; n < D / 16; n++) {
      uint32_t b[4];
      ldmatrix_transposed(b, V + (k * 16 + (lane & 15)) * Shape<D>::LD + n * 16 + (lane >> 4) * 8);
      mma(o[2 * n], a, b[0], b[1]);
      mma(o[2 * n + 1], a, b[2], b[3]);
    }
  }
}

// Writes a warp's 16 × D; row is the first, rows are stride apart.
template <int D> __device__ __forceinline__ void write(bf16 *out, const float (&o)[D / 8][4], int row, size_t stride, int length, int d, float scale0, float scale1) {
  const int lane = threadIdx.x & 31, r = row + (lane >> 2), c = (lane & 3) * 2;
#pragma unroll
  for (int n = 0; n < D / 8; n++) {
    if (n * 8 >= d) break;
    if (r < length) *reinterpret_cast<uint32_t *>(out + (size_t)r * stride + n * 8 + c) = pack(o[n][0] * scale0, o[n][1] * scale0);
    if (r + 8 < length) *reinterpret_cast<uint32_t *>(out + (size_t)(r + 8) * stride + n * 8 + c) = pack(o[n][2] * scale1, o[n][3] * scale1);
  }
}

__device__ __forceinline__ float quad_max(float v) { v = fmaxf(v, __shfl_xor_sync(~0u, v, 1)); return fmaxf(v, __shfl_xor_sync(~0u, v, 2)); }
__device__ __forceinline__ float quad_sum(float v) { v += __shfl_xor_sync(~0u, v, 1); return v + __shfl_xor_sync(~0u, v, 2); }

// Grid (tiles of queries, heads, B).
template <int D> __device__ void forward(const bf16 *qkv, bf16 *o, float *lse, int length, int d, int ldqkv, int ldo, float scale) {
  using C = Shape<D>;
  extern __shared__ __align__(16) bf16 tiles[];
  bf16 *Q = tiles, *K = Q + C::ROWS * C::LD, *V = K + 2 * C::COLS * C::LD;
  const int heads = gridDim.y, head = blockIdx.y, lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const int i0 = (gridDim.x - 1 - blockIdx.x) * C::ROWS;  // the longest first
  const bf16 *base = qkv + (size_t)blockIdx.z * length * ldqkv + (size_t)head * 3 * d;
  const int end = min(i0 + C::ROWS, length), count = (end + C::COLS - 1) / C::COLS;
  copy_tile<D, C::ROWS>(Q, base, ldqkv, i0, length, d);
  copy_tile<D, C::COLS>(K, base + d, ldqkv, 0, length, d);
  copy_tile<D, C::COLS>(V, base + 2 * d, ldqkv, 0, length, d);
  commit();
  const int row = i0 + warp * 16 + (lane >> 2);
  uint32_t q[D / 16][4];
  float acc[D / 8][4] = {}, m[2] = {-CUDART_INF_F, -CUDART_INF_F}, l[2] = {0, 0};
  const float factor = scale * LOG2E;
  for (int t = 0; t < count; t++) {
    const int j0 = t * C::COLS;
    if (t + 1 < count) {
      const int next = (t + 1) & 1;
      copy_tile<D, C::COLS>(K + next * C::COLS * C::LD, base + d, ldqkv, j0 + C::COLS, length, d);
      copy_tile<D, C::COLS>(V + next * C::COLS * C::LD, base + 2 * d, ldqkv, j0 + C::COLS, length, d);
    }
    commit();
    wait<1>();
    __syncthreads();
    if (t == 0) left<D>(q, Q, warp * 16);
    if (j0 <= i0 + warp * 16 + 15) {
      float s[C::COLS / 8][4];
      dots<D, C::COLS>(s, q, K + (t & 1) * C::COLS * C::LD);
      float top[2] = {m[0], m[1]};
      const bool whole = j0 + C::COLS - 1 <= i0 + warp * 16;  // nothing is masked
#pragma unroll
      for (int n = 0; n < C::COLS / 8; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
          const int j = j0 + n * 8 + (lane & 3) * 2 + (e & 1);
          s[n][e] = whole || j <= row + (e >> 1) * 8 ? s[n][e] * factor : -CUDART_INF_F;
          top[e >> 1] = fmaxf(top[e >> 1], s[n][e]);
        }
      float sum[2] = {0, 0};
#pragma unroll
      for (int h = 0; h < 2; h++) {
        top[h] = quad_max(top[h]);  // finite: every row sees key 0 first
        const float shrink = exp2f(m[h] - top[h]);
        m[h] = top[h], l[h] *= shrink;
#pragma unroll
        for (int n = 0; n < D / 8; n++) acc[n][2 * h] *= shrink, acc[n][2 * h + 1] *= shrink;
      }
#pragma unroll
      for (int n = 0; n < C::COLS / 8; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) s[n][e] = exp2f(s[n][e] - m[e >> 1]), sum[e >> 1] += s[n][e];
      l[0] += quad_sum(sum[0]), l[1] += quad_sum(sum[1]);
      combine<D, C::COLS>(acc, s, V + (t & 1) * C::COLS * C::LD);
    }
    __syncthreads();
  }
  write<D>(o + (size_t)blockIdx.z * length * ldo + (size_t)head * d, acc, i0 + warp * 16, ldo, length, d, 1 / l[0], 1 / l[1]);
  if ((lane & 3) == 0) {
    float *z = lse + ((size_t)blockIdx.z * heads + head) * length;
    if (row < length) z[row] = (m[0] + log2f(l[0])) / LOG2E;
    if (row + 8 < length) z[row + 8] = (m[1] + log2f(l[1])) / LOG2E;
  }
}

// dk and dv. Grid (tiles of keys, heads, B).
template <int D> __device__ void backward_kv(const bf16 *qkv, const bf16 *dO, const float *lse, const float *delta, bf16 *dqkv, int length, int d, int ldqkv, int lddo, int ldd, float scale) {
  using C = Shape<D>;
  extern __shared__ __align__(16) bf16 tiles[];
  bf16 *K = tiles, *V = K + C::ROWS * C::LD, *Q = V + C::ROWS * C::LD, *O = Q + 2 * C::COLS * C::LD;
  float *stats = reinterpret_cast<float *>(O + 2 * C::COLS * C::LD);  // lse and delta of two tiles
  const int heads = gridDim.y, head = blockIdx.y, lane = threadIdx.x & 31, warp = threadIdx.x >> 5, j0 = blockIdx.x * C::ROWS;
  const size_t first = (size_t)blockIdx.z * length;
  const bf16 *base = qkv + first * ldqkv + (size_t)head * 3 * d, *obase = dO + first * lddo + (size_t)head * d;
  const float *z = lse + ((size_t)blockIdx.z * heads + head) * length, *dl = delta + ((size_t)blockIdx.z * heads + head) * length;
  const int from = j0 / C::COLS, count = (length + C::COLS - 1) / C::COLS;
  const float factor = scale * LOG2E;
  auto fetch = [&](int t) {
    const int at = t & 1, i0 = t * C::COLS;
    copy_tile<D, C::COLS>(Q + at * C::COLS * C::LD, base, ldqkv, i0, length, d);
    copy_tile<D, C::COLS>(O + at * C::COLS * C::LD, obase, lddo, i0, length, d);
    if (threadIdx.x < C::COLS) {
      const int i = i0 + threadIdx.x;
      stats[at * 2 * C::COLS + threadIdx.x] = i < length ? z[i] * LOG2E : 0.0f;
      stats[at * 2 * C::COLS + C::COLS + threadIdx.x] = i < length ? dl[i] : 0.0f;
    }
  };
  copy_tile<D, C::ROWS>(K, base + d, ldqkv, j0, length, d);
  copy_tile<D, C::ROWS>(V, base + 2 * d, ldqkv, j0, length, d);
  fetch(from);
  commit();
  const int row = j0 + warp * 16 + (lane >> 2);  // a key
  float dk[D / 8][4] = {}, dv[D / 8][4] = {};
  for (int t = from; t < count; t++) {
    if (t + 1 < count) fetch(t + 1);
    commit();
    wait<1>();
    __syncthreads();
    const int i0 = t * C::COLS, at = t & 1;
    const bf16 *q = Q + at * C::COLS * C::LD, *g = O + at * C::COLS * C::LD;
    const float *st = stats + at * 2 * C::COLS;
    if (i0 + C::COLS - 1 >= j0 + warp * 16) {
      float s[C::COLS / 8][4], dp[C::COLS / 8][4];
      {
        uint32_t a[D / 16][4];
        left<D>(a, K, warp * 16);
        dots<D, C::COLS>(s, a, q);
        left<D>(a, V, warp * 16);
        dots<D, C::COLS>(dp, a, g);
      }
#pragma unroll
      for (int n = 0; n < C::COLS / 8; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
          const int c = n * 8 + (lane & 3) * 2 + (e & 1), i = i0 + c;
          const float p = row + (e >> 1) * 8 <= i && i < length ? exp2f(s[n][e] * factor - st[c]) : 0.0f;
          s[n][e] = p;
          dp[n][e] = p * (dp[n][e] - st[C::COLS + c]);
        }
      combine<D, C::COLS>(dv, s, g);
      combine<D, C::COLS>(dk, dp, q);
    }
    __syncthreads();
  }
  bf16 *out = dqkv + first * ldd + (size_t)head * 3 * d;
  write<D>(out + d, dk, j0 + warp * 16, ldd, length, d, scale, scale);
  write<D>(out + 2 * d, dv, j0 + warp * 16, ldd, length, d, 1, 1);
}

// dq. Grid (tiles of queries, heads, B).
template <int D> __device__ void backward_q(const bf16 *qkv, const bf16 *dO, const float *lse, const float *delta, bf16 *dqkv, int length, int d, int ldqkv, int lddo, int ldd, float scale) {
  using C = Shape<D>;
  extern __shared__ __align__(16) bf16 tiles[];
  bf16 *Q = tiles, *O = Q + C::ROWS * C::LD, *K = O + C::ROWS * C::LD, *V = K + 2 * C::COLS * C::LD;
  const int heads = gridDim.y, head = blockIdx.y, lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const int i0 = (gridDim.x - 1 - blockIdx.x) * C::ROWS;
  const size_t first = (size_t)blockIdx.z * length;
  const bf16 *base = qkv + first * ldqkv + (size_t)head * 3 * d, *obase = dO + first * lddo + (size_t)head * d;
  const size_t stat = ((size_t)blockIdx.z * heads + head) * length;
  const int end = min(i0 + C::ROWS, length), count = (end + C::COLS - 1) / C::COLS;
  copy_tile<D, C::ROWS>(Q, base, ldqkv, i0, length, d);
  copy_tile<D, C::ROWS>(O, obase, lddo, i0, length, d);
  auto fetch = [&](int t) {
    const int at = t & 1;
    copy_tile<D, C::COLS>(K + at * C::COLS * C::LD, base + d, ldqkv, t * C::COLS, length, d);
    copy_tile<D, C::COLS>(V + at * C::COLS * C::LD, base + 2 * d, ldqkv, t * C::COLS, length, d);
  };
  fetch(0);
  commit();
  const int row = i0 + warp * 16 + (lane >> 2);
  const float factor = scale * LOG2E;
  float z[2], dl[2], dq[D / 8][4] = {};
#pragma unroll
  for (int h = 0; h < 2; h++) {
    const bool there = row + 8 * h < length;
    z[h] = there ? lse[stat + row + 8 * h] * LOG2E : 0.0f, dl[h] = there ? delta[stat + row + 8 * h] : 0.0f;
  }
  for (int t = 0; t < count; t++) {
    if (t + 1 < count) fetch(t + 1);
    commit();
    wait<1>();
    __syncthreads();
    const int j0 = t * C::COLS, at = t & 1;
    const bf16 *k = K + at * C::COLS * C::LD, *v = V + at * C::COLS * C::LD;
    if (j0 <= i0 + warp * 16 + 15) {
      float s[C::COLS / 8][4], dp[C::COLS / 8][4];
      {
        uint32_t a[D / 16][4];
        left<D>(a, Q, warp * 16);
        dots<D, C::COLS>(s, a, k);
        left<D>(a, O, warp * 16);
        dots<D, C::COLS>(dp, a, v);
      }
#pragma unroll
      for (int n = 0; n < C::COLS / 8; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
          const int j = j0 + n * 8 + (lane & 3) * 2 + (e & 1), i = row + (e >> 1) * 8;
          const float p = j <= i && i < length ? exp2f(s[n][e] * factor - z[e >> 1]) : 0.0f;
          dp[n][e] = p * (dp[n][e] - dl[e >> 1]);
        }
      combine<D, C::COLS>(dq, dp, k);
    }
    __syncthreads();
  }
  write<D>(dqkv + first * ldd + (size_t)head * 3 * d, dq, i0 + warp * 16, ldd, length, d, scale, scale);
}

}  // namespace tensor

#define ATTENTION_TENSOR(D)                                                                                                                          \
  extern "C" __global__ void __launch_bounds__(128)                                                                                                  \
      attention_forward_##D##_bf16(const bf16 *qkv, bf16 *o, float *lse, int length, int d, int ldqkv, int ldo, float scale) {                       \
    tensor::forward<D>(qkv, o, lse, length, d, ldqkv, ldo, scale);                                                                                   \
  }                                                                                                                                                  \
  extern "C" __global__ void __launch_bounds__(128)                                                                                                  \
      attention_backward_kv_##D##_bf16(const bf16 *qkv, const bf16 *dO, const float *lse, const float *delta, bf16 *dqkv, int length, int d,         \
                                       int ldqkv, int lddo, int ldd, float scale) {                                                                  \
    tensor::backward_kv<D>(qkv, dO, lse, delta, dqkv, length, d, ldqkv, lddo, ldd, scale);                                                           \
  }                                                                                                                                                  \
  extern "C" __global__ void __launch_bounds__(128)                                                                                                  \
      attention_backward_q_##D##_bf16(const bf16 *qkv, const bf16 *dO, const float *lse, const float *delta, bf16 *dqkv, int length, int d,          \
                                      int ldqkv, int lddo, int ldd, float scale) {                                                                   \
    tensor::backward_q<D>(qkv, dO, lse, delta, dqkv, length, d, ldqkv, lddo, ldd, scale);                                                            \
  }
ATTENTION_TENSOR(16)
ATTENTION_TENSOR(32)
ATTENTION_TENSOR(64)
ATTENTION_TENSOR(128)
