// The MLP's two products on Hopper that gelu.cu's kernels follow elsewhere, with
// its activation on the accumulators:
//
//   a = x · W₁ᵀ + b₁,   g = a · Φ(a)
//   da = (dy · W₂) ⊙ (Φ(a) + a · φ(a)),   db₁ = Σ_rows da
//
// With Φ(−z) = 2^q(z), q a polynomial of degree 7 fitted to log₂(erfc(z/√2) / 2)
// over 0 … 6: off by at most 4e-6 of its value below z = 4 and 1.4e-5 below 6, and
// falling from there on. And Φ(−z) − z φ(z) = φ(z) P(z), P of degree 6: off by at
// most 1.6e-5.
//
// x, dy: [rows, dim], W₁: [hidden, dim], W₂ᵀ: [hidden, dim] (transposed), a, g, da:
// rows lda, ldg, ldd apart, all bf16; dim, hidden and the strides multiples of 8.
// dim is at most 512: wider strips would have to be streamed, and the products were
// then slower than cuBLASLt's and gelu.cu's together (0.91 ms against 0.71 upwards,
// 1.07 against 0.94 downwards, at 61,440 × 768 × 3072).
#include "matmul_hopper.cuh"

namespace matmul {
// Φ(−z), z ≥ 0.
__device__ __forceinline__ float tail(float z) {
  float q = fmaf(-1.780804723e-06f, z, 6.063882756e-05f);
  q = fmaf(q, z, -0.0009240122163f);
  q = fmaf(q, z, 0.008486657403f);
  q = fmaf(q, z, -0.05392577127f);
  q = fmaf(q, z, -0.4584897459f);
  q = fmaf(q, z, -1.151244283f);
  return power2(fmaf(q, z, -0.9999955893f));
}
__device__ __forceinline__ float gelu(float a) { return fmaf(-fabsf(a), tail(fabsf(a)), fmaxf(a, 0.0f)); }
// At −z it is φ(z) P(z), at z one less that. log₂(1/√2π) = −1.3257480647, log₂(e)/2
// = 0.7213475204. Above 16, where φ is 0, P would overflow.
__device__ __forceinline__ float gelu_slope(float a) {
  const float z = least(fabsf(a), 16.0f), density = power2(fmaf(z * z, -0.7213475204f, -1.3257480647f));
  float p = fmaf(0.001765275025f, z, -0.02015831321f);
  p = fmaf(p, z, 0.09944455326f);
  p = fmaf(p, z, -0.2931294143f);
  p = fmaf(p, z, 0.6126800179f);
  p = fmaf(p, z, -1.998163581f);
  p = fmaf(p, z, 1.253274798f) * density;
  return a < 0 ? p : 1.0f - p;
}

struct Gelu {
  const float *bias;
  bf16 *a, *g;  // a may be null
  int rows, cols, lda, ldg;
  int row;
  float b[4][8];

  __device__ __forceinline__ void open(int first) { row = first; }
  __device__ __forceinline__ void before(int col) {
#pragma unroll
    for (int c = 0; c < 4; c++)
      if (col + 32 * c < cols) load8(bias + col + 32 * c, b[c]);
  }
  template <bool WHOLE> __device__ __forceinline__ void piece(int m, int h, int c, int col, float (&v)[8]) {
    const int r = row + 64 * m + 8 * h;
    if (!WHOLE && (r >= rows || col >= cols)) return;
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] += b[c][i];
    if (a) store8(a + (size_t)r * lda + col, v);
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] = gelu(v[i]);
    store8(g + (size_t)r * ldg + col, v);
  }
  __device__ __forceinline__ void finish(int, int, int) {}
  __device__ __forceinline__ void close(int) {}
};

struct GeluGradient {
  const bf16 *a;
  bf16 *d;
  float *sums;  // [4 · strips, cols]
  int rows, cols, lda, ldd;
  int row;
  float s[4][8];
  uint4 x[2][2][2];  // a, a quarter of the tile ahead

  __device__ __forceinline__ void open(int first) { row = first; }
  __device__ __forceinline__ void ask(uint4 (&to)[2][2], int col) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int r = row + 64 * (i / 2) + 8 * (i % 2);
      to[i / 2][i % 2] = r < rows && col < cols ? *reinterpret_cast<const uint4 *>(a + (size_t)r * lda + col) : make_uint4(0, 0, 0, 0);
    }
  }
  // While the product is made the first quarter comes, and the others as far as the
  // L2 cache: a lane asks for both lines of one of its warp's rows.
  __device__ __forceinline__ void before(int col) {
    ask(x[0], col);
    const int lane = threadIdx.x & 31, r = row + (lane & 1) * 64 + (lane & 2) * 4, c = col & -TILE;
#pragma unroll
    for (int i = 0; i < 2; i++)
      if (r < rows && c + i * TILE / 2 < cols) asm volatile("prefetch.global.L2 [%0];" ::"l"(a + (size_t)r * lda + c + i * TILE / 2));
  }
  template <bool WHOLE> __device__ __forceinline__ void piece(int m, int h, int c, int col, float (&v)[8]) {
    const int r = row + 64 * m + 8 * h;
    if (m == 0 && h == 0) {
      if (c < 3) ask(x[(c + 1) % 2], col + 32);
#pragma unroll
      for (int i = 0; i < 8; i++) s[c][i] = 0;
    }
    if (!WHOLE && (r >= rows || col >= cols)) return;
    const uint4 u = x[c % 2][m][h];
    const uint32_t w[4] = {u.x, u.y, u.z, u.w};
#pragma unroll
    for (int i = 0; i < 8; i++) {
      v[i] *= gelu_slope(__uint_as_float(i & 1 ? w[i / 2] & 0xffff0000u : w[i / 2] << 16));
      s[c][i] += v[i];
    }
    store8(d + (size_t)r * ldd + col, v);
  }
  // The eight rows of lanes 4 apart are summed by halves: after the last, a lane
  // has 4 of the 32 columns of its residue mod 4.
  __device__ __forceinline__ void finish(int strip, int warp, int col) {
    const int lane = threadIdx.x & 31;
    float t[16], u[8];
#pragma unroll
    for (int i = 0; i < 16; i++) {
      const float low = s[i / 8][i % 8], high = s[2 + i / 8][i % 8], other = __shfl_xor_sync(0xffffffffu, lane & 16 ? low : high, 16);
      t[i] = (lane & 16 ? high : low) + other;
    }
#pragma unroll
    for (int i = 0; i < 8; i++) {
      const float other = __shfl_xor_sync(0xffffffffu, lane & 8 ? t[i] : t[8 + i], 8);
      u[i] = (lane & 8 ? t[8 + i] : t[i]) + other;
    }
    float w[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const float other = __shfl_xor_sync(0xffffffffu, lane & 4 ? u[i] : u[4 + i], 4);
      w[i] = (lane & 4 ? u[4 + i] : u[i]) + other;
    }
    const int at = col + 32 * (lane / 8) + 8 * (lane & 3) + (lane & 4);
    if (at < cols) *reinterpret_cast<float4 *>(sums + ((size_t)strip * 4 + warp) * cols + at) = make_float4(w[0], w[1], w[2], w[3]);
  }
  __device__ __forceinline__ void close(int) {}
};
}  // namespace matmul

PRODUCT_KERNEL(mlp_up, false, (matmul::Gelu{bias, a, g, rows, cols, lda, ldg}), const float *bias, bf16 *a, bf16 *g, int lda, int ldg)

// sums: [4 · ⌈rows/128⌉, cols] float32, whose column sums are db₁.
PRODUCT_KERNEL(mlp_down_gradient, false, (matmul::GeluGradient{a, d, sums, rows, cols, lda, ldd}), const bf16 *a, bf16 *d, float *sums, int lda, int ldd)

// dst[c, r] = src[r, c]. Grid (cols/32, rows/32), block 32 × 8.
extern "C" __global__ void __launch_bounds__(256) transpose(const bf16 *src, bf16 *dst, int rows, int cols) {
  __shared__ bf16 tile[32][34];
  for (int i = threadIdx.y; i < 32; i += 8) {
    const int r = blockIdx.y * 32 + i, c = blockIdx.x * 32 + threadIdx.x;
    if (r < rows && c < cols) tile[i][threadIdx.x] = src[(size_t)r * cols + c];
  }
  __syncthreads();
  for (int i = threadIdx.y; i < 32; i += 8) {
    const int c = blockIdx.x * 32 + i, r = blockIdx.y * 32 + threadIdx.x;
    if (r < rows && c < cols) dst[(size_t)c * rows + r] = tile[threadIdx.x][i];
  }
}
