// A matrix product of our own for Hopper (sm_90a), for what cuBLASLt cannot do
// with a tile of the product while it is still in registers:
//
//   D[m, n] = Σ_k A[m, k] · B[n, k],   A, B bf16, D float32
//
// A block of three warpgroups stays on a multiprocessor and works through its
// items. An item is a strip of 128 rows of A and a range of tiles of 128 rows of
// B. One warp asks for operands by TMA; two warpgroups take tiles in turns, one
// multiplies (wgmma, m64n128k16 twice) while the other hands its finished tile to
// the epilogue. Up to K = 512 the strip of A stays in shared memory for the whole
// item, so that only B is read again, by all blocks at about the same time, from
// the L2 cache; above, both are streamed.
//
// The order of columns in shared memory is chosen so that a thread's share of the
// accumulators is whole vectors of eight consecutive columns: B's tensor map has
// its rows as 32·b + 8·q + 2·j + i in the order i, q, j, b (gpu/cuda/matmul.go). The
// product then needs no pass through shared memory to be written, but reads up to
// 31 rows past the end of B; their values do not matter.
//
// An epilogue is a struct with
//   open(row)                 before an item: the thread's rows are row + 64·m + 8·h
//   before(col)               before the product of a tile: its columns are
//                             col + 32·c … + 7 for c = 0 … 3
//   piece<whole>(m, h, c, col, v)  eight elements from row (m, h), column col on;
//                             rows change fastest; whole: no element of the tile is outside
//   finish(strip, warp, col)  after the last piece of the tile that starts at col
//   close(slot)               after an item; slot: part of B's tiles · 2 + warpgroup
#pragma once
#include "hopper.cuh"

namespace matmul {

constexpr int TILE = 128;    // rows of a strip of A, of a tile of B
constexpr int SLAB = 64;     // elements of K in a stage: 128 bytes, the width of the swizzle
constexpr int SLABS = 8;     // stages of A
constexpr int STAGES = 6;    // stages of B
constexpr int BYTES = TILE * SLAB * 2;
constexpr int THREADS = 384;
constexpr int SHARED = (SLABS + STAGES) * BYTES + 1024;  // and the barriers

// min(x, y), NaN where x is.
__device__ __forceinline__ float least(float x, float y) {
  float z;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(z) : "f"(x), "f"(y));
  return z;
}
// 2^x to 2 units in the last place.
__device__ __forceinline__ float power2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
using namespace hopper;

// Named barriers between the two warpgroups that multiply.
__device__ __forceinline__ void turn_wait(int id) { asm volatile("bar.sync %0, 256;" ::"r"(id) : "memory"); }
__device__ __forceinline__ void turn_give(int id) { asm volatile("bar.arrive %0, 256;" ::"r"(id) : "memory"); }

// Rows row … row + 127, columns k … k + 63 of A; the same of B, by blocks of 32 rows.
__device__ __forceinline__ void load_rows(uint32_t to, const TensorMap *map, uint32_t b, int k, int row) {
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(to), "l"(map), "r"(b), "r"(k), "r"(row) : "memory");
}
__device__ __forceinline__ void load_columns(uint32_t to, const TensorMap *map, uint32_t b, int k, int block) {
  asm volatile("cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %4, %4, %5}], [%2];" ::"r"(to), "l"(map), "r"(b), "r"(k), "r"(0), "r"(block) : "memory");
}

// The lower half of an operand's descriptor, and the upper one, which is the same
// for all.
__device__ __forceinline__ uint32_t operand(uint32_t stage) { return (uint32_t)descriptor(stage); }
constexpr uint32_t LAYOUT = 1u << 30 | 1024 >> 4;

// Keeps the compiler from moving accumulators across.
__device__ __forceinline__ void pin(float (&d)[64]) {
#pragma unroll
  for (int i = 0; i < 64; i++) asm volatile("" : "+f"(d[i])::"memory");
}

#define EIGHT(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
// d = A · Bᵀ, plus d where add is not 0: 64 × 128 × 16.
__device__ __forceinline__ void wgmma(float (&d)[64], uint32_t a, uint32_t b, int add) {
  asm volatile(
      "{\n.reg .pred p;\n.reg .b64 a, b;\nsetp.ne.b32 p, %66, 0;\nmov.b64 a, {%64, %67};\nmov.b64 b, {%65, %67};\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
      "}, a, b, p, 1, 1, 0, 0;\n}"
      : EIGHT(d, 0), EIGHT(d, 8), EIGHT(d, 16), EIGHT(d, 24), EIGHT(d, 32), EIGHT(d, 40), EIGHT(d, 48), EIGHT(d, 56)
      : "r"(a), "r"(b), "r"(add), "n"(LAYOUT));
}
#undef EIGHT

// Work is what a block does. Where B is large every strip's tiles are cut into
// parts, dealt out in order, so that all blocks go through B at the same pace and
// find it in the L2 cache; with no parts, all tiles are cut into equal ranges, a
// block's items being what its range has of each strip.
struct Work {
  int rows, cols, strips, tiles, parts, slabs;  // slabs of K
  struct Item { int strip, part, first, end; };

  __device__ Work(int rows, int cols, int k, int parts) : rows(rows), cols(cols), strips((rows + TILE - 1) / TILE), tiles((cols + TILE - 1) / TILE), parts(parts), slabs((k + SLAB - 1) / SLAB) {}
  // The block's item of a turn, if there is one.
  __device__ bool item(int turn, Item &it) const {
    if (parts > 0) {
      const int i = blockIdx.x + turn * gridDim.x;
      it.strip = i / parts, it.part = i % parts;
      it.first = (int)((long long)it.part * tiles / parts), it.end = (int)((long long)(it.part + 1) * tiles / parts);
      return it.strip < strips;
    }
    const long long all = (long long)strips * tiles, from = all * blockIdx.x / gridDim.x, to = all * (blockIdx.x + 1) / gridDim.x;
    it.strip = (int)(from / tiles) + turn, it.part = 0;
    const long long start = (long long)it.strip * tiles;
    it.first = (int)(max(from, start) - start), it.end = (int)min(to - start, (long long)tiles);
    return it.first < it.end;
  }
};

// Barriers: A's stages full and free, B's stages full and free.
struct Barriers {
  uint32_t base;
  __device__ uint32_t a_full(int i) const { return base + 8 * i; }
  __device__ uint32_t a_free(int i) const { return base + 8 * (SLABS + i); }
  __device__ uint32_t b_full(int i) const { return base + 8 * (2 * SLABS + i); }
  __device__ uint32_t b_free(int i) const { return base + 8 * (2 * SLABS + STAGES + i); }
};

// A position in a ring of stages, and the parity of the turn round it.
template <int SIZE> struct Ring {
  int at = 0;
  uint32_t parity = 0;
  __device__ void next() {
    if (++at == SIZE) at = 0, parity ^= 1;
  }
  __device__ void advance(int n) {
    at += n;
    while (at >= SIZE) at -= SIZE, parity ^= 1;
  }
};

// One thread asks for every operand, in the order in which they are used.
template <bool STREAMS> __device__ void produce(const Work &w, const Barriers &bars, uint32_t shared, const TensorMap *a, const TensorMap *b, int row0) {
  Ring<STAGES> at;
  Ring<SLABS> ring;
  Work::Item it;
  for (int turn = 0; w.item(turn, it); turn++) {
    for (int tile = it.first; tile < it.end; tile++)
      for (int k = 0; k < w.slabs; k++) {
        if (STREAMS || tile == it.first) {
          wait(bars.a_free(ring.at), ring.parity ^ 1);
          arrive_expecting(bars.a_full(ring.at), BYTES);
          load_rows(shared + ring.at * BYTES, a, bars.a_full(ring.at), k * SLAB, row0 + it.strip * TILE);
          ring.next();
          if (!STREAMS && k == w.slabs - 1) ring.advance(SLABS - w.slabs);  // an item takes one turn
        }
        wait(bars.b_free(at.at), at.parity ^ 1);
        arrive_expecting(bars.b_full(at.at), BYTES);
        load_columns(shared + (SLABS + at.at) * BYTES, b, bars.b_full(at.at), k * SLAB, tile * (TILE / 32));
        at.next();
      }
  }
}

// A tile's accumulators, eight columns at a time.
template <bool WHOLE, class Epilogue> __device__ __forceinline__ void pieces(Epilogue &e, const float (&d)[2][64], int col) {
#pragma unroll
  for (int c = 0; c < 4; c++)
#pragma unroll
    for (int m = 0; m < 2; m++)
#pragma unroll
      for (int h = 0; h < 2; h++) {
        float v[8];
#pragma unroll
        for (int i = 0; i < 8; i++) v[i] = d[m][16 * c + 4 * (i / 2) + 2 * h + (i & 1)];
        e.template piece<WHOLE>(m, h, c, col + 32 * c, v);
      }
}

// The tiles of one warpgroup, every second one. Up to IN_FLIGHT slabs' products are
// under way at a time; a stage is given back when its own is done.
template <bool STREAMS, class Epilogue> __device__ __forceinline__ void consume(const Work &w, const Barriers &bars, uint32_t shared, Epilogue &e) {
  constexpr int IN_FLIGHT = 2;
  const int lane = threadIdx.x & 31, warp = threadIdx.x / 32 & 3;
  const int group = uniform((int)threadIdx.x / 128 - 1);
  const bool signals = lane == 0;
  Ring<STAGES> at;
  Ring<SLABS> ring;
  if (group == 1) at.advance(w.slabs), turn_give(1);  // the first tile is the other's
  if (group == 1 && STREAMS) ring.advance(w.slabs);
  int left = 0;  // tiles of the block
  Work::Item it;
  for (int turn = 0; w.item(turn, it); turn++) left += it.end - it.first;
  int count = 0;
  for (int turn = 0; w.item(turn, it); turn++) {
    e.open(it.strip * TILE + 16 * warp + lane / 4);
    bool fresh = true;
    for (int tile = it.first; tile < it.end; tile++) {
      left--;
      if ((count++ & 1) != group) continue;
      const bool last = tile + 2 >= it.end;  // of this warpgroup's in the item
      const int col = tile * TILE + 8 * (lane & 3);
      e.before(col);
      turn_wait(1 + group);
      float d[2][64];
      Ring<STAGES> tail = at;
      Ring<SLABS> tail_a = ring;
      auto release = [&](int k) {
        if (signals) {
          arrive(bars.b_free(tail.at));
          if (STREAMS || last) arrive(bars.a_free(STREAMS ? tail_a.at : k));
        }
        tail.next();
        if (STREAMS) tail_a.next();
      };
#pragma unroll 1
      for (int k = 0; k < w.slabs; k++) {
        if (STREAMS) wait(bars.a_full(ring.at), ring.parity);
        else if (fresh) wait(bars.a_full(k), turn & 1);
        wait(bars.b_full(at.at), at.parity);
        const uint32_t a = operand(shared + (STREAMS ? ring.at : k) * BYTES), b = operand(shared + (SLABS + at.at) * BYTES);
        pin(d[0]), pin(d[1]);
        begin();
#pragma unroll
        for (int i = 0; i < SLAB / 16; i++) {  // 16 elements are 32 bytes, 64 rows 8 KB
          wgmma(d[0], a + 2 * i, b + 2 * i, k | i);
          wgmma(d[1], a + 512 + 2 * i, b + 2 * i, k | i);
        }
        commit();
        pin(d[0]), pin(d[1]);
        at.next();
        if (STREAMS) ring.next();
        if (k == w.slabs - 1 && left > 0) turn_give(2 - group);  // to the next tile
        if (k >= IN_FLIGHT) {
          finish<IN_FLIGHT>();
          release(k - IN_FLIGHT);
        }
      }
      finish<0>();
      pin(d[0]), pin(d[1]);
      for (int k = max(0, w.slabs - IN_FLIGHT); k < w.slabs; k++) release(k);
      at.advance(w.slabs);
      if (STREAMS) ring.advance(w.slabs);
      fresh = false;
      if (it.strip * TILE + TILE <= w.rows && tile * TILE + TILE <= w.cols) pieces<true>(e, d, col);
      else pieces<false>(e, d, col);
      e.finish(it.strip, warp, tile * TILE);
    }
    if (!STREAMS && fresh)  // no tile: give the strip back when it is there
      for (int k = 0; k < w.slabs; k++) {
        wait(bars.a_full(k), turn & 1);
        if (signals) arrive(bars.a_free(k));
      }
    e.close(2 * it.part + group);
  }
}
#endif

// The product of rows row0 … row0 + rows − 1 of A with all cols rows of B. A grid
// of at most as many blocks as there are items (parts of strips, or tiles), of
// THREADS threads and SHARED bytes. STREAMS: k is above SLABS · SLAB.
template <bool STREAMS, class Epilogue> __device__ __forceinline__ void product(const TensorMap *a, const TensorMap *b, int row0, int rows, int cols, int k, int parts, Epilogue e) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ __align__(1024) unsigned char memory[];
  const uint32_t shared = address(memory);
  const Barriers bars{shared + (SLABS + STAGES) * BYTES};
  const Work w(rows, cols, k, parts);
  if (threadIdx.x == 0) {
    const int warps = 4;  // of the warpgroup that works on a tile; a resident strip is both's
    for (int i = 0; i < SLABS; i++) barrier_init(bars.a_full(i), 1), barrier_init(bars.a_free(i), STREAMS ? warps : 2 * warps);
    for (int i = 0; i < STAGES; i++) barrier_init(bars.b_full(i), 1), barrier_init(bars.b_free(i), warps);
    barrier_fence();
    prefetch(a), prefetch(b);
  }
  __syncthreads();
  if (threadIdx.x < 128) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    if (threadIdx.x == 0) produce<STREAMS>(w, bars, shared, a, b, row0);
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    consume<STREAMS>(w, bars, shared, e);
  }
#else
  __trap();
#endif
}

}  // namespace matmul

// PRODUCT_KERNEL makes one kernel, for k up to 512 or, where it streams, above;
// EXPORT_PRODUCT(name, (epilogue), parameters…) makes both, name and name_streamed.
// The epilogue may use rows, cols and the parameters.
#define PRODUCT_KERNEL(name, streams, epilogue, ...)                                                                                            \
  extern "C" __global__ void __launch_bounds__(matmul::THREADS, 1)                                                                              \
  name(const __grid_constant__ TensorMap left, const __grid_constant__ TensorMap right, int row0, int rows, int cols, int k, int parts, __VA_ARGS__) { \
    matmul::product<streams>(&left, &right, row0, rows, cols, k, parts, epilogue);                                                              \
  }
#define EXPORT_PRODUCT(name, epilogue, ...)            \
  PRODUCT_KERNEL(name, false, epilogue, __VA_ARGS__)   \
  PRODUCT_KERNEL(name##_streamed, true, epilogue, __VA_ARGS__)
