// How blocks of the tensor-core long convolution hold their data: 8 sequences of
// one channel in shared memory, as bf16, a slot a tensor; and the instructions
// that feed mma.sync from there.
#pragma once
#include "common.cuh"

namespace toeplitz {
constexpr int ROWS = 8;      // sequences a block
constexpr int WARPS = 4;     // warps a block
constexpr int THREADS = 32 * WARPS;
constexpr int TILE = 128;    // positions a warp's tile

// Positions a sequence has in shared memory: whole tiles, zero past its end.
__host__ __device__ constexpr int padded(int length) { return (length + TILE - 1) / TILE * TILE; }
// Elements between sequences in shared memory; ≡ 4 words mod 32, so that
// ldmatrix reads 8 sequences without a bank conflict.
__host__ __device__ constexpr int stride(int length) { return padded(length) + 8; }
// Elements of one copy of the filter; ≡ 16 words mod 32.
__host__ __device__ constexpr int copy(int length) { return padded(length) + 32; }

__device__ __forceinline__ uint32_t address(const void *p) { return (uint32_t)__cvta_generic_to_shared(p); }

__device__ __forceinline__ void mma(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
__device__ __forceinline__ void ldmatrix4(uint32_t (&v)[4], uint32_t at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3]) : "r"(at));
}
__device__ __forceinline__ void ldmatrix4_trans(uint32_t (&v)[4], uint32_t at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3]) : "r"(at));
}
// Transposes an 8 × 8 matrix spread over a warp.
__device__ __forceinline__ uint32_t transpose(uint32_t v) {
  uint32_t r;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(r) : "r"(v));
  return r;
}
__device__ __forceinline__ uint32_t pack(float lo, float hi) {
  const __nv_bfloat162 two = __floats2bfloat162_rn(lo, hi);
  return *reinterpret_cast<const uint32_t *>(&two);
}
__device__ __forceinline__ uint32_t product(uint32_t a, uint32_t b) {
  const __nv_bfloat162 p = __hmul2(*reinterpret_cast<const __nv_bfloat162 *>(&a), *reinterpret_cast<const __nv_bfloat162 *>(&b));
  return *reinterpret_cast<const uint32_t *>(&p);
}
__device__ __forceinline__ uint4 product(uint4 a, uint4 b) {
  return make_uint4(product(a.x, b.x), product(a.y, b.y), product(a.z, b.z), product(a.w, b.w));
}
__device__ __forceinline__ float low(uint32_t v) { return __uint_as_float(v << 16); }
__device__ __forceinline__ float high(uint32_t v) { return __uint_as_float(v & 0xffff0000u); }
__device__ __forceinline__ float4 floats(uint2 v) { return make_float4(low(v.x), high(v.x), low(v.y), high(v.y)); }
__device__ __forceinline__ uint2 packed(float4 v) { return make_uint2(pack(v.x, v.y), pack(v.z, v.w)); }

// Eight elements n … n+7 of a row in global memory, zero past length. VEC: the
// row is 16-byte aligned and length a multiple of 8.
template <bool VEC> __device__ __forceinline__ uint4 gather(const bf16 *row, int n, int length) {
  if constexpr (VEC) return n < length ? *reinterpret_cast<const uint4 *>(row + n) : make_uint4(0, 0, 0, 0);
  uint32_t w[4] = {};
#pragma unroll
  for (int i = 0; i < 4 && !VEC; i++) {
    const uint32_t a = n + 2 * i < length ? __bfloat16_as_ushort(row[n + 2 * i]) : 0, b = n + 2 * i + 1 < length ? __bfloat16_as_ushort(row[n + 2 * i + 1]) : 0;
    w[i] = a | b << 16;
  }
  return make_uint4(w[0], w[1], w[2], w[3]);
}
template <bool VEC> __device__ __forceinline__ uint2 gather_four(const bf16 *row, int n, int length) {
  if constexpr (VEC) return n < length ? *reinterpret_cast<const uint2 *>(row + n) : make_uint2(0, 0);
  const uint4 v = gather<false>(row, n, min(length, n + 4));
  return make_uint2(v.x, v.y);
}
template <bool VEC> __device__ __forceinline__ void scatter(bf16 *row, int n, int length, uint2 v) {
  if (VEC) {
    if (n < length) *reinterpret_cast<uint2 *>(row + n) = v;
    return;
  }
  const uint32_t w[2] = {v.x, v.y};
#pragma unroll
  for (int i = 0; i < 4; i++)
    if (n + i < length) row[n + i] = __ushort_as_bfloat16((uint16_t)(w[i / 2] >> 16 * (i % 2)));
}
template <bool VEC> __device__ __forceinline__ void scatter(bf16 *row, int n, int length, uint4 v) {
  if (VEC) {
    if (n < length) *reinterpret_cast<uint4 *>(row + n) = v;
    return;
  }
  scatter<VEC>(row, n, length, make_uint2(v.x, v.y));
  scatter<VEC>(row, n + 4, length, make_uint2(v.z, v.w));
}

// Starts copying the block's sequences of one tensor into shared memory. row0:
// the first of them in global memory; rows: how many exist, the others become
// zeros. A warp brings sequences 2w and 2w + 1, 8 elements a lane.
template <bool VEC> __device__ __forceinline__ void bring(bf16 *slot, const bf16 *row0, int rows, int length) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
#pragma unroll
  for (int i = 0; i < ROWS / WARPS; i++) {
    const int r = warp * (ROWS / WARPS) + i;
    bf16 *to = slot + r * stride(length);
    const bf16 *from = row0 + (size_t)r * length;
#pragma unroll 4
    for (int n = 8 * lane; n < padded(length); n += 256) {
      if (!VEC || r >= rows || n >= length)
        *reinterpret_cast<uint4 *>(to + n) = r < rows ? gather<VEC>(from, n, length) : make_uint4(0, 0, 0, 0);
      else
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address(to + n)), "l"(from + n));
    }
  }
}
// Asks for the block's sequences of one tensor to be brought to the L2 cache.
__device__ __forceinline__ void prefetch(const bf16 *row0, int rows, int length) {
  const char *p = reinterpret_cast<const char *>(row0);
  for (int i = 128 * threadIdx.x; i < 2 * rows * length; i += 128 * THREADS) asm volatile("prefetch.global.L2 [%0];" ::"l"(p + i));
}
__device__ __forceinline__ void commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int LEFT> __device__ __forceinline__ void arrive() { asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory"); }

// Calls f(offset in a slot, n, …) for what the warp brought to N slots: 8 elements
// a lane, of 4 strips of 256 positions at a time, all read before the first call.
// begin(row) comes before each sequence. All lanes call, with zeros past padded(length).
template <int N, class B, class F> __device__ __forceinline__ void own(const bf16 *(&slots)[N], int length, B begin, F f) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
#pragma unroll 1
  for (int i = 0; i < ROWS / WARPS; i++) {
    const int r = warp * (ROWS / WARPS) + i;
    begin(r);
    for (int from = 0; from < padded(length); from += 1024) {
      uint4 v[4][N];
#pragma unroll
      for (int j = 0; j < 4; j++) {
        const int n = from + 256 * j + 8 * lane;
#pragma unroll
        for (int k = 0; k < N; k++) v[j][k] = n < padded(length) ? *reinterpret_cast<const uint4 *>(slots[k] + r * stride(length) + n) : make_uint4(0, 0, 0, 0);
      }
#pragma unroll
      for (int j = 0; j < 4; j++) {
        const int n = from + 256 * j + 8 * lane;
        f(r * stride(length) + n, n, v[j]);
      }
    }
  }
}
}  // namespace toeplitz
