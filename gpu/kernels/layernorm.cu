// Layer normalisation of the residual stream, for one or two norms of the same
// row at once (a block's two norms share their input).
//
//   x̂ = (x − mean(x)) · rstd(x),   y₁ = γ₁ ⊙ x̂ + b₁,   y₂ = γ₂ ⊙ x̂ + b₂
//   g = γ₁ ⊙ dy₁ + γ₂ ⊙ dy₂
//   dx = carried + rstd · (g − mean(g) − x̂ · mean(g ⊙ x̂))
//   dγᵢ = Σ_rows dyᵢ ⊙ x̂,   dbᵢ = Σ_rows dyᵢ
//
// x, dx, carried: [rows, dim] float32; y, dy: [rows, dim] of T; mean, rstd:
// [rows] float32. dim is a multiple of 8.
#include "common.cuh"

// One warp a row. y2 may be null.
template <class T>
__device__ void layernorm_forward(const float *x, const float *g1, const float *b1, const float *g2, const float *b2,
                                  T *y1, T *y2, float *mean, float *rstd, int rows, int dim, float eps) {
  const int row = blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5), lane = threadIdx.x & 31;
  if (row >= rows) return;
  x += (size_t)row * dim, y1 += (size_t)row * dim;
  float s = 0;
  for (int c = lane * 4; c < dim; c += 128) {
    float4 v = *reinterpret_cast<const float4 *>(x + c);
    s += (v.x + v.y) + (v.z + v.w);
  }
  const float m = warp_sum(s) / dim;
  s = 0;
  for (int c = lane * 4; c < dim; c += 128) {
    float4 v = *reinterpret_cast<const float4 *>(x + c);
    v.x -= m, v.y -= m, v.z -= m, v.w -= m;
    s += (v.x * v.x + v.y * v.y) + (v.z * v.z + v.w * v.w);
  }
  const float r = 1.0f / sqrtf(warp_sum(s) / dim + eps);
  if (lane == 0) mean[row] = m, rstd[row] = r;
  for (int c = lane * 8; c < dim; c += 256) {
    float v[8], g[8], b[8], o[8];
    load8(x + c, v);
    load8(g1 + c, g), load8(b1 + c, b);
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] = (v[i] - m) * r, o[i] = g[i] * v[i] + b[i];
    store8(y1 + c, o);
    if (y2) {
      load8(g2 + c, g), load8(b2 + c, b);
#pragma unroll
      for (int i = 0; i < 8; i++) o[i] = g[i] * v[i] + b[i];
      store8(y2 + (size_t)row * dim + c, o);
    }
  }
}
EXPORT(layernorm_forward, 256,
       (const float *x, const float *g1, const float *b1, const float *g2, const float *b2, T *y1, T *y2, float *mean, float *rstd, int rows, int dim, float eps),
       (x, g1, b1, g2, b2, y1, y2, mean, rstd, rows, dim, eps))

// One warp a row. dy2 and carried may be null. copy is dx in T for the matrix
// products below; null where nothing below wants it.
template <class T>
__device__ void layernorm_backward(const float *x, const float *mean, const float *rstd, const float *g1, const float *g2,
                                   const T *dy1, const T *dy2, const float *carried, float *dx, T *copy, int rows, int dim) {
  const int row = blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5), lane = threadIdx.x & 31;
  if (row >= rows) return;
  const size_t at = (size_t)row * dim;
  const float m = mean[row], r = rstd[row];
  float sg = 0, sgx = 0;
  for (int c = lane * 8; c < dim; c += 256) {
    float v[8], g[8], d[8], h[8];
    load8(x + at + c, v);
    load8(g1 + c, g), load8(dy1 + at + c, d);
#pragma unroll
    for (int i = 0; i < 8; i++) h[i] = g[i] * d[i];
    if (dy2) {
      load8(g2 + c, g), load8(dy2 + at + c, d);
#pragma unroll
      for (int i = 0; i < 8; i++) h[i] += g[i] * d[i];
    }
#pragma unroll
    for (int i = 0; i < 8; i++) sg += h[i], sgx += h[i] * ((v[i] - m) * r);
  }
  sg = warp_sum(sg) / dim, sgx = warp_sum(sgx) / dim;
  for (int c = lane * 8; c < dim; c += 256) {
    float v[8], g[8], d[8], h[8];
    load8(x + at + c, v);
    load8(g1 + c, g), load8(dy1 + at + c, d);
#pragma unroll
    for (int i = 0; i < 8; i++) h[i] = g[i] * d[i];
    if (dy2) {
      load8(g2 + c, g), load8(dy2 + at + c, d);
#pragma unroll
      for (int i = 0; i < 8; i++) h[i] += g[i] * d[i];
    }
#pragma unroll
    for (int i = 0; i < 8; i++) h[i] = r * (h[i] - sg - (v[i] - m) * r * sgx);
    if (carried) {
      load8(carried + at + c, d);
#pragma unroll
      for (int i = 0; i < 8; i++) h[i] += d[i];
    }
    store8(dx + at + c, h);
    if (copy) store8(copy + at + c, h);
  }
}
EXPORT(layernorm_backward, 256,
       (const float *x, const float *mean, const float *rstd, const float *g1, const float *g2, const T *dy1, const T *dy2, const float *carried, float *dx, T *copy, int rows, int dim),
       (x, mean, rstd, g1, g2, dy1, dy2, carried, dx, copy, rows, dim))

// Gradients of the norms' parameters over a slice of rows: partial is
// [slices, 4, dim] in the order dγ₁, db₁, dγ₂, db₂, summed by reduce_slices.
// Grid (dim/32, slices), block 32 × 8. dy2 may be null.
template <class T>
__device__ void layernorm_parameters(const float *x, const float *mean, const float *rstd, const T *dy1, const T *dy2, float *partial, int rows, int dim) {
  __shared__ float part[8][4][32];
  const int c = blockIdx.x * 32 + threadIdx.x;
  float s[4] = {};
  if (c < dim) {
    for (int row = blockIdx.y * 8 + threadIdx.y; row < rows; row += gridDim.y * 8) {
      const size_t at = (size_t)row * dim + c;
      const float h = (x[at] - mean[row]) * rstd[row], d1 = load(dy1[at]);
      s[0] += d1 * h, s[1] += d1;
      if (dy2) {
        const float d2 = load(dy2[at]);
        s[2] += d2 * h, s[3] += d2;
      }
    }
  }
#pragma unroll
  for (int i = 0; i < 4; i++) part[threadIdx.y][i][threadIdx.x] = s[i];
  __syncthreads();
  if (threadIdx.y < 4 && c < dim) {
    float t = 0;
#pragma unroll
    for (int y = 0; y < 8; y++) t += part[y][threadIdx.y][threadIdx.x];
    partial[((size_t)blockIdx.y * 4 + threadIdx.y) * dim + c] = t;
  }
}
EXPORT(layernorm_parameters, 256,
       (const float *x, const float *mean, const float *rstd, const T *dy1, const T *dy2, float *partial, int rows, int dim),
       (x, mean, rstd, dy1, dy2, partial, rows, dim))
