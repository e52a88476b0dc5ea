// Checks and times the tensor-core long convolution on its own:
//
//   nvcc -std=c++17 -O3 -lineinfo -gencode arch=compute_90,code=sm_90 -o longconv longconv.cu && ./longconv
//
// Each kernel is compared with a float64 computation on the CPU over random data
// (‖a − b‖ / ‖b‖, at most 1e-2), with its outputs poisoned before and guarded
// behind their end, and run twice for the same bits. Then times at batch 60,
// 512 channels, 1024 positions: medians of groups between events, buffers
// rotated so that nothing is found in the L2 cache. Floors are bytes read and
// written once, over 3.0 TB/s.
#include "../longconv_tensor.cu"
#include "harness.cuh"
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <thread>
#include <vector>

struct Case {
  int batch, dim, length;
  bool decays;
  int ld() const { return (batch * length + 7) / 8 * 8 + 8; }
  int ldh() const { return length + 3; }
  int slices() const { return (batch + toeplitz::ROWS - 1) / toeplitz::ROWS; }
  int forward_bytes() const { return 48 * toeplitz::stride(length) + 4 * toeplitz::copy(length); }
  int backward_bytes() const { return 64 * toeplitz::stride(length) + 8 * toeplitz::copy(length) + toeplitz::padded(length); }
  bool aligned() const { return length % 8 == 0; }
};

struct Data {
  std::vector<bf16> z, dy;  // [3D, ld], [D, ld]
  std::vector<float> h, decay, beta, bin, w, bs;
  float invspan;
};

static Data draw(const Case &c, int seed) {
  std::mt19937 r(seed);
  std::normal_distribution<float> normal;
  Data d;
  d.z.resize((size_t)3 * c.dim * c.ld()), d.dy.resize((size_t)c.dim * c.ld());
  for (auto &x : d.z) x = __float2bfloat16(normal(r));
  for (auto &x : d.dy) x = __float2bfloat16(normal(r));
  d.h.resize((size_t)c.dim * c.ldh()), d.decay.resize(c.dim), d.beta.resize(c.dim);
  for (int i = 0; i < c.dim; i++)
    for (int n = 0; n < c.ldh(); n++) d.h[(size_t)i * c.ldh() + n] = normal(r) * (c.decays ? 1 : std::exp(-5.0f * n / c.length)) / std::sqrt((float)c.length);
  for (auto &x : d.decay) x = 3 + 10 * std::abs(normal(r));
  for (auto &x : d.beta) x = normal(r);
  d.bin.resize(3 * c.dim), d.w.resize(9 * c.dim), d.bs.resize(3 * c.dim);
  for (auto &x : d.bin) x = 0.3f * normal(r);
  for (auto &x : d.w) x = 0.6f * normal(r);
  for (auto &x : d.bs) x = 0.3f * normal(r);
  d.invspan = 1.0f / std::max(1, c.length - 1);
  return d;
}

// The right answer for one channel, in float64. in: z as it is, or with the
// short convolution.
// The parameters' gradients may cancel: terms has the root of the sum of their squared terms.
struct Answer { std::vector<double> y, dh, dbeta, din[3], dw, dbs, dbin; double terms[4]; };
static Answer answer(const Case &c, const Data &d, int channel, bool shorts) {
  const int B = c.batch, L = c.length;
  Answer a;
  std::vector<double> x[3], raw[3], h(L), s((size_t)B * L), u((size_t)B * L), g((size_t)B * L), du((size_t)B * L);
  for (int n = 0; n < L; n++) h[n] = d.h[(size_t)channel * c.ldh() + n] * (c.decays ? std::exp(-(double)n * d.invspan * d.decay[channel]) : 1.0);
  for (int p = 0; p < 3; p++) {
    const int ch = p * c.dim + channel;
    raw[p].resize((size_t)B * L), x[p].resize((size_t)B * L);
    for (int b = 0; b < B; b++)
      for (int n = 0; n < L; n++) {
        const size_t i = (size_t)b * L + n;
        raw[p][i] = (double)__bfloat162float(d.z[(size_t)ch * c.ld() + i]) + (shorts ? d.bin[ch] : 0);
        x[p][i] = raw[p][i];
        if (!shorts) continue;
        x[p][i] = d.bs[ch] + d.w[3 * ch + 2] * raw[p][i];
        if (n >= 1) x[p][i] += d.w[3 * ch + 1] * raw[p][i - 1];
        if (n >= 2) x[p][i] += d.w[3 * ch] * raw[p][i - 2];
      }
  }
  a.y.resize((size_t)B * L), a.dh.assign(L, 0), a.dbeta.assign(1, 0);
  for (int p = 0; p < 3; p++) a.din[p].resize((size_t)B * L);
  for (int b = 0; b < B; b++) {
    const size_t o = (size_t)b * L;
    for (int n = 0; n < L; n++) u[o + n] = x[1][o + n] * x[2][o + n];
    for (int n = 0; n < L; n++) {
      double sum = d.beta[channel] * u[o + n];
      for (int m = 0; m <= n; m++) sum += h[n - m] * u[o + m];
      const double dy = __bfloat162float(d.dy[(size_t)channel * c.ld() + o + n]);
      a.y[o + n] = x[0][o + n] * sum, a.din[0][o + n] = dy * sum, g[o + n] = dy * x[0][o + n];
    }
    for (int m = 0; m < L; m++) {
      double sum = d.beta[channel] * g[o + m];
      for (int n = m; n < L; n++) sum += h[n - m] * g[o + n];
      a.din[1][o + m] = sum * x[2][o + m], a.din[2][o + m] = sum * x[1][o + m];
    }
    for (int n = 0; n < L; n++)
      for (int m = 0; m <= n; m++) a.dh[n - m] += g[o + n] * u[o + m];
  }
  a.dbeta[0] = a.dh[0];
  for (double &t : a.terms) t = 0;
  for (size_t i = 0; i < g.size(); i++) a.terms[0] += g[i] * g[i] * u[i] * u[i];
  if (!shorts) return a;
  a.dw.assign(9, 0), a.dbs.assign(3, 0), a.dbin.assign(3, 0);
  for (int p = 0; p < 3; p++) {
    const int ch = p * c.dim + channel;
    std::vector<double> ds = a.din[p];
    for (int b = 0; b < B; b++)
      for (int n = 0; n < L; n++) {
        const size_t i = (size_t)b * L + n;
        double v = 0;
        for (int j = 0; j < 3; j++) {
          if (n + 2 - j < L) v += d.w[3 * ch + j] * ds[i + 2 - j];
          if (n - 2 + j >= 0) a.dw[3 * p + j] += ds[i] * raw[p][i - 2 + j], a.terms[1] += std::pow(ds[i] * raw[p][i - 2 + j], 2);
        }
        a.din[p][i] = v, a.dbs[p] += ds[i], a.dbin[p] += v, a.terms[2] += ds[i] * ds[i], a.terms[3] += v * v;
      }
  }
  return a;
}

struct Error {
  double d = 0, n = 0;
  void add(double got, double want) { d += (got - want) * (got - want), n += want * want; }
  double value() const { return std::sqrt(d / (n > 0 ? n : 1)); }  // NaN stays NaN
};

// Only what the outputs' rows hold may be written.
static bool guarded(const Case &c, const std::vector<bf16> &v) {
  for (size_t r = 0; r < v.size() / c.ld(); r++)
    for (int i = c.batch * c.length; i < c.ld(); i++)
      if (__bfloat16_as_ushort(v[r * c.ld() + i]) != 0xffff) return false;
  return true;
}

// Every launch of the file's kernels.
struct Operands {
  Case c;
  Buffer<bf16> z, dy, y, dz;
  Buffer<float> h, decay, beta, bin, w, bs, dh, dbeta, sums, dw, dbs, dbin;
  float invspan;
  Operands(const Case &c, const Data &d)
      : c(c), z(d.z), dy(d.dy), y(d.dy.size()), dz(d.z.size()), h(d.h), decay(d.decay), beta(d.beta), bin(d.bin), w(d.w), bs(d.bs),
        dh((size_t)c.slices() * c.dim * c.ldh()), dbeta((size_t)c.slices() * c.dim), sums((size_t)c.slices() * 15 * c.dim), dw(9 * c.dim), dbs(3 * c.dim), dbin(3 * c.dim),
        invspan(d.invspan) {}
  void forward(bool shorts, bool aligned) {
    const dim3 grid(c.slices(), c.dim);
    const int bytes = c.forward_bytes();
    const size_t part = (size_t)c.dim * c.ld();
    const float *dec = c.decays ? decay.p : nullptr;
    auto f = aligned ? longconv_tensor_forward_aligned : longconv_tensor_forward_any;
    auto g = aligned ? hyena_tensor_forward_aligned : hyena_tensor_forward_any;
    CHECK(cudaFuncSetAttribute(shorts ? (const void *)g : (const void *)f, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
    if (shorts) g<<<grid, toeplitz::THREADS, bytes>>>(z.p, bin.p, w.p, bs.p, h.p, dec, invspan, beta.p, y.p, c.batch, c.length, c.ld(), c.ldh());
    else f<<<grid, toeplitz::THREADS, bytes>>>(z.p, z.p + part, z.p + 2 * part, h.p, dec, invspan, beta.p, y.p, c.batch, c.length, c.ld(), c.ldh());
    CHECK(cudaGetLastError());
  }
  void backward(bool shorts, bool aligned) {
    const dim3 grid(c.slices(), c.dim);
    const int bytes = c.backward_bytes();
    const size_t part = (size_t)c.dim * c.ld();
    const float *dec = c.decays ? decay.p : nullptr;
    auto f = aligned ? longconv_tensor_backward_aligned : longconv_tensor_backward_any;
    auto g = aligned ? hyena_tensor_backward_aligned : hyena_tensor_backward_any;
    CHECK(cudaFuncSetAttribute(shorts ? (const void *)g : (const void *)f, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
    if (shorts) {
      g<<<grid, toeplitz::THREADS, bytes>>>(z.p, bin.p, w.p, bs.p, h.p, dec, invspan, beta.p, dy.p, dz.p, dh.p, dbeta.p, sums.p, c.batch, c.length, c.ld(), c.ldh());
      hyena_tensor_short_gradient<<<(3 * c.dim + 127) / 128, 128>>>(sums.p, dw.p, dbs.p, dbin.p, c.slices(), 3 * c.dim);
    } else
      f<<<grid, toeplitz::THREADS, bytes>>>(z.p, z.p + part, z.p + 2 * part, h.p, dec, invspan, beta.p, dy.p, dz.p, dz.p + part, dz.p + 2 * part, dh.p, dbeta.p, c.batch, c.length, c.ld(), c.ldh());
    CHECK(cudaGetLastError());
  }
  void poison() { y.poison(), dz.poison(), dh.poison(), dbeta.poison(), sums.poison(), dw.poison(), dbs.poison(), dbin.poison(); }
};

template <class T> static bool same(const std::vector<T> &a, const std::vector<T> &b) { return !memcmp(a.data(), b.data(), a.size() * sizeof(T)); }

static void check(const Case &c, int seed, int channels) {
  const Data d = draw(c, seed);
  Operands o(c, d);
  std::vector<int> which;
  for (int i = 0; i < channels; i++) which.push_back(i * (c.dim - 1) / std::max(1, channels - 1));
  const bool backward = c.backward_bytes() <= 232448, forward = c.forward_bytes() <= 232448;
  for (int shorts = 0; shorts < 2; shorts++) {
    std::vector<Answer> want(channels);
    parallel(channels, [&](int i) { want[i] = answer(c, d, which[i], shorts); });
    for (int aligned = 0; aligned <= c.aligned(); aligned++) {
      o.poison();
      if (forward) o.forward(shorts, aligned);
      if (backward) o.backward(shorts, aligned);
      CHECK(cudaDeviceSynchronize());
      const auto y = o.y.host(), dz = o.dz.host();
      const auto dh = o.dh.host(), dbeta = o.dbeta.host(), dw = o.dw.host(), dbs = o.dbs.host(), dbin = o.dbin.host();
      std::vector<std::pair<std::string, Error>> e(9);
      const char *names[] = {"y", "dq", "dk", "dv", "dh", "dbeta", "dw", "dbs", "dbin"};
      for (int i = 0; i < 9; i++) e[i].first = names[i];
      for (int i = 0; i < channels; i++) {
        const int ch = which[i];
        for (int j = 0; j < c.batch * c.length; j++) {
          if (forward) e[0].second.add(__bfloat162float(y[(size_t)ch * c.ld() + j]), want[i].y[j]);
          for (int p = 0; p < 3 && backward; p++) e[1 + p].second.add(__bfloat162float(dz[(size_t)(p * c.dim + ch) * c.ld() + j]), want[i].din[p][j]);
        }
        if (!backward) continue;
        for (int n = 0; n < c.length; n++) {
          double s = 0;
          for (int k = 0; k < c.slices(); k++) s += dh[((size_t)k * c.dim + ch) * c.ldh() + n];
          e[4].second.add(s, want[i].dh[n]);
        }
        double s = 0;
        for (int k = 0; k < c.slices(); k++) s += dbeta[k * c.dim + ch];
        e[5].second.add(s, want[i].dbeta[0]);
        for (int j = 0; j < (shorts ? 4 : 1); j++) e[5 + j].second.n += want[i].terms[j];
        for (int p = 0; p < 3 && shorts; p++) {
          for (int j = 0; j < 3; j++) e[6].second.add(dw[3 * (p * c.dim + ch) + j], want[i].dw[3 * p + j]);
          e[7].second.add(dbs[p * c.dim + ch], want[i].dbs[p]);
          e[8].second.add(dbin[p * c.dim + ch], want[i].dbin[p]);
        }
      }
      bool finite = true;  // every channel's elements were written
      for (size_t r = 0; r < (size_t)3 * c.dim; r++)
        for (int j = 0; j < c.batch * c.length; j++)
          finite &= (!backward || std::isfinite(__bfloat162float(dz[r * c.ld() + j]))) && (!forward || r >= (size_t)c.dim || std::isfinite(__bfloat162float(y[r * c.ld() + j])));
      const bool guard = guarded(c, y) && guarded(c, dz);
      o.poison();
      if (forward) o.forward(shorts, aligned);
      if (backward) o.backward(shorts, aligned);
      CHECK(cudaDeviceSynchronize());
      const bool repeat = same(y, o.y.host()) && same(dz, o.dz.host()) && same(dh, o.dh.host()) && same(dbeta, o.dbeta.host()) && same(dw, o.dw.host());
      bool ok = finite && guard && repeat;
      printf("%-8s %-7s B %2d D %3d L %4d ", shorts ? "hyena" : "longconv", aligned ? "aligned" : "any", c.batch, c.dim, c.length);
      for (int i = 0; i < 9; i++) {
        if ((i == 0 && !forward) || (i > 0 && !backward) || (i > 5 && !shorts)) continue;
        const double v = e[i].second.value();
        ok &= v <= 1e-2;
        printf(" %s %.1e", names[i], v);
      }
      printf("%s%s%s%s\n", ok ? "" : "  WRONG", finite ? "" : " unwritten", guard ? "" : " overrun", repeat ? "" : " differs between runs");
      failed |= !ok;
    }
  }
}

static double median(const std::function<void(int)> &f, int groups = 15, int calls = 10) {
  cudaEvent_t a, b;
  CHECK(cudaEventCreate(&a));
  CHECK(cudaEventCreate(&b));
  std::vector<float> t;
  for (int i = 0; i < 3; i++) f(i);
  for (int g = 0; g < groups; g++) {
    CHECK(cudaEventRecord(a));
    for (int i = 0; i < calls; i++) f(i);
    CHECK(cudaEventRecord(b));
    CHECK(cudaEventSynchronize(b));
    float ms;
    CHECK(cudaEventElapsedTime(&ms, a, b));
    t.push_back(ms / calls);
  }
  std::sort(t.begin(), t.end());
  return t[t.size() / 2];
}

static void row(const char *name, const Case &c, double ms, double tensors, double products) {
  const double element = (double)c.batch * c.dim * c.length, bytes = tensors * 2 * element, flop = products * element * c.length;
  printf("| %-36s | %2d × %3d × %4d | %.4f | %5.0f | %4.0f | %.4f | %.2f |\n", name, c.batch, c.dim, c.length, ms, bytes / ms / 1e6, flop / ms / 1e9, bytes / 3.0e9, ms / (bytes / 3.0e9));
}

static void time_all(const Case &c) {
  const Data d = draw(c, 1);
  Operands o0(c, d), o1(c, d);
  Operands *o[2] = {&o0, &o1};
  const bool backward = c.backward_bytes() <= 232448;
  // multiply-adds below the diagonal, as 2 operations: one product of L²/2 forward, three backward
  row("longconv forward", c, median([&](int i) { o[i & 1]->forward(false, true); }), 4, 1);
  if (backward) {
    row("longconv backward", c, median([&](int i) { o[i & 1]->backward(false, true); }), 7, 3);
    row("longconv forward + backward", c, median([&](int i) { o[i & 1]->forward(false, true), o[i & 1]->backward(false, true); }), 11, 4);
  }
  row("hyena forward", c, median([&](int i) { o[i & 1]->forward(true, true); }), 4, 1);
  if (backward) {
    row("hyena backward", c, median([&](int i) { o[i & 1]->backward(true, true); }), 7, 3);
    row("hyena forward + backward", c, median([&](int i) { o[i & 1]->forward(true, true), o[i & 1]->backward(true, true); }), 11, 4);
  }
}

int main(int argc, char **argv) {
  cudaDeviceProp p;
  CHECK(cudaGetDeviceProperties(&p, 0));
  printf("%s, %d multiprocessors\n", p.name, p.multiProcessorCount);
  const bool only_time = argc > 1 && !strcmp(argv[1], "time");
  if (!only_time) {
    int seed = 1;
    for (int length : {1, 2, 3, 7, 8, 15, 16, 17, 127, 128, 129, 255, 256, 384, 520, 896, 1000, 1023, 1024, 1025})
      for (int batch : {1, 3, 8, 19}) check({batch, 3, length, (length + batch) % 2 == 0}, seed++, 3);
    check({2, 2, 2048, true}, seed++, 2), check({2, 2, 3072, false}, seed++, 2), check({3, 2, 3333, false}, seed++, 2), check({9, 1, 4096, false}, seed++, 1);
    check({60, 512, 1024, true}, seed++, 8), check({60, 512, 1024, false}, seed++, 8);
    printf(failed ? "WRONG\n" : "all right\n");
  }
  printf("| kernel | batch × channels × length | ms | GB/s | TFLOP/s | floor ms | over floor |\n|---|---|---|---|---|---|---|\n");
  time_all({60, 512, 1024, true});
  if (!only_time)
    for (int length : {512, 2048, 3072}) time_all({60 * 1024 / length, 512, length, true});
  return failed;
}
