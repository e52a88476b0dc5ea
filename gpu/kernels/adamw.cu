// AdamW (Loshchilov and Hutter 2019) over one flat buffer each of weights,
// gradients and moments, float32, with a bf16 copy of the weights for the
// matrix products; clipping by the gradients' global norm.
//
//   m ← β₁ m + (1 − β₁) g,   v ← β₂ v + (1 − β₂) g²
//   w ← w (1 − r λ) − r · m̂ / (√v̂ + ε),   m̂ = m / (1 − β₁ᵗ),  v̂ = v / (1 − β₂ᵗ)
//
// t counts a weight's own updates. The buffers are cut into chunks that lie in
// one weight each: a block a chunk.
#include "common.cuh"

struct Chunk { long long offset; int count, weight; };

// What a step reads and writes besides the buffers.
struct Update { float rate, clip; double norm; float scale; int finite; };

// partial[i] = Σ g² of chunk first + i.
extern "C" __global__ void __launch_bounds__(256) gradient_norm(const Chunk *chunks, int first, const float *g, double *partial) {
  __shared__ double scratch[32];
  const Chunk c = chunks[first + blockIdx.x];
  double s = 0;
  for (int i = threadIdx.x; i < c.count; i += blockDim.x) {
    const float v = g[c.offset + i];
    s += (double)v * v;
  }
  s = block_sum(s, scratch);
  if (threadIdx.x == 0) partial[blockIdx.x] = s;
}

// The norm over n partial sums, and what to scale gradients by. One block of
// 1024 threads.
extern "C" __global__ void __launch_bounds__(1024) gradient_scale(const double *partial, int n, Update *u) {
  __shared__ double scratch[32];
  double s = 0;
  for (int i = threadIdx.x; i < n; i += blockDim.x) s += partial[i];
  s = sqrt(block_sum(s, scratch));
  if (threadIdx.x == 0) {
    u->norm = s;
    u->finite = isfinite(s);
    u->scale = u->clip > 0 && s > u->clip ? (float)(u->clip / s) : 1.0f;
  }
}

// Counts one more update of weights first … first + n − 1 and computes their
// bias corrections (1/(1 − β₁ᵗ), 1/√(1 − β₂ᵗ)). Nothing happens where the
// gradients are not finite: a spoilt step must not spoil the weights.
extern "C" __global__ void adamw_begin(int *steps, float2 *corrections, const Update *u, int first, int n, double beta1, double beta2) {
  const int i = first + blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= first + n || !u->finite) return;
  const int t = ++steps[i];
  corrections[i] = make_float2((float)(1.0 / (1.0 - pow(beta1, t))), (float)(1.0 / sqrt(1.0 - pow(beta2, t))));
}

// decay: λ of each weight, 0 where it does not decay. copy may be null.
extern "C" __global__ void __launch_bounds__(256) adamw_update(const Chunk *chunks, int first, float *w, const float *g, float *m, float *v, bf16 *copy,
                                                            const float2 *corrections, const float *decay, const Update *u, float beta1, float beta2, float eps) {
  if (!u->finite) return;
  const Chunk c = chunks[first + blockIdx.x];
  const float rate = u->rate, scale = u->scale, shrink = 1.0f - rate * decay[c.weight];
  const float2 corr = corrections[c.weight];
  for (int i = threadIdx.x; i < c.count; i += blockDim.x) {
    const long long at = c.offset + i;
    const float gi = g[at] * scale;
    const float mi = m[at] + (1.0f - beta1) * (gi - m[at]), vi = beta2 * v[at] + (1.0f - beta2) * gi * gi;
    const float wi = w[at] * shrink - rate * corr.x * mi / (sqrtf(vi) * corr.y + eps);
    m[at] = mi, v[at] = vi, w[at] = wi;
    if (copy) copy[at] = store<bf16>(wi);
  }
}
