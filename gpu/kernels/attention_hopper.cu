// Causal attention of attention.cu on a Hopper card's warpgroup products (sm_90a):
// bf16 operands, float32 sums and softmax. Equations and shapes are given there.
//
// A block is one or two warpgroups; each owns 64 rows of what it sums: queries in
// the forward pass and for dq, keys for dk and dv (there it works on the transposes
// of S, P and dS). So the result of one product is, register for register, the left
// operand of the next (Dao 2023). Tiles of 64 rows of the other side come through a
// ring of stages in shared memory, filled by the tensor copy engine; each warpgroup
// goes through it at its own pace. Two or three blocks share a multiprocessor, so
// that products of one warpgroup run under exponentials of another (Shah et al. 2024).
//
// d ≤ D is a multiple of 8: the copies fill up with zeros. So they do past the
// sequence's end.
#include "attention_hopper.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
namespace hopper {

// Grid (tiles of 128 queries, heads, B). The running maximum follows only where
// it grows by more than SLACK powers of two: the sums stay in float32's range,
// and most tiles need no rescaling.
template <int D> __device__ void forward(const TensorMap *qkv, const TensorMap *o, float *lse, int length, float scale) {
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
      load_matrices(q[h] + 4 * k, Q + group * P::TILE + h * BOX + r * 128 + (c ^ (r & 7)) * 16);
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
  write<D>(o, acc, Q + group * P::TILE, head, 128 * tile + 64 * group, b, 1 / l[0], 1 / l[1]);  // a warp's rows of Q are its own
  if ((lane & 3) == 0) {
    float *z = lse + ((size_t)b * heads + head) * length;
    if (row < length) z[row] = (m[0] + log2f(l[0])) / LOG2E;
    if (row + 8 < length) z[row + 8] = (m[1] + log2f(l[1])) / LOG2E;
  }
  if (lane == 0) stored();
}

}  // namespace hopper
#endif

// Rows of qkv are [heads, 3, d], of o [heads, d]. They come as tensor maps
// [B, L, 3·heads, d] in boxes of [1, 64, 1, 64], as they are read, and [B, L, heads, d]
// in boxes of [1, 16, 1, 64], as they are written.
#define ATTENTION_HOPPER(D, BLOCKS)                                                                                                    \
  extern "C" __global__ void __launch_bounds__(256, BLOCKS)                                                                            \
      attention_hopper_forward_##D(const __grid_constant__ TensorMap qkv, const __grid_constant__ TensorMap o, float *lse, int length, \
                                   float scale) {                                                                                      \
    HOPPER_ONLY(forward<D>(&qkv, &o, lse, length, scale));                                                                             \
  }
ATTENTION_HOPPER(64, 2)
ATTENTION_HOPPER(128, 1)
