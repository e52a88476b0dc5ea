// Next-token cross entropy on Hopper without logits: the output embedding's
// product leaves exponentials, from which the gradients' products start.
//
//   s[n, v] = x[n] · W[v],   c[n] = s[n, next]
//   E[n, v] = exp(s[n, v] − c[n]),   S[n] = Σ_v E[n, v]
//   ce[n] = log S[n],   ds[n, :] = (softmax(s[n]) − 1[next]) · a = (E[n] − S[n] · 1[next]) · f[n],   f = a / S
//   dx[n] = f[n] · (E · W)[n],   dW = Eᵀ · X̃,   X̃[n] = f[n] · x[n]
//
// with a = 1 / (B (L − 1)), as in cross_entropy.cu. The reference c is what any
// softmax may subtract; the label's logit makes S itself the inverse of the
// label's probability, and is known before the product. A sequence's last
// position has no next token: its reference is the logit of the token at hand, its
// f and ce are 0.
//
// The product counts differences above 60 as 60, so that sums, and products with
// weights, stay finite in float32. A row with such (its label has a probability
// below 1e-26) is computed once more by head_far, slowly and from another
// reference: the row's largest logit, c + shift. Then ce = log S + shift, and E at
// next is exp(−shift) − S. NaN stays NaN.
//
// x, W: [rows, dim], [vocab, dim] bf16, dim a multiple of 8; E: [rows, ld] bf16 of
// a chunk of rows from row0 on; everything else is of all positions.
#include "matmul_hopper.cuh"

namespace matmul {
constexpr float LOG2E = 1.4426950408889634f, LN2 = 0.69314718055994531f;

struct Exponentials {
  static constexpr float LIMIT = 60.0f * LOG2E;
  const float *reference;  // of the chunk's rows, c · log₂ e
  bf16 *e;
  float *sums;  // [2 · parts, rows]
  int rows, cols, ld;
  int row;
  float c[2][2], s[2][2];

  __device__ __forceinline__ void open(int first) {
    row = first;
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int r = row + 64 * (i / 2) + 8 * (i % 2);
      c[i / 2][i % 2] = r < rows ? reference[r] : 0.0f, s[i / 2][i % 2] = 0;
    }
  }
  __device__ __forceinline__ void before(int) {}
  template <bool WHOLE> __device__ __forceinline__ void piece(int m, int h, int, int col, float (&v)[8]) {
    const int r = row + 64 * m + 8 * h;
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] = power2(least(fmaf(v[i], LOG2E, -c[m][h]), LIMIT));
    if (!WHOLE)
#pragma unroll
      for (int i = 0; i < 8; i++)
        if (col + i >= cols) v[i] = 0;
    s[m][h] += ((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + (v[6] + v[7]));
    if (WHOLE || (r < rows && col < cols)) store8(e + (size_t)r * ld + col, v);
  }
  __device__ __forceinline__ void finish(int, int, int) {}
  __device__ __forceinline__ void close(int slot) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
      float t = s[i / 2][i % 2];
      t += __shfl_xor_sync(0xffffffffu, t, 1), t += __shfl_xor_sync(0xffffffffu, t, 2);
      const int r = row + 64 * (i / 2) + 8 * (i % 2);
      if ((threadIdx.x & 3) == 0 && r < rows) sums[(size_t)slot * rows + r] = t;
    }
  }
};

// A lane's part of x · w.
__device__ __forceinline__ float dot(const bf16 *x, const bf16 *w, int dim, int lane) {
  float s = 0, a[8], b[8];
  for (int i = 8 * lane; i < dim; i += 256) {
    load8(x + i, a), load8(w + i, b);
#pragma unroll
    for (int k = 0; k < 8; k++) s += a[k] * b[k];
  }
  return s;
}
}  // namespace matmul

// E and, for each part of the vocabulary and each of a block's two warpgroups,
// sums of its columns [2 · parts, rows].
EXPORT_PRODUCT(head_exponentials, (matmul::Exponentials{reference + row0, e, sums, rows, cols, ld}), const float *reference, bf16 *e, float *sums, int ld)

// c · log₂ e. One warp a position.
extern "C" __global__ void __launch_bounds__(256) head_reference(const bf16 *x, const bf16 *w, const int *tokens, float *reference, int rows, int length, int dim) {
  const int row = blockIdx.x * 8 + (threadIdx.x >> 5), lane = threadIdx.x & 31;
  if (row >= rows) return;
  const int label = tokens[row % length == length - 1 ? row : row + 1];
  const float s = warp_sum(matmul::dot(x + (size_t)row * dim, w + (size_t)label * dim, dim, lane));
  if (lane == 0) reference[row] = s * matmul::LOG2E;
}

// S and shift of a chunk's rows; those that have a difference above 60 anew. One
// block of 256 threads a row.
extern "C" __global__ void __launch_bounds__(256)
head_far(const bf16 *x, const bf16 *w, const float *reference, const float *sums, bf16 *e, float *total, float *shift, int row0, int vocab, int dim, int ld, int slots) {
  __shared__ float scratch[32];
  const int r = blockIdx.x, row = row0 + r, lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  float s = 0, m = 0;
  for (int i = 0; i < slots; i++) s += sums[(size_t)i * gridDim.x + r];
  if (s >= 1.1e26f) {  // e^60 = 1.142e26
    x += (size_t)row * dim;
    const float c = reference[row] * matmul::LN2;
    for (int v = warp; v < vocab; v += 8) m = fmaxf(m, warp_sum(matmul::dot(x, w + (size_t)v * dim, dim, lane)) - c);
    m = block_max(m, scratch);
    s = 0;
    for (int v = warp; v < vocab; v += 8) {
      const float u = expf(warp_sum(matmul::dot(x, w + (size_t)v * dim, dim, lane)) - c - m);
      s += u;
      if (lane == 0) e[(size_t)r * ld + v] = store<bf16>(u);
    }
    s = block_sum(lane == 0 ? s : 0.0f, scratch);
  }
  if (threadIdx.x == 0) total[r] = s, shift[r] = m;
}

// From a chunk's S and shift: ce, f, E's elements at the labels, and X̃ (of the
// chunk). One warp a position.
extern "C" __global__ void __launch_bounds__(256)
head_finish(const bf16 *x, const float *total, const float *shift, const int *tokens, bf16 *e, bf16 *scaled, float *nll, float *factor, int row0, int rows, int length, int dim, int ld, float a) {
  const int r = blockIdx.x * 8 + (threadIdx.x >> 5), lane = threadIdx.x & 31, row = row0 + r;
  if (r >= rows) return;
  const float s = total[r];
  const bool last = row % length == length - 1;
  const float f = last ? 0.0f : a / s;
  if (lane == 0) {
    const float ce = logf(s) + shift[r];
    nll[row] = last || ce < 0 ? 0.0f : ce;  // below 0 by rounding only
    factor[row] = f;
    if (!last) e[(size_t)r * ld + tokens[row + 1]] = store<bf16>(expf(-shift[r]) - s);
  }
  float v[8];
  for (int i = 8 * lane; i < dim; i += 256) {
    load8(x + (size_t)row * dim + i, v);
#pragma unroll
    for (int k = 0; k < 8; k++) v[k] *= f;
    store8(scaled + (size_t)r * dim + i, v);
  }
}

// v[n, :] · factor[n], in place. One warp a row.
extern "C" __global__ void __launch_bounds__(256) scale_rows(bf16 *v, const float *factor, int rows, int dim) {
  const int row = blockIdx.x * 8 + (threadIdx.x >> 5), lane = threadIdx.x & 31;
  if (row >= rows) return;
  const float f = factor[row];
  float x[8];
  for (int i = 8 * lane; i < dim; i += 256) {
    load8(v + (size_t)row * dim + i, x);
#pragma unroll
    for (int k = 0; k < 8; k++) x[k] *= f;
    store8(v + (size_t)row * dim + i, x);
  }
}
