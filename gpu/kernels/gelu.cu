// The MLP's activation, exact GELU (Hendrycks and Gimpel 2016); the bias is
// already added by the matrix product.
//
//   g = a · Φ(a),   Φ(a) = (1 + erf(a/√2)) / 2
//   da = dg · (Φ(a) + a · φ(a)),   db = Σ_rows da
//
// a, g, da, dg: [rows, cols] of T, cols a multiple of 8.
#include "common.cuh"

__device__ __forceinline__ float normal_cdf(float a) { return 0.5f * (1.0f + erff(a * 0.70710678118654752f)); }

template <class T> __device__ void gelu_forward(const T *a, T *g, long long n) {
  const long long i = 8 * (blockIdx.x * (long long)blockDim.x + threadIdx.x);
  if (i >= n) return;
  float v[8];
  load8(a + i, v);
#pragma unroll
  for (int k = 0; k < 8; k++) v[k] *= normal_cdf(v[k]);
  store8(g + i, v);
}
EXPORT(gelu_forward, 256, (const T *a, T *g, long long n), (a, g, n))

// da replaces dg; partial [slices, cols] are column sums of da over slices of
// rows. Grid (cols/256, slices), block 32 × 8: a thread has 8 columns.
template <class T> __device__ void gelu_backward(const T *a, T *dg, float *partial, int rows, int cols) {
  __shared__ float part[8][256];
  const int c = blockIdx.x * 256 + threadIdx.x * 8;
  float s[8] = {};
  if (c < cols) {
    for (int row = blockIdx.y * 8 + threadIdx.y; row < rows; row += gridDim.y * 8) {
      const size_t at = (size_t)row * cols + c;
      float v[8], d[8];
      load8(a + at, v), load8(dg + at, d);
#pragma unroll
      for (int k = 0; k < 8; k++) {
        d[k] *= normal_cdf(v[k]) + v[k] * 0.39894228040143268f * expf(-0.5f * v[k] * v[k]);
        s[k] += d[k];
      }
      store8(dg + at, d);
    }
  }
#pragma unroll
  for (int k = 0; k < 8; k++) part[threadIdx.y][threadIdx.x * 8 + k] = s[k];
  __syncthreads();
  const int t = threadIdx.y * 32 + threadIdx.x, col = blockIdx.x * 256 + t;
  if (col < cols) {
    float sum = 0;
#pragma unroll
    for (int y = 0; y < 8; y++) sum += part[y][t];
    partial[(size_t)blockIdx.y * cols + col] = sum;
  }
}
EXPORT(gelu_backward, 256, (const T *a, T *dg, float *partial, int rows, int cols), (a, dg, partial, rows, cols))
