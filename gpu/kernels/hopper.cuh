// Hopper's own instructions (sm_90a): matrix products of a warpgroup, copies of
// tiles by the tensor copy engine, and the barriers in shared memory on which
// they meet. PTX ISA 8.0, "Asynchronous Warpgroup Level Matrix Instructions" and
// "cp.async.bulk.tensor".
//
// A box is 64 rows of 64 bf16 elements, 128 bytes a row, its 16-byte chunks
// permuted by the row (chunk c of row r lies at c ^ (r & 7): the 128-byte
// swizzle), aligned to 1024 bytes. It serves as either operand of a product and
// either way round.
#pragma once
#include "common.cuh"

// A tensor map (CUtensorMap) of the driver, a parameter of a kernel.
struct alignas(64) TensorMap { char opaque[128]; };

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
namespace hopper {
constexpr int BOX = 64 * 128;  // bytes

__device__ __forceinline__ uint32_t address(const void *p) { return (uint32_t)__cvta_generic_to_shared(p); }

// A value that all lanes of the warp have, so that the compiler knows.
__device__ __forceinline__ int uniform(int v) { return __shfl_sync(~0u, v, 0); }

// Barriers. A phase ends when `count` threads have arrived and the bytes
// announced have come.
__device__ __forceinline__ void barrier_init(uint32_t bar, int count) { asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(count) : "memory"); }
__device__ __forceinline__ void barrier_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
__device__ __forceinline__ void arrive(uint32_t bar) { asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(bar) : "memory"); }
__device__ __forceinline__ void arrive_expecting(uint32_t bar, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes) : "memory");
}
__device__ __forceinline__ void wait(uint32_t bar, int parity) {
  asm volatile(
      "{\n\t.reg .pred done;\n"
      "again:\n\t"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n\t"
      "@done bra.uni over;\n\t"
      "bra.uni again;\n"
      "over:\n\t}" ::"r"(bar), "r"(parity) : "memory");
}

// A box of a tensor of four dimensions: at element x of entry y of row r of sequence b;
// zeros where the tensor ends. The bytes count at bar.
__device__ __forceinline__ void copy_box(uint32_t to, const TensorMap *map, int x, int y, int r, int b, uint32_t bar) {
  asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(to), "l"(map), "r"(bar), "r"(x), "r"(y), "r"(r), "r"(b)
               : "memory");
}
// The same way back: 16 rows of a box, from a map of such parts of boxes. What
// threads wrote there must be fenced, and stay until stored says that it was read.
__device__ __forceinline__ void store_part(uint32_t from, const TensorMap *map, int x, int y, int r, int b) {
  asm volatile("cp.async.bulk.tensor.4d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4, %5}], [%1];" ::"l"(map), "r"(from), "r"(x), "r"(y), "r"(r), "r"(b) : "memory");
}
__device__ __forceinline__ void fence_writes() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
__device__ __forceinline__ void stored() { asm volatile("cp.async.bulk.commit_group;\n\tcp.async.bulk.wait_group.read 0;" ::: "memory"); }
__device__ __forceinline__ void prefetch(const TensorMap *map) { asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory"); }

// The matrix descriptor of a box: 128-byte swizzle, groups of 8 rows 1024 bytes
// apart. Only its low half depends on the box: along a row 16 elements are 32 bytes
// on, 16 rows are 2048 bytes on.
constexpr uint32_t DESCRIPTOR_HIGH = 1u << 30 | 1024 >> 4;
__device__ __forceinline__ uint32_t descriptor(uint32_t box) { return 1u << 16 | (box & 0x3ffff) >> 4; }
constexpr int ALONG = 32 >> 4, ACROSS = 2048 >> 4;  // in a descriptor's units

// Products of a warpgroup: c[64 × 64] += A[64 × 16] · B[16 × 64]. c[4n + e] is row
// 16·warp + lane/4 + 8·(e/2), column 8n + 2·(lane%4) + e%2. They run until waited
// for; in between neither c nor a may be touched.
#define HOPPER_C                                                                                                                                                     \
  "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}"
#define HOPPER_C4(i) "+f"(c[i]), "+f"(c[i + 1]), "+f"(c[i + 2]), "+f"(c[i + 3])
#define HOPPER_C32 HOPPER_C4(0), HOPPER_C4(4), HOPPER_C4(8), HOPPER_C4(12), HOPPER_C4(16), HOPPER_C4(20), HOPPER_C4(24), HOPPER_C4(28)

// A and B by rows of their boxes ([64, 16] and [64, 16]: c = A · Bᵀ). c is
// overwritten where add is false.
__device__ __forceinline__ void product(float (&c)[32], uint32_t a, uint32_t b, bool add) {
  asm volatile("{\n\t.reg .pred p;\n\t.reg .b64 a, b;\n\tsetp.ne.b32 p, %34, 0;\n\tmov.b64 a, {%32, %35};\n\tmov.b64 b, {%33, %35};\n\t"
               "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 " HOPPER_C ", a, b, p, 1, 1, 0, 0;\n\t}"
               : HOPPER_C32 : "r"(a), "r"(b), "r"((int)add), "n"(DESCRIPTOR_HIGH));
}
// A in registers, B by rows of its box.
__device__ __forceinline__ void product(float (&c)[32], const uint32_t *a, uint32_t b, bool add) {
  asm volatile("{\n\t.reg .pred p;\n\t.reg .b64 b;\n\tsetp.ne.b32 p, %37, 0;\n\tmov.b64 b, {%36, %38};\n\t"
               "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 " HOPPER_C ", {%32,%33,%34,%35}, b, p, 1, 1, 0;\n\t}"
               : HOPPER_C32 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b), "r"((int)add), "n"(DESCRIPTOR_HIGH));
}
// A in registers, B across the rows of its box ([16, 64]: c += A · B).
__device__ __forceinline__ void product_across(float (&c)[32], const uint32_t *a, uint32_t b) {
  asm volatile("{\n\t.reg .b64 b;\n\tmov.b64 b, {%36, %37};\n\t"
               "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 " HOPPER_C ", {%32,%33,%34,%35}, b, 1, 1, 1, 1;\n\t}"
               : HOPPER_C32 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b), "n"(DESCRIPTOR_HIGH));
}
__device__ __forceinline__ void begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Waits until at most LEFT groups run.
template <int LEFT> __device__ __forceinline__ void finish() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LEFT) : "memory"); }
// Keeps the compiler from moving uses of c over this place.
__device__ __forceinline__ void hold(float (&c)[32]) {
#pragma unroll
  for (int i = 0; i < 32; i++) asm volatile("" : "+f"(c[i])::"memory");
}

// Four 8 × 8 matrices, each lane's address one of their rows.
__device__ __forceinline__ void load_matrices(uint32_t *r, uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(row) : "memory");
}
__device__ __forceinline__ void store_matrices(uint32_t row, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(row), "r"(a), "r"(b), "r"(c), "r"(d) : "memory");
}

__device__ __forceinline__ uint32_t pack(float x, float y) {
  __nv_bfloat162 v = __floats2bfloat162_rn(x, y);
  return *reinterpret_cast<uint32_t *>(&v);
}
__device__ __forceinline__ float low(uint32_t v) { return __uint_as_float(v << 16); }
__device__ __forceinline__ float high(uint32_t v) { return __uint_as_float(v & 0xffff0000u); }
// 2ˣ by the special-function unit, results under 2⁻¹²⁶ to zero.
__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
}  // namespace hopper
#endif
