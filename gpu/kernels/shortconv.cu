// Short convolution of the Hyena operator and its first gate.
//
//   ẑ_c[n] = z_c[n] + bin_c            (0 before the sequence's start)
//   s_c[n] = bs_c + Σ_{j<3} w_c[j] · ẑ_c[n − 2 + j]
//   q = s of channels [0, D),  k = [D, 2D),  v = [2D, 3D);   u = k ⊙ v
//   ds_q = dq,  ds_k = du ⊙ v,  ds_v = du ⊙ k
//   dz_c[n] = Σ_j w_c[j] · ds_c[n + 2 − j]  (0 past the sequence's end)
//   dw_c[j] = Σ_{b,n} ds_c[n] · ẑ_c[n − 2 + j],  dbs_c = Σ ds_c,  dbin_c = Σ dz_c
//
// Channel-major: z, dz: [3D, ld] of T, q, u, dq, du: [D, ld] float32; column b·L + n is
// position n of sequence b; ld is a multiple of 8, at least cols = B·L. k and v
// are computed again in the backward pass rather than stored.
#include "common.cuh"

// Values i−2 … i+7 of a row as ẑ; what lies before a sequence's start is 0.

template <class T> __device__ __forceinline__ void window10(const T *row, float bias, int i, float (&v)[10]) {
  float e[8];
  load8(row + i, e);
#pragma unroll
  for (int k = 0; k < 8; k++) v[k + 2] = e[k] + bias;
  v[0] = i >= 2 ? load(row[i - 2]) + bias : 0.0f;
  v[1] = i >= 1 ? load(row[i - 1]) + bias : 0.0f;
}

// s at column i + k from v[k .. k+2]; pos is its position in the sequence.
__device__ __forceinline__ float tap3(const float *v, const float (&w)[3], float bias, int pos) {
  float s = bias + w[2] * v[2];
  if (pos >= 1) s += w[1] * v[1];
  if (pos >= 2) s += w[0] * v[0];
  return s;
}

// Grid (ld/8/blockDim, D): a thread has 8 columns of one channel.
template <class T>
__device__ void shortconv_forward(const T *z, const float *bin, const float *w, const float *bs, float *q, float *u, int dim, int cols, int ld, int length) {
  const int i = 8 * (blockIdx.x * blockDim.x + threadIdx.x), d = blockIdx.y;
  if (i >= cols) return;
  float s[3][8];
#pragma unroll
  for (int part = 0; part < 3; part++) {
    const int c = part * dim + d;
    const float w3[3] = {w[3 * c], w[3 * c + 1], w[3 * c + 2]};
    float v[10];
    window10(z + (size_t)c * ld, bin[c], i, v);
    int pos = i % length;
#pragma unroll
    for (int k = 0; k < 8; k++) {
      s[part][k] = tap3(v + k, w3, bs[c], pos);
      if (++pos == length) pos = 0;
    }
  }
  store8(q + (size_t)d * ld + i, s[0]);
#pragma unroll
  for (int k = 0; k < 8; k++) s[1][k] *= s[2][k];
  store8(u + (size_t)d * ld + i, s[1]);
}
EXPORT(shortconv_forward, 256,
       (const T *z, const float *bin, const float *w, const float *bs, float *q, float *u, int dim, int cols, int ld, int length),
       (z, bin, w, bs, q, u, dim, cols, ld, length))

// Ten values i … i+9 of a row; 0 past cols.
template <class T> __device__ __forceinline__ void ahead10(const T *row, int i, int cols, float (&v)[10]) {
  float e[8];
  load8(row + i, e);
#pragma unroll
  for (int k = 0; k < 8; k++) v[k] = i + k < cols ? e[k] : 0.0f;
  v[8] = i + 8 < cols ? load(row[i + 8]) : 0.0f;
  v[9] = i + 9 < cols ? load(row[i + 9]) : 0.0f;
}

// Values i−2 … i+9 of a row as ẑ.
template <class T> __device__ __forceinline__ void window12(const T *row, float bias, int i, int cols, float (&v)[12]) {
  float e[8];
  load8(row + i, e);
#pragma unroll
  for (int k = 0; k < 8; k++) v[k + 2] = e[k] + bias;
  v[0] = i >= 2 ? load(row[i - 2]) + bias : 0.0f;
  v[1] = i >= 1 ? load(row[i - 1]) + bias : 0.0f;
  v[10] = i + 8 < cols ? load(row[i + 8]) + bias : 0.0f;
  v[11] = i + 9 < cols ? load(row[i + 9]) + bias : 0.0f;
}

// One block a channel: it walks over all columns, so its sums need no second
// stage. ds holds ds at columns i … i+9, v ẑ at i−2 … i+9.
struct ShortSums { float w[3], bs, bin; };
template <class T>
__device__ __forceinline__ void shortconv_channel(const float (&ds)[10], const float (&v)[12], const float (&w)[3], T *dz, int i, int cols, int length, int pos0, ShortSums &sum) {
  float out[8];
  int pos = pos0;
#pragma unroll
  for (int k = 0; k < 8; k++) {
    float o = w[2] * ds[k];
    if (pos + 1 < length) o += w[1] * ds[k + 1];
    if (pos + 2 < length) o += w[0] * ds[k + 2];
    out[k] = o;
    if (i + k < cols) {
      sum.bin += o;
      sum.bs += ds[k];
      sum.w[2] += ds[k] * v[k + 2];
      if (pos >= 1) sum.w[1] += ds[k] * v[k + 1];
      if (pos >= 2) sum.w[0] += ds[k] * v[k];
    }
    if (++pos == length) pos = 0;
  }
  store8(dz + i, out);
}

template <class T>
__device__ void shortconv_backward(const T *z, const float *bin, const float *w, const float *bs, const float *dq, const float *du, T *dz,
                                   float *dw, float *dbs, float *dbin, int dim, int cols, int ld, int length) {
  __shared__ float scratch[32];
  const int d = blockIdx.x;
  float w3[3][3], bi[3], b3[3];
#pragma unroll
  for (int part = 0; part < 3; part++) {
    const int c = part * dim + d;
    bi[part] = bin[c], b3[part] = bs[c];
#pragma unroll
    for (int j = 0; j < 3; j++) w3[part][j] = w[3 * c + j];
  }
  ShortSums sum[3] = {};
  for (int i = 8 * threadIdx.x; i < cols; i += 8 * blockDim.x) {
    const int pos0 = i % length;
    float v[12], g[10], k10[10], v10[10], ds[10];
    window12(z + (size_t)d * ld, bi[0], i, cols, v);
    ahead10(dq + (size_t)d * ld, i, cols, g);
    shortconv_channel(g, v, w3[0], dz + (size_t)d * ld, i, cols, length, pos0, sum[0]);
    // k and v at i … i+9, then each other's gradient
    float zk[12], zv[12];
    window12(z + (size_t)(dim + d) * ld, bi[1], i, cols, zk);
    window12(z + (size_t)(2 * dim + d) * ld, bi[2], i, cols, zv);
    int pos = pos0;
#pragma unroll
    for (int k = 0; k < 10; k++) {
      k10[k] = tap3(zk + k, w3[1], b3[1], pos);
      v10[k] = tap3(zv + k, w3[2], b3[2], pos);
      if (++pos == length) pos = 0;
    }
    ahead10(du + (size_t)d * ld, i, cols, g);
#pragma unroll
    for (int k = 0; k < 10; k++) ds[k] = g[k] * v10[k];
    shortconv_channel(ds, zk, w3[1], dz + (size_t)(dim + d) * ld, i, cols, length, pos0, sum[1]);
#pragma unroll
    for (int k = 0; k < 10; k++) ds[k] = g[k] * k10[k];
    shortconv_channel(ds, zv, w3[2], dz + (size_t)(2 * dim + d) * ld, i, cols, length, pos0, sum[2]);
  }
#pragma unroll
  for (int part = 0; part < 3; part++) {
    const int c = part * dim + d;
    float t[5];
#pragma unroll
    for (int j = 0; j < 3; j++) t[j] = block_sum(sum[part].w[j], scratch);
    t[3] = block_sum(sum[part].bs, scratch), t[4] = block_sum(sum[part].bin, scratch);
    if (threadIdx.x == 0) dw[3 * c] = t[0], dw[3 * c + 1] = t[1], dw[3 * c + 2] = t[2], dbs[c] = t[3], dbin[c] = t[4];
  }
}
EXPORT(shortconv_backward, 256,
       (const T *z, const float *bin, const float *w, const float *bs, const float *dq, const float *du, T *dz, float *dw, float *dbs, float *dbin, int dim, int cols, int ld, int length),
       (z, bin, w, bs, dq, du, dz, dw, dbs, dbin, dim, cols, ld, length))
