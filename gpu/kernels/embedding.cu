// Token embedding and its gradient.
//
//   x[n] = E[token[n]],   dE[v] = Σ_{n: token[n] = v} dx[n]
//
// The gradient sums each row's positions in their order: positions are sorted
// by token, cut into segments of at most 32, and a token's segments are added
// up in a second step. No atomics, so the same bits every time.
#include "common.cuh"

// Block a position; E: [vocab, dim], x: [rows, dim], float32.
extern "C" __global__ void embedding_forward(const float *E, const int *tokens, float *x, int dim) {
  const float4 *src = reinterpret_cast<const float4 *>(E + (size_t)tokens[blockIdx.x] * dim);
  float4 *dst = reinterpret_cast<float4 *>(x + (size_t)blockIdx.x * dim);
  for (int c = threadIdx.x; c < dim / 4; c += blockDim.x) dst[c] = src[c];
}

// Segment i sums positions order[start[i]] … order[start[i+1] − 1], all of one
// token; dx is of T. count[0] is the number of segments; blocks beyond it do nothing.
template <class T> __device__ void embedding_segments(const T *dx, const int *order, const int *start, const int *count, float *partial, int dim) {
  if (blockIdx.x >= count[0]) return;
  const int from = start[blockIdx.x], to = start[blockIdx.x + 1];
  for (int c = threadIdx.x; c < dim; c += blockDim.x) {
    float s = 0;
    for (int i = from; i < to; i++) s += load(dx[(size_t)order[i] * dim + c]);
    partial[(size_t)blockIdx.x * dim + c] = s;
  }
}
EXPORT(embedding_segments, 128, (const T *dx, const int *order, const int *start, const int *count, float *partial, int dim), (dx, order, start, count, partial, dim))

// Token ids[i]'s segments are first[i] … first[i+1] − 1. count[1] is the number
// of distinct tokens. dE is zero elsewhere.
extern "C" __global__ void embedding_rows(const float *partial, const int *ids, const int *first, const int *count, float *dE, int dim) {
  if (blockIdx.x >= count[1]) return;
  const int from = first[blockIdx.x], to = first[blockIdx.x + 1];
  for (int c = threadIdx.x; c < dim; c += blockDim.x) {
    float s = 0;
    for (int i = from; i < to; i++) s += partial[(size_t)i * dim + c];
    dE[(size_t)ids[blockIdx.x] * dim + c] = s;
  }
}
