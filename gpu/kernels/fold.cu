// A LayerNorm's affine part put into the linear layer behind it, so that the
// norm's output is x̂ alone, for both layers behind a block's two norms, and the
// gradients of γ and β need no pass over activations.
//
//   y = W (γ ⊙ x̂ + β) + b = W' x̂ + b',   W' = W diag(γ),   b' = b + W β
//
// and back, from the gradients of W' and b':
//
//   dW = dW' diag(γ) + db' βᵀ,   db = db',   dγ = Σ_rows W ⊙ dW',   dβ = Wᵀ db'
//
// W: [out, in], b: [out], γ, β: [in], float32; in is a multiple of 8.
#include "common.cuh"

// wide is b' in float32, bias the same in T. One warp a row.
template <class T> __device__ void fold(const float *W, const float *b, const float *g, const float *beta, T *folded, float *wide, T *bias, int out, int in) {
  const int row = blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5), lane = threadIdx.x & 31;
  if (row >= out) return;
  float s = 0;
  for (int c = lane * 8; c < in; c += 256) {
    float w[8], v[8];
    load8(W + (size_t)row * in + c, w), load8(beta + c, v);
#pragma unroll
    for (int i = 0; i < 8; i++) s += w[i] * v[i];
    load8(g + c, v);
#pragma unroll
    for (int i = 0; i < 8; i++) w[i] *= v[i];
    store8(folded + (size_t)row * in + c, w);
  }
  s = warp_sum(s) + b[row];
  if (lane == 0) wide[row] = s, bias[row] = store<T>(s);
}
EXPORT(fold, 256, (const float *W, const float *b, const float *g, const float *beta, T *folded, float *wide, T *bias, int out, int in), (W, b, g, beta, folded, wide, bias, out, in))

// dW replaces dW'. partial: [slices, 2, in], of dγ and dβ over slices of the rows,
// added up by reduce_slices. Grid (in/32, slices), block 32 × 8.
extern "C" __global__ void __launch_bounds__(256) unfold(const float *W, const float *db, const float *g, const float *beta, float *dW, float *partial, int out, int in) {
  __shared__ float part[8][2][32];
  const int c = blockIdx.x * 32 + threadIdx.x;
  float s[2] = {};
  if (c < in) {
    const float gc = g[c], bc = beta[c];
    for (int row = blockIdx.y * 8 + threadIdx.y; row < out; row += gridDim.y * 8) {
      const size_t at = (size_t)row * in + c;
      const float w = W[at], d = dW[at], b = db[row];
      s[0] += w * d, s[1] += w * b;
      dW[at] = d * gc + b * bc;
    }
  }
  part[threadIdx.y][0][threadIdx.x] = s[0], part[threadIdx.y][1][threadIdx.x] = s[1];
  __syncthreads();
  if (threadIdx.y < 2 && c < in) {
    float t = 0;
#pragma unroll
    for (int y = 0; y < 8; y++) t += part[y][threadIdx.y][threadIdx.x];
    partial[((size_t)blockIdx.y * 2 + threadIdx.y) * in + c] = t;
  }
}
