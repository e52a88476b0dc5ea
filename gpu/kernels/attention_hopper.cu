// Causal attention of attention.cu on a Hopper card's warpgroup products (sm_90a):
// bf16 operands, float32 sums and softmax. Equations and shapes are given there.
//
// A block is two warpgroups; each owns 64 rows of what it sums: queries in the
// forward pass and for dq, keys for dk and dv (there it works on the transposes
// of S, P and dS). So the result of one product is, register for register, the
// left operand of the next (Dao 2023). Tiles of 64 rows of the other side come
// through a ring of stages in shared memory, filled by the tensor copy engine;
// each warpgroup goes through it at its own pace. Two blocks share a
// multiprocessor, so that products of one warpgroup run under exponentials of
// another (Shah et al. 2024).
//
// d ≤ D is a multiple of 8: the copies fill up with zeros. So they do past the
// sequence's end.
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
    const uint64_t a = descriptor(A + h * BOX), b = descriptor(B + h * BOX);
#pragma unroll
    for (int k = 0; k < 4; k++) product(c, a + k * ALONG, b + k * ALONG, h + k > 0);
  }
}
// c[64 × D] += W[64 × 64] · V[64 × D], W in registers.
template <int D> __device__ __forceinline__ void combine(float (&c)[Plan<D>::HALVES][32], const uint32_t (&w)[16], uint32_t V) {
#pragma unroll
  for (int h = 0; h < Plan<D>::HALVES; h++) {
    const uint64_t v = descriptor(V + h * BOX);
#pragma unroll
    for (int k = 0; k < 4; k++) product_across(c[h], w + 4 * k, v + k * ACROSS);
  }
}
template <int D> __device__ __forceinline__ void hold_all(float (&c)[Plan<D>::HALVES][32]) {
#pragma unroll
  for (int h = 0; h < Plan<D>::HALVES; h++) hold(c[h]);
}

// The 4 × 4 matrix of a quad of lanes (row: lane) transposed.
__device__ __forceinline__ void quad_transpose(uint32_t (&v)[4]) {
  const int lane = threadIdx.x;
#pragma unroll
  for (int bit = 1; bit <= 2; bit++)
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const int lo = bit == 1 ? 2 * i : i, hi = lo + bit;
      const uint32_t got = __shfl_xor_sync(~0u, lane & bit ? v[lo] : v[hi], bit);
      if (lane & bit) v[lo] = got;
      else v[hi] = got;
    }
}
// Writes a warpgroup's [64 × D] as bf16, 16 bytes a lane; row is the lane's first,
// rows are `stride` elements apart.
template <int D> __device__ __forceinline__ void write(bf16 *out, const float (&c)[Plan<D>::HALVES][32], int row, size_t stride, int length, int d, float scale0, float scale1) {
#pragma unroll
  for (int h = 0; h < Plan<D>::HALVES; h++)
#pragma unroll
    for (int half = 0; half < 2; half++)
#pragma unroll
      for (int e = 0; e < 2; e++) {
        const float scale = e ? scale1 : scale0;
        uint32_t v[4];
#pragma unroll
        for (int n = 0; n < 4; n++) v[n] = pack(c[h][16 * half + 4 * n + 2 * e] * scale, c[h][16 * half + 4 * n + 2 * e + 1] * scale);
        quad_transpose(v);
        const int r = row + 8 * e, x = 64 * h + 32 * half + 8 * (threadIdx.x & 3);
        if (r < length && x < d) *reinterpret_cast<uint4 *>(out + (size_t)r * stride + x) = make_uint4(v[0], v[1], v[2], v[3]);
      }
}

__device__ __forceinline__ float quad_max(float v) { v = fmaxf(v, __shfl_xor_sync(~0u, v, 1)); return fmaxf(v, __shfl_xor_sync(~0u, v, 2)); }
__device__ __forceinline__ float quad_sum(float v) { v += __shfl_xor_sync(~0u, v, 1); return v + __shfl_xor_sync(~0u, v, 2); }

// Grid (tiles of 128 queries, heads, B). The running maximum follows only where
// it grows by more than SLACK powers of two: the sums stay in float32's range,
// and most tiles need no rescaling.
template <int D> __device__ void forward(const TensorMap *qkv, bf16 *o, float *lse, int length, int d, int ldo, float scale) {
  using P = Plan<D>;
  constexpr float SLACK = 8;
  extern __shared__ __align__(1024) unsigned char boxes[];
  const int heads = gridDim.y, head = blockIdx.y, b = blockIdx.z, tile = gridDim.x - 1 - blockIdx.x;  // the longest first
  const int group = uniform(threadIdx.x >> 7), lane = threadIdx.x & 31, warp = threadIdx.x >> 5 & 3;
  const uint32_t Q = address(boxes);
  using M = Memory<D, 2, P::STAGES>;
  const Ring<M, 2> ring{Q};
  const uint32_t ready = Q + M::READY;
  const int total = (min(128 * tile + 128, length) + 63) / 64, count = min(total, 2 * tile + 1 + group);
  auto fetch = [&](uint32_t to, int n, uint32_t bar) {
    copy_tile<D>(to, qkv, 3 * head + 1, 64 * n, b, bar);
    copy_tile<D>(to + P::TILE, qkv, 3 * head + 2, 64 * n, b, bar);
  };
  if (threadIdx.x == 0) {
    prefetch(qkv);
    barrier_init(ready, 1);
    ring.init();
    barrier_fence();
    arrive_expecting(ready, 2 * P::TILE);
    for (int g = 0; g < 2; g++) copy_tile<D>(Q + g * P::TILE, qkv, 3 * head, 128 * tile + 64 * g, b, ready);
    ring.begin_fill(total, fetch);
  }
  __syncthreads();

  const int row = 128 * tile + 64 * group + 16 * warp + (lane >> 2);
  const float factor = scale * LOG2E;
  float s[32], acc[P::HALVES][32] = {}, m[2] = {-CUDART_INF_F, -CUDART_INF_F}, l[2] = {0, 0};
  wait(ready, 0);
  // Q's rows as left operands
  uint32_t q[P::HALVES][16];
#pragma unroll
  for (int h = 0; h < P::HALVES; h++)
#pragma unroll
    for (int k = 0; k < 4; k++) {
      const int r = 16 * warp + (lane & 15), c = 2 * k + (lane >> 4);
      asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                   : "=r"(q[h][4 * k]), "=r"(q[h][4 * k + 1]), "=r"(q[h][4 * k + 2]), "=r"(q[h][4 * k + 3])
                   : "r"(Q + group * P::TILE + h * BOX + r * 128 + (c ^ (r & 7)) * 16));
    }
  uint32_t p[16];
  auto scores = [&](int n) {
    const uint32_t K = ring.stage(n);
#pragma unroll
    for (int h = 0; h < P::HALVES; h++)
#pragma unroll
      for (int k = 0; k < 4; k++) product(s, q[h] + 4 * k, descriptor(K + h * BOX) + k * ALONG, h + k > 0);
  };
  auto softmax = [&](int n) {  // s → p
    if (n == 2 * tile + group) {  // the diagonal: column ≤ row of this tile
      const int r = 16 * warp + (lane >> 2), c = 2 * (lane & 3);
#pragma unroll
      for (int i = 0; i < 32; i++)
        if (8 * (i / 4) + c + i % 2 > r + 8 * (i / 2 % 2)) s[i] = -CUDART_INF_F;
    }
    float top[2] = {s[0], s[2]};
#pragma unroll
    for (int i = 0; i < 32; i++) top[i / 2 % 2] = fmaxf(top[i / 2 % 2], s[i]);
    if (__any_sync(~0u, top[0] * factor > m[0] + SLACK || top[1] * factor > m[1] + SLACK)) {
#pragma unroll
      for (int e = 0; e < 2; e++) {
        const float next = fmaxf(m[e], quad_max(top[e]) * factor);  // finite: every row sees key 0 first
        const float shrink = exp2_fast(m[e] - next);
        m[e] = next, l[e] *= shrink;
#pragma unroll
        for (int h = 0; h < P::HALVES; h++)
#pragma unroll
          for (int i = 0; i < 32; i++)
            if (i / 2 % 2 == e) acc[h][i] *= shrink;
      }
    }
#pragma unroll
    for (int i = 0; i < 32; i += 2) {
      const float x = exp2_fast(s[i] * factor - m[i / 2 % 2]), y = exp2_fast(s[i + 1] * factor - m[i / 2 % 2]);
      l[i / 2 % 2] += x + y;
      p[i / 2] = pack(x, y);
    }
  };
  ring.await(0);
  hold(s);
  begin();
  scores(0);
  commit();
  finish<0>();
  hold(s);
  softmax(0);
  for (int n = 1; n < count; n++) {
    ring.await(n);
    hold(s);
    hold_all<D>(acc);
    begin();
    combine<D>(acc, p, ring.stage(n - 1) + P::TILE);
    scores(n);
    commit();
    finish<0>();
    hold(s);
    hold_all<D>(acc);
    ring.give_back(n - 1);
    ring.refill(n, total, fetch);
    softmax(n);
  }
  hold_all<D>(acc);
  begin();
  combine<D>(acc, p, ring.stage(count - 1) + P::TILE);
  commit();
  finish<0>();
  hold_all<D>(acc);
  l[0] = quad_sum(l[0]), l[1] = quad_sum(l[1]);
  write<D>(o + (size_t)b * length * ldo + (size_t)head * d, acc, row, ldo, length, d, 1 / l[0], 1 / l[1]);
  if ((lane & 3) == 0) {
    float *z = lse + ((size_t)b * heads + head) * length;
    if (row < length) z[row] = (m[0] + log2f(l[0])) / LOG2E;
    if (row + 8 < length) z[row + 8] = (m[1] + log2f(l[1])) / LOG2E;
  }
}

// delta and dq. Grid (tiles of 128 queries, heads, B).
template <int D>
__device__ void backward_q(const TensorMap *qkv, const TensorMap *dOmap, const bf16 *o, const bf16 *dO, const float *lse, float *delta, bf16 *dqkv, int length, int d, int ldo, int lddo, int ldd, float scale) {
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
  const size_t stat = ((size_t)b * heads + head) * length;
  float z[2], dl[2];
#pragma unroll
  for (int e = 0; e < 2; e++) {  // delta = dO · o, a quad a row
    const int r = row + 8 * e;
    z[e] = 0, dl[e] = 0;
    if (r < length) {
      const bf16 *x = o + ((size_t)b * length + r) * ldo + (size_t)head * d, *y = dO + ((size_t)b * length + r) * lddo + (size_t)head * d;
#pragma unroll
      for (int c = 8 * (lane & 3); c < D; c += 32)
        if (c < d) {
          float u[8], v[8];
          load8(x + c, u), load8(y + c, v);
#pragma unroll
          for (int i = 0; i < 8; i++) dl[e] += u[i] * v[i];
        }
      z[e] = lse[stat + r] * LOG2E;
    }
    dl[e] = quad_sum(dl[e]);
    if (r < length && (lane & 3) == 0) delta[stat + r] = dl[e];
  }
  const float factor = scale * LOG2E;
  const uint32_t q = Q + group * P::TILE, g = O + group * P::TILE;
  float s[32], dp[32], dq[P::HALVES][32] = {};
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
  write<D>(dqkv + (size_t)b * length * ldd + (size_t)head * 3 * d, dq, row, ldd, length, d, scale, scale);
}

// dk and dv. Grid (tiles of KEY_GROUPS · 64 keys, heads, B).
template <int D>
__device__ void backward_kv(const TensorMap *qkv, const TensorMap *dOmap, const float *lse, const float *delta, bf16 *dqkv, int length, int d, int ldd, float scale) {
  using P = Plan<D>;
  constexpr int GROUPS = P::KEY_GROUPS;
  extern __shared__ __align__(1024) unsigned char boxes[];
  const int heads = gridDim.y, head = blockIdx.y, b = blockIdx.z, tile = blockIdx.x;
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
  auto statistic = [&](int n) {
    const int i = 64 * (from + n) + (thread & 63);
    const float past = thread < 64 ? CUDART_INF_F : 0.0f;
    return i < length ? from_stat[i] * (thread < 64 ? LOG2E : 1.0f) : past;
  };
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
  // Brings the statistics of tile n + 1; those of tile n are there when it returns.
  auto advance = [&](int n) {
    const float ahead = n + 1 < total ? statistic(n + 1) : 0.0f;
    asm volatile("bar.sync %0, 128;" ::"r"(1 + group) : "memory");
    stats[(n + 1 & 1) * 128 + thread] = ahead;  // tile n − 1's have been read
  };
  if (group < total) {
    stats[group * 128 + thread] = statistic(group);
    wait(ready, 0);
    ring.await(group);
    hold(s);
    begin();
    dots<D>(s, k, ring.stage(group));
    commit();
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
  }
  const int row = 64 * (from + group) + 16 * warp + (lane >> 2);
  bf16 *out = dqkv + (size_t)b * length * ldd + (size_t)head * 3 * d;
  write<D>(out + d, dk, row, ldd, length, d, scale, scale);
  write<D>(out + 2 * d, dv, row, ldd, length, d, 1, 1);
}

}  // namespace hopper
#define HOPPER_ONLY(call) hopper::call
#else
#define HOPPER_ONLY(call) __trap()  // never launched there
#endif

// Rows of qkv and dqkv are [heads, 3, d], ld… elements apart; qkv and dO come as
// tensor maps [B, L, 3·heads, d] and [B, L, heads, d] in boxes of [1, 64, 1, 64].
#define ATTENTION_HOPPER(D, BLOCKS)                                                                                                       \
  extern "C" __global__ void __launch_bounds__(256, BLOCKS)                                                                               \
      attention_hopper_forward_##D(const __grid_constant__ TensorMap qkv, bf16 *o, float *lse, int length, int d, int ldo, float scale) { \
    HOPPER_ONLY(forward<D>(&qkv, o, lse, length, d, ldo, scale));                                                                         \
  }                                                                                                                                       \
  extern "C" __global__ void __launch_bounds__(256, BLOCKS)                                                                               \
      attention_hopper_backward_q_##D(const __grid_constant__ TensorMap qkv, const __grid_constant__ TensorMap dOmap, const bf16 *o,      \
                                      const bf16 *dO, const float *lse, float *delta, bf16 *dqkv, int length, int d, int ldo, int lddo,   \
                                      int ldd, float scale) {                                                                             \
    HOPPER_ONLY(backward_q<D>(&qkv, &dOmap, o, dO, lse, delta, dqkv, length, d, ldo, lddo, ldd, scale));                                  \
  }                                                                                                                                       \
  extern "C" __global__ void __launch_bounds__(D == 64 ? 128 : 256, D == 64 ? 3 : 1)                                                                               \
      attention_hopper_backward_kv_##D(const __grid_constant__ TensorMap qkv, const __grid_constant__ TensorMap dOmap, const float *lse,  \
                                       const float *delta, bf16 *dqkv, int length, int d, int ldd, float scale) {                         \
    HOPPER_ONLY(backward_kv<D>(&qkv, &dOmap, lse, delta, dqkv, length, d, ldd, scale));                                                   \
  }
ATTENTION_HOPPER(64, 2)
ATTENTION_HOPPER(128, 1)
