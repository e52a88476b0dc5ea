// Checks and times the long convolution in two stages on its own:
//
//   nvcc -std=c++17 -O3 -lineinfo -gencode arch=compute_90,code=sm_90 -o longconv_stages longconv_stages.cu && ./longconv_stages
//
// Every output is compared with a float64 computation on the CPU over random
// data (‖a − b‖ / ‖b‖, at most 1e-5; 4e-3 for y and dq in bf16), with outputs and scratch
// poisoned before and guarded behind their end, in slices that do and do not
// divide the work, and run twice for the same bits. Then times at 512 channels and
// 131,072 tokens, in bf16: medians between events. Buffers are larger than the
// L2 cache. `longconv_stages time` skips the checks, `longconv_stages slices`
// times a range of slices as well, `longconv_stages profile` runs once.
#include "../longconv.cu"
#include "../longconv_stages.cu"
#include "harness.cuh"
#include <algorithm>
#include <cmath>
#include <complex>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <thread>
#include <type_traits>
#include <vector>

static int points(int length) {
  int p = 256;
  while (p < length) p *= 2;
  return p;
}

struct Case {
  int batch, dim, length;
  size_t forward_points, backward_points;  // of a slice
  int forward_lag = 3, backward_lag = 3;
  int P() const { return std::max(16384, points(length)); }
  int ld() const { return (batch * length + 7) / 8 * 8 + 8; }
  int ldf() const { return (length + 7) / 8 * 8 + 8; }
  int sequences() const { return (int)std::min<size_t>(batch, std::max<size_t>(1, forward_points / P())); }
  int channels() const { return (int)std::min<size_t>(dim, std::max<size_t>(1, forward_points / P() / sequences())); }
  int groups() const { return backward_lag + 1; }
  int backward_channels() const { return (int)std::min<size_t>(dim, std::max<size_t>(1, backward_points / P())); }
};

// Tables as gpu/cuda/device.go makes them.
static std::vector<float2> table(double turn) {
  std::vector<float2> t(fft::MaxPoints);
  for (int k = 0; k < fft::MaxPoints; k++) t[k] = make_float2((float)std::cos(turn * k), (float)std::sin(turn * k));
  return t;
}

// The launches of gpu/cuda/longconv.go, with pointers to the kernels of each size.
template <class T> struct Kernels {
  void (*filter)(const double *, const float *, float2 *, int, int, float);
  void (*filter_gradient)(const float2 *, float *, int, int);
  void (*forward)(const float *, const float *, const float2 *, const float *, T *, T *, float2 *, int *, int, int, int, int, int, int, int, const float2 *);
  void (*backward)(const float *, const float *, const T *, float2 *, const float *, const T *, float *, float *, float *, float2 *, float2 *, float2 *, int *, int, int, int, int, int, int, const float2 *);
  int blocks;
};
template <class T> static Kernels<T> kernels(int P) {
#define OF(N)                                                                                                                                  \
  if (P == N) {                                                                                                                                \
    if constexpr (std::is_same<T, float>::value)                                                                                               \
      return {longconv_enter_filter_##N, longconv_leave_filter_##N, longconv_forward_##N##_float32, longconv_backward_##N##_float32, fft::Columns<N / 4096>::BLOCKS}; \
    else                                                                                                                                       \
      return {longconv_enter_filter_##N, longconv_leave_filter_##N, longconv_forward_##N##_bf16, longconv_backward_##N##_bf16, fft::Columns<N / 4096>::BLOCKS};       \
  }
  OF(16384) OF(32768) OF(65536) OF(131072)
  fprintf(stderr, "no kernels for %d points\n", P), exit(1);
}

static const int row_bytes = fft::shared_points<fft::Row> * sizeof(float2);

template <class T> struct Operands {
  Case c;
  Kernels<T> k;
  Buffer<double> f;
  Buffer<float> u, q, decay, beta, dq, du, dh, dbeta;
  Buffer<T> y, kept, dy;
  Buffer<float2> H, U, V, S, roots;
  Buffer<int> done;
  float invspan;
  Operands(const Case &c)
      : c(c), k(kernels<T>(c.P())), f((size_t)c.dim * c.ldf()), u((size_t)c.dim * c.ld()), q(u.n), decay(c.dim), beta(c.dim), dq(u.n), du(u.n), dh((size_t)c.dim * c.ldf()),
        dbeta((size_t)c.batch * k.blocks * c.dim), y(u.n), kept(u.n), dy(u.n), H((size_t)c.dim * c.P()), U(std::max((size_t)3 * c.forward_lag * c.channels() * c.sequences(), (size_t)2 * c.backward_lag * c.backward_channels()) * c.P()),
        V((size_t)3 * c.backward_lag * c.backward_channels() * c.P()), S((size_t)c.groups() * c.backward_channels() * c.P()), roots(table(-2 * M_PI / fft::MaxPoints)), done((size_t)3 * (c.dim + c.groups()) * c.batch), invspan(1.0f / std::max(1, c.length - 1)) {}
  static int parts(int n, int size) { return (n + size - 1) / size; }
  void filter() {
    k.filter<<<dim3(k.blocks, c.dim), 256>>>(f.p, decay.p, H.p, c.length, c.ldf(), invspan);
    longconv_rows_filter<<<dim3(c.P() / fft::Row, c.dim), 256, row_bytes>>>(H.p, roots.p);
    CHECK(cudaGetLastError());
  }
  int grid(int slices, int units, int lag) const { return (slices + 2 * lag) * units * (c.P() / fft::Row + 2 * k.blocks); }
  void forward() {
    const int slices = parts(c.dim, c.channels()) * parts(c.batch, c.sequences());
    CHECK(cudaMemsetAsync(done.p, 0, 3 * slices * sizeof(int)));
    k.forward<<<grid(slices, c.channels() * c.sequences(), c.forward_lag), 256, row_bytes>>>(u.p, q.p, H.p, beta.p, y.p, kept.p, U.p, done.p, c.forward_lag, c.channels(), c.sequences(), c.dim, c.batch, c.length, c.ld(), roots.p);
    CHECK(cudaGetLastError());
  }
  void backward() {
    const int channels = c.backward_channels(), slices = parts(c.dim, channels * c.groups()) * c.groups() * c.batch;
    CHECK(cudaMemsetAsync(done.p, 0, 3 * slices * sizeof(int)));
    k.backward<<<grid(slices, channels, c.backward_lag), 256, row_bytes>>>(u.p, q.p, kept.p, H.p, beta.p, dy.p, dq.p, du.p, dbeta.p, U.p, V.p, S.p, done.p, c.backward_lag, channels, c.dim, c.batch, c.length, c.ld(), roots.p);
    k.filter_gradient<<<dim3(k.blocks, c.dim), 256>>>(H.p, dh.p, c.length, c.ldf());
    CHECK(cudaGetLastError());
  }
  void poison() { y.poison(), kept.poison(), dq.poison(), du.poison(), dh.poison(), dbeta.poison(), H.poison(), U.poison(), V.poison(), S.poison(); }
};

// Float64 transform of 2^k points on the CPU, in place.
typedef std::complex<double> complex;
static void transform(std::vector<complex> &a, bool inverse) {
  const size_t n = a.size();
  for (size_t i = 1, j = 0; i < n; i++) {
    size_t bit = n >> 1;
    for (; j & bit; bit >>= 1) j ^= bit;
    j ^= bit;
    if (i < j) std::swap(a[i], a[j]);
  }
  std::vector<complex> root(n / 2);
  for (size_t i = 0; i < n / 2; i++) root[i] = std::polar(1.0, (inverse ? 2 : -2) * M_PI * i / n);
  for (size_t len = 2; len <= n; len *= 2)
    for (size_t i = 0; i < n; i += len)
      for (size_t j = 0; j < len / 2; j++) {
        const complex x = a[i + j], y = a[i + j + len / 2] * root[j * (n / len)];
        a[i + j] = x + y, a[i + j + len / 2] = x - y;
      }
  if (inverse)
    for (complex &x : a) x /= (double)n;
}
// Σ_m x[n ∓ m] y[m]: the causal convolution, or the correlation Σ_{n≥m} x[n] y[n − m].
static std::vector<double> multiply(const std::vector<double> &x, const std::vector<double> &y, bool correlate) {
  size_t n = 2;
  while (n < x.size() + y.size()) n *= 2;
  std::vector<complex> a(n), b(n);
  std::copy(x.begin(), x.end(), a.begin()), std::copy(y.begin(), y.end(), b.begin());
  transform(a, false), transform(b, false);
  for (size_t i = 0; i < n; i++) a[i] *= correlate ? std::conj(b[i]) : b[i];
  transform(a, true);
  std::vector<double> out(x.size());
  for (size_t i = 0; i < out.size(); i++) out[i] = a[i].real();
  return out;
}

// The reference itself against sums.
static void check_reference() {
  std::mt19937 r(1);
  std::normal_distribution<double> normal;
  std::vector<double> x(301), y(301);
  for (double &v : x) v = normal(r);
  for (double &v : y) v = normal(r);
  double error = 0;
  for (bool correlate : {false, true}) {
    const auto got = multiply(x, y, correlate);
    for (int m = 0; m < 301; m++) {
      double want = 0;
      if (correlate) for (int n = m; n < 301; n++) want += x[n] * y[n - m];
      else for (int n = 0; n <= m; n++) want += x[m - n] * y[n];
      error = std::max(error, std::abs(got[m] - want));
    }
  }
  if (!(error < 1e-11)) printf("the reference is off by %g\n", error), failed = true;
}

struct Error {
  double d = 0, n = 0;
  void add(double got, double want) { d += (got - want) * (got - want), n += want * want; }
  double value() const { return std::sqrt(d / (n > 0 ? n : 1)); }  // NaN stays NaN
};

static double value(float x) { return x; }
static double value(bf16 x) { return __bfloat162float(x); }
template <class T> static bool same(const std::vector<T> &a, const std::vector<T> &b) { return !memcmp(a.data(), b.data(), a.size() * sizeof(T)); }
// Columns from cols on are as poison left them.
template <class T> static bool guarded(const std::vector<T> &v, int ld, int cols) {
  for (size_t i = 0; i < v.size(); i++) {
    const unsigned char *b = reinterpret_cast<const unsigned char *>(&v[i]);
    if ((int)(i % ld) >= cols && (b[0] != 0xff || b[sizeof(T) - 1] != 0xff)) return false;
  }
  return true;
}

template <class T> static void check(const Case &c, int seed) {
  std::mt19937 r(seed);
  std::normal_distribution<float> normal;
  Operands<T> o(c);
  const int B = c.batch, D = c.dim, L = c.length;
  std::vector<double> f(o.f.n);
  std::vector<float> u(o.u.n), q(o.q.n), decay(D), beta(D);
  std::vector<T> dy(o.dy.n);
  for (auto &x : f) x = normal(r) / std::sqrt((double)L);
  for (auto &x : u) x = normal(r);
  for (auto &x : q) x = normal(r);
  for (auto &x : dy) x = T(normal(r));
  for (auto &x : decay) x = 3 + 10 * std::abs(normal(r));
  for (auto &x : beta) x = normal(r);
  auto put = [](auto &buffer, const auto &v) { CHECK(cudaMemcpy(buffer.p, v.data(), v.size() * sizeof v[0], cudaMemcpyHostToDevice)); };
  put(o.f, f), put(o.u, u), put(o.q, q), put(o.decay, decay), put(o.beta, beta), put(o.dy, dy);
  auto run = [&] {
    o.poison(), o.filter(), o.forward(), o.backward();
    CHECK(cudaDeviceSynchronize());
  };
  run();
  const auto y = o.y.host();
  const auto dq = o.dq.host(), du = o.du.host(), dh = o.dh.host(), dbeta = o.dbeta.host();
  std::vector<std::vector<Error>> parts(D, std::vector<Error>(5));
  std::vector<std::thread> workers;
  for (int ch = 0; ch < D; ch++)
    workers.emplace_back([&, ch] {
      std::vector<double> h(L), sum(L), x(L), d(L);
      double db = 0, terms = 0;
      for (int n = 0; n < L; n++) h[n] = f[(size_t)ch * c.ldf() + n] * std::exp(-(double)n / std::max(1, L - 1) * decay[ch]);
      for (int b = 0; b < B; b++) {
        const size_t at = (size_t)ch * c.ld() + (size_t)b * L;
        for (int n = 0; n < L; n++) x[n] = u[at + n], d[n] = value(dy[at + n]) * q[at + n], db += d[n] * x[n], terms += std::pow(d[n] * x[n], 2);
        const auto conv = multiply(x, h, false), back = multiply(d, h, true), filter = multiply(d, x, true);
        for (int n = 0; n < L; n++) {
          const double cn = conv[n] + beta[ch] * x[n];
          parts[ch][0].add(value(y[at + n]), q[at + n] * cn);
          parts[ch][1].add(dq[at + n], value(dy[at + n]) * cn);
          parts[ch][2].add(du[at + n], back[n] + beta[ch] * d[n]);
          sum[n] += filter[n];
        }
      }
      for (int n = 0; n < L; n++) parts[ch][3].add(dh[(size_t)ch * c.ldf() + n], sum[n]);
      double got = 0;
      for (int s = 0; s < B * o.k.blocks; s++) got += dbeta[(size_t)s * D + ch];
      parts[ch][4].add(got, db), parts[ch][4].n += terms;  // it may cancel
    });
  for (auto &w : workers) w.join();
  run();
  const bool repeat = same(y, o.y.host()) && same(dq, o.dq.host()) && same(du, o.du.host()) && same(dh, o.dh.host()) && same(dbeta, o.dbeta.host());
  const bool guard = guarded(y, c.ld(), B * L) && guarded(dq, c.ld(), B * L) && guarded(du, c.ld(), B * L) && guarded(dh, c.ldf(), L);
  bool ok = repeat && guard;
  printf("%s B %2d D %d L %6d ", sizeof(T) == 2 ? "bf16   " : "float32", B, D, L);
  const char *names[] = {"y", "dq", "du", "dh", "dbeta"};
  for (int i = 0; i < 5; i++) {
    Error e;
    for (int ch = 0; ch < D; ch++) e.d += parts[ch][i].d, e.n += parts[ch][i].n;
    ok &= e.value() <= (i < 2 && sizeof(T) == 2 ? 4e-3 : 1e-5);
    printf(" %s %.1e", names[i], e.value());
  }
  printf("%s%s%s\n", ok ? "" : "  WRONG", guard ? "" : " overrun", repeat ? "" : " differs between runs");
  failed |= !ok;
}

static double median(const std::function<void()> &f, int runs = 20) {
  cudaEvent_t a, b;
  CHECK(cudaEventCreate(&a));
  CHECK(cudaEventCreate(&b));
  std::vector<float> t;
  for (int i = -2; i < runs; i++) {
    CHECK(cudaEventRecord(a));
    f();
    CHECK(cudaEventRecord(b));
    CHECK(cudaEventSynchronize(b));
    float ms;
    CHECK(cudaEventElapsedTime(&ms, a, b));
    if (i >= 0) t.push_back(ms);
  }
  CHECK(cudaEventDestroy(a));
  CHECK(cudaEventDestroy(b));
  std::sort(t.begin(), t.end());
  return t[t.size() / 2];
}

// Deterministic normal-ish data without the host.
template <class T> __global__ void draw(T *p, size_t n, float scale, unsigned seed) {
  for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n; i += (size_t)gridDim.x * blockDim.x) {
    unsigned x = (unsigned)i * 2654435761u + seed;
    x ^= x >> 16, x *= 2246822519u, x ^= x >> 13, x *= 3266489917u, x ^= x >> 16;
    p[i] = T(scale * (x * (2.0f / 4294967296.0f) - 1.0f));
  }
}
template <class T> static void fill(Operands<T> &o) {
  draw<<<1024, 256>>>(o.f.p, o.f.n, 1.0f / o.c.length, 1), draw<<<1024, 256>>>(o.u.p, o.u.n, 1.0f, 2), draw<<<1024, 256>>>(o.q.p, o.q.n, 1.0f, 3);
  draw<<<1024, 256>>>(o.dy.p, o.dy.n, 1.0f, 4), draw<<<1024, 256>>>(o.decay.p, o.decay.n, 0.0f, 5), draw<<<1024, 256>>>(o.beta.p, o.beta.n, 1.0f, 6);
}

static void row(const char *name, const Case &c, double filter, double forward, double backward) {
  const double element = (double)c.batch * c.dim * c.length;
  printf("| %-12s | %3d x %6d | %6.3f | %6.3f | %6.3f | %6.2f | %6.2f |\n", name, c.batch, c.length, filter, forward, backward, forward * 1e9 / element, backward * 1e9 / element);
}

static void time_stages(const Case &c, const char *name) {
  Operands<bf16> o(c);
  fill(o);
  const double filter = median([&] { o.filter(); }), forward = median([&] { o.forward(); });
  row(name, c, filter, forward, median([&] { o.backward(); }));  // H is used up: its numbers no longer matter
}

// The transforms in one block, for comparison.
template <int P, class F, class G, class H> static void time_one(const Case &c, F filter, G forward, H backward) {
  Operands<bf16> o(c);
  fill(o);
  using C = LongConv<P>;
  const int bytes = C::GROUPS * fft::shared_points<P> * 8, parts = std::min((c.batch + 3) / 4, 2);
  Buffer<float> dh((size_t)parts * c.dim * c.ldf()), dbeta((size_t)parts * c.dim);
  Buffer<float2> halves(table(M_PI / 2 / fft::MaxPoints));
  CHECK(cudaFuncSetAttribute((const void *)filter, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  CHECK(cudaFuncSetAttribute((const void *)forward, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  CHECK(cudaFuncSetAttribute((const void *)backward, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  const double a = median([&] { filter<<<c.dim, P / 16, bytes>>>(o.f.p, o.decay.p, o.H.p, c.length, c.ldf(), o.invspan, o.roots.p, halves.p); });
  const double b = median([&] { forward<<<dim3(c.dim, std::min((c.batch + C::GROUPS - 1) / C::GROUPS, 4)), C::THREADS, bytes>>>(o.u.p, o.q.p, o.H.p, o.beta.p, o.y.p, c.batch, c.length, c.ld(), o.roots.p, halves.p); });
  const double d = median([&] { backward<<<dim3(c.dim, parts), C::THREADS, bytes>>>(o.u.p, o.q.p, o.H.p, o.beta.p, o.dy.p, o.dq.p, o.du.p, dh.p, dbeta.p, c.batch, c.length, c.ld(), c.ldf(), o.roots.p, halves.p); });
  CHECK(cudaDeviceSynchronize());
  row("one block", c, a, b, d);
}

int main(int argc, char **argv) {
  cudaDeviceProp p;
  CHECK(cudaGetDeviceProperties(&p, 0));
  printf("%s, %d multiprocessors\n", p.name, p.multiProcessorCount);
  const bool slices = argc > 1 && !strcmp(argv[1], "slices"), only_time = slices || (argc > 1 && !strcmp(argv[1], "time"));
  const size_t M = 1 << 20;
  if (argc > 1 && !strcmp(argv[1], "profile")) {  // one pass, for a profiler
    Operands<bf16> o({4, 512, 32768, M / 4, M / 4});
    fill(o), o.filter(), o.forward(), o.backward();
    CHECK(cudaDeviceSynchronize());
    return 0;
  }
  if (!only_time) {
    check_reference();
    int seed = 1;
    for (int length : {1, 4097, 8192, 8193, 10000, 16384, 20001, 32768, 65536, 100003, 131072})
      for (int batch : {1, 3}) {
        const Case c{batch, 3, length, (size_t)points(length) * (seed % 3 + 1), (size_t)points(length) * (seed % 2 + 1), seed % 3 + 1, seed % 4 + 1};
        if (seed % 2) check<float>(c, seed);
        else check<bf16>(c, seed);
        seed++;
      }
    check<float>({5, 2, 131072, (size_t)3 << 17, (size_t)2 << 17}, seed++);
    printf(failed ? "WRONG\n" : "all right\n");
  }
  printf("| kernels      | batch x length | filter ms | forward ms | backward ms | forward, ps a token and channel | backward |\n|---|---|---|---|---|---|---|\n");
  time_one<1024>({128, 512, 1024, M, M}, filter_spectrum_1024, longconv_forward_1024_bf16, longconv_backward_1024_bf16);
  time_one<4096>({32, 512, 4096, M, M}, filter_spectrum_4096, longconv_forward_4096_bf16, longconv_backward_4096_bf16);
  time_one<8192>({16, 512, 8192, M, M}, filter_spectrum_8192, longconv_forward_8192_bf16, longconv_backward_8192_bf16);
  for (int length = 16384; length <= 131072; length *= 2) time_stages({131072 / length, 512, length, M / 4, M / 4}, "stages");
  if (slices)
    for (int length : {16384, 131072})
      for (size_t s : {M / 8, M / 4, M / 2})
        for (int lag : {2, 3, 4}) {
          char name[32];
          snprintf(name, sizeof name, "%.2f M %d", (double)s / M, lag);
          time_stages({131072 / length, 512, length, s, s, lag, lag}, name);
        }
  return failed;
}
