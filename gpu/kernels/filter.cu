// The implicit filter's FFN between its matrix products (Poli et al. 2023): a
// sine with a trained frequency φ that the three hidden layers share. All in
// float64: φ is about 14, so three sines in a row multiply a rounding error by
// thousands, and the filter is small.
//
//   p[n, i] = x[n]·W_i + b_i,   a = sin(φ ⊙ p)    p, a: [length, width]
//   dp = φ ⊙ cos(φ ⊙ p) ⊙ da,   dφ = Σ_n p ⊙ cos(φ ⊙ p) ⊙ da,   db = Σ_n dp
#include "common.cuh"

// Between the float32 of weights and gradients and the float64 in here.
extern "C" __global__ void widen(const float *src, double *dst, long long n) {
  const long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
  if (i < n) dst[i] = src[i];
}
extern "C" __global__ void narrow(const double *src, float *dst, long long n) {
  const long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
  if (i < n) dst[i] = (float)src[i];
}

// p holds x·W and gets the bias.
extern "C" __global__ void sine_forward(double *p, const double *bias, const float *phi, double *a, int length, int width) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= length * width) return;
  const double v = p[i] + bias[i % width];
  p[i] = v, a[i] = sin(phi[i % width] * v);
}

// dp replaces da. Column sums over a slice of positions: partial is
// [slices, 2, width], dφ then db. Grid (width/32, slices), block 32 × 8.
extern "C" __global__ void sine_backward(double *da, const double *p, const float *phi, double *partial, int length, int width) {
  __shared__ double part[2][8][32];
  const int c = blockIdx.x * 32 + threadIdx.x;
  double sphi = 0, sb = 0;
  if (c < width) {
    const double f = phi[c];
    for (int n = blockIdx.y * 8 + threadIdx.y; n < length; n += gridDim.y * 8) {
      const int i = n * width + c;
      const double g = da[i] * cos(f * p[i]);
      sphi += g * p[i], sb += g * f;
      da[i] = g * f;
    }
  }
  part[0][threadIdx.y][threadIdx.x] = sphi, part[1][threadIdx.y][threadIdx.x] = sb;
  __syncthreads();
  if (threadIdx.y < 2 && c < width) {
    double t = 0;
#pragma unroll
    for (int y = 0; y < 8; y++) t += part[threadIdx.y][y][threadIdx.x];
    partial[((size_t)blockIdx.y * 2 + threadIdx.y) * width + c] = t;
  }
}

// dφ (added to what later layers gave unless first) and db from the slices.
extern "C" __global__ void sine_parameters(const double *partial, float *dphi, double *db, int slices, int width, int first) {
  const int c = blockIdx.x * blockDim.x + threadIdx.x;
  if (c >= width) return;
  double sphi = 0, sb = 0;
  for (int s = 0; s < slices; s++) sphi += partial[(size_t)(2 * s) * width + c], sb += partial[(size_t)(2 * s + 1) * width + c];
  dphi[c] = (float)(first ? sphi : dphi[c] + sphi);
  db[c] = sb;
}
