// A teacher's activations as the mean squared error reads them: [rows, dim] in
// a record's encoding, float32, float16, bfloat16, or int8 times a float32 scale
// a row; or in float32, as a teacher on the same device leaves them, to be
// rounded as a record of that encoding would have been.
#pragma once
#include "common.cuh"

namespace target {
enum Encoding { Float32 = 0, Float16 = 1, BFloat16 = 2, Int8 = 3, RoundFloat16 = 5, RoundBFloat16 = 6, RoundInt8 = 7 };

// Eight float16 of 16 bytes.
__device__ __forceinline__ void halves(const void *p, float (&v)[8]) {
  const uint4 a = *static_cast<const uint4 *>(p);
  const uint32_t w[4] = {a.x, a.y, a.z, a.w};
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const float2 two = __half22float2(*reinterpret_cast<const __half2 *>(w + i));
    v[2 * i] = two.x, v[2 * i + 1] = two.y;
  }
}

// Elements at … at+7 of a row. scale: of an int8 row.
__device__ __forceinline__ void load8(const void *t, size_t at, int encoding, float scale, float (&v)[8]) {
  switch (encoding) {
    case Float16: halves(static_cast<const __half *>(t) + at, v); return;
    case BFloat16: ::load8(static_cast<const bf16 *>(t) + at, v); return;
    case Int8: {
      const uint2 a = *reinterpret_cast<const uint2 *>(static_cast<const int8_t *>(t) + at);
#pragma unroll
      for (int i = 0; i < 8; i++) v[i] = __fmul_rn((float)(int8_t)((i < 4 ? a.x : a.y) >> 8 * (i & 3)), scale);  // rounded before the difference, as on the host
      return;
    }
  }
  ::load8(static_cast<const float *>(t) + at, v);
  if (encoding == Float32) return;
#pragma unroll
  for (int i = 0; i < 8; i++) {
    if (encoding == RoundFloat16) v[i] = __half2float(__float2half_rn(v[i]));
    if (encoding == RoundBFloat16) v[i] = __bfloat162float(__float2bfloat16_rn(v[i]));
    if (encoding == RoundInt8) v[i] = scale > 0 ? __fmul_rn((float)rint((double)v[i] / scale), scale) : 0.0f;
  }
}

// The scale of a row of int8: as the record has it, or max|t| / 127. A warp's.
__device__ __forceinline__ float row_scale(const void *t, const float *scales, int row, int dim, int encoding) {
  if (encoding == Int8) return scales[row];
  if (encoding != RoundInt8) return 0;
  float top = 0;
  for (int c = threadIdx.x & 31; c < dim; c += 32) top = fmaxf(top, fabsf(static_cast<const float *>(t)[(size_t)row * dim + c]));
  return warp_max(top) / 127;
}
}  // namespace target
