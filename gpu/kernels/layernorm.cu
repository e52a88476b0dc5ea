// The final layer normalisation, backward; residual.cu has the forward pass.
//
//   y = γ ⊙ x̂ + b,   x̂ = (x − mean(x)) · rstd(x)
//   g = γ ⊙ dy,   dx = rstd · (g − mean(g) − x̂ · mean(g ⊙ x̂))
//   dγ = Σ_rows dy ⊙ x̂,   db = Σ_rows dy
//
// x: [rows, dim] float32; dy, dx: [rows, dim] of T; mean, rstd: [rows] float32.
// dim is a multiple of 8.
#include "common.cuh"

// One warp a row.
template <class T>
__device__ void layernorm_backward(const float *x, const float *mean, const float *rstd, const float *gamma, const T *dy, T *dx, int rows, int dim) {
  const int row = blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5), lane = threadIdx.x & 31;
  if (row >= rows) return;
  const size_t at = (size_t)row * dim;
  const float m = mean[row], r = rstd[row];
  float sg = 0, sgx = 0;
  for (int c = lane * 8; c < dim; c += 256) {
    float v[8], g[8], d[8];
    load8(x + at + c, v), load8(gamma + c, g), load8(dy + at + c, d);
#pragma unroll
    for (int i = 0; i < 8; i++) g[i] *= d[i], sg += g[i], sgx += g[i] * ((v[i] - m) * r);
  }
  sg = warp_sum(sg) / dim, sgx = warp_sum(sgx) / dim;
  for (int c = lane * 8; c < dim; c += 256) {
    float v[8], g[8], d[8];
    load8(x + at + c, v), load8(gamma + c, g), load8(dy + at + c, d);
#pragma unroll
    for (int i = 0; i < 8; i++) d[i] = r * (g[i] * d[i] - sg - (v[i] - m) * r * sgx);
    store8(dx + at + c, d);
  }
}
EXPORT(layernorm_backward, 256,
       (const float *x, const float *mean, const float *rstd, const float *gamma, const T *dy, T *dx, int rows, int dim),
       (x, mean, rstd, gamma, dy, dx, rows, dim))

// Gradients of the norm's parameters over a slice of rows: partial is
// [slices, 2, dim] in the order dγ, db, summed by reduce_slices.
// Grid (dim/32, slices), block 32 × 8.
template <class T>
__device__ void layernorm_parameters(const float *x, const float *mean, const float *rstd, const T *dy, float *partial, int rows, int dim) {
  __shared__ float part[8][2][32];
  const int c = blockIdx.x * 32 + threadIdx.x;
  float s[2] = {};
  if (c < dim) {
    for (int row = blockIdx.y * 8 + threadIdx.y; row < rows; row += gridDim.y * 8) {
      const size_t at = (size_t)row * dim + c;
      const float d = load(dy[at]);
      s[0] += d * (x[at] - mean[row]) * rstd[row], s[1] += d;
    }
  }
  part[threadIdx.y][0][threadIdx.x] = s[0], part[threadIdx.y][1][threadIdx.x] = s[1];
  __syncthreads();
  if (threadIdx.y < 2 && c < dim) {
    float t = 0;
#pragma unroll
    for (int y = 0; y < 8; y++) t += part[y][threadIdx.y][threadIdx.x];
    partial[((size_t)blockIdx.y * 2 + threadIdx.y) * dim + c] = t;
  }
}
EXPORT(layernorm_parameters, 256, (const float *x, const float *mean, const float *rstd, const T *dy, float *partial, int rows, int dim), (x, mean, rstd, dy, partial, rows, dim))
