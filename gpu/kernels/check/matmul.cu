// Checks and times the products of matmul_hopper.cuh on their own, on a card of
// compute capability 9.0:
//
//   nvcc -std=c++17 -O3 -gencode arch=compute_90a,code=sm_90a -o matmul matmul.cu -ldl && ./matmul
//
// head: losses and gradients of the output embedding by head_hopper.cu, and by
// cuBLASLt and cross_entropy.cu, against a float64 computation from the same bf16
// operands (‖a − b‖ / ‖b‖). mlp: the same for mlp_hopper.cu. Outputs are poisoned
// before, guarded behind their rows' ends, and computed twice for the same bits;
// what follows B's last row is NaN. Then times at 61,440 positions, width 512:
// medians between events. "./matmul check" only checks, "./matmul time" only
// times, "./matmul time 4096 8192x1024" only the head, in chunks of 4096 rows, and
// of 8192 at width 1024.
#include "../cross_entropy.cu"
#include "../gelu.cu"
#include "../head_hopper.cu"
#include "../mlp_hopper.cu"
#include "../reduce.cu"
#include "lt.h"
#include "harness.cuh"
#include <algorithm>
#include <cmath>
#include <cstring>
#include <cuda.h>
#include <cudaTypedefs.h>
#include <functional>
#include <memory>
#include <vector>

static int multiprocessors;

// ---- random data and float64 computations, one thread an element

__device__ uint64_t mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15u, x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u, x = (x ^ x >> 27) * 0x94d049bb133111ebu;
  return x ^ x >> 31;
}
__device__ float normal_of(uint64_t i) {
  const uint64_t r = mix(i);
  const float u = ((uint32_t)r + 1.0f) * 0x1p-32f, a = (uint32_t)(r >> 32) * 0x1p-32f;
  return sqrtf(-2 * logf(u)) * cospif(2 * a);
}
#define EACH(i, n) for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < (n); i += (size_t)gridDim.x * blockDim.x)
template <class T> __global__ void fill_normal(T *v, size_t n, float scale, uint64_t seed) { EACH(i, n) v[i] = store<T>(scale * normal_of(seed << 40 | i)); }
// Labels as in text: rank r about as often as 1/r.
__global__ void fill_tokens(int *v, size_t n, int vocab, uint64_t seed) { EACH(i, n) v[i] = min(vocab - 1, (int)expf(logf(vocab) * ((uint32_t)mix(seed << 40 | i) * 0x1p-32f))); }
__device__ double wide(double v) { return v; }
__device__ double wide(bf16 v) { return __bfloat162float(v); }
template <class A, class B> __global__ void product64(const A *a, size_t am, size_t ak, const B *b, size_t bn, size_t bk, double *d, int m, int n, int k) {
  EACH(i, (size_t)m * n) {
    const size_t r = i / n, c = i % n;
    double s = 0;
    for (int j = 0; j < k; j++) s += wide(a[r * am + j * ak]) * wide(b[c * bn + j * bk]);
    d[i] = s;
  }
}
// Logits become their gradients. One block a row.
__global__ void cross_entropy64(double *s, const int *tokens, double *nll, int length, int vocab, double a) {
  __shared__ double scratch[32];
  const int row = blockIdx.x;
  s += (size_t)row * vocab;
  double top = 0, sum = 0;
  for (int v = 0; v < vocab; v++) top = fmax(top, s[v]);
  for (int v = threadIdx.x; v < vocab; v += blockDim.x) sum += exp(s[v] - top);
  sum = block_sum(sum, scratch);
  const bool last = row % length == length - 1;
  const int next = last ? -1 : tokens[row + 1];
  if (threadIdx.x == 0) nll[row] = last ? 0 : top + log(sum) - s[next];
  __syncthreads();
  for (int v = threadIdx.x; v < vocab; v += blockDim.x) s[v] = last ? 0 : (exp(s[v] - top) / sum - (v == next)) * a;
}
// Σ (got − want)², Σ want² and how many of got are not finite. One block.
template <class T> __global__ void differ(const T *got, size_t ld, const double *want, size_t rows, size_t cols, double *out) {
  __shared__ double scratch[32];
  double d = 0, n = 0, bad = 0;
  for (size_t i = threadIdx.x; i < rows * cols; i += blockDim.x) {
    const double g = load(got[i / cols * ld + i % cols]), w = want[i];
    bad += !isfinite(g), d += (g - w) * (g - w), n += w * w;
  }
  d = block_sum(d, scratch), n = block_sum(n, scratch), bad = block_sum(bad, scratch);
  if (threadIdx.x == 0) out[0] = d, out[1] = n, out[2] = bad;
}
template <class T> static double off(const T *got, size_t ld, const double *want, size_t rows, size_t cols) {
  static Buffer<double> *out = new Buffer<double>(3);
  differ<<<1, 1024>>>(got, ld, want, rows, cols, out->p);
  CHECK(cudaGetLastError());
  const auto v = out->host();
  return v[2] ? NAN : std::sqrt(v[0] / std::max(v[1], 1e-300));
}
#define GRID 2048, 256

// ---- launching, as gpu/cuda/matmul.go does

static TensorMap encode(const bf16 *p, int rank, const cuuint64_t *dims, const cuuint64_t *strides, const cuuint32_t *box) {
  static PFN_cuTensorMapEncodeTiled_v12000 f = nullptr;
  if (!f) CHECK(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", (void **)&f, 12000, cudaEnableDefault, nullptr));
  const cuuint32_t ones[5] = {1, 1, 1, 1, 1};
  CUtensorMap m;
  const CUresult r = f(&m, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, rank, (void *)p, dims, strides, box, ones, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (r) fprintf(stderr, "tensor map: CUDA error %d\n", (int)r), exit(1);
  TensorMap t;
  static_assert(sizeof t == sizeof m, "");
  memcpy(&t, &m, sizeof t);
  return t;
}
static TensorMap map_rows(const bf16 *p, cuuint64_t rows, cuuint64_t cols, cuuint64_t ld) {
  const cuuint64_t dims[] = {cols, rows}, strides[] = {2 * ld};
  const cuuint32_t box[] = {matmul::SLAB, matmul::TILE};
  return encode(p, 2, dims, strides, box);
}
static TensorMap map_columns(const bf16 *p, cuuint64_t rows, cuuint64_t cols, cuuint64_t ld) {
  const cuuint64_t dims[] = {cols, 2, 4, 4, (rows + 31) / 32}, strides[] = {2 * ld, 16 * ld, 4 * ld, 64 * ld};
  const cuuint32_t box[] = {matmul::SLAB, 2, 4, 4, 4};
  return encode(p, 5, dims, strides, box);
}
static int ceil_div(int a, int b) { return (a + b - 1) / b; }
// Into how many ranges the tiles of B are cut: the least tiles that any block
// works through, where a new strip costs as much as one.
static int parts_of(int rows, int cols) {
  const int strips = ceil_div(rows, matmul::TILE), tiles = ceil_div(cols, matmul::TILE);
  int best = 1;
  long least = 1l << 60;
  for (int p = 1; p <= std::min(tiles, 64); p++) {
    const long cost = (long)ceil_div(strips * p, multiprocessors) * (ceil_div(tiles, p) + 1);
    if (cost < least) least = cost, best = p;
  }
  return best;
}
static int grid_of(int rows, int cols, int parts) { return std::min(ceil_div(rows, matmul::TILE) * (parts ? parts : ceil_div(cols, matmul::TILE)), multiprocessors); }
// Rows row0 … row0 + rows − 1 of A by all of B: kernel, or streamed where k is too
// much to be resident.
template <class F, class... Rest> static void launch(F *kernel, F *streamed, const TensorMap &a, const TensorMap &b, int row0, int rows, int cols, int k, int parts, Rest... rest) {
  F *f = k > matmul::SLABS * matmul::SLAB ? streamed : kernel;
  CHECK(cudaFuncSetAttribute((const void *)f, cudaFuncAttributeMaxDynamicSharedMemorySize, matmul::SHARED));
  f<<<grid_of(rows, cols, parts), matmul::THREADS, matmul::SHARED>>>(a, b, row0, rows, cols, k, parts, rest...);
  CHECK(cudaGetLastError());
}
#define PRODUCT(name, ...) launch(name, name##_streamed, __VA_ARGS__)

template <class T> static bool same(const std::vector<T> &a, const std::vector<T> &b) { return !memcmp(a.data(), b.data(), a.size() * sizeof(T)); }

static double median(const std::function<void(int)> &f, int groups = 21, int calls = 1) {
  cudaEvent_t a, b;
  CHECK(cudaEventCreate(&a));
  CHECK(cudaEventCreate(&b));
  std::vector<float> t;
  for (int i = 0; i < 3; i++) f(i);
  for (int g = 0; g < groups; g++) {
    CHECK(cudaEventRecord(a));
    for (int i = 0; i < calls; i++) f(g * calls + i);
    CHECK(cudaEventRecord(b));
    CHECK(cudaEventSynchronize(b));
    float ms;
    CHECK(cudaEventElapsedTime(&ms, a, b));
    t.push_back(ms / calls);
  }
  CHECK(cudaGetLastError());
  std::sort(t.begin(), t.end());
  return t[t.size() / 2];
}

// ---- the product alone

// Writes nothing but what keeps the product from being left out.
struct Nothing {
  float *out;
  float s;
  __device__ void open(int) { s = 0; }
  __device__ void before(int) {}
  template <bool> __device__ __forceinline__ void piece(int, int, int, int, float (&v)[8]) { s = fmaxf(s, v[0]); }
  __device__ void finish(int, int, int) {}
  __device__ void close(int) {
    if (s == 1e30f) *out = s;
  }
};
EXPORT_PRODUCT(nothing, (Nothing{out, 0}), float *out)

// ---- the head

struct Head {
  int rows, length, vocab, dim, chunk, ld, parts = 0;  // parts 0: parts_of
  float a;
  Buffer<bf16> x, w, e, scaled, dx;
  Buffer<int> tokens;
  Buffer<float> reference, sums, total, shift, nll, factor, dw;
  TensorMap mx, mw;
  std::unique_ptr<lt::Product> forward, dw_product, dx_product, dw_rest, dx_rest, forward_rest;

  Head(int rows, int length, int vocab, int dim, int chunk, float spread, int seed, int parts = 0)
      : rows(rows), length(length), vocab(vocab), dim(dim), chunk(chunk), ld((vocab + 7) / 8 * 8), parts(parts), a(1.0f / std::max(1, rows / length * (length - 1))),
        x((size_t)rows * dim), w((size_t)(vocab + 31) * dim), e((size_t)chunk * ld + 64), scaled((size_t)chunk * dim), dx((size_t)rows * dim), tokens(rows),
        reference(rows), sums((size_t)2 * 64 * chunk), total(chunk), shift(chunk), nll(rows), factor(rows), dw((size_t)vocab * dim) {
    fill_normal<<<GRID>>>(x.p, x.n, 1.0f, 2 * seed);
    fill_normal<<<GRID>>>(w.p, (size_t)vocab * dim, spread / std::sqrt((float)dim), 2 * seed + 1);
    fill_tokens<<<GRID>>>(tokens.p, rows, vocab, seed);
    mx = map_rows(x.p, rows, dim, dim), mw = map_columns(w.p, vocab, dim, dim);
    const int rest = rows % chunk;
    auto make = [&](int n, std::unique_ptr<lt::Product> &f, std::unique_ptr<lt::Product> &d, std::unique_ptr<lt::Product> &b) {
      f.reset(new lt::Product(n, vocab, dim, false, true, dim, dim, ld));
      d.reset(new lt::Product(vocab, dim, n, true, false, ld, dim, dim, lt::FLOAT32));
      b.reset(new lt::Product(n, dim, vocab, false, false, ld, dim, dim));
    };
    make(chunk, forward, dw_product, dx_product);
    if (rest) make(rest, forward_rest, dw_rest, dx_rest);
  }
  int size(int row) const { return std::min(chunk, rows - row); }
  int parts_for(int n) const { return parts ? parts : parts_of(n, vocab); }
  void references() { head_reference<<<ceil_div(rows, 8), 256>>>(x.p, w.p, tokens.p, reference.p, rows, length, dim); }
  void exponentials(int row) {
    const int n = size(row), p = parts_for(n);
    PRODUCT(head_exponentials, mx, mw, row, n, vocab, dim, p, (const float *)reference.p, e.p, sums.p, ld);
  }
  void finish(int row) {
    const int n = size(row);
    head_far<<<n, 256>>>(x.p, w.p, reference.p, sums.p, e.p, total.p, shift.p, row, vocab, dim, ld, 2 * parts_for(n));
    head_finish<<<ceil_div(n, 8), 256>>>(x.p, total.p, shift.p, tokens.p, e.p, scaled.p, nll.p, factor.p, row, n, length, dim, ld, a);
  }
  void logits(int row) { (size(row) == chunk ? forward : forward_rest)->run(x.p + (size_t)row * dim, w.p, e.p); }
  void entropy(int row) { cross_entropy_bf16_::cross_entropy_bf16<<<size(row), 512>>>(e.p, tokens.p, nll.p, row, length, vocab, ld, a); }
  void weights(int row, const bf16 *input) { (size(row) == chunk ? dw_product : dw_rest)->run(e.p, input, dw.p, row > 0); }
  void inputs(int row) { (size(row) == chunk ? dx_product : dx_rest)->run(e.p, w.p, dx.p + (size_t)row * dim); }
  void ours() {
    references();
    for (int row = 0; row < rows; row += chunk) exponentials(row), finish(row), weights(row, scaled.p), inputs(row);
    scale_rows<<<ceil_div(rows, 8), 256>>>(dx.p, factor.p, rows, dim);
  }
  void today() {
    for (int row = 0; row < rows; row += chunk) logits(row), entropy(row), weights(row, x.p + (size_t)row * dim), inputs(row);
  }
  void poison() { e.poison(), scaled.poison(), dx.poison(), reference.poison(), sums.poison(), total.poison(), shift.poison(), nll.poison(), factor.poison(), dw.poison(); }
};

static void check_head(int rows, int length, int vocab, int dim, int chunk, float spread, int seed, int parts = 0, bool compare = false) {
  Head h(rows, length, vocab, dim, chunk, spread, seed, parts);
  Buffer<double> s((size_t)rows * vocab), dx((size_t)rows * dim), dw((size_t)vocab * dim), nll(rows);
  product64<<<GRID>>>(h.x.p, dim, 1, h.w.p, dim, 1, s.p, rows, vocab, dim);
  cross_entropy64<<<rows, 256>>>(s.p, h.tokens.p, nll.p, length, vocab, h.a);
  product64<<<GRID>>>(s.p, vocab, 1, h.w.p, 1, dim, dx.p, rows, dim, vocab);
  product64<<<GRID>>>(s.p, 1, vocab, h.x.p, 1, dim, dw.p, vocab, dim, rows);
  CHECK(cudaDeviceSynchronize());
  auto errors = [&](double (&v)[3]) {
    v[0] = off(h.nll.p, 1, nll.p, rows, 1), v[1] = off(h.dx.p, dim, dx.p, rows, dim), v[2] = off(h.dw.p, dim, dw.p, vocab, dim);
  };
  h.poison();
  h.ours();
  CHECK(cudaDeviceSynchronize());
  double v[3], u[3];
  errors(v);
  const auto d1 = h.dx.host(), e1 = h.e.host();
  const auto w1 = h.dw.host();
  bool guard = true;
  for (size_t i = (size_t)chunk * h.ld; i < e1.size(); i++) guard &= __bfloat16_as_ushort(e1[i]) == 0xffff;
  h.poison();
  h.ours();
  CHECK(cudaDeviceSynchronize());
  const bool repeat = same(d1, h.dx.host()) && same(w1, h.dw.host());
  const bool ok = v[0] < 1e-4 && v[1] < 1e-2 && v[2] < 1e-2 && guard && repeat;
  printf("head %5d/%4d x %5d x %4d by %5d: nll %.1e dx %.1e dW %.1e%s%s%s", rows, length, vocab, dim, chunk, v[0], v[1], v[2], ok ? "" : " WRONG", guard ? "" : " overrun", repeat ? "" : " differs");
  failed |= !ok;
  if (compare) {
    h.poison();
    h.today();
    CHECK(cudaDeviceSynchronize());
    errors(u);
    printf("; with logits nll %.1e dx %.1e dW %.1e", u[0], u[1], u[2]);
  }
  printf("\n");
}

static void time_head(int chunk, int dim = 512) {
  Head h(61440, 1024, 50304, dim, chunk, 1.0f, 7);
  const int chunks = h.rows / chunk;
  auto at = [&](int i) { return i % chunks * chunk; };
  const double each = 61440.0 / chunk;
  h.ours();
  const double c = median([&](int) { h.references(); }), f = median([&](int i) { h.finish(at(i)); });
  const double l = median([&](int i) { h.logits(at(i)); }), e = median([&](int i) { h.exponentials(at(i)); });
  const double w = median([&](int i) { h.weights(at(i), h.scaled.p); }), x = median([&](int i) { h.inputs(at(i)); });
  const int p = parts_of(chunk, h.vocab);
  const double alone = median([&](int i) { PRODUCT(nothing, h.mx, h.mw, at(i), chunk, h.vocab, h.dim, p, h.nll.p); });
  const double n = median([&](int i) { h.entropy(at(i)); }), s = median([&](int) { scale_rows<<<ceil_div(h.rows, 8), 256>>>(h.dx.p, h.factor.p, h.rows, h.dim); });
  const double ours = median([&](int) { h.ours(); }, 9), today = median([&](int) { h.today(); }, 9), again = median([&](int) { h.ours(); }, 9);
  printf("head %d by %5d (parts %d): ref %.2f exp %.2f (alone %.2f) [logits %.2f, CE %.2f] finish %.2f dW %.2f dX %.2f scale %.2f | all: ours %.2f %.2f, today %.2f ms\n", dim, chunk, parts_of(chunk, h.vocab), c, e * each, alone * each, l * each,
         n * each, f * each, w * each, x * each, s, ours, again, today);
}

// ---- the MLP

struct Mlp {
  int rows, dim, hidden, lda, ldg, parts;  // parts 0: equal ranges
  Buffer<bf16> x, w1, w2, w2t, dy, a, g, d;
  Buffer<float> bias, sums, slices, db;
  TensorMap mx, mw1, mdy, mw2;
  Mlp(int rows, int dim, int hidden, int pad, int seed, int parts = 0)
      : rows(rows), dim(dim), hidden(hidden), lda(hidden + pad), ldg(hidden + 2 * pad), parts(parts), x((size_t)rows * dim), w1((size_t)(hidden + 31) * dim), w2((size_t)hidden * dim), w2t((size_t)(hidden + 31) * dim),
        dy((size_t)rows * dim), a((size_t)rows * lda), g((size_t)rows * ldg), d((size_t)rows * ldg), bias(hidden), sums((size_t)4 * ceil_div(rows, 128) * hidden), slices(64 * hidden), db(hidden) {
    fill_normal<<<GRID>>>(x.p, x.n, 1.0f, 100 + seed), fill_normal<<<GRID>>>(dy.p, dy.n, 1.0f, 200 + seed), fill_normal<<<GRID>>>(bias.p, bias.n, 0.5f, 300 + seed);
    fill_normal<<<GRID>>>(w1.p, (size_t)hidden * dim, 1.5f / std::sqrt((float)dim), 400 + seed), fill_normal<<<GRID>>>(w2.p, w2.n, 1 / std::sqrt((float)hidden), 500 + seed);
    mx = map_rows(x.p, rows, dim, dim), mdy = map_rows(dy.p, rows, dim, dim);
    mw1 = map_columns(w1.p, hidden, dim, dim), mw2 = map_columns(w2t.p, hidden, dim, dim);
  }
  void up() { launch(mlp_up, mlp_up, mx, mw1, 0, rows, hidden, dim, parts, (const float *)bias.p, a.p, g.p, lda, ldg); }
  void turn() { transpose<<<dim3(ceil_div(hidden, 32), ceil_div(dim, 32)), dim3(32, 8)>>>(w2.p, w2t.p, dim, hidden); }
  void down() { launch(mlp_down_gradient, mlp_down_gradient, mdy, mw2, 0, rows, hidden, dim, parts, (const bf16 *)a.p, d.p, sums.p, lda, ldg); }
  void reduce() {
    column_sum_float32_::column_sum_float32<<<dim3(ceil_div(hidden, 32), 64), dim3(32, 8)>>>(sums.p, slices.p, 4 * ceil_div(rows, 128), hidden);
    reduce_slices<<<ceil_div(hidden, 32), dim3(32, 8)>>>(slices.p, db.p, nullptr, 64, hidden, hidden);
  }
  void all() { up(), turn(), down(), reduce(); }
  void poison() { a.poison(), g.poison(), d.poison(), sums.poison(), db.poison(), slices.poison(); }
};

__global__ void gelu64(double *a, double *g, const double *bias, int cols, size_t n) {
  EACH(i, n) {
    a[i] += bias[i % cols];
    g[i] = a[i] * 0.5 * erfc(-a[i] * 0.70710678118654752);
  }
}
// The derivative at the stored a.
__global__ void gelu_gradient64(double *d, const bf16 *a, int lda, int cols, size_t n) {
  EACH(i, n) {
    const double x = wide(a[i / cols * lda + i % cols]);
    d[i] *= 0.5 * erfc(-x * 0.70710678118654752) + x * 0.39894228040143268 * exp(-0.5 * x * x);
  }
}
__global__ void columns64(const double *d, double *s, int rows, int cols) {
  EACH(c, cols) {
    s[c] = 0;
    for (int r = 0; r < rows; r++) s[c] += d[(size_t)r * cols + c];
  }
}
__global__ void widen64(const float *v, double *w, size_t n) { EACH(i, n) w[i] = v[i]; }

static void check_mlp(int rows, int dim, int hidden, int pad, int seed, int parts = 0) {
  Mlp p(rows, dim, hidden, pad, seed, parts);
  const size_t n = (size_t)rows * hidden;
  Buffer<double> a(n), g(n), d(n), db(hidden), bias(hidden);
  p.poison();
  p.all();
  CHECK(cudaDeviceSynchronize());
  widen64<<<GRID>>>(p.bias.p, bias.p, hidden);
  product64<<<GRID>>>(p.x.p, dim, 1, p.w1.p, dim, 1, a.p, rows, hidden, dim);
  gelu64<<<GRID>>>(a.p, g.p, bias.p, hidden, n);
  product64<<<GRID>>>(p.dy.p, dim, 1, p.w2.p, 1, hidden, d.p, rows, hidden, dim);
  gelu_gradient64<<<GRID>>>(d.p, p.a.p, p.lda, hidden, n);
  columns64<<<GRID>>>(d.p, db.p, rows, hidden);
  const double v[4] = {off(p.a.p, p.lda, a.p, rows, hidden), off(p.g.p, p.ldg, g.p, rows, hidden), off(p.d.p, p.ldg, d.p, rows, hidden), off(p.db.p, 1, db.p, 1, hidden)};
  const auto a1 = p.a.host(), g1 = p.g.host(), d1 = p.d.host();
  const auto b1 = p.db.host();
  bool guard = true;
  for (int r = 0; r < rows; r++) {
    for (int c = hidden; c < p.lda; c++) guard &= __bfloat16_as_ushort(a1[(size_t)r * p.lda + c]) == 0xffff;
    for (int c = hidden; c < p.ldg; c++) guard &= __bfloat16_as_ushort(g1[(size_t)r * p.ldg + c]) == 0xffff && __bfloat16_as_ushort(d1[(size_t)r * p.ldg + c]) == 0xffff;
  }
  p.poison();
  p.all();
  CHECK(cudaDeviceSynchronize());
  const bool repeat = same(a1, p.a.host()) && same(g1, p.g.host()) && same(d1, p.d.host()) && same(b1, p.db.host());
  const bool ok = v[0] < 3e-3 && v[1] < 3e-3 && v[2] < 3e-3 && v[3] < 1e-4 && guard && repeat;
  printf("mlp %5d x %4d x %4d: a %.1e g %.1e da %.1e db %.1e%s%s%s\n", rows, dim, hidden, v[0], v[1], v[2], v[3], ok ? "" : " WRONG", guard ? "" : " overrun", repeat ? "" : " differs");
  failed |= !ok;
}

static void time_mlp(int rows, int dim, int hidden) {
  Mlp p(rows, dim, hidden, 0, 5);
  p.all();
  const double up = median([&](int) { p.up(); }), down = median([&](int) { p.down(); }), turn = median([&](int) { p.turn(); }), reduce = median([&](int) { p.reduce(); });
  lt::Product plain(rows, hidden, dim, false, true, dim, dim, hidden, lt::BF16, lt::BIAS, p.w1.p), back(rows, hidden, dim, false, false, dim, hidden, hidden);
  const double f = median([&](int) { plain.run(p.x.p, p.w1.p, p.a.p); }), b = median([&](int) { back.run(p.dy.p, p.w2.p, p.d.p); });
  const double gf = median([&](int) { gelu_forward_bf16_::gelu_forward_bf16<<<ceil_div(rows * hidden, 2048), 256>>>(p.a.p, p.g.p, (long long)rows * hidden); });
  const double gb = median([&](int) { gelu_backward_bf16_::gelu_backward_bf16<<<dim3(ceil_div(hidden, 256), 64), dim3(32, 8)>>>(p.a.p, p.d.p, p.slices.p, rows, hidden); });
  lt::Product fused(rows, hidden, dim, false, true, dim, dim, hidden, lt::BF16, lt::GELU_AUX_BIAS, p.w1.p, p.a.p, hidden);
  lt::Product fused_back(rows, hidden, dim, false, false, dim, hidden, hidden, lt::BF16, lt::DGELU_BGRAD, p.db.p, p.a.p, hidden);
  const double ff = median([&](int) { fused.run(p.x.p, p.w1.p, p.g.p); }), fb = median([&](int) { fused_back.run(p.dy.p, p.w2.p, p.d.p); });
  printf("mlp %d x %d x %d: up %.3f [cuBLASLt %.3f + gelu %.3f; tanh epilogue %.3f] down %.3f + transpose %.3f + reduce %.3f [%.3f + %.3f; %.3f] ms\n", rows, dim, hidden, up, f, gf, ff, down, turn,
         reduce, b, gb, fb);
}

int main(int argc, char **argv) {
  setvbuf(stdout, nullptr, _IOLBF, 0);
  cudaDeviceProp p;
  CHECK(cudaGetDeviceProperties(&p, 0));
  multiprocessors = p.multiProcessorCount;
  printf("%s, %d multiprocessors\n", p.name, multiprocessors);
  if (argc < 2 || strcmp(argv[1], "time")) {
    check_head(74, 37, 67, 16, 74, 3, 1), check_head(300, 100, 1000, 40, 130, 3, 2), check_head(129, 129, 257, 72, 129, 3, 3), check_head(1, 1, 8, 8, 1, 3, 4);
    check_head(1000, 50, 3001, 512, 384, 3, 5, 3), check_head(700, 70, 1536, 520, 700, 3, 6, 5), check_head(520, 65, 2049, 1024, 260, 3, 7), check_head(260, 130, 999, 256, 260, 25, 8, 7);
    check_head(2048, 1024, 50304, 512, 1024, 1, 9, 0, true), check_head(1024, 1024, 50304, 512, 1024, 6, 10, 0, true);
    check_mlp(1, 8, 8, 0, 1), check_mlp(300, 40, 72, 8, 2), check_mlp(1000, 512, 2048, 8, 3), check_mlp(513, 384, 3072, 0, 4, 5), check_mlp(3000, 512, 4104, 0, 6), check_mlp(129, 64, 136, 16, 5, 2);
    printf(failed ? "WRONG\n" : "all right\n");
  }
  if (argc > 1 && !strcmp(argv[1], "check")) return failed;
  if (argc > 2) {
    for (int i = 2; i < argc; i++) {
      int chunk = 0, dim = 512;
      if (sscanf(argv[i], "%dx%d", &chunk, &dim) < 1 || chunk < 1 || dim < 8 || dim % 8) return fprintf(stderr, "%s: want rows, or rowsxwidth with a width that is a multiple of 8\n", argv[i]), 1;
      time_head(chunk, dim);
    }
  } else {
    time_mlp(61440, 512, 2048);
    for (int chunk : {4096, 4224, 8192, 8448, 16384, 16896}) time_head(chunk);
  }
  return failed;
}
