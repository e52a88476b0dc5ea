// Mean squared error against a teacher's activations, decoded on the way.
//
//   loss = Σ (x − t)² / n,   dx = [carried +] 2 (x − t) / n,   n = rows · dim
//
// x, dx: [rows, dim] float32. t: [rows, dim] as the record holds it: float32,
// float16, bfloat16, or int8 times a float32 scale a row.
#include "common.cuh"

enum Encoding { Float32 = 0, Float16 = 1, BFloat16 = 2, Int8 = 3 };

__device__ __forceinline__ float decode(const void *t, const float *scales, long long i, int dim, int encoding) {
  switch (encoding) {
    case Float16: return __half2float(static_cast<const __half *>(t)[i]);
    case BFloat16: return load(static_cast<const bf16 *>(t)[i]);
    case Int8: return __fmul_rn((float)static_cast<const int8_t *>(t)[i], scales[i / dim]);  // rounded before the difference, as on the host
  }
  return static_cast<const float *>(t)[i];
}

// partial: a sum a block, added up by total. copy (of T, may be null) is dx for
// the matrix products. add tells whether dx already holds what the blocks above
// carry down.
template <class T>
__device__ void mse(const float *x, const void *t, const float *scales, float *dx, T *copy, float *partial, long long n, int dim, int encoding, int add) {
  __shared__ float scratch[32];
  const float scale = 2.0f / n;
  float s = 0;
  for (long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x; i < n; i += (long long)gridDim.x * blockDim.x) {
    const float d = x[i] - decode(t, scales, i, dim, encoding);
    s += d * d;
    const float g = d * scale + (add ? dx[i] : 0.0f);
    dx[i] = g;
    if (copy) copy[i] = store<T>(g);
  }
  s = block_sum(s, scratch);
  if (threadIdx.x == 0) partial[blockIdx.x] = s;
}
EXPORT(mse, 256, (const float *x, const void *t, const float *scales, float *dx, T *copy, float *partial, long long n, int dim, int encoding, int add),
       (x, t, scales, dx, copy, partial, n, dim, encoding, add))
