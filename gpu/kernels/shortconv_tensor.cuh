// The short convolution of the Hyena operator (see shortconv.cu) and its
// gradients, on sequences as tensor_rows.cuh holds them, 8 positions a lane.
#pragma once
#include "tensor_rows.cuh"

namespace toeplitz {
// Short convolution of one channel: s[n] = bs + Σ_j w[j] · ẑ[n − 2 + j], ẑ = z + bin.
struct Taps { float w[3], bin, bs; };
__device__ __forceinline__ Taps taps(const float *bin, const float *w, const float *bs, int channel) {
  return {{w[3 * channel], w[3 * channel + 1], w[3 * channel + 2]}, bin[channel], bs[channel]};
}

// z at n−2 … n+7 from a lane's 8 elements and the last two of the lane before,
// which are carry for lane 0. All lanes of a warp take part, 8 positions apart;
// carry becomes what the next 256 positions need, 0 at a sequence's start.
__device__ __forceinline__ void window(uint4 v, uint32_t &carry, float (&x)[10]) {
  uint32_t before = __shfl_up_sync(0xffffffffu, v.w, 1);
  if ((threadIdx.x & 31) == 0) before = carry;
  carry = __shfl_sync(0xffffffffu, v.w, 31);
  const uint32_t w[5] = {before, v.x, v.y, v.z, v.w};
#pragma unroll
  for (int i = 0; i < 5; i++) x[2 * i] = low(w[i]), x[2 * i + 1] = high(w[i]);
}

__device__ __forceinline__ uint4 packed(const float (&s)[8]) { return make_uint4(pack(s[0], s[1]), pack(s[2], s[3]), pack(s[4], s[5]), pack(s[6], s[7])); }

// s at n … n+7; zero past length.
template <bool VEC> __device__ __forceinline__ uint4 shorten(uint4 v, uint32_t &carry, const Taps &c, int n, int length) {
  float x[10], s[8];
  window(v, carry, x);
  const float bias = c.bs + c.bin * (c.w[0] + c.w[1] + c.w[2]);
#pragma unroll
  for (int e = 0; e < 8; e++) s[e] = bias + c.w[0] * x[e] + c.w[1] * x[e + 1] + c.w[2] * x[e + 2];
  if (n == 0) s[0] -= c.bin * (c.w[0] + c.w[1]), s[1] -= c.bin * c.w[0];  // no bias before the start
  if (!VEC && n + 8 > length) {
#pragma unroll
    for (int e = 0; e < 8; e++)
      if (n + e >= length) s[e] = 0;
  }
  return VEC && n >= length ? make_uint4(0, 0, 0, 0) : packed(s);
}

// What a warp knows of one part's parameters: Σ ds · z of the three taps, Σ ds,
// and the ds at the first two positions, which see no bias before the start.
struct Sums { float tap[3] = {}, all = 0, first[2] = {}; };

// A warp's share of 1024 positions of one sequence, in 4 strips of 256.
template <bool VEC> __device__ __forceinline__ void strips(const bf16 *row, int from, int rows, int length, uint4 (&v)[4]) {
#pragma unroll
  for (int i = 0; i < 4; i++) v[i] = rows ? gather<VEC>(row, from + 256 * i + 8 * (int)(threadIdx.x & 31), length) : make_uint4(0, 0, 0, 0);
}

// dz of one sequence of one part from ds in shared memory, and the sums. z: its
// first 1024 elements as strips has them.
template <bool VEC> __device__ __forceinline__ void lengthen(const bf16 *ds, const bf16 *row, uint4 (&z)[4], bf16 *dz, const Taps &c, Sums &sum, int length) {
  const int lane = threadIdx.x & 31;
  uint32_t carry = 0;
  for (int from = 0; from < padded(length); from += 1024) {
    if (from > 0) strips<VEC>(row, from, 1, length, z);
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int n = from + 256 * i + 8 * lane;
      float x[10], g[10], out[8];
      window(z[i], carry, x);
      if (n >= length) continue;
      const uint4 d = *reinterpret_cast<const uint4 *>(ds + n);
      const uint32_t v[5] = {d.x, d.y, d.z, d.w, n + 8 < padded(length) ? *reinterpret_cast<const uint32_t *>(ds + n + 8) : 0};
#pragma unroll
      for (int j = 0; j < 5; j++) g[2 * j] = low(v[j]), g[2 * j + 1] = high(v[j]);
#pragma unroll
      for (int j = 0; j < 8; j++) {
        out[j] = c.w[2] * g[j] + c.w[1] * g[j + 1] + c.w[0] * g[j + 2];
        sum.tap[0] += g[j] * x[j], sum.tap[1] += g[j] * x[j + 1], sum.tap[2] += g[j] * x[j + 2];
        sum.all += g[j];
      }
      if (n == 0) sum.first[0] += g[0], sum.first[1] += g[1];
      scatter<VEC>(dz, n, length, packed(out));
    }
  }
}
}  // namespace toeplitz
