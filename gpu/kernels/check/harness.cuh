// What the check programs share: errors that end them, buffers on the device that
// begin poisoned, and references computed on all of the host's processors.
#pragma once
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <thread>
#include <vector>

#define CHECK(call)                                                                                      \
  do {                                                                                                   \
    cudaError_t e = (call);                                                                              \
    if (e != cudaSuccess) fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, cudaGetErrorString(e)), exit(1); \
  } while (0)

inline bool failed = false;

template <class T> struct Buffer {
  T *p = nullptr;
  size_t n = 0;
  explicit Buffer(size_t n) : n(n) { CHECK(cudaMalloc(&p, n * sizeof(T))); poison(); }
  explicit Buffer(const std::vector<T> &v) : Buffer(v.size()) { CHECK(cudaMemcpy(p, v.data(), n * sizeof(T), cudaMemcpyHostToDevice)); }
  Buffer(const Buffer &) = delete;
  ~Buffer() { cudaFree(p); }
  void poison() { CHECK(cudaMemset(p, 0xff, n * sizeof(T))); }  // NaN in every type
  std::vector<T> host() const {
    std::vector<T> v(n);
    CHECK(cudaMemcpy(v.data(), p, n * sizeof(T), cudaMemcpyDeviceToHost));
    return v;
  }
};

inline void parallel(int n, const std::function<void(int)> &f) {
  std::vector<std::thread> t;
  const int workers = std::max(1u, std::thread::hardware_concurrency());
  for (int w = 0; w < workers; w++) t.emplace_back([=] { for (int i = w; i < n; i += workers) f(i); });
  for (auto &x : t) x.join();
}
