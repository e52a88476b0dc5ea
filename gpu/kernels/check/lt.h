// cuBLASLt for the check programs: opened at run time by hand-declared
// prototypes, as gpu/cuda/cublaslt.go does. $SCAVENGE_CUBLASLT names the library
// where the loader does not find it.
#pragma once
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <dlfcn.h>

namespace lt {
struct Heuristic { struct { uint64_t data[8]; } algo; size_t workspace; int state; float waves; int reserved[4]; };

static void *symbol(const char *name) {
  static void *library = nullptr;
  for (const char *n : {(const char *)getenv("SCAVENGE_CUBLASLT"), "libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"})
    if (!library && n) library = dlopen(n, RTLD_NOW);
  void *s = library ? dlsym(library, name) : nullptr;
  if (!s) fprintf(stderr, "%s: cuBLASLt is not found: set SCAVENGE_CUBLASLT to its path\n", name), exit(1);
  return s;
}
#define LT(name, ...) ((int (*)(__VA_ARGS__))symbol("cublasLt" #name))

enum { FLOAT32 = 0, BF16 = 14 };
enum { NONE = 0, BIAS = 4, GELU_AUX_BIAS = 164, DGELU_BGRAD = 208 };

// Row-major D[m, n] = op(A) op(B) + beta D, as struct product of cublaslt.go: ta:
// A is [k, m] in memory, tb: B is [n, k]. bias and aux: what the epilogue takes.
struct Product {
  void *handle = nullptr, *desc = nullptr, *la = nullptr, *lb = nullptr, *ld = nullptr, *workspace = nullptr;
  Heuristic best;
  static constexpr size_t BYTES = 64 << 20;

  static void ok(int e, const char *what) {
    if (e) fprintf(stderr, "cuBLASLt: %s: status %d\n", what, e), exit(1);
  }
  void set(int attribute, const void *v, size_t n) { ok(LT(MatmulDescSetAttribute, void *, int, const void *, size_t)(desc, attribute, v, n), "attribute"); }
  Product(int64_t m, int64_t n, int64_t k, bool ta, bool tb, int64_t lda, int64_t ldb, int64_t ldd, int out = BF16, int epilogue = NONE, const void *bias = nullptr, const void *aux = nullptr, int64_t ldaux = 0) {
    ok(LT(Create, void **)(&handle), "create");
    ok(LT(MatmulDescCreate, void **, int, int)(&desc, 68, 0), "description");
    const int a = ta, b = tb;
    set(3, &b, 4), set(4, &a, 4);  // column-major: the operands change places
    if (epilogue) set(7, &epilogue, 4), set(8, &bias, 8);
    if (aux) set(11, &aux, 8), set(12, &ldaux, 8);
    auto layout = LT(MatrixLayoutCreate, void **, int, uint64_t, uint64_t, int64_t);
    ok(layout(&lb, BF16, tb ? k : n, tb ? n : k, ldb), "layout"), ok(layout(&la, BF16, ta ? m : k, ta ? k : m, lda), "layout"), ok(layout(&ld, out, n, m, ldd), "layout");
    void *preference;
    size_t bytes = BYTES;
    int got = 0;
    ok(LT(MatmulPreferenceCreate, void **)(&preference), "preference");
    ok(LT(MatmulPreferenceSetAttribute, void *, int, const void *, size_t)(preference, 1, &bytes, 8), "preference");
    ok(LT(MatmulAlgoGetHeuristic, void *, void *, void *, void *, void *, void *, void *, int, Heuristic *, int *)(handle, desc, lb, la, ld, ld, preference, 1, &best, &got), "no kernel");
    if (!got) ok(15, "no kernel");
    if (cudaMalloc(&workspace, BYTES)) ok(3, "workspace");
  }
  Product(const Product &) = delete;
  ~Product() { cudaFree(workspace), LT(Destroy, void *)(handle); }
  void run(const void *a, const void *b, void *d, float beta = 0) {
    float one = 1;
    ok(LT(Matmul, void *, void *, const void *, const void *, void *, const void *, void *, const void *, const void *, void *, void *, void *, const void *, void *, size_t, void *)(
           handle, desc, &one, b, lb, a, la, &beta, d, ld, d, ld, &best.algo, workspace, BYTES, nullptr), "matmul");
  }
};
}  // namespace lt
