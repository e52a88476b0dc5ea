// The gated causal long convolution of longconv.cu where a transform does not
// fit in a block's shared memory: P = RADIX · 4096 points in three stages through
// device memory (fft_columns.cuh), columns in registers, rows in shared memory.
// Equations, shapes and types are longconv.cu's.
//
//              enter                   rows                              leave
//   forward    U = columns of u        U ← rows of conj(H ⊙ rows of U)   c = columns of U + β u,  y = q ⊙ c
//   backward   U and V = columns of u  Û, V̂ = rows of U, V               du = columns of V + β d
//              and of d = dy ⊙ q       S += V̂ ⊙ conj(Û)
//              dq = dy ⊙ c, Σ d ⊙ u    V ← rows of conj(conj(H) ⊙ V̂)
//
// c is kept for the backward pass, of T like y: that saves it one of four
// transforms.
//
// A pass is one launch, cut into slices: some sequences of some channels. Step i
// enters slice i, does the rows of slice i − lag and leaves slice i − 2·lag, so that
// what is bound by bytes runs beside what is bound by arithmetic. Blocks start in
// their order, so those of a few steps are at work at a time, and the scratch, a
// ring of 3·lag slices whatever the batch, stays in the L2 cache. A block waits for
// the blocks of earlier steps that it depends on: they have started, so they end.
// (CUB's scans rely on the order of blocks in the same way.)
//
// Backward slices are of one sequence. S adds the sequences up in their order; the
// last leaves dh's rows in place of H. A channel's sequences are groups slices apart.
//
//   U: [3·lag, channels, sequences, RADIX, 4096] complex, slice i at i mod 3·lag;
//      backward [2·lag, channels, RADIX, 4096];  V: [3·lag, channels, RADIX, 4096]
//   S: [groups, channels, RADIX, 4096];  H: [D, RADIX, 4096], the filter's transform / P
//   done: [3, slices], blocks that are done by stage, zero before a launch
#include "fft_columns.cuh"

namespace stages {

using fft::Columns;
using fft::Row;
using fft::RowThreads;

enum Stage { ENTER, ROWS, LEAVE };

// How a pass is cut: steps between stages; channels and sequences of a slice;
// groups of channels whose slices take turns; all channels and sequences.
struct Cut {
  int lag, channels, sequences, groups, dim, batch;
  __device__ __forceinline__ int turns() const { return (batch + sequences - 1) / sequences; }  // of a group
  __device__ __forceinline__ int slices() const { return (dim + channels * groups - 1) / (channels * groups) * groups * turns(); }
};

// What a block does: its stage of a row or of some columns of one sequence of a
// channel. Within a step rows take turns with the others.
template <int RADIX> struct Task {
  static constexpr int BLOCKS = Columns<RADIX>::BLOCKS;
  Stage stage;
  int slice, block;       // block: a row, or a block of columns
  int channel, sequence;
  int units, unit;        // sequences of channels of a slice; which one
  int group;              // the channel in S
  bool due, there;        // there is such a slice; such a sequence of such a channel
  __device__ __forceinline__ Task(const Cut &c) {
    units = c.channels * c.sequences;
    const int rows = RADIX * units, light = BLOCKS * units;
    const int step = blockIdx.x / (rows + 2 * light), b = blockIdx.x % (rows + 2 * light), both = min(rows, 2 * light);
    int index = b < 2 * both ? b >> 1 : b - both;
    if (b < 2 * both ? !(b & 1) : rows > both) stage = ROWS;
    else if (index < light) stage = LEAVE;
    else stage = ENTER, index -= light;
    slice = step - c.lag * (int)stage, due = slice >= 0 && slice < c.slices();
    const int of = stage == ROWS ? RADIX : BLOCKS, turn = slice / c.groups;
    block = index % of, unit = index / of;
    group = slice % c.groups * c.channels + unit / c.sequences;
    channel = turn / c.turns() * c.groups * c.channels + group;
    sequence = turn % c.turns() * c.sequences + unit % c.sequences;
    there = channel < c.dim && sequence < c.batch;
  }
  // Waits, all threads together, until all blocks of a stage of a slice are done.
  __device__ __forceinline__ void await(Stage s, int slice, const Cut &c, const int *done) const {
    if (threadIdx.x == 0 && slice >= 0) {
      const int *p = done + s * c.slices() + slice, blocks = (s == ROWS ? RADIX : BLOCKS) * c.channels * c.sequences;
      int n;
      do asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(n) : "l"(p) : "memory");
      while (n < blocks);
    }
    __syncthreads();
  }
  // Where the unit's scratch begins in a ring.
  __device__ __forceinline__ size_t at(int ring) const { return (size_t)(slice % ring * units + unit) * Columns<RADIX>::P; }
  __device__ __forceinline__ void finish(const Cut &c, int *done) const {
    __syncthreads();
    if (threadIdx.x == 0) asm volatile("red.release.gpu.global.add.s32 [%0], 1;" ::"l"(done + stage * c.slices() + slice) : "memory");
  }
};

// One row's transform by the block.
__device__ __forceinline__ void row(float2 (&v)[16], const float2 *roots) {
  extern __shared__ float2 shared[];
  fft::forward<Row>(v, shared, threadIdx.x, roots);
}
__device__ __forceinline__ float2 conj(float2 a) { return make_float2(a.x, -a.y); }
// A thread's points of a row.
__device__ __forceinline__ void fetch(float2 (&v)[16], const float2 *row) {
#pragma unroll
  for (int e = 0; e < 16; e++) v[e] = row[e * RowThreads];
}
__device__ __forceinline__ void put(float2 *row, const float2 (&v)[16]) {
#pragma unroll
  for (int e = 0; e < 16; e++) row[e * RowThreads] = v[e];
}

__device__ __forceinline__ void rows_forward(float2 *U, const float2 *H, const float2 *roots) {
  float2 v[16];
  fetch(v, U);
  row(v, roots);
#pragma unroll
  for (int e = 0; e < 16; e++) v[e] = conj(fft::mul(v[e], __ldg(H + e * RowThreads)));
  row(v, roots);
  put(U, v);
}

// S is set by the first sequence; the last leaves dh's row in H.
__device__ __forceinline__ void rows_backward(const float2 *U, float2 *V, float2 *S, float2 *H, bool first, bool last, const float2 *roots) {
  float2 v[16], w[16];
  fetch(v, U), fetch(w, V);
  row(v, roots), row(w, roots);
#pragma unroll
  for (int half = 0; half < 16; half += 8) {
    float2 h[8], s[8];
#pragma unroll
    for (int e = 0; e < 8; e++) h[e] = H[(half + e) * RowThreads], s[e] = first ? make_float2(0, 0) : S[(half + e) * RowThreads];
#pragma unroll
    for (int e = 0; e < 8; e++) {
      v[half + e] = fft::add(s[e], fft::mulconj(w[half + e], v[half + e]));
      w[half + e] = conj(fft::mulconj(w[half + e], h[e]));
    }
  }
  if (!last) put(S, v);
  row(w, roots);
  put(V, w);
  if (!last) return;
#pragma unroll
  for (int e = 0; e < 16; e++) v[e] = conj(v[e]);
  row(v, roots);
  put(H, v);
}

// Where a thread reads and writes sequences it does so 16 values at a time, all
// loads first: the compiler does not move one before a store.

// y and c at the thread's columns; pointers are to the sequence. c may be null.
template <int RADIX, class T> __device__ __forceinline__ void gate(const float2 *U, int block, const float *u, const float *q, float b, T *y, T *c, int length) {
  float x[Columns<RADIX>::POINTS];
  fft::leave<RADIX>(U, block, x);
#pragma unroll
  for (int part = 0; part < Columns<RADIX>::POINTS; part += 16) {
    float un[16], qn[16];
#pragma unroll
    for (int e = 0; e < 16; e++) {
      const int n = fft::position<RADIX>(block, part + e);
      un[e] = n < length ? __ldcs(u + n) : 0.0f, qn[e] = n < length ? __ldcs(q + n) : 0.0f;
    }
#pragma unroll
    for (int e = 0; e < 16; e++) {
      const int n = fft::position<RADIX>(block, part + e);
      const float cn = x[part + e] + b * un[e];
      if (n < length) __stcs(y + n, store<T>(qn[e] * cn));
      if (n < length && c) __stcs(c + n, store<T>(cn));
    }
  }
}

// U, V and dq at the thread's columns; Σ d · u over the block's.
template <int RADIX, class T>
__device__ __forceinline__ float enter_backward(float2 *U, float2 *V, int block, const float *u, const float *q, const T *c, const T *dy, float *dq, int length) {
  __shared__ float scratch[32];
  fft::enter<RADIX>(U, block, [&](int n) { return n < length ? u[n] : 0.0f; });
  fft::enter<RADIX>(V, block, [&](int n) { return n < length ? load(dy[n]) * q[n] : 0.0f; });
  float sum = 0;
#pragma unroll
  for (int part = 0; part < Columns<RADIX>::POINTS; part += 16) {
    float cn[16], gn[16];
#pragma unroll
    for (int e = 0; e < 16; e++) {
      const int n = fft::position<RADIX>(block, part + e);
      gn[e] = cn[e] = 0;
      if (n < length) cn[e] = load(__ldcs(c + n)), gn[e] = load(dy[n]), sum += gn[e] * q[n] * u[n];
    }
#pragma unroll
    for (int e = 0; e < 16; e++) {
      const int n = fft::position<RADIX>(block, part + e);
      if (n < length) __stcs(dq + n, gn[e] * cn[e]);
    }
  }
  return block_sum(sum, scratch);
}

template <int RADIX, class T> __device__ __forceinline__ void leave_backward(const float2 *V, int block, const float *q, float b, const T *dy, float *du, int length) {
  float x[Columns<RADIX>::POINTS];
  fft::leave<RADIX>(V, block, x);
#pragma unroll
  for (int part = 0; part < Columns<RADIX>::POINTS; part += 16) {
    float d[16];
#pragma unroll
    for (int e = 0; e < 16; e++) {
      const int n = fft::position<RADIX>(block, part + e);
      d[e] = n < length ? load(__ldcs(dy + n)) * __ldcs(q + n) : 0.0f;
    }
#pragma unroll
    for (int e = 0; e < 16; e++) {
      const int n = fft::position<RADIX>(block, part + e);
      if (n < length) __stcs(du + n, x[part + e] + b * d[e]);
    }
  }
}

template <int RADIX, class T>
__device__ void forward(const float *u, const float *q, const float2 *H, const float *beta, T *y, T *c, float2 *U, int *done, Cut cut, int length, int ld, const float2 *roots) {
  const Task<RADIX> t(cut);
  if (!t.due) return;
  if (t.there) {
    const size_t at = (size_t)t.channel * ld + (size_t)t.sequence * length;
    const int ring = 3 * cut.lag, own = t.block * Row + threadIdx.x;
    U += t.at(ring);
    if (t.stage == ENTER) {
      t.await(LEAVE, t.slice - ring, cut, done);
      fft::enter<RADIX>(U, t.block, [&](int n) { return n < length ? u[at + n] : 0.0f; });
    } else if (t.stage == ROWS) {
      t.await(ENTER, t.slice, cut, done);
      rows_forward(U + own, H + (size_t)t.channel * Columns<RADIX>::P + own, roots);
    } else {
      t.await(ROWS, t.slice, cut, done);
      gate<RADIX, T>(U, t.block, u + at, q + at, beta[t.channel], y + at, c ? c + at : nullptr, length);
    }
  }
  t.finish(cut, done);
}

// dbeta: [B, BLOCKS, D], partial sums.
template <int RADIX, class T>
__device__ void backward(const float *u, const float *q, const T *c, float2 *H, const float *beta, const T *dy, float *dq, float *du, float *dbeta, float2 *U, float2 *V, float2 *S, int *done,
                         Cut cut, int length, int ld, const float2 *roots) {
  constexpr int P = Columns<RADIX>::P;
  const Task<RADIX> t(cut);
  if (!t.due) return;
  if (t.there) {
    const size_t at = (size_t)t.channel * ld + (size_t)t.sequence * length;
    const int ring = 3 * cut.lag, short_ring = 2 * cut.lag, own = t.block * Row + threadIdx.x;
    U += t.at(short_ring), V += t.at(ring);
    if (t.stage == ENTER) {
      t.await(ROWS, t.slice - short_ring, cut, done), t.await(LEAVE, t.slice - ring, cut, done);
      const float db = enter_backward<RADIX, T>(U, V, t.block, u + at, q + at, c + at, dy + at, dq + at, length);
      if (threadIdx.x == 0) dbeta[((size_t)t.sequence * Columns<RADIX>::BLOCKS + t.block) * cut.dim + t.channel] = db;
    } else if (t.stage == ROWS) {
      t.await(ENTER, t.slice, cut, done), t.await(ROWS, t.slice - cut.groups, cut, done);  // S is another sequence's until then
      rows_backward(U + own, V + own, S + (size_t)t.group * P + own, H + (size_t)t.channel * P + own, t.sequence == 0, t.sequence == cut.batch - 1, roots);
    } else {
      t.await(ROWS, t.slice, cut, done);
      leave_backward<RADIX, T>(V, t.block, q + at, beta[t.channel], dy + at, du + at, length);
    }
  }
  t.finish(cut, done);
}

// H's columns from the implicit filter window ⊙ f; f [D, ldf] in float64, the
// window as in longconv.cu. Grid (BLOCKS, D).
template <int RADIX> __device__ void enter_filter(const double *f, const float *decay, float2 *H, int length, int ldf, float invspan) {
  f += (size_t)blockIdx.y * ldf;
  const float rate = decay[blockIdx.y];
  fft::enter<RADIX>(H + (size_t)blockIdx.y * Columns<RADIX>::P, blockIdx.x,
                    [&](int n) { return n < length ? (float)f[n] * expf(-(n * invspan) * rate) * (1.0f / Columns<RADIX>::P) : 0.0f; });
}

// dh: [D, ldh] from its rows in H. Grid (BLOCKS, D).
template <int RADIX> __device__ void leave_filter(const float2 *H, float *dh, int length, int ldh) {
  using C = Columns<RADIX>;
  float x[C::POINTS];
  fft::leave<RADIX>(H + (size_t)blockIdx.y * C::P, blockIdx.x, x);
#pragma unroll
  for (int e = 0; e < C::POINTS; e++) {
    const int n = fft::position<RADIX>(blockIdx.x, e);
    if (n < length) dh[(size_t)blockIdx.y * ldh + n] = x[e] * (1.0f / C::P);
  }
}

}  // namespace stages

// The filter's rows, in place. Grid (RADIX, D).
extern "C" __global__ void __launch_bounds__(256, 3) longconv_rows_filter(float2 *H, const float2 *roots) {
  H += ((size_t)blockIdx.y * gridDim.x + blockIdx.x) * fft::Row + threadIdx.x;
  float2 v[16];
  stages::fetch(v, H);
  stages::row(v, roots);
  stages::put(H, v);
}

// Grid (slices + 2·lag) · channels · sequences · (RADIX + 2·BLOCKS). Blocks are 256 threads.
#define LONGCONV_STAGES_OF(RADIX, P, T) \
  extern "C" __global__ void __launch_bounds__(256, RADIX > 16 ? 2 : 3) \
      longconv_forward_##P##_##T(const float *u, const float *q, const float2 *H, const float *beta, T *y, T *c, float2 *U, int *done, int lag, int channels, int sequences, int dim, int batch, int length, int ld, \
                                 const float2 *roots) { \
    stages::forward<RADIX, T>(u, q, H, beta, y, c, U, done, {lag, channels, sequences, 1, dim, batch}, length, ld, roots); \
  } \
  extern "C" __global__ void __launch_bounds__(256, 2) \
      longconv_backward_##P##_##T(const float *u, const float *q, const T *c, float2 *H, const float *beta, const T *dy, float *dq, float *du, float *dbeta, float2 *U, float2 *V, float2 *S, int *done, \
                                  int lag, int channels, int dim, int batch, int length, int ld, const float2 *roots) { \
    stages::backward<RADIX, T>(u, q, c, H, beta, dy, dq, du, dbeta, U, V, S, done, {lag, channels, 1, lag + 1, dim, batch}, length, ld, roots); \
  }
#define LONGCONV_STAGES(RADIX, P) \
  extern "C" __global__ void __launch_bounds__(256) longconv_enter_filter_##P(const double *f, const float *decay, float2 *H, int length, int ldf, float invspan) { \
    stages::enter_filter<RADIX>(f, decay, H, length, ldf, invspan); \
  } \
  extern "C" __global__ void __launch_bounds__(256) longconv_leave_filter_##P(const float2 *H, float *dh, int length, int ldh) { \
    stages::leave_filter<RADIX>(H, dh, length, ldh); \
  } \
  LONGCONV_STAGES_OF(RADIX, P, float32) \
  LONGCONV_STAGES_OF(RADIX, P, bf16)

typedef float float32;
LONGCONV_STAGES(4, 16384)
LONGCONV_STAGES(8, 32768)
LONGCONV_STAGES(16, 65536)
LONGCONV_STAGES(32, 131072)
