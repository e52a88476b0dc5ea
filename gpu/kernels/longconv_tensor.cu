// Gated causal long convolution of the Hyena operator on the tensor cores, in
// bf16 with float32 sums: the quick way for sequences that fit in shared memory
// (see limits below); longconv.cu has the FFT for all others.
//
//   u = k ⊙ v,   c = h ∗ u + β ⊙ u,   y = q ⊙ c
//   dq = dy ⊙ c,   d = dy ⊙ q,   du[m] = Σ_{n≥m} d[n] · h[n − m] + β · d[m]
//   dk = du ⊙ v,   dv = du ⊙ k,   dh[j] = Σ_b Σ_n d[n] · u[n − j],   dβ = dh[0]
//
// Channel-major: q, k, v, y, dy and the gradients: [D, ld] of bf16, column
// b·L + n is position n of sequence b. h: [D, ldh] float32; where decay is not
// null the filter is h[n] · exp(−n · invspan · decay[c]). dh: [slices, D, ldh]
// and dbeta: [slices, D] float32, each slice the sum over its own 8 sequences,
// to be added in order (filter_gradient and reduce_slices do): dh is the
// gradient of the whole filter, window included.
//
// hyena_tensor_* also compute the short convolution in front of it, so that q, k
// and v never reach device memory. z, dz: [3D, ld], the projection without its
// bias bin [3D]; w [3D, 3], bs [3D] (see shortconv.cu, whose equations they
// share). sums: [slices, 5, 3D], of dw[·, 0 … 2], dbs and dbin.
//
// Launch: grid (slices = ⌈B / 8⌉, D), 128 threads; dynamic shared memory
//   forward:  48 · stride + 4 · copy bytes            (L = 1024: 53,760)
//   backward: 64 · stride + 8 · copy + 128 · tiles    (L = 1024: 75,520)
// with tiles = ⌈L / 128⌉, stride = 128 · tiles + 8, copy = 128 · tiles + 32.
// An H100 (227 KB a block) takes L ≤ 4352 forward and L ≤ 3072 backward, an A100
// (163 KB) 3200 and 2176. Work grows as L². *_aligned want L and ld to be multiples
// of 8 and 16-byte aligned rows; *_any take all. Outputs must not overlap inputs: z
// and dy are read twice.
#include "shortconv_tensor.cuh"
#include "toeplitz.cuh"

namespace toeplitz {

// Calls f(offset in a slot, k, v, q) with 8 elements each of what the warp
// brought to three slots, after the short convolution where SHORT. f may
// overwrite them.
template <bool VEC, bool SHORT, class F>
__device__ __forceinline__ void prepare(const bf16 *sk, const bf16 *sv, const bf16 *sq, const Taps (&t)[3], int rows, int length, F f) {
  const bf16 *slots[3] = {sk, sv, sq};
  uint32_t carry[3];
  int end;
  own(
      slots, length, [&](int r) { carry[0] = carry[1] = carry[2] = 0, end = r < rows ? length : 0; },
      [&](int i, int n, uint4 (&v)[3]) {
        if constexpr (SHORT) {
#pragma unroll
          for (int p = 0; p < 3; p++) v[p] = shorten<VEC>(v[p], carry[p], t[p], n, end);
        }
        if (n < padded(length)) f(i, v[0], v[1], v[2]);
      });
}

struct Two { uint2 a, b; };
struct Three { uint2 a, b, c; };

template <bool VEC, bool SHORT>
__device__ __forceinline__ void forward(const bf16 *q, const bf16 *k, const bf16 *v, const float *bin, const float *w, const float *bs,
                                        const float *h, const float *decay, float invspan, const float *beta, bf16 *y, int batch, int length, int ld, int ldh) {
  extern __shared__ uint4 shared[];
  const int c = blockIdx.y, row0 = blockIdx.x * ROWS, rows = min(ROWS, batch - row0), warp = threadIdx.x >> 5;
  const int slot = ROWS * stride(length), tiles = padded(length) / TILE;
  bf16 *u = reinterpret_cast<bf16 *>(shared), *sv = u + slot, *sq = sv + slot, *table = sq + slot;
  const size_t at = (size_t)c * ld + (size_t)row0 * length;
  Filter filter(h + (size_t)c * ldh, length);
  Taps t[3];  // of k, v, q
  if constexpr (SHORT) {
#pragma unroll
    for (int p = 0; p < 3; p++) t[p] = taps(bin, w, bs, (p + 1) % 3 * gridDim.y + c);
  }
  bring<VEC>(u, k + at, rows, length);
  bring<VEC>(sv, v + at, rows, length);
  commit();
  bring<VEC>(sq, q + at, rows, length);
  commit();
  const float rate = decay ? decay[c] * invspan : 0.0f, skip = beta[c];
  filter.spread(table, nullptr, rate);
  // each warp's own sequences have come: no other's are touched here
  if constexpr (SHORT) {
    arrive<0>();
    prepare<VEC, true>(u, sv, sq, t, rows, length, [&](int i, uint4 k, uint4 v, uint4 q) {
      *reinterpret_cast<uint4 *>(u + i) = product(k, v), *reinterpret_cast<uint4 *>(sq + i) = q;
    });
  } else {
    arrive<1>();
    const bf16 *slots[2] = {u, sv};
    own(slots, length, [](int) {}, [&](int i, int n, uint4 (&x)[2]) {
      if (n < padded(length)) *reinterpret_cast<uint4 *>(u + i) = product(x[0], x[1]);
    });
    arrive<0>();
  }
  __syncthreads();

  const int lane = threadIdx.x & 31;
  const uint32_t *matrix = backwards_lane(table, length);
  const uint32_t from = address(u + (lane & 7) * stride(length) + 8 * (lane >> 3 & 1) - 16 * (lane >> 4));
  for (int i = warp; i < tiles; i = next(i)) {
    const int tile = tiles - 1 - i;
    float sum[8][4];
    const uint32_t end = from + 2 * (tile * TILE + TILE - 16);
    multiply<-1>(sum, matrix, 8 * (tile + 1), [&](uint32_t (&b)[4], int kk) { ldmatrix4(b, end - 32 * kk); });
    bf16 *row = y + at + (size_t)(lane >> 2) * length;
    each<-1>(
        sum, tile, length, [&](int, int i, int, int) { return Two{*reinterpret_cast<const uint2 *>(u + i), *reinterpret_cast<const uint2 *>(sq + i)}; },
        [&](Two x, int, int r, int n, float4 s) {
          const float4 uu = floats(x.a), qq = floats(x.b);
          if (r < rows) scatter<VEC>(row, n, length, packed(make_float4(qq.x * (s.x + skip * uu.x), qq.y * (s.y + skip * uu.y), qq.z * (s.z + skip * uu.z), qq.w * (s.w + skip * uu.w))));
        });
  }
}

template <bool VEC, bool SHORT>
__device__ __forceinline__ void backward(const bf16 *q, const bf16 *k, const bf16 *v, const float *bin, const float *w, const float *bs,
                                         const float *h, const float *decay, float invspan, const float *beta, const bf16 *dy,
                                         bf16 *dq, bf16 *dk, bf16 *dv, float *dh, float *dbeta, float *sums, int batch, int length, int ld, int ldh) {
  extern __shared__ uint4 shared[];
  __shared__ float totals[WARPS][15];
  const int c = blockIdx.y, dim = gridDim.y, row0 = blockIdx.x * ROWS, rows = min(ROWS, batch - row0), lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const int slot = ROWS * stride(length), tiles = padded(length) / TILE;
  bf16 *sk = reinterpret_cast<bf16 *>(shared), *sv = sk + slot, *sd = sv + slot, *su = sd + slot, *backwards = su + slot, *forwards = backwards + 2 * copy(length);
  float *edges = reinterpret_cast<float *>(forwards + 2 * copy(length));
  const size_t at = (size_t)c * ld + (size_t)row0 * length;
  Filter filter(h + (size_t)c * ldh, length);
  Taps t[3];  // of k, v, q
  if constexpr (SHORT) {
#pragma unroll
    for (int p = 0; p < 3; p++) t[p] = taps(bin, w, bs, (p + 1) % 3 * gridDim.y + c);
  }
  bring<VEC>(sk, k + at, rows, length);
  bring<VEC>(sv, v + at, rows, length);
  bring<VEC>(sd, q + at, rows, length);
  bring<VEC>(su, dy + at, rows, length);
  commit();
  const float rate = decay ? decay[c] * invspan : 0.0f, skip = beta[c];
  filter.spread(backwards, forwards, rate);
  arrive<0>();
  // u takes the place of dy, d that of q; dy is read again where dq needs it
  prepare<VEC, SHORT>(sk, sv, sd, t, rows, length, [&](int i, uint4 k, uint4 v, uint4 q) {
    if (SHORT) *reinterpret_cast<uint4 *>(sk + i) = k, *reinterpret_cast<uint4 *>(sv + i) = v;
    *reinterpret_cast<uint4 *>(sd + i) = product(q, *reinterpret_cast<const uint4 *>(su + i));
    *reinterpret_cast<uint4 *>(su + i) = product(k, v);
  });
  __syncthreads();

  dh += ((size_t)blockIdx.x * dim + c) * ldh;
  const uint32_t row = (lane & 7) * stride(length);
  auto dh_of = [&] {
    const uint32_t zeros = address(forwards);
    for (int i = warp; i < tiles; i = next(i)) {
      const int half = TILE / 2 * (tiles - i), um = (lane >> 3 & 1) * half + 8 * (lane >> 4);
      const uint32_t uu = address(su + row) + 2 * um, dd = address(sd + row + 8 * (lane >> 3 & 1) + (lane >> 4) * half);
      auto loadd = [&](uint32_t (&a)[4], int n) { ldmatrix4_trans(a, dd + 2 * n); };
      auto loadu = [&](uint32_t (&b)[4], int m) { ldmatrix4_trans(b, m + um >= 0 ? uu + 2 * m : zeros); };
      float sum[17][4];
      if (i == 0) correlate<true>(sum, i, tiles, loadd, loadu);
      else correlate<false>(sum, i, tiles, loadd, loadu);
      diagonals(sum, i, tiles, edges, dh, length);
    }
  };
  auto dq_of = [&] {
    const uint32_t from = address(su + row + 8 * (lane >> 3 & 1) - 16 * (lane >> 4));
    const uint32_t *matrix = backwards_lane(backwards, length);
    for (int i = warp; i < tiles; i = next(i)) {
      const int tile = tiles - 1 - i;
      const bf16 *from_dy = dy + at + (size_t)(lane >> 2) * length;
      bf16 *to = dq + at + (size_t)(lane >> 2) * length;
      uint2 g[8];  // comes while the products run
#pragma unroll
      for (int j = 0; j < 8; j++) g[j] = lane >> 2 < rows ? gather_four<VEC>(from_dy, tile * TILE + 16 * (7 - j) + 4 * (lane & 3), length) : make_uint2(0, 0);
      float sum[8][4];
      const uint32_t end = from + 2 * (tile * TILE + TILE - 16);
      multiply<-1>(sum, matrix, 8 * (tile + 1), [&](uint32_t (&b)[4], int kk) { ldmatrix4(b, end - 32 * kk); });
      each<-1>(
          sum, tile, length, [&](int j, int i, int, int) { return Two{*reinterpret_cast<const uint2 *>(su + i), g[j]}; },
          [&](Two x, int i, int r, int n, float4 s) {
            const float4 u = floats(x.a), o = floats(x.b);
            const uint2 out = packed(make_float4(o.x * (s.x + skip * u.x), o.y * (s.y + skip * u.y), o.z * (s.z + skip * u.z), o.w * (s.w + skip * u.w)));
            if (SHORT) *reinterpret_cast<uint2 *>(sd + i) = out;
            else if (r < rows) scatter<VEC>(to, n, length, out);
          });
    }
  };
  auto dk_dv_of = [&] {
    const uint32_t from = address(sd + row + 8 * (lane >> 3 & 1) + 16 * (lane >> 4));
    const uint32_t *matrix = forwards_lane(forwards, length);
    for (int i = warp; i < tiles; i = next(i)) {
      float sum[8][4];
      multiply<1>(sum, matrix, 8 * (tiles - i), [&](uint32_t (&b)[4], int kk) { ldmatrix4(b, from + 2 * (i * TILE + 16 * kk)); });
      const size_t to = at + (size_t)(lane >> 2) * length;
      each<1>(
          sum, i, length,
          [&](int, int i, int, int) {
            return Three{*reinterpret_cast<const uint2 *>(sd + i), *reinterpret_cast<const uint2 *>(sk + i), *reinterpret_cast<const uint2 *>(sv + i)};
          },
          [&](Three x, int i, int r, int n, float4 s) {
            const float4 d = floats(x.a), kk = floats(x.b), vv = floats(x.c);
            s = make_float4(s.x + skip * d.x, s.y + skip * d.y, s.z + skip * d.z, s.w + skip * d.w);
            const uint2 outk = packed(make_float4(s.x * vv.x, s.y * vv.y, s.z * vv.z, s.w * vv.w)), outv = packed(make_float4(s.x * kk.x, s.y * kk.y, s.z * kk.z, s.w * kk.w));
            if (SHORT) {
              *reinterpret_cast<uint2 *>(sk + i) = outk, *reinterpret_cast<uint2 *>(sv + i) = outv;
            } else if (r < rows) {
              scatter<VEC>(dk + to, n, length, outk);
              scatter<VEC>(dv + to, n, length, outv);
            }
          });
    }
  };
  if (SHORT) {
    dh_of(), dk_dv_of();
    __syncthreads();  // dq is about to replace d
    prefetch(q + at, rows, length), prefetch(k + at, rows, length), prefetch(v + at, rows, length);
    dq_of();
  } else {
    dq_of(), dh_of(), dk_dv_of();
  }
  __syncthreads();
  // the bands' first and last differences, whose sums two bands share
  for (int i = threadIdx.x; i < 16 * tiles; i += THREADS) {
    const int band = i / 16, g = i % 8, last = i / 8 % 2, n = band * TILE + (last ? TILE - 8 : 0) + g;
    float s = edges[((1 + last) * tiles + band) * 8 + g];
    if (last && band + 1 < tiles) s += edges[(band + 1) * 8 + g];
    if (!last && band > 0) s += edges[(3 * tiles + band - 1) * 8 + g];
    if (n < length) dh[n] = s;
    if (n == 0) dbeta[(size_t)blockIdx.x * dim + c] = s;
  }
  if constexpr (SHORT) {
    // z lies behind q, dz behind dq, a part after the other; their ds in sd, sk, sv
    const size_t part_stride = k - q;
    const int first = warp * (ROWS / WARPS), steps = 3 * (ROWS / WARPS);
    auto start = [&](int step) { return at + step / (ROWS / WARPS) * part_stride + (size_t)(first + step % (ROWS / WARPS)) * length; };
    auto exists = [&](int step) { return step < steps && first + step % (ROWS / WARPS) < rows; };
    uint4 z[4], next_z[4];
    Sums sum;
    strips<VEC>(q + start(0), 0, exists(0), length, next_z);
#pragma unroll 1
    for (int step = 0; step < steps; step++) {
      const int part = step / (ROWS / WARPS), r = first + step % (ROWS / WARPS);
      const Taps t = taps(bin, w, bs, part * dim + c);
#pragma unroll
      for (int i = 0; i < 4; i++) z[i] = next_z[i];
      strips<VEC>(q + start(step + 1), 0, exists(step + 1), length, next_z);  // comes while this one is used
      if (step % (ROWS / WARPS) == 0) sum = Sums();
      if (r < rows) lengthen<VEC>(sk + (part + 2) % 3 * slot + r * stride(length), q + start(step), z, dq + start(step), t, sum, length);
      if (step % (ROWS / WARPS) < ROWS / WARPS - 1) continue;
      const float all = warp_sum(sum.all), f0 = warp_sum(sum.first[0]), f1 = warp_sum(sum.first[1]);
      const float total[5] = {warp_sum(sum.tap[0]) + t.bin * (all - f0 - f1), warp_sum(sum.tap[1]) + t.bin * (all - f0), warp_sum(sum.tap[2]) + t.bin * all, all,
                              t.w[2] * all + t.w[1] * (all - f0) + t.w[0] * (all - f0 - f1)};
      if (lane == 0) {
#pragma unroll
        for (int i = 0; i < 5; i++) totals[warp][5 * part + i] = total[i];
      }
    }
    __syncthreads();
    if (threadIdx.x < 15) {
      const int part = threadIdx.x / 5, i = threadIdx.x % 5;
      float s = 0;
#pragma unroll
      for (int j = 0; j < WARPS; j++) s += totals[j][threadIdx.x];
      sums[((size_t)blockIdx.x * 5 + i) * 3 * dim + part * dim + c] = s;
    }
  }
}
}  // namespace toeplitz

#define LONGCONV_TENSOR(name, VEC)                                                                                                                         \
  extern "C" __global__ void __launch_bounds__(toeplitz::THREADS, 4)                                                                                       \
      longconv_tensor_forward_##name(const bf16 *q, const bf16 *k, const bf16 *v, const float *h, const float *decay, float invspan, const float *beta,     \
                                     bf16 *y, int batch, int length, int ld, int ldh) {                                                                    \
    toeplitz::forward<VEC, false>(q, k, v, nullptr, nullptr, nullptr, h, decay, invspan, beta, y, batch, length, ld, ldh);                                 \
  }                                                                                                                                                        \
  extern "C" __global__ void __launch_bounds__(toeplitz::THREADS, 3)                                                                                       \
      longconv_tensor_backward_##name(const bf16 *q, const bf16 *k, const bf16 *v, const float *h, const float *decay, float invspan, const float *beta,    \
                                      const bf16 *dy, bf16 *dq, bf16 *dk, bf16 *dv, float *dh, float *dbeta, int batch, int length, int ld, int ldh) {     \
    toeplitz::backward<VEC, false>(q, k, v, nullptr, nullptr, nullptr, h, decay, invspan, beta, dy, dq, dk, dv, dh, dbeta, nullptr, batch, length, ld, ldh); \
  }                                                                                                                                                        \
  extern "C" __global__ void __launch_bounds__(toeplitz::THREADS, 4)                                                                                       \
      hyena_tensor_forward_##name(const bf16 *z, const float *bin, const float *w, const float *bs, const float *h, const float *decay, float invspan,      \
                                  const float *beta, bf16 *y, int batch, int length, int ld, int ldh) {                                                    \
    const size_t part = (size_t)gridDim.y * ld;                                                                                                            \
    toeplitz::forward<VEC, true>(z, z + part, z + 2 * part, bin, w, bs, h, decay, invspan, beta, y, batch, length, ld, ldh);                               \
  }                                                                                                                                                        \
  extern "C" __global__ void __launch_bounds__(toeplitz::THREADS, 3)                                                                                       \
      hyena_tensor_backward_##name(const bf16 *z, const float *bin, const float *w, const float *bs, const float *h, const float *decay, float invspan,     \
                                   const float *beta, const bf16 *dy, bf16 *dz, float *dh, float *dbeta, float *sums, int batch, int length, int ld, int ldh) { \
    const size_t part = (size_t)gridDim.y * ld;                                                                                                            \
    toeplitz::backward<VEC, true>(z, z + part, z + 2 * part, bin, w, bs, h, decay, invspan, beta, dy, dz, dz + part, dz + 2 * part, dh, dbeta, sums,       \
                                  batch, length, ld, ldh);                                                                                                 \
  }

LONGCONV_TENSOR(aligned, true)
LONGCONV_TENSOR(any, false)

// Adds the slices of hyena_tensor_backward's sums. A thread a channel of 3D.
extern "C" __global__ void __launch_bounds__(128) hyena_tensor_short_gradient(const float *sums, float *dw, float *dbs, float *dbin, int slices, int channels) {
  const int c = blockIdx.x * blockDim.x + threadIdx.x;
  if (c >= channels) return;
  float s[5] = {};
#pragma unroll 4
  for (int i = 0; i < slices; i++)
#pragma unroll
    for (int j = 0; j < 5; j++) s[j] += sums[((size_t)i * 5 + j) * channels + c];
  dw[3 * c] = s[0], dw[3 * c + 1] = s[1], dw[3 * c + 2] = s[2], dbs[c] = s[3], dbin[c] = s[4];
}
