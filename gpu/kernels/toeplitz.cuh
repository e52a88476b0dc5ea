// Products with a Toeplitz matrix of the filter, and sums along the diagonals of
// an outer product, by mma.sync m16n8k16 (bf16 in, float32 sums).
//
// A warp works on tiles of 128 positions of the block's 8 sequences. The 8 × 8
// pieces of a Toeplitz matrix H[n, m] = h[n − m] depend on n₀ − m₀ alone. So when a
// warp's products go on by 16 positions, 7 of its 8 matrix operands are those of
// the step before, moved by one: they stay in registers, and a step fetches one
// new operand for 8 products. No Toeplitz tile is ever built in memory.
#pragma once
#include "tensor_rows.cuh"

namespace toeplitz {
// A number that a lambda can take as a constant.
template <int N> struct Int { static constexpr int value = N; };

// Tiles in falling length are dealt to the warps there and back, so that each gets
// as much: warp w's tiles are i = w, then next(i).
__device__ __forceinline__ int next(int i) { return i + 2 * (WARPS - 1 - i % WARPS) + 1; }

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

// A band's tiles, summed along their diagonals: part p of the result is
// dh[band · 128 + 8p + 0 … 7]. What reaches into the bands beside it, and what
// they add to, goes to edges: [4, bands, 8].
__device__ __forceinline__ void diagonals(const float (&sum)[17][4], int band, int bands, float *edges, float *dh, int length) {
  const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
  const int src0 = ((g + 2 * t) & 7) * 4 + t, src1 = ((g + 2 * t + 1) & 7) * 4 + t;
  const bool wrap0 = g + 2 * t >= 8, wrap1 = g + 2 * t + 1 >= 8;
  float R[18], carry = 0;  // R[p + 1]
#pragma unroll
  for (int p = 16; p >= -1; p--) {
    // a class's lower half has the differences of the next one's upper half
    float e0 = 0, e1 = 0;
    if (p < 16) e0 = sum[p + 1][0], e1 = sum[p + 1][1];
    if (p >= 0) e0 += sum[p][2], e1 += sum[p][3];
    const float v0 = __shfl_sync(0xffffffffu, e0, src0), v1 = __shfl_sync(0xffffffffu, e1, src1);
    float r = carry + (wrap0 ? 0.0f : v0) + (wrap1 ? 0.0f : v1);
    carry = (wrap0 ? v0 : 0.0f) + (wrap1 ? v1 : 0.0f);
    r += __shfl_xor_sync(0xffffffffu, r, 1);
    R[p + 1] = r + __shfl_xor_sync(0xffffffffu, r, 2);
  }
  if (t == 0) {
    edges[band * 8 + g] = R[0];                      // below the band
    edges[(bands + band) * 8 + g] = R[1];            // its first 8
    edges[(2 * bands + band) * 8 + g] = R[16];       // its last 8
    edges[(3 * bands + band) * 8 + g] = R[17];       // above it
  }
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const float r = t == 0 ? R[4 * i + 1] : t == 1 ? R[4 * i + 2] : t == 2 ? R[4 * i + 3] : R[4 * i + 4];
    const int p = 4 * i + t, n = band * TILE + 8 * p + g;
    if (p > 0 && p < 15 && n < length) dh[n] = r;
  }
}
}  // namespace toeplitz
