// A row of the residual stream in a warp's registers: a lane has 8 elements of
// each of CHUNKS chunks of 256. dim is a multiple of 8, at most 256 · CHUNKS.
#pragma once
#include "common.cuh"

template <int CHUNKS> struct Row {
  float v[CHUNKS][8];
  int dim;

  // Calls f(column, the 8 elements from there on) for what the lane has.
  template <class F> __device__ __forceinline__ void each(F f) {
#pragma unroll
    for (int k = 0; k < CHUNKS; k++) {
      const int c = k * 256 + (threadIdx.x & 31) * 8;
      if (c < dim) f(c, v[k]);
    }
  }
  template <class T> __device__ __forceinline__ void read(const T *from) {
    each([&](int c, float (&x)[8]) { load8(from + c, x); });
  }
  // Adds a row in memory; null adds nothing.
  template <class T> __device__ __forceinline__ void add(const T *row) {
    if (!row) return;
    each([&](int c, float (&x)[8]) {
      float a[8];
      load8(row + c, a);
#pragma unroll
      for (int i = 0; i < 8; i++) x[i] += a[i];
    });
  }
  template <class T> __device__ __forceinline__ void write(T *to) {
    if (to) each([&](int c, float (&x)[8]) { store8(to + c, x); });
  }
  // Rounds to T.
  template <class T> __device__ __forceinline__ void round() {
    each([&](int, float (&x)[8]) {
#pragma unroll
      for (int i = 0; i < 8; i++) x[i] = load(store<T>(x[i]));
    });
  }
  // x̂ = (x − mean) · rstd, rstd = 1/√(var + ε).
  __device__ __forceinline__ void normalize(float eps, float &mean, float &rstd) {
    float s = 0;
    each([&](int, float (&x)[8]) {
#pragma unroll
      for (int i = 0; i < 8; i++) s += x[i];
    });
    mean = warp_sum(s) / dim;
    s = 0;
    each([&](int, float (&x)[8]) {
#pragma unroll
      for (int i = 0; i < 8; i++) x[i] -= mean, s += x[i] * x[i];
    });
    rstd = 1.0f / sqrtf(warp_sum(s) / dim + eps);
    each([&](int, float (&x)[8]) {
#pragma unroll
      for (int i = 0; i < 8; i++) x[i] *= rstd;
    });
  }
};

// Where row `at` of a matrix is; null stays null.
template <class T> __device__ __forceinline__ T *row_of(T *p, size_t at) { return p ? p + at : p; }
