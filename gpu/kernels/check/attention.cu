// Checks and times causal attention on its own: the float32 kernels, those on the
// tensor cores and those for Hopper cards.
//
//   nvcc -std=c++17 -O3 -lineinfo -gencode arch=compute_90a,code=sm_90a -o attention attention.cu && ./attention
//
// Each set of kernels is compared with a float64 computation on the CPU over random
// data (‖a − b‖ / ‖b‖, at most 1e-2 in bf16 and 1e-5 in float32), its rows further
// apart than they need be, its outputs poisoned before and guarded between the rows,
// and run twice for the same bits. Then times: medians of groups between events.
// TFLOP/s are of the useful half of the products, 2 forward and 5 backward.
#include "../attention.cu"
#include "../attention_hopper.cu"
#include "../attention_hopper_backward.cu"
#include "../attention_tensor.cu"
#include "harness.cuh"
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <cuda.h>
#include <cudaTypedefs.h>
#include <functional>
#include <random>
#include <string>
#include <thread>
#include <type_traits>
#include <vector>

struct Case {
  int batch, length, heads, d;
  bool apart;    // rows lie further apart than they are long
  int half = 0;  // pairs of rotary dimensions, which gradients are taken back by
  int ldqkv() const { return 3 * heads * d + (apart ? 8 : 0); }
  int ldd() const { return 3 * heads * d + (apart ? 24 : 0); }
  int ldo() const { return heads * d + (apart ? 16 : 0); }
  int lddo() const { return heads * d + (apart ? 40 : 0); }
  size_t rows() const { return (size_t)batch * length; }
  int dims() const { int p = 16; while (p < d) p *= 2; return p; }
};

static float value(float v) { return v; }
static float value(bf16 v) { return __bfloat162float(v); }
template <class T> static T make(float v);
template <> float make<float>(float v) { return v; }
template <> bf16 make<bf16>(float v) { return __float2bfloat16(v); }

// A matrix of rows ld apart, NaN between the rows.
template <class T> static std::vector<T> draw(size_t rows, int cols, int ld, float size, int seed) {
  std::vector<T> v(rows * ld);
  memset(v.data(), 0xff, v.size() * sizeof(T));
  parallel(16, [&](int part) {
    std::mt19937 r(seed * 16 + part);
    std::normal_distribution<float> normal;
    for (size_t i = rows * part / 16; i < rows * (part + 1) / 16; i++)
      for (int j = 0; j < cols; j++) v[i * ld + j] = make<T>(size * normal(r));
  });
  return v;
}

static PFN_cuTensorMapEncodeTiled_v12000 encode() {
  static void *f = nullptr;
  cudaDriverEntryPointQueryResult found;
  if (!f) CHECK(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &f, 12000, cudaEnableDefault, &found));
  return (PFN_cuTensorMapEncodeTiled_v12000)f;
}

// [B, L, parts, d] in boxes of [1, rows, 1, 64].
static TensorMap tensor_map(const bf16 *p, const Case &c, int parts, int ld, int rows = 64) {
  TensorMap m;
  const cuuint64_t size[4] = {(cuuint64_t)c.d, (cuuint64_t)parts, (cuuint64_t)c.length, (cuuint64_t)c.batch};
  const cuuint64_t stride[3] = {2ull * c.d, 2ull * ld, 2ull * ld * c.length};
  const cuuint32_t box[4] = {64, 1, (cuuint32_t)rows, 1}, one[4] = {1, 1, 1, 1};
  const CUresult r = encode()((CUtensorMap *)&m, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 4, (void *)p, size, stride, box, one, CU_TENSOR_MAP_INTERLEAVE_NONE,
                              CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (r != CUDA_SUCCESS) fprintf(stderr, "cuTensorMapEncodeTiled: error %d\n", (int)r), exit(1);
  return m;
}

// [L, half] of (cos, sin).
static std::vector<float2> rotations(const Case &c) {
  std::vector<float2> t((size_t)c.length * c.half);
  for (int i = 0; i < c.length; i++)
    for (int p = 0; p < c.half; p++) {
      const double a = i * std::pow(10000.0, -(double)p / c.half);
      t[(size_t)i * c.half + p] = make_float2(std::cos(a), std::sin(a));
    }
  return t;
}

enum Kernels { PLAIN, TENSOR, HOPPER };
static const char *const names[] = {"float32", "tensor", "hopper"};

template <class F> static F *allow(F *f, int bytes) {
  CHECK(cudaFuncSetAttribute(f, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  return f;
}
template <class F> static F *pick(int dims, F *a, F *b, F *c, F *d) { return dims == 16 ? a : dims == 32 ? b : dims == 64 ? c : d; }

// The launches of one set of kernels, as gpu/cuda makes them.
template <class T> struct Operands {
  Case c;
  Kernels set;
  Buffer<T> qkv, dO, o, dqkv;
  Buffer<float> lse, delta;
  Buffer<float2> table;
  float scale;
  Operands(const Case &c, Kernels set, const std::vector<T> &qkv, const std::vector<T> &dO)
      : c(c), set(set), qkv(qkv), dO(dO), o(c.rows() * c.ldo()), dqkv(c.rows() * c.ldd()), lse(c.rows() * c.heads), delta(c.rows() * c.heads), table(rotations(c)), scale(1 / std::sqrt((float)c.d)) {}
  void poison() { o.poison(), dqkv.poison(), lse.poison(), delta.poison(); }
  dim3 grid(int rows) const { return dim3((c.length + rows - 1) / rows, c.heads, c.batch); }
  void launched() { CHECK(cudaGetLastError()); }

  void forward() {
    if constexpr (std::is_same_v<T, float>) {
      const int rows = c.dims() > 64 ? 32 : 64, bytes = 4 * rows * (3 * (c.dims() + 1) + rows + 1);
      auto f = allow(pick(c.dims(), attention_forward_16_float32, attention_forward_32_float32, attention_forward_64_float32, attention_forward_128_float32), bytes);
      f<<<grid(rows), 256, bytes>>>(qkv.p, o.p, lse.p, c.length, c.d, c.ldqkv(), c.ldo(), scale);
    } else if (set == TENSOR) {
      const int bytes = (64 + 4 * (c.dims() > 64 ? 32 : 64)) * 2 * (c.dims() + 8);
      auto f = allow(pick(c.dims(), attention_forward_16_bf16, attention_forward_32_bf16, attention_forward_64_bf16, attention_forward_128_bf16), bytes);
      f<<<grid(64), 128, bytes>>>(qkv.p, o.p, lse.p, c.length, c.d, c.ldqkv(), c.ldo(), scale);
    } else {
      const bool wide = c.d > 64;
      const int bytes = (wide ? 128 : 80) * 1024 + 128;
      allow(wide ? attention_hopper_forward_128 : attention_hopper_forward_64, bytes)<<<grid(128), 256, bytes>>>(
          tensor_map(qkv.p, c, 3 * c.heads, c.ldqkv()), tensor_map(o.p, c, c.heads, c.ldo(), 16), lse.p, c.length, scale);
    }
    launched();
  }
  void backward_delta() {
    if (set == HOPPER) return;  // part of backward_q
    const int blocks = (c.rows() * c.heads + 7) / 8;
    if constexpr (std::is_same_v<T, float>) attention_delta_float32_::attention_delta_float32<<<blocks, 256>>>(o.p, dO.p, delta.p, c.rows(), c.length, c.heads, c.d, c.ldo(), c.lddo());
    else attention_delta_bf16_::attention_delta_bf16<<<blocks, 256>>>(o.p, dO.p, delta.p, c.rows(), c.length, c.heads, c.d, c.ldo(), c.lddo());
    launched();
  }
  void backward_q() {
    if constexpr (std::is_same_v<T, float>) {
      const int rows = c.dims() > 64 ? 32 : 64, bytes = 4 * rows * (4 * (c.dims() + 1) + rows + 1);
      auto f = allow(pick(c.dims(), attention_backward_q_16_float32, attention_backward_q_32_float32, attention_backward_q_64_float32, attention_backward_q_128_float32), bytes);
      f<<<grid(rows), 256, bytes>>>(qkv.p, dO.p, lse.p, delta.p, dqkv.p, c.length, c.d, c.ldqkv(), c.lddo(), c.ldd(), scale);
    } else if (set == TENSOR) {
      const int bytes = (128 + 4 * (c.dims() > 64 ? 32 : 64)) * 2 * (c.dims() + 8);
      auto f = allow(pick(c.dims(), attention_backward_q_16_bf16, attention_backward_q_32_bf16, attention_backward_q_64_bf16, attention_backward_q_128_bf16), bytes);
      f<<<grid(64), 128, bytes>>>(qkv.p, dO.p, lse.p, delta.p, dqkv.p, c.length, c.d, c.ldqkv(), c.lddo(), c.ldd(), scale);
    } else {
      const bool wide = c.d > 64;
      const int bytes = (wide ? 160 : 96) * 1024 + 128;
      allow(wide ? attention_hopper_backward_q_128 : attention_hopper_backward_q_64, bytes)<<<grid(128), 256, bytes>>>(
          tensor_map(qkv.p, c, 3 * c.heads, c.ldqkv()), tensor_map(dO.p, c, c.heads, c.lddo()), o.p, lse.p, delta.p, tensor_map(dqkv.p, c, 3 * c.heads, c.ldd(), 16), table.p, c.half, c.length, c.d, c.ldo(), scale);
    }
    launched();
  }
  void backward_kv() {
    if constexpr (std::is_same_v<T, float>) {
      const int rows = c.dims() > 64 ? 32 : 64, bytes = 4 * rows * (4 * (c.dims() + 1) + 2 * (rows + 1));
      auto f = allow(pick(c.dims(), attention_backward_kv_16_float32, attention_backward_kv_32_float32, attention_backward_kv_64_float32, attention_backward_kv_128_float32), bytes);
      f<<<grid(rows), 256, bytes>>>(qkv.p, dO.p, lse.p, delta.p, dqkv.p, c.length, c.d, c.ldqkv(), c.lddo(), c.ldd(), scale);
    } else if (set == TENSOR) {
      const int cols = c.dims() > 64 ? 32 : 64, bytes = (128 + 4 * cols) * 2 * (c.dims() + 8) + 16 * cols;
      auto f = allow(pick(c.dims(), attention_backward_kv_16_bf16, attention_backward_kv_32_bf16, attention_backward_kv_64_bf16, attention_backward_kv_128_bf16), bytes);
      f<<<grid(64), 128, bytes>>>(qkv.p, dO.p, lse.p, delta.p, dqkv.p, c.length, c.d, c.ldqkv(), c.lddo(), c.ldd(), scale);
    } else {
      const bool wide = c.d > 64;
      const int bytes = (wide ? 160 : 64) * 1024 + 128 + (wide ? 2048 : 1024);
      allow(wide ? attention_hopper_backward_kv_128 : attention_hopper_backward_kv_64, bytes)<<<grid(wide ? 128 : 64), wide ? 256 : 128, bytes>>>(
          tensor_map(qkv.p, c, 3 * c.heads, c.ldqkv()), tensor_map(dO.p, c, c.heads, c.lddo()), lse.p, delta.p, tensor_map(dqkv.p, c, 3 * c.heads, c.ldd(), 16), table.p, c.half, c.length, scale);
    }
    launched();
  }
  void rotate(T *p, int ld, float sign) {
    const bool eight = (c.half | c.d | ld) % 8 == 0;
    const int blocks = (c.rows() * c.heads * 2 * c.half / (eight ? 8 : 1) + 255) / 256;
    if constexpr (std::is_same_v<T, float>)
      (eight ? rotary_eight_float32_::rotary_eight_float32 : rotary_single_float32_::rotary_single_float32)<<<blocks, 256>>>(p, table.p, c.rows(), c.length, c.heads, c.d, c.half, ld, sign);
    else (eight ? rotary_eight_bf16_::rotary_eight_bf16 : rotary_single_bf16_::rotary_single_bf16)<<<blocks, 256>>>(p, table.p, c.rows(), c.length, c.heads, c.d, c.half, ld, sign);
    launched();
  }
  void backward() {
    backward_delta(), backward_q(), backward_kv();
    if (set != HOPPER && c.half > 0) rotate(dqkv.p, c.ldd(), -1);
  }
};

// The right answer for one head of one sequence, in float64.
struct Answer { std::vector<double> o, lse, dq, dk, dv; };
template <class T> static Answer answer(const Case &c, const std::vector<T> &qkv, const std::vector<T> &dO, int b, int head) {
  const int L = c.length, d = c.d;
  Answer a;
  for (auto v : {&a.o, &a.dq, &a.dk, &a.dv}) v->assign((size_t)L * d, 0);
  a.lse.resize(L);
  std::vector<double> x[3], g((size_t)L * d), p(L), dp(L);
  for (auto &v : x) v.resize((size_t)L * d);
  for (int i = 0; i < L; i++)
    for (int j = 0; j < d; j++) {
      for (int part = 0; part < 3; part++) x[part][(size_t)i * d + j] = value(qkv[((size_t)b * L + i) * c.ldqkv() + (3 * head + part) * d + j]);
      g[(size_t)i * d + j] = value(dO[((size_t)b * L + i) * c.lddo() + head * d + j]);
    }
  const double scale = 1 / std::sqrt((double)d);
  auto dot = [&](const double *u, const double *v) {  // d is a multiple of 8
    double s[8] = {};
    for (int j = 0; j < d; j += 8)
      for (int k = 0; k < 8; k++) s[k] += u[j + k] * v[j + k];
    return s[0] + s[1] + s[2] + s[3] + s[4] + s[5] + s[6] + s[7];
  };
  for (int i = 0; i < L; i++) {
    const double *q = &x[0][(size_t)i * d], *gi = &g[(size_t)i * d];
    double *o = &a.o[(size_t)i * d], top = -INFINITY, sum = 0;
    for (int j = 0; j <= i; j++) p[j] = scale * dot(q, &x[1][(size_t)j * d]), top = std::max(top, p[j]);
    for (int j = 0; j <= i; j++) sum += std::exp(p[j] - top);
    a.lse[i] = top + std::log(sum);
    for (int j = 0; j <= i; j++) {
      p[j] = std::exp(p[j] - a.lse[i]), dp[j] = dot(gi, &x[2][(size_t)j * d]);
      for (int k = 0; k < d; k++) o[k] += p[j] * x[2][(size_t)j * d + k];
    }
    const double delta = dot(gi, o);
    for (int j = 0; j <= i; j++) {
      const double ds = p[j] * (dp[j] - delta) * scale;
      for (int k = 0; k < d; k++) {
        a.dv[(size_t)j * d + k] += p[j] * gi[k], a.dk[(size_t)j * d + k] += ds * q[k], a.dq[(size_t)i * d + k] += ds * x[1][(size_t)j * d + k];
      }
    }
  }
  const auto table = rotations(c);
  for (auto v : {&a.dq, &a.dk})
    for (int i = 0; i < L; i++)
      for (int k = 0; k < c.half; k++) {
        const float2 r = table[(size_t)i * c.half + k];
        double &x = (*v)[(size_t)i * d + k], &y = (*v)[(size_t)i * d + c.half + k];
        const double u = x * r.x + y * r.y;
        y = y * r.x - x * r.y, x = u;
      }
  return a;
}

struct Error {
  double d = 0, n = 0;
  void add(double got, double want) { d += (got - want) * (got - want), n += want * want; }
  double value() const { return std::sqrt(d / (n > 0 ? n : 1)); }  // NaN stays NaN
};

template <class T> static bool same(const std::vector<T> &a, const std::vector<T> &b) { return !memcmp(a.data(), b.data(), a.size() * sizeof(T)); }

// Only what the rows hold may be written, and all of it is.
template <class T> static bool guarded(const std::vector<T> &v, int cols, int ld) {
  for (size_t i = 0; i < v.size(); i++)
    if (std::isnan(value(v[i])) != ((int)(i % ld) >= cols)) return false;
  return true;
}

// size is the standard deviation of q, k and v: at 3 the softmax is sharp and its
// maximum moves from tile to tile.
template <class T> static void check(const Case &c, Kernels set, float size, int seed) {
  const auto qkv = draw<T>(c.rows(), 3 * c.heads * c.d, c.ldqkv(), size, seed), dO = draw<T>(c.rows(), c.heads * c.d, c.lddo(), 1, seed + 1);
  std::vector<Answer> want(c.batch * c.heads);
  parallel(want.size(), [&](int i) { want[i] = answer(c, qkv, dO, i / c.heads, i % c.heads); });
  Operands<T> x(c, set, qkv, dO);
  x.forward(), x.backward();
  CHECK(cudaDeviceSynchronize());
  const auto o = x.o.host(), dqkv = x.dqkv.host();
  const auto lse = x.lse.host(), delta = x.delta.host();
  Error e[5];
  for (int b = 0; b < c.batch; b++)
    for (int h = 0; h < c.heads; h++) {
      const Answer &w = want[b * c.heads + h];
      for (int i = 0; i < c.length; i++) {
        e[4].add(lse[((size_t)b * c.heads + h) * c.length + i], w.lse[i]);
        const size_t row = (size_t)b * c.length + i;
        for (int k = 0; k < c.d; k++) {
          const size_t at = (size_t)i * c.d + k;
          e[0].add(value(o[row * c.ldo() + h * c.d + k]), w.o[at]);
          for (int part = 0; part < 3; part++) e[1 + part].add(value(dqkv[row * c.ldd() + (3 * h + part) * c.d + k]), (part == 0 ? w.dq : part == 1 ? w.dk : w.dv)[at]);
        }
      }
    }
  const bool guard = guarded(o, c.heads * c.d, c.ldo()) && guarded(dqkv, 3 * c.heads * c.d, c.ldd());
  bool repeat = true;
  for (int i = 0; i < 3; i++) {
    x.poison();
    x.forward(), x.backward();
    CHECK(cudaDeviceSynchronize());
    repeat &= same(o, x.o.host()) && same(dqkv, x.dqkv.host()) && same(lse, x.lse.host()) && same(delta, x.delta.host());
  }
  const double most = sizeof(T) == 2 ? 1e-2 : 1e-5;
  bool ok = guard && repeat;
  printf("%-7s B %d L %4d heads %d d %3d half %2d size %g", names[set], c.batch, c.length, c.heads, c.d, c.half, size);
  const char *what[] = {"o", "dq", "dk", "dv", "lse"};
  for (int i = 0; i < 5; i++) {
    // of one position dq and dk are zero: nothing to be relative to
    const double v = c.length == 1 && (i == 1 || i == 2) ? std::sqrt(e[i].d / (c.rows() * c.heads * c.d)) : e[i].value();
    ok &= v <= (i == 4 ? most / 10 : most);
    printf("  %s %.1e", what[i], v);
  }
  printf("%s%s%s\n", ok ? "" : "  WRONG", guard ? "" : " unwritten or overrun", repeat ? "" : " differs between runs");
  failed |= !ok;
}

static double median(const std::function<void()> &f, int groups, int calls) {
  cudaEvent_t a, b;
  CHECK(cudaEventCreate(&a));
  CHECK(cudaEventCreate(&b));
  std::vector<float> t;
  f();
  for (int g = 0; g < groups; g++) {
    CHECK(cudaEventRecord(a));
    for (int i = 0; i < calls; i++) f();
    CHECK(cudaEventRecord(b));
    CHECK(cudaEventSynchronize(b));
    float ms;
    CHECK(cudaEventElapsedTime(&ms, a, b));
    t.push_back(ms / calls);
  }
  std::sort(t.begin(), t.end());
  return t[t.size() / 2];
}

static void time_all(const Case &c, Kernels set, int groups, int calls) {
  Operands<bf16> x(c, set, draw<bf16>(c.rows(), 3 * c.heads * c.d, c.ldqkv(), 1, 1), draw<bf16>(c.rows(), c.heads * c.d, c.lddo(), 1, 2));
  const double flop = 2.0 * c.batch * c.heads * c.d * c.length * (double)c.length / 1e9;  // of two causal products, GFLOP
  auto row = [&](const char *what, double ms, double products) {
    printf("| %-7s %-12s | %2d × %6d × %d × %3d | %8.4f | %4.0f |\n", names[set], what, c.batch, c.length, c.heads, c.d, ms, products / 2 * flop / ms);
  };
  row("forward", median([&] { x.forward(); }, groups, calls), 2);
  row("backward q", median([&] { x.backward_q(); }, groups, calls), 3);
  row("backward kv", median([&] { x.backward_kv(); }, groups, calls), 4);
  row("backward", median([&] { x.backward(); }, groups, calls), 5);
  if (c.half > 0) row("rotary", median([&] { x.rotate(x.qkv.p, c.ldqkv(), 1); }, groups, calls), 0);
}

int main(int argc, char **argv) {
  setvbuf(stdout, nullptr, _IOLBF, 1 << 12);
  cudaDeviceProp p;
  CHECK(cudaGetDeviceProperties(&p, 0));
  printf("%s, %d multiprocessors\n", p.name, p.multiProcessorCount);
  const std::string what = argc > 1 ? argv[1] : "";
  if (what != "time") {
    int seed = 1;
    for (int length : {1, 2, 3, 63, 64, 65, 127, 128, 129, 200, 257, 1000, 1023, 1025}) check<bf16>({2, length, 2, 64, length % 2 == 1, length % 3 * 8}, HOPPER, 1, seed += 2);
    check<bf16>({60, 65, 8, 64, true}, HOPPER, 1, seed += 2), check<bf16>({150, 130, 8, 64, true}, HOPPER, 1, seed += 2), check<bf16>({3, 3000, 3, 64, true}, HOPPER, 1, seed += 2);
    for (int length : {3, 65, 300, 1025}) {
      check<bf16>({1, length, 3, 128, true, length % 2 ? 64 : 16}, HOPPER, 1, seed += 2);
      check<bf16>({2, length, 3, 40, true, 16}, HOPPER, 1, seed += 2);
      check<bf16>({2, length, 2, 88, true, 32}, HOPPER, 1, seed += 2);
      check<bf16>({1, length, 3, 64, true, 32}, HOPPER, 3, seed += 2);
    }
    for (int length : {1, 3, 65, 300})
      for (int d : {8, 32, 40, 64, 128}) {
        const int half = d == 40 ? 5 : d / 4 / 8 * 8;
        check<bf16>({2, length, 2, d, true, half}, TENSOR, 1, seed += 2), check<float>({2, length, 2, d, true, half}, PLAIN, 1, seed += 2);
      }
    printf(failed ? "WRONG\n" : "all right\n");
  }
  if (what != "check") {
    printf("| kernels | batch × length × heads × d | ms | TFLOP/s |\n|---|---|---|---|\n");
    for (Kernels set : {HOPPER, TENSOR}) time_all({60, 1024, 8, 64, false, 8}, set, 21, 5);
    time_all({15, 4096, 8, 64, false}, HOPPER, 21, 2);
    time_all({60, 1024, 4, 128, false}, HOPPER, 21, 5);
    time_all({1, 131072, 8, 64, false}, HOPPER, 3, 1);
  }
  return failed;
}
