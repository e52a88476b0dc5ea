// What the kernels of attention_hopper.cu and attention_hopper_backward.cu share: a
// ring of tiles of 64 rows, their products, and the way of sums back to memory.
#pragma once
#include "hopper.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
namespace hopper {

constexpr float LOG2E = 1.4426950408889634f;

template <int D> struct Plan {
  static constexpr int HALVES = D / 64;                 // boxes side by side that hold D
  static constexpr int TILE = HALVES * BOX;             // bytes of 64 rows
  static constexpr int STAGE = 2 * TILE;                // two tensors
  static constexpr int STAGES = D == 64 ? 4 : 3;
  // backward_kv, whose sums take twice the registers
  static constexpr int KEY_GROUPS = D == 64 ? 1 : 2, KEY_STAGES = 3;
};

// Which of the tiles × heads × B of the grid a block has, where blocks, which start
// in the order of their indices, shall take a few heads at a time, as many as fill an
// H100's 132 multiprocessors: first their longest tiles, then the second longest, so
// that blocks end together. That serves dk and dv; the other passes are faster with
// a head's tiles side by side, which then share what they read while it comes.
struct Place { int tile, head, b; };
__device__ __forceinline__ Place place(int blocks_each) {
  const int tiles = gridDim.x, pairs = gridDim.y * gridDim.z, id = blockIdx.x + tiles * (blockIdx.y + gridDim.y * blockIdx.z);
  const int heads = max(1, 132 * blocks_each / tiles), chunk = id / (heads * tiles), rest = id - chunk * heads * tiles;
  const int many = min(heads, pairs - chunk * heads), tile = rest / many, pair = chunk * heads + rest - tile * many;
  return {tile, pair % (int)gridDim.y, pair / (int)gridDim.y};
}

// The memory of a block: 64-row tiles that stay, a ring of stages of two tiles,
// the barriers, and what else there is.
template <int D, int STAY, int STAGES_> struct Memory {
  using P = Plan<D>;
  static constexpr int STAGES = STAGES_;
  static constexpr int RING = STAY * P::TILE, READY = RING + STAGES * P::STAGE, FULL = READY + 8, EMPTY = FULL + 8 * STAGES, REST = READY + 128;
  static_assert(EMPTY + 8 * STAGES <= REST);
};

// What the warpgroups read: stage n mod STAGES has tile n of a sequence of tiles.
// A warp gives it back when its products on it are done; thread 0 fills it again
// LAG tiles later, so that one warpgroup may be that far behind the other.
template <class M, int LAG> struct Ring {
  using P = typename M::P;
  static constexpr int STAGES = M::STAGES;
  uint32_t base;  // of the block's memory

  __device__ __forceinline__ uint32_t stage(int n) const { return base + M::RING + n % STAGES * P::STAGE; }
  __device__ __forceinline__ uint32_t full(int n) const { return base + M::FULL + n % STAGES * 8; }
  __device__ __forceinline__ uint32_t empty(int n) const { return base + M::EMPTY + n % STAGES * 8; }
  __device__ __forceinline__ void init() const {
    for (int i = 0; i < STAGES; i++) barrier_init(full(i), 1), barrier_init(empty(i), blockDim.x / 32);
  }
  __device__ __forceinline__ void await(int n) const { wait(full(n), n / STAGES & 1); }
  __device__ __forceinline__ void give_back(int n) const {
    if ((threadIdx.x & 31) == 0) arrive(empty(n));
  }
  // By thread 0. fetch(stage, n, barrier) starts the copies of tile n, STAGE bytes.
  template <class F> __device__ __forceinline__ void fill(int n, F fetch) const {
    arrive_expecting(full(n), P::STAGE);
    fetch(stage(n), n, full(n));
  }
  template <class F> __device__ __forceinline__ void begin_fill(int count, F fetch) const {
    for (int n = 0; n < min(STAGES, count); n++) fill(n, fetch);
  }
  // After tile now − 1 was given back.
  template <class F> __device__ __forceinline__ void refill(int now, int count, F fetch) const {
    const int n = now - LAG + STAGES;
    if (threadIdx.x != 0 || now < LAG || n >= count) return;
    wait(empty(n), n / STAGES - 1 & 1);
    fill(n, fetch);
  }
};

// 64 rows of one tensor: entry y of rows r … of sequence b.
template <int D> __device__ __forceinline__ void copy_tile(uint32_t to, const TensorMap *map, int y, int r, int b, uint32_t bar) {
#pragma unroll
  for (int h = 0; h < Plan<D>::HALVES; h++) copy_box(to + h * BOX, map, 64 * h, y, r, b, bar);
}

// c[64 × 64] = A · Bᵀ, both [64 × D] in shared memory.
template <int D> __device__ __forceinline__ void dots(float (&c)[32], uint32_t A, uint32_t B) {
#pragma unroll
  for (int h = 0; h < Plan<D>::HALVES; h++) {
    const uint32_t a = descriptor(A + h * BOX), b = descriptor(B + h * BOX);
#pragma unroll
    for (int k = 0; k < 4; k++) product(c, a + k * ALONG, b + k * ALONG, h + k > 0);
  }
}
// c[64 × D] += W[64 × 64] · V[64 × D], W in registers.
template <int D> __device__ __forceinline__ void combine(float (&c)[Plan<D>::HALVES][32], const uint32_t (&w)[16], uint32_t V) {
#pragma unroll
  for (int h = 0; h < Plan<D>::HALVES; h++) {
    const uint32_t v = descriptor(V + h * BOX);
#pragma unroll
    for (int k = 0; k < 4; k++) product_across(c[h], w + 4 * k, v + k * ACROSS);
  }
}
template <int D> __device__ __forceinline__ void hold_all(float (&c)[Plan<D>::HALVES][32]) {
#pragma unroll
  for (int h = 0; h < Plan<D>::HALVES; h++) hold(c[h]);
}

// Writes a warp's 16 × D of a warpgroup's sums as bf16 to entry y of rows r … of
// sequence b, by way of a tile that nothing else uses any more. Its rows past the
// sequence's end and columns past d stay unwritten.
template <int D> __device__ __forceinline__ void write(const TensorMap *map, const float (&c)[Plan<D>::HALVES][32], uint32_t tile, int y, int r, int b, float scale0, float scale1) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5 & 3, row = 16 * warp + (lane & 15);
#pragma unroll
  for (int h = 0; h < Plan<D>::HALVES; h++)
#pragma unroll
    for (int n = 0; n < 4; n++) {
      const float *v = c[h] + 8 * n;
      store_matrices(tile + h * BOX + row * 128 + ((2 * n + (lane >> 4)) ^ (row & 7)) * 16, pack(v[0] * scale0, v[1] * scale0), pack(v[2] * scale1, v[3] * scale1),
                     pack(v[4] * scale0, v[5] * scale0), pack(v[6] * scale1, v[7] * scale1));
    }
  fence_writes();
  __syncwarp();
  if (lane == 0) {
#pragma unroll
    for (int h = 0; h < Plan<D>::HALVES; h++) store_part(tile + h * BOX + 16 * warp * 128, map, 64 * h, y, r + 16 * warp, b);
  }
}
// Takes the rotary embedding (attention.cu) back from a warpgroup's sums: columns i
// and i + half of a row, half = 8 · S, which one lane has. row is the lane's first.
template <int D, int S> __device__ __forceinline__ void unrotate(float (&c)[Plan<D>::HALVES][32], const float2 *table, int row, int length) {
#pragma unroll
  for (int a = 0; a < S; a++)
#pragma unroll
    for (int e = 0; e < 2; e++) {
      const float4 r = *reinterpret_cast<const float4 *>(table + (size_t)min(row + 8 * e, length - 1) * (8 * S) + 8 * a + 2 * (threadIdx.x & 3));
      float *x = &c[a / 8][4 * (a % 8) + 2 * e], *y = &c[(a + S) / 8][4 * ((a + S) % 8) + 2 * e];
      const float x0 = x[0], x1 = x[1];
      x[0] = x0 * r.x + y[0] * r.y, y[0] = y[0] * r.x - x0 * r.y;
      x[1] = x1 * r.z + y[1] * r.w, y[1] = y[1] * r.z - x1 * r.w;
    }
}
template <int D> __device__ __forceinline__ void unrotate(float (&c)[Plan<D>::HALVES][32], const float2 *table, int half, int row, int length) {
  if (half == 8) unrotate<D, 1>(c, table, row, length);
  else if (half == 16) unrotate<D, 2>(c, table, row, length);
  else if (half == 32) unrotate<D, 4>(c, table, row, length);
  else if (D == 128 && half == 64) unrotate<D, D / 16>(c, table, row, length);
}
// All warps of the warpgroup are here.
__device__ __forceinline__ void meet(int group) { asm volatile("bar.sync %0, 128;" ::"r"(1 + group) : "memory"); }

__device__ __forceinline__ float quad_max(float v) { v = fmaxf(v, __shfl_xor_sync(~0u, v, 1)); return fmaxf(v, __shfl_xor_sync(~0u, v, 2)); }
__device__ __forceinline__ float quad_sum(float v) { v += __shfl_xor_sync(~0u, v, 1); return v + __shfl_xor_sync(~0u, v, 2); }

}  // namespace hopper
#define HOPPER_ONLY(call) hopper::call
#else
#define HOPPER_ONLY(call) __trap()  // never launched there
#endif
