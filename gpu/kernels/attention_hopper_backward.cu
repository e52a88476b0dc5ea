// The backward pass of attention_hopper.cu: first delta and dq, then dk and dv.
#include "attention_hopper.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
namespace hopper {

// delta and dq. Grid (tiles of 128 queries, heads, B).
template <int D>
__device__ void backward_q(const TensorMap *qkv, const TensorMap *dOmap, const bf16 *o, const float *lse, float *delta, const TensorMap *dqkv, const float2 *table, int half, int length, int d, int ldo, float scale) {
  using P = Plan<D>;
  extern __shared__ __align__(1024) unsigned char boxes[];
  const int heads = gridDim.y, head = blockIdx.y, b = blockIdx.z, tile = gridDim.x - 1 - blockIdx.x;
  const int group = uniform(threadIdx.x >> 7), lane = threadIdx.x & 31, warp = threadIdx.x >> 5 & 3;
  const uint32_t Q = address(boxes), O = Q + 2 * P::TILE;
  using M = Memory<D, 4, P::STAGES>;
  const Ring<M, 2> ring{Q};
  const uint32_t ready = Q + M::READY;
  const int total = (min(128 * tile + 128, length) + 63) / 64, count = min(total, 2 * tile + 1 + group);
  auto fetch = [&](uint32_t to, int n, uint32_t bar) {
    copy_tile<D>(to, qkv, 3 * head + 1, 64 * n, b, bar);
    copy_tile<D>(to + P::TILE, qkv, 3 * head + 2, 64 * n, b, bar);
  };
  if (threadIdx.x == 0) {
    prefetch(qkv), prefetch(dOmap);
    barrier_init(ready, 1);
    ring.init();
    barrier_fence();
    arrive_expecting(ready, 4 * P::TILE);
    for (int g = 0; g < 2; g++) {
      copy_tile<D>(Q + g * P::TILE, qkv, 3 * head, 128 * tile + 64 * g, b, ready);
      copy_tile<D>(O + g * P::TILE, dOmap, head, 128 * tile + 64 * g, b, ready);
    }
    ring.begin_fill(total, fetch);
  }
  __syncthreads();

  const int row = 128 * tile + 64 * group + 16 * warp + (lane >> 2);
  const float factor = scale * LOG2E;
  const uint32_t q = Q + group * P::TILE, g = O + group * P::TILE;
  float s[32], dp[32], dq[P::HALVES][32], z[2], dl[2];
  uint32_t w[16];
  // S of tile n in s → w = dS / scale
  auto step = [&](int n) {
    hold(dp);
    begin();
    dots<D>(dp, g, ring.stage(n) + P::TILE);
    commit();
#pragma unroll
    for (int i = 0; i < 32; i++) s[i] = exp2_fast(s[i] * factor - z[i / 2 % 2]);
    if (n == 2 * tile + group) {
      const int r = 16 * warp + (lane >> 2), c = 2 * (lane & 3);
#pragma unroll
      for (int i = 0; i < 32; i++)
        if (8 * (i / 4) + c + i % 2 > r + 8 * (i / 2 % 2)) s[i] = 0;
    }
    finish<0>();
    hold(dp);
#pragma unroll
    for (int i = 0; i < 32; i += 2) w[i / 2] = pack(s[i] * (dp[i] - dl[i / 2 % 2]), s[i + 1] * (dp[i + 1] - dl[i / 2 % 2]));
  };
  wait(ready, 0);
  ring.await(0);
  hold(s), hold(dp);
  begin();
  dots<D>(s, q, ring.stage(0));
  commit();
  const size_t stat = ((size_t)b * heads + head) * length;
#pragma unroll
  for (int e = 0; e < 2; e++) {  // delta = dO · o, a quad a row
    const int r = min(row + 8 * e, length - 1);
    const bf16 *x = o + ((size_t)b * length + r) * ldo + (size_t)head * d;
    const unsigned char *y = boxes + (g - Q) + (row + 8 * e & 63) * 128;
    float sum = 0;
#pragma unroll
    for (int c = lane & 3; c < D / 8; c += 4)
      if (8 * c < d) {
        float u[8], v[8];
        load8(x + 8 * c, u), load8(reinterpret_cast<const bf16 *>(y + c / 8 * BOX + ((c ^ row) & 7) * 16), v);
#pragma unroll
        for (int i = 0; i < 8; i++) sum += u[i] * v[i];
      }
    dl[e] = quad_sum(sum), z[e] = lse[stat + r] * LOG2E;
    if (row + 8 * e < length && (lane & 3) == 0) delta[stat + r] = dl[e];
  }
#pragma unroll
  for (int h = 0; h < P::HALVES; h++)
#pragma unroll
    for (int i = 0; i < 32; i++) dq[h][i] = 0;
  finish<0>();
  hold(s);
  step(0);
  for (int n = 1; n < count; n++) {
    ring.await(n);
    hold(s);
    hold_all<D>(dq);
    begin();
    combine<D>(dq, w, ring.stage(n - 1));
    dots<D>(s, q, ring.stage(n));
    commit();
    finish<0>();
    hold(s);
    hold_all<D>(dq);
    ring.give_back(n - 1);
    ring.refill(n, total, fetch);
    step(n);
  }
  hold_all<D>(dq);
  begin();
  combine<D>(dq, w, ring.stage(count - 1));
  commit();
  finish<0>();
  hold_all<D>(dq);
  unrotate<D>(dq, table, half, row, length);
  meet(group);
  write<D>(dqkv, dq, q, 3 * head, 128 * tile + 64 * group, b, scale, scale);
  if (lane == 0) stored();
}

// dk and dv. Grid (tiles of KEY_GROUPS · 64 keys, heads, B).
template <int D>
__device__ void backward_kv(const TensorMap *qkv, const TensorMap *dOmap, const float *lse, const float *delta, const TensorMap *dqkv, const float2 *table, int half, int length, float scale) {
  using P = Plan<D>;
  constexpr int GROUPS = P::KEY_GROUPS;
  extern __shared__ __align__(1024) unsigned char boxes[];
  const Place at = place(D == 64 ? 3 : 1);
  const int heads = gridDim.y, head = at.head, b = at.b, tile = at.tile;
  const int group = GROUPS > 1 ? uniform(threadIdx.x >> 7) : 0, lane = threadIdx.x & 31, warp = threadIdx.x >> 5 & 3, thread = threadIdx.x & 127;
  const uint32_t K = address(boxes), V = K + GROUPS * P::TILE;
  using M = Memory<D, 2 * GROUPS, P::KEY_STAGES>;
  const Ring<M, GROUPS> ring{K};
  const uint32_t ready = K + M::READY;
  // lse and delta of a tile of queries, two tiles a warpgroup
  float *stats = reinterpret_cast<float *>(boxes + M::REST) + group * 256;
  const int from = GROUPS * tile, total = (length + 63) / 64 - from;  // tile n of the ring has queries 64·(from + n) …
  auto fetch = [&](uint32_t to, int n, uint32_t bar) {
    copy_tile<D>(to, qkv, 3 * head, 64 * (from + n), b, bar);
    copy_tile<D>(to + P::TILE, dOmap, head, 64 * (from + n), b, bar);
  };
  if (threadIdx.x == 0) {
    prefetch(qkv), prefetch(dOmap);
    barrier_init(ready, 1);
    ring.init();
    barrier_fence();
    arrive_expecting(ready, 2 * GROUPS * P::TILE);
    for (int g = 0; g < GROUPS; g++) {
      copy_tile<D>(K + g * P::TILE, qkv, 3 * head + 1, 64 * (from + g), b, ready);
      copy_tile<D>(V + g * P::TILE, qkv, 3 * head + 2, 64 * (from + g), b, ready);
    }
    ring.begin_fill(total, fetch);
  }
  __syncthreads();
  if (group == 1) ring.give_back(0);  // its keys come after all queries of tile 0

  // A thread brings one number of a tile: lse or delta of one query. Past the end
  // lse = ∞ makes P and dS zero.
  const float *from_stat = (thread < 64 ? lse : delta) + ((size_t)b * heads + head) * length;
  const float unit = thread < 64 ? LOG2E : 1, past = thread < 64 ? CUDART_INF_F : 0.0f;
  auto query = [&](int n) { return 64 * (from + n) + (thread & 63); };
  auto load_statistic = [&](int n) { return from_stat[min(query(n), length - 1)]; };
  auto store_statistic = [&](int n, float v) { stats[(n & 1) * 128 + thread] = query(n) < length ? v * unit : past; };
  const float factor = scale * LOG2E;
  const uint32_t k = K + group * P::TILE, v = V + group * P::TILE;
  float s[32], dk[P::HALVES][32] = {}, dv[P::HALVES][32] = {};
  uint32_t p[16], w[16];
  // Sᵀ of tile n in s → dv, and w = dSᵀ / scale
  auto step = [&](int n) {
    const float *st = stats + (n & 1) * 128 + 2 * (lane & 3);
#pragma unroll
    for (int i = 0; i < 32; i += 4) {
      const float2 z = *reinterpret_cast<const float2 *>(st + 2 * i);
      s[i] = exp2_fast(s[i] * factor - z.x), s[i + 1] = exp2_fast(s[i + 1] * factor - z.y);
      s[i + 2] = exp2_fast(s[i + 2] * factor - z.x), s[i + 3] = exp2_fast(s[i + 3] * factor - z.y);
    }
    if (n == group) {  // the diagonal: row (key) ≤ column (query) of this tile
      const int r = 16 * warp + (lane >> 2), c = 2 * (lane & 3);
#pragma unroll
      for (int i = 0; i < 32; i++)
        if (8 * (i / 4) + c + i % 2 < r + 8 * (i / 2 % 2)) s[i] = 0;
    }
#pragma unroll
    for (int i = 0; i < 32; i += 2) p[i / 2] = pack(s[i], s[i + 1]);
    hold(s);
    hold_all<D>(dv);
    begin();
    dots<D>(s, v, ring.stage(n) + P::TILE);
    commit();
    combine<D>(dv, p, ring.stage(n) + P::TILE);
    commit();
    finish<1>();
    hold(s);
#pragma unroll
    for (int i = 0; i < 32; i += 4) {
      const float2 dl = *reinterpret_cast<const float2 *>(st + 64 + 2 * i);
      w[i / 2] = pack(low(p[i / 2]) * (s[i] - dl.x), high(p[i / 2]) * (s[i + 1] - dl.y));
      w[i / 2 + 1] = pack(low(p[i / 2 + 1]) * (s[i + 2] - dl.x), high(p[i / 2 + 1]) * (s[i + 3] - dl.y));
    }
    finish<0>();
    hold_all<D>(dv);
  };
  float ahead;
  // The statistics of tile n are there when it returns, and those of n + 2 on their way.
  auto advance = [&](int n) {
    meet(group);
    store_statistic(n + 1, ahead);  // tile n − 1's have been read
    ahead = load_statistic(n + 2);
  };
  if (group < total) {
    const float first = load_statistic(group);
    ahead = load_statistic(group + 1);
    wait(ready, 0);
    ring.await(group);
    hold(s);
    begin();
    dots<D>(s, k, ring.stage(group));
    commit();
    store_statistic(group, first);
    advance(group);
    finish<0>();
    hold(s);
    step(group);
    for (int n = group + 1; n < total; n++) {
      ring.await(n);
      hold(s);
      hold_all<D>(dk);
      begin();
      combine<D>(dk, w, ring.stage(n - 1));
      dots<D>(s, k, ring.stage(n));
      commit();
      advance(n);
      finish<0>();
      hold(s);
      hold_all<D>(dk);
      ring.give_back(n - 1);
      ring.refill(n, total, fetch);
      step(n);
    }
    hold_all<D>(dk);
    begin();
    combine<D>(dk, w, ring.stage(total - 1));
    commit();
    finish<0>();
    hold_all<D>(dk);
    unrotate<D>(dk, table, half, 64 * (from + group) + 16 * warp + (lane >> 2), length);
    meet(group);
    write<D>(dqkv, dk, k, 3 * head + 1, 64 * (from + group), b, scale, scale);
    write<D>(dqkv, dv, v, 3 * head + 2, 64 * (from + group), b, 1, 1);
    if (lane == 0) stored();
  }
}

}  // namespace hopper
#endif

// Rows of qkv and dqkv are [heads, 3, d], of o and dO [heads, d]. They come as tensor
// maps [B, L, 3·heads, d] and [B, L, heads, d], in boxes of [1, 64, 1, 64] where they
// are read and [1, 16, 1, 64] where they are written; o as it lies, rows ldo apart.
// The rotary embedding is taken back from dq and dk where half, a power of two from
// 8 to D/2, is not 0; table as in attention.cu.
#define ATTENTION_HOPPER_BACKWARD(D, BLOCKS, KEY_THREADS, KEY_BLOCKS)                                                                    \
  extern "C" __global__ void __launch_bounds__(256, BLOCKS)                                                                              \
      attention_hopper_backward_q_##D(const __grid_constant__ TensorMap qkv, const __grid_constant__ TensorMap dO, const bf16 *o,        \
                                      const float *lse, float *delta, const __grid_constant__ TensorMap dqkv, const float2 *table,       \
                                      int half, int length, int d, int ldo, float scale) {                                               \
    HOPPER_ONLY(backward_q<D>(&qkv, &dO, o, lse, delta, &dqkv, table, half, length, d, ldo, scale));                                     \
  }                                                                                                                                      \
  extern "C" __global__ void __launch_bounds__(KEY_THREADS, KEY_BLOCKS)                                                                  \
      attention_hopper_backward_kv_##D(const __grid_constant__ TensorMap qkv, const __grid_constant__ TensorMap dO, const float *lse,    \
                                       const float *delta, const __grid_constant__ TensorMap dqkv, const float2 *table, int half,        \
                                       int length, float scale) {                                                                        \
    HOPPER_ONLY(backward_kv<D>(&qkv, &dO, lse, delta, &dqkv, table, half, length, scale));                                               \
  }
ATTENTION_HOPPER_BACKWARD(64, 2, 128, 3)
ATTENTION_HOPPER_BACKWARD(128, 1, 256, 1)
