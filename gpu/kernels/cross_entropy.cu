// Next-token cross entropy and Hinton's soft targets over a chunk of rows of
// logits; the whole of the logits never exists. Gradients replace the logits.
//
//   hard:  ce = log Σ exp(s) − s[next],              ds = (softmax(s) − 1[next]) · a
//   soft:  kl = T² Σ_v p_v (log p_v − log r_v),      ds = T (r − p) · b
//          p = softmax(t/T), r = softmax(s/T)
//
// a = (1 − w) / (B (L − 1)), b = w / (B L). A sequence's last position has no
// next token and takes part in the soft term only.
// s, t: [rows, ld] of T (t: the teacher's), ld a multiple of 8; row i of the chunk is position
// row0 + i of the batch. One block a row.
#include "common.cuh"

// A running maximum and Σ exp(v − max).
struct LogSum {
  float m = -INFINITY, s = 0;
  __device__ void add(const float (&v)[8]) {
    float top = v[0];
#pragma unroll
    for (int k = 1; k < 8; k++) top = fmaxf(top, v[k]);
    if (top > m) s *= expf(m - top), m = top;
#pragma unroll
    for (int k = 0; k < 8; k++) s += expf(v[k] - m);
  }
};
// The block's log Σ exp, the same in every thread.
__device__ __forceinline__ float block_logsum(LogSum l, float *scratch) {
  const float m = block_max(l.m, scratch);
  const float s = block_sum(l.s == 0 ? 0.0f : l.s * expf(l.m - m), scratch);  // NaN stays NaN
  return m + logf(s);
}

// Eight logits from v on, −∞ past the vocabulary.
template <class T> __device__ __forceinline__ void load_logits(const T *s, int v, int vocab, float (&x)[8]) {
  load8(s + v, x);
#pragma unroll
  for (int k = 0; k < 8; k++)
    if (v + k >= vocab) x[k] = -CUDART_INF_F;
}

// nll[row] = ce, 0 where there is no next token. Gradients unless a is
// negative.
template <class T>
__device__ void cross_entropy(T *logits, const int *tokens, float *nll, int row0, int length, int vocab, int ld, float a) {
  __shared__ float scratch[32];
  const int row = row0 + blockIdx.x, step = 8 * blockDim.x;
  T *s = logits + (size_t)blockIdx.x * ld;
  float x[8];
  if (row % length == length - 1) {
    if (threadIdx.x == 0) nll[row] = 0;
#pragma unroll
    for (int k = 0; k < 8; k++) x[k] = 0;
    if (a >= 0)
      for (int v = 8 * threadIdx.x; v < vocab; v += step) store8(s + v, x);
    return;
  }
  LogSum l;
  for (int v = 8 * threadIdx.x; v < vocab; v += step) {
    load_logits(s, v, vocab, x);
    l.add(x);
  }
  const float z = block_logsum(l, scratch);
  const int next = tokens[row + 1];
  if (threadIdx.x == 0) nll[row] = z - load(s[next]);
  if (a < 0) return;
  __syncthreads();  // s[next] is read before it is replaced
  for (int v = 8 * threadIdx.x; v < vocab; v += step) {
    load_logits(s, v, vocab, x);
#pragma unroll
    for (int k = 0; k < 8; k++) x[k] = (expf(x[k] - z) - (v + k == next ? 1.0f : 0.0f)) * a;
    store8(s + v, x);
  }
}
EXPORT(cross_entropy, 512, (T *logits, const int *tokens, float *nll, int row0, int length, int vocab, int ld, float a),
       (logits, tokens, nll, row0, length, vocab, ld, a))

// nll[row] = ce, soft[row] = kl.
template <class T>
__device__ void soft_targets(T *logits, const T *teacher, const int *tokens, float *nll, float *soft, int row0, int length, int vocab, int ld, float temperature, float a, float b) {
  __shared__ float scratch[32];
  const int row = row0 + blockIdx.x, step = 8 * blockDim.x;
  T *s = logits + (size_t)blockIdx.x * ld;
  const T *t = teacher + (size_t)blockIdx.x * ld;
  const float inv = 1.0f / temperature;
  LogSum hard, student, target;
  float x[8], y[8];
  for (int v = 8 * threadIdx.x; v < vocab; v += step) {
    load_logits(s, v, vocab, x), load_logits(t, v, vocab, y);
    hard.add(x);
#pragma unroll
    for (int k = 0; k < 8; k++) x[k] *= inv, y[k] *= inv;
    student.add(x), target.add(y);
  }
  const float zh = block_logsum(hard, scratch), zs = block_logsum(student, scratch), zt = block_logsum(target, scratch);
  const bool last = row % length == length - 1;
  const int next = last ? -1 : tokens[row + 1];
  if (threadIdx.x == 0) nll[row] = last ? 0.0f : zh - load(s[next]);
  if (last) a = 0;
  __syncthreads();
  float kl = 0;
  for (int v = 8 * threadIdx.x; v < vocab; v += step) {
    load8(s + v, x), load8(t + v, y);
#pragma unroll
    for (int k = 0; k < 8; k++) {
      const float lp = y[k] * inv - zt, lr = x[k] * inv - zs, p = expf(lp);
      if (v + k < vocab) kl += p > 0 ? p * (lp - lr) : 0.0f;
      x[k] = (expf(x[k] - zh) - (v + k == next ? 1.0f : 0.0f)) * a + temperature * (expf(lr) - p) * b;
    }
    store8(s + v, x);
  }
  kl = block_sum(kl, scratch);
  if (threadIdx.x == 0) soft[row] = temperature * temperature * kl;
}
EXPORT(soft_targets, 512, (T *logits, const T *teacher, const int *tokens, float *nll, float *soft, int row0, int length, int vocab, int ld, float temperature, float a, float b),
       (logits, teacher, tokens, nll, soft, row0, length, vocab, ld, temperature, a, b))
