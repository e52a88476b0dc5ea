// Sums in a fixed order, in two stages: slices of rows first, then the slices.
#include "common.cuh"

// Column sums over a slice of rows: partial[s, c] = Σ_{rows of slice s} v[r, c].
// v: [rows, cols] of T, cols a multiple of 8. Grid (cols/256, slices), block
// 32 × 8: a thread has 8 columns.
template <class T> __device__ void column_sum(const T *v, float *partial, int rows, int cols) {
  __shared__ float part[8][256];
  const int c = blockIdx.x * 256 + threadIdx.x * 8;
  float s[8] = {};
  if (c < cols) {
#pragma unroll 4
    for (int row = blockIdx.y * 8 + threadIdx.y; row < rows; row += gridDim.y * 8) {
      float x[8];
      load8(v + (size_t)row * cols + c, x);
#pragma unroll
      for (int i = 0; i < 8; i++) s[i] += x[i];
    }
  }
#pragma unroll
  for (int i = 0; i < 8; i++) part[threadIdx.y][threadIdx.x * 8 + i] = s[i];
  __syncthreads();
  const int t = threadIdx.y * 32 + threadIdx.x, col = blockIdx.x * 256 + t;
  if (col < cols) {
    float sum = 0;
#pragma unroll
    for (int y = 0; y < 8; y++) sum += part[y][t];
    partial[(size_t)blockIdx.y * cols + col] = sum;
  }
}
EXPORT(column_sum, 256, (const T *v, float *partial, int rows, int cols), (v, partial, rows, cols))

// out[c] = Σ_s partial[s · stride + c], in a fixed order; copied to out2 as well
// where that is not null. Grid cols/32, block 32 × 8.
extern "C" __global__ void __launch_bounds__(256) reduce_slices(const float *partial, float *out, float *out2, int slices, long long stride, int cols) {
  __shared__ float part[8][32];
  const int c = blockIdx.x * 32 + threadIdx.x;
  float s = 0;
  if (c < cols) {
#pragma unroll 8
    for (int i = threadIdx.y; i < slices; i += 8) s += partial[i * stride + c];
  }
  part[threadIdx.y][threadIdx.x] = s;
  __syncthreads();
  if (threadIdx.y > 0 || c >= cols) return;
  s = 0;
#pragma unroll
  for (int y = 0; y < 8; y++) s += part[y][threadIdx.x];
  out[c] = s;
  if (out2) out2[c] = s;
}

// *out = scale · Σ v in float64. One block of 1024 threads.
extern "C" __global__ void total(const float *v, long long n, double scale, double *out) {
  __shared__ double scratch[32];
  double s = 0;
  for (long long i = threadIdx.x; i < n; i += blockDim.x) s += v[i];
  s = block_sum(s, scratch);
  if (threadIdx.x == 0) *out = s * scale;
}

// dst = src rounded to bf16.
extern "C" __global__ void to_bf16(const float *src, bf16 *dst, long long n) {
  for (long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x; i < n; i += (long long)gridDim.x * blockDim.x) dst[i] = store<bf16>(src[i]);
}

// dst[r, c] = src[r, c] in float32; rows of src are ld apart.
template <class T> __device__ void to_float32(const T *src, float *dst, int rows, int cols, int ld) {
  const long long n = (long long)rows * cols;
  for (long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x; i < n; i += (long long)gridDim.x * blockDim.x)
    dst[i] = load(src[i / cols * ld + i % cols]);
}
EXPORT(to_float32, 256, (const T *src, float *dst, int rows, int cols, int ld), (src, dst, rows, cols, ld))
