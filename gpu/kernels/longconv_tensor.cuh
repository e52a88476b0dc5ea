// What the tensor-core long convolution is made of: products with a Toeplitz
// matrix of the filter, and sums along the diagonals of an outer product, both
// by mma.sync m16n8k16 (bf16 in, float32 sums).
//
// A block has 8 sequences of one channel in shared memory, a warp works on
// tiles of 128 positions. The 8 × 8 pieces of a Toeplitz matrix H[n, m] =
// h[n − m] depend on n₀ − m₀ alone. So when a warp's products go on by 16
// positions, 7 of its 8 matrix operands are those of the step before, moved by
// one: they stay in registers, and a step fetches one new operand for 8
// products. No Toeplitz tile is ever built in memory.
#pragma once
#include "common.cuh"

namespace toeplitz {
template <int N> struct Int { static constexpr int value = N; };

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

// Tiles in falling length are dealt to the warps there and back, so that each gets
// as much: warp w's tiles are i = w, then next(i).
__device__ __forceinline__ int next(int i) { return i + 2 * (WARPS - 1 - i % WARPS) + 1; }

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

// Two copies each of the filter in bf16, the second one element further, so
// that a pair of neighbours lies in one word in one of them.
//   backwards: [P − x] and [P + 1 − x] hold h[x], P = padded(length): rows of h ∗
//   forwards:  [16 + x] and [17 + x] hold h[x]: rows of its transpose
// and zeros where x < 0 or x ≥ length. forwards may be null.
// h: [L], times exp(−n · rate). Fetch starts reading the first 1024 elements.
struct Filter {
  static constexpr int AHEAD = 1024 / THREADS;
  const float *h;
  int length;
  float v[AHEAD];
  __device__ __forceinline__ Filter(const float *h, int length) : h(h), length(length) { fetch(0); }
  __device__ __forceinline__ void fetch(int from) {
#pragma unroll
    for (int i = 0; i < AHEAD; i++) {
      const int x = from + i * THREADS + threadIdx.x;
      v[i] = x < length ? h[x] : 0.0f;
    }
  }
  __device__ __forceinline__ void spread(bf16 *backwards, bf16 *forwards, float rate) {
    const int P = padded(length), C = copy(length), t = threadIdx.x;
    for (int from = 0; from < P; from += 1024) {
      if (from > 0) fetch(from);
#pragma unroll
      for (int i = 0; i < AHEAD; i++) {
        const int x = from + i * THREADS + t;
        if (x >= P) break;
        const bf16 w = __float2bfloat16_rn(v[i] * exp2(-x * (rate * 1.4426950408889634f)));
        backwards[P - x] = backwards[C + P + 1 - x] = w;
        if (forwards) forwards[16 + x] = forwards[C + 17 + x] = w;
      }
    }
    const bf16 zero = __float2bfloat16_rn(0.0f);
    if (t < 32) {
      backwards[t < 1 ? t : P + t] = backwards[C + (t < 2 ? t : P + t)] = zero;
      if (forwards) forwards[t < 16 ? t : P + t] = forwards[C + (t < 17 ? t : P + t)] = zero;
    }
  }
  static __device__ __forceinline__ float exp2(float x) {
    float r;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
    return r;
  }
};

// A warp's row of the Toeplitz operand: where its lane finds the pair of
// elements of diagonal 0 (see multiply).
__device__ __forceinline__ const uint32_t *backwards_lane(const bf16 *table, int length) {
  const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
  return reinterpret_cast<const uint32_t *>(table) + (g & 1) * (copy(length) / 2) + padded(length) / 2 - 2 * (g >> 1) + t;
}
__device__ __forceinline__ const uint32_t *forwards_lane(const bf16 *table, int length) {
  const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
  return reinterpret_cast<const uint32_t *>(table) + (g & 1) * (copy(length) / 2) + 8 + t - 2 * (g >> 1);
}

// One tile of Σ_m H[n, m] x[b, m] over 16 · steps positions m from the diagonal
// outwards. DIR −1: H[n, m] = h[n − m], m falls from the tile's end; DIR +1:
// H[n, m] = h[m − n], m rises from its start. Sum i belongs to the tile's 16
// positions i counted from that end. Row r of a sum is position
// 4(r%8/2) + r%2 + 2(r/8), so that after a transposition a lane has 4
// neighbours. x(v, kk) gives the operands of steps kk and kk + 1.
template <int DIR, class X> __device__ __forceinline__ void multiply(float (&sum)[8][4], const uint32_t *filter, int steps, X x) {
  uint32_t W[8][4];  // by diagonal, mod 8
#pragma unroll
  for (int j = 0; j < 8; j++)
#pragma unroll
    for (int e = 0; e < 4; e++) sum[j][e] = 0;
  auto round = [&](int from, auto diagonal) {
#pragma unroll
    for (int kk = 0; kk < 8; kk += 2) {
      uint32_t b[4];
      x(b, from + kk);
#pragma unroll
      for (int i = 0; i < 2; i++) {
        const int k = kk + i;
        const uint32_t *f = filter + DIR * 8 * (from + k);
        W[k][0] = f[0], W[k][1] = f[-1], W[k][2] = f[4], W[k][3] = f[3];
#pragma unroll
        for (int j = 0; j < 8; j++) {
          if (decltype(diagonal)::value && j > k) continue;
          const int s = (k - j) & 7;
          mma(sum[j], W[s][0], W[s][1], W[s][2], W[s][3], b[2 * i], b[2 * i + 1]);
        }
      }
    }
  };
  round(0, Int<1>());
#pragma unroll 1
  for (int from = 8; from < steps; from += 8) round(from, Int<0>());
}

// Calls load(j, offset in a slot, row, n) for each sum j of a tile, all of them
// before the first f(what it returned, offset, row, n, four values): the sums,
// rounded to bf16, at positions n … n+3 of the block's sequence row.
template <int DIR, class G, class F> __device__ __forceinline__ void each(const float (&sum)[8][4], int tile, int length, G load, F f) {
  const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
  const int from = tile * TILE + 4 * t, at = g * stride(length) + from;
  decltype(load(0, 0, 0, 0)) given[8];
#pragma unroll
  for (int j = 0; j < 8; j++) {
    const int n = 16 * (DIR < 0 ? 7 - j : j);
    given[j] = load(j, at + n, g, from + n);
  }
#pragma unroll
  for (int j = 0; j < 8; j++) {
    const int n = 16 * (DIR < 0 ? 7 - j : j);
    const uint2 v = make_uint2(transpose(pack(sum[j][0], sum[j][1])), transpose(pack(sum[j][2], sum[j][3])));
    f(given[j], at + n, g, from + n, floats(v));
  }
}

// Sums along diagonals: dh[δ] = Σ_b Σ_n d[b, n] u[b, n − δ] for a band of 128
// differences. Products G[n, m] = Σ_b d[b, n] u[b, m] of 16 × 8 blocks whose
// n₀ − m₀ is equal are added into one of 16 tiles (17 in the first band, whose
// sum 0 is of difference −8). A step's inner dimension of 16 is the 8 sequences
// at one block and at the one half the sequence further on. Of 16 pairs of
// operands of u two are new a step, the others stay in registers.
// d(v, n): the 8 × 8 pieces, transposed, at n, n + 8 and both again half further;
// u(v, m): at m, half further, m + 8, half further; zero where m < 0.
template <bool FIRST, class D, class U> __device__ __forceinline__ void correlate(float (&sum)[17][4], int band, int bands, D d, U u) {
  uint32_t V[8][4];
#pragma unroll
  for (int p = 0; p < 17; p++)
#pragma unroll
    for (int e = 0; e < 4; e++) sum[p][e] = 0;
#pragma unroll
  for (int s = 1; s < 8; s++) u(V[s], 16 * (s - 8) - 8);
  auto step = [&](int s, auto slot) {  // slot = s mod 8
    constexpr int o = decltype(slot)::value;
    uint32_t a[4];
    d(a, band * TILE + 16 * s);
    u(V[o], 16 * s - 8);
#pragma unroll
    for (int p = 0; p < 16; p++) {
      // piece 2s − p is in the slot of step ⌈(2s − p) / 2⌉
      const int i = (o - p / 2 + 8) % 8, e = p % 2 ? 0 : 2;
      mma(sum[p + 1], a[0], a[1], a[2], a[3], V[i][e], V[i][e + 1]);
    }
    if (FIRST) {
      uint32_t b[4];
      u(b, 16 * s + 8);
      mma(sum[0], a[0], a[1], a[2], a[3], b[0], b[1]);
    }
  };
  const int steps = 4 * (bands - band);
#pragma unroll 1
  for (int s = 0; s < steps; s += 8) {
    step(s, Int<0>()), step(s + 1, Int<1>()), step(s + 2, Int<2>()), step(s + 3, Int<3>());
    if (s + 4 >= steps) break;
    step(s + 4, Int<4>()), step(s + 5, Int<5>()), step(s + 6, Int<6>()), step(s + 7, Int<7>());
  }
}
}  // namespace toeplitz
