// The residual stream between two blocks, and the normalisation in front of the
// next: LayerNorm without its affine part, which fold.cu puts into the
// projections behind it.
//
//   x' = x + m + f            (m, f: what the mixer and the MLP add)
//   x̂ = (x' − mean(x')) · r,   r = 1 / √(var(x') + ε)
//
// and back, with the mean squared error against a teacher's activations where
// there is a target for x':
//
//   g = d₁ + d₂                                  (from the two projections)
//   dx' = carried + r · (g − mean(g) − x̂ · mean(g ⊙ x̂)) + 2 (x' − t) / n
//   loss = Σ (x' − t)² / n,   n = rows · dim
//
// x: [rows, dim] float32; m, f, x̂, d, dx: [rows, dim] of T; r: [rows] float32.
// One warp a row; see row.cuh for CHUNKS.
#include "row.cuh"
#include "target.cuh"

// m and f may be null; next is x', null where nobody reads it and x itself
// where it may be overwritten; norm is x̂, or γ ⊙ x̂ + β where those are given, and
// null where only x' is wanted. average (mean(x')) may be null.
template <class T, int CHUNKS>
__device__ void residual_forward(const float *x, const T *m, const T *f, float *next, T *norm, const float *gamma, const float *beta, float *average, float *rstd, int rows, int dim, float eps) {
  const int row = blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5);
  if (row >= rows) return;
  const size_t at = (size_t)row * dim;
  Row<CHUNKS> v;
  v.dim = dim;
  v.read(x + at), v.add(row_of(m, at)), v.add(row_of(f, at));
  v.write(row_of(next, at));
  if (!norm) return;
  float mean, r;
  v.normalize(eps, mean, r);
  if ((threadIdx.x & 31) == 0) {
    rstd[row] = r;
    if (average) average[row] = mean;
  }
  if (gamma)
    v.each([&](int c, float (&y)[8]) {
      float g[8], b[8];
      load8(gamma + c, g), load8(beta + c, b);
#pragma unroll
      for (int i = 0; i < 8; i++) y[i] = g[i] * y[i] + b[i];
    });
  v.write(norm + at);
}

// The stream in front of the first block that is trained, behind frozen ones: x'
// rounded to T, so that it is the same whether it was just computed or kept.
// Sequence i of the batch (length rows) is kept in slot slots[i] of cache, where
// that is not negative. from_cache reads x' there, else it is x + m + f and goes
// there. next is x' in float32.
template <class T, int CHUNKS>
__device__ void residual_prefix(const float *x, const T *m, const T *f, const int *slots, T *cache, int from_cache, float *next, T *norm, float *rstd, int rows, int length, int dim, float eps) {
  const int row = blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5);
  if (row >= rows) return;
  const size_t at = (size_t)row * dim;
  const int slot = slots[row / length];
  T *kept = slot < 0 ? nullptr : cache + ((size_t)slot * length + row % length) * dim;
  Row<CHUNKS> v;
  v.dim = dim;
  if (from_cache) {
    v.read(kept);
  } else {
    v.read(x + at), v.add(row_of(m, at)), v.add(row_of(f, at));
    v.template round<T>();
    v.write(kept);
  }
  v.write(next + at);
  float mean, r;
  v.normalize(eps, mean, r);
  if ((threadIdx.x & 31) == 0) rstd[row] = r;
  v.write(norm + at);
}

// With d1 null there is no block above: dx is set, else added to. x, m and f are
// as in the forward pass (x' where m and f are null), read for a target alone;
// t may be null. partial: a sum of the loss a block. columns: [blocks, dim], the sums of
// dx over each block's rows, added up by reduce_slices; null where no bias wants
// them. dim floats of shared memory.
template <class T, int CHUNKS>
__device__ void residual_backward(const T *norm, const float *rstd, const T *d1, const T *d2, const float *x, const T *m, const T *f, const void *t, const float *scales,
                                  T *dx, float *partial, float *columns, int rows, int dim, int encoding) {
  __shared__ float scratch[32];
  extern __shared__ float sums[];
  const float factor = 2.0f / ((float)rows * dim);
  float loss = 0;
  Row<CHUNKS> g, total = {};
  g.dim = total.dim = dim;
  const int warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
  for (int row = blockIdx.x * warps + warp; row < rows; row += gridDim.x * warps) {
    const size_t at = (size_t)row * dim;
    if (d1) {
      g.read(d1 + at), g.add(d2 + at);
      Row<CHUNKS> h;
      h.dim = dim;
      h.read(norm + at);
      float sg = 0, sgh = 0;
#pragma unroll
      for (int k = 0; k < CHUNKS; k++) {
        if (k * 256 + (threadIdx.x & 31) * 8 >= dim) break;
#pragma unroll
        for (int i = 0; i < 8; i++) sg += g.v[k][i], sgh += g.v[k][i] * h.v[k][i];
      }
      sg = warp_sum(sg) / dim, sgh = warp_sum(sgh) / dim;
      const float r = rstd[row];
#pragma unroll
      for (int k = 0; k < CHUNKS; k++)
#pragma unroll
        for (int i = 0; i < 8; i++) g.v[k][i] = r * (g.v[k][i] - sg - h.v[k][i] * sgh);
      g.add(dx + at);
    }
    if (t) {
      const float scale = target::row_scale(t, scales, row, dim, encoding);
      Row<CHUNKS> v;
      v.dim = dim;
      v.read(x + at), v.add(row_of(m, at)), v.add(row_of(f, at));
      v.each([&](int c, float (&e)[8]) {
        float a[8];
        target::load8(t, at + c, encoding, scale, a);
#pragma unroll
        for (int i = 0; i < 8; i++) e[i] -= a[i], loss += e[i] * e[i];
      });
#pragma unroll
      for (int k = 0; k < CHUNKS; k++)
#pragma unroll
        for (int i = 0; i < 8; i++) g.v[k][i] = (d1 ? g.v[k][i] : 0.0f) + v.v[k][i] * factor;
    }
    g.write(dx + at);
#pragma unroll
    for (int k = 0; k < CHUNKS; k++)
#pragma unroll
      for (int i = 0; i < 8; i++) total.v[k][i] += g.v[k][i];
  }
  if (columns) { // warp after warp, so that the order is fixed
    for (int w = 0; w < warps; w++) {
      if (w == warp) {
        if (w > 0) total.add(sums);
        total.write(w + 1 < warps ? sums : columns + (size_t)blockIdx.x * dim);
      }
      __syncthreads();
    }
  }
  if (!t) return;
  loss = block_sum(loss, scratch);
  if (threadIdx.x == 0) partial[blockIdx.x] = loss;
}

#define RESIDUAL_OF(CHUNKS, T)                                                                                                                     \
  extern "C" __global__ void __launch_bounds__(256)                                                                                                \
      residual_forward_##CHUNKS##_##T(const float *x, const T *m, const T *f, float *next, T *norm, const float *gamma, const float *beta,         \
                                      float *average, float *rstd, int rows, int dim, float eps) {                                                 \
    residual_forward<T, CHUNKS>(x, m, f, next, norm, gamma, beta, average, rstd, rows, dim, eps);                                                  \
  }                                                                                                                                                \
  extern "C" __global__ void __launch_bounds__(256)                                                                                                \
      residual_prefix_##CHUNKS##_##T(const float *x, const T *m, const T *f, const int *slots, T *cache, int from_cache, float *next, T *norm,     \
                                     float *rstd, int rows, int length, int dim, float eps) {                                                      \
    residual_prefix<T, CHUNKS>(x, m, f, slots, cache, from_cache, next, norm, rstd, rows, length, dim, eps);                                       \
  }                                                                                                                                                \
  extern "C" __global__ void __launch_bounds__(256)                                                                                                \
      residual_backward_##CHUNKS##_##T(const T *norm, const float *rstd, const T *d1, const T *d2, const float *x, const T *m, const T *f,         \
                                       const void *t, const float *scales, T *dx, float *partial, float *columns, int rows, int dim, int encoding) { \
    residual_backward<T, CHUNKS>(norm, rstd, d1, d2, x, m, f, t, scales, dx, partial, columns, rows, dim, encoding);                                  \
  }
#define RESIDUAL(CHUNKS)         \
  RESIDUAL_OF(CHUNKS, float32) \
  RESIDUAL_OF(CHUNKS, bf16)

typedef float float32;
RESIDUAL(1)
RESIDUAL(2)
RESIDUAL(4)
RESIDUAL(8)
RESIDUAL(16)
RESIDUAL(32)
