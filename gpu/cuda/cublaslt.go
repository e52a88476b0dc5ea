//go:build cuda

package cuda

/*
#cgo LDFLAGS: -ldl
#include <dlfcn.h>
#include <stdint.h>
#include <stdlib.h>

// The part of cuBLASLt's ABI that is used here, the same in versions 11 to 13;
// the library is opened at run time, so that building needs none of it.
typedef struct { uint64_t data[8]; } lt_algo;
typedef struct { lt_algo algo; size_t workspace; int state; float waves; int reserved[4]; } lt_heuristic;

static struct {
  void *library;
  int (*create)(void **);
  int (*destroy)(void *);
  size_t (*version)(void);
  int (*desc_create)(void **, int, int);
  int (*desc_destroy)(void *);
  int (*desc_set)(void *, int, const void *, size_t);
  int (*layout_create)(void **, int, uint64_t, uint64_t, int64_t);
  int (*layout_destroy)(void *);
  int (*pref_create)(void **);
  int (*pref_destroy)(void *);
  int (*pref_set)(void *, int, const void *, size_t);
  int (*heuristic)(void *, void *, void *, void *, void *, void *, void *, int, lt_heuristic *, int *);
  int (*matmul)(void *, void *, const void *, const void *, void *, const void *, void *, const void *, const void *, void *, void *, void *,
                const lt_algo *, void *, size_t, void *);
} lt;

static int lt_open(const char *path) {
  void *h = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (!h) return 0;
#define SYMBOL(field, name) if (!(*(void **)&lt.field = dlsym(h, "cublasLt" name))) { dlclose(h); return 0; }
  SYMBOL(create, "Create") SYMBOL(destroy, "Destroy") SYMBOL(version, "GetVersion")
  SYMBOL(desc_create, "MatmulDescCreate") SYMBOL(desc_destroy, "MatmulDescDestroy") SYMBOL(desc_set, "MatmulDescSetAttribute")
  SYMBOL(layout_create, "MatrixLayoutCreate") SYMBOL(layout_destroy, "MatrixLayoutDestroy")
  SYMBOL(pref_create, "MatmulPreferenceCreate") SYMBOL(pref_destroy, "MatmulPreferenceDestroy") SYMBOL(pref_set, "MatmulPreferenceSetAttribute")
  SYMBOL(heuristic, "MatmulAlgoGetHeuristic") SYMBOL(matmul, "Matmul")
  lt.library = h;
  return 1;
}
static int lt_opened(void) { return lt.library != 0; }
static int lt_create(void **h) { return lt.create(h); }
static int lt_destroy(void *h) { return lt.destroy(h); }

typedef struct { void *desc, *a, *b, *c; lt_heuristic best; int wide; } lt_plan;

static void lt_plan_free(lt_plan *p) {
  if (p->desc) lt.desc_destroy(p->desc);
  if (p->a) lt.layout_destroy(p->a);
  if (p->b) lt.layout_destroy(p->b);
  if (p->c) lt.layout_destroy(p->c);
  free(p);
}

// Column-major C[m, n] = op(A) op(B): compute CUBLAS_COMPUTE_32F (68) with
// scales of CUDA_R_32F (0), or of matrices of CUDA_R_64F (1) CUBLAS_COMPUTE_64F
// (70) with scales of that type. Attributes: TRANSA 3, TRANSB 4, EPILOGUE 7 (BIAS 4),
// workspace preference 1.
static int lt_plan_make(void *handle, lt_plan *p, int64_t m, int64_t n, int64_t k, int ta, int tb, int64_t lda, int64_t ldb, int64_t ldc, int ab, int cd, int bias, size_t workspace) {
  int e, got = 0, epilogue = 4;
  void *pref = 0;
  if ((e = ab == 1 ? lt.desc_create(&p->desc, 70, 1) : lt.desc_create(&p->desc, 68, 0))) return e;
  p->wide = ab == 1;
  if ((e = lt.desc_set(p->desc, 3, &ta, sizeof ta)) || (e = lt.desc_set(p->desc, 4, &tb, sizeof tb))) return e;
  if (bias && (e = lt.desc_set(p->desc, 7, &epilogue, sizeof epilogue))) return e;
  if ((e = lt.layout_create(&p->a, ab, ta ? k : m, ta ? m : k, lda)) || (e = lt.layout_create(&p->b, ab, tb ? n : k, tb ? k : n, ldb)) ||
      (e = lt.layout_create(&p->c, cd, m, n, ldc))) return e;
  if ((e = lt.pref_create(&pref))) return e;
  if (!(e = lt.pref_set(pref, 1, &workspace, sizeof workspace))) e = lt.heuristic(handle, p->desc, p->a, p->b, p->c, p->c, pref, 1, &p->best, &got);
  lt.pref_destroy(pref);
  return e ? e : got ? p->best.state : 15;
}

static int lt_run(void *handle, lt_plan *p, uintptr_t a, uintptr_t b, uintptr_t c, uintptr_t d, uintptr_t bias, float beta, uintptr_t workspace, size_t bytes, void *stream) {
  float one = 1;
  double one64 = 1, beta64 = beta;
  int e;
  if (bias && (e = lt.desc_set(p->desc, 8, &bias, sizeof bias))) return e;  // BIAS_POINTER 8
  return lt.matmul(handle, p->desc, p->wide ? (void *)&one64 : &one, (void *)a, p->a, (void *)b, p->b, p->wide ? (void *)&beta64 : &beta, (void *)c, p->c, (void *)d, p->c, &p->best.algo, (void *)workspace, bytes, stream);
}
*/
import "C"

import (
	"fmt"
	"os"
	"path/filepath"
	"unsafe"

	"gorgonia.org/cu"
)

// workspaceBytes is what cuBLASLt's kernels may use beside their operands.
const workspaceBytes = 64 << 20

// element is a CUDA data type of matrices.
type element int

const (
	float32s element = 0  // CUDA_R_32F
	float64s element = 1  // CUDA_R_64F
	bf16s    element = 14 // CUDA_R_16BF
)

func (e element) size() int64 {
	switch e {
	case bf16s:
		return 2
	case float64s:
		return 8
	}
	return 4
}

// suffix ends the names of kernels for stored activations of the type.
func (e element) suffix() string {
	if e == bf16s {
		return "_bf16"
	}
	return "_float32"
}

// product is D[m, n] = op(A)[m, k] · op(B)[k, n] + beta · C[m, n] + bias[n],
// row-major, accumulated in float32 (true float32 where the operands are: no
// TF32), in float64 where the operands are. C and D have the same rows ldd apart; bias, where there is one, is
// of D's type.
type product struct {
	m, n, k       int
	a, b, c, d    ptr
	ta, tb        bool // A is [k, m], B is [n, k] in memory
	lda, ldb, ldd int
	bias          ptr
	beta          float32
	in, out       element
}

// shape is what cuBLASLt chooses its kernel by.
type shape struct {
	m, n, k, lda, ldb, ldd int
	ta, tb, bias           bool
	in, out                element
}

// blas is a cuBLASLt handle, a workspace for each stream and the plans made so
// far.
type blas struct {
	handle     unsafe.Pointer
	workspaces [2]ptr
	plans      map[shape]*C.lt_plan
}

// openLibrary finds cuBLASLt: $SCAVENGE_CUBLASLT, the loader's path, a toolkit,
// or the wheel that PyTorch brings.
func openLibrary() error {
	if C.lt_opened() != 0 {
		return nil
	}
	names := []string{"libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so.11", "libcublasLt.so"}
	for _, pattern := range []string{"/usr/local/cuda*/lib64/libcublasLt.so.1?", "/opt/*/.venv/lib/python3*/site-packages/nvidia/*/lib/libcublasLt.so.1?",
		"/usr/lib/python3*/site-packages/nvidia/*/lib/libcublasLt.so.1?"} {
		found, _ := filepath.Glob(pattern)
		names = append(names, found...)
	}
	if chosen := os.Getenv("SCAVENGE_CUBLASLT"); chosen != "" {
		names = []string{chosen}
	}
	for _, name := range names {
		c := C.CString(name)
		ok := C.lt_open(c)
		C.free(unsafe.Pointer(c))
		if ok != 0 {
			return nil
		}
	}
	return fmt.Errorf("cuBLASLt is not among %v: install CUDA's libcublas or set SCAVENGE_CUBLASLT to the library's path", names)
}

func newBlas(d *device) (*blas, error) {
	if err := openLibrary(); err != nil {
		return nil, err
	}
	b := &blas{plans: map[shape]*C.lt_plan{}}
	if e := C.lt_create(&b.handle); e != 0 {
		return nil, fmt.Errorf("cublasLtCreate: status %d", int(e))
	}
	var err error
	for i := range b.workspaces {
		if err == nil {
			b.workspaces[i], err = d.alloc(workspaceBytes, "matrix products' workspace")
		}
	}
	return b, err
}

func (b *blas) run(p product, stream cu.Stream, side bool) error {
	key := shape{p.m, p.n, p.k, p.lda, p.ldb, p.ldd, p.ta, p.tb, p.bias != 0, p.in, p.out}
	plan := b.plans[key]
	if plan == nil {
		plan = (*C.lt_plan)(C.calloc(1, C.size_t(unsafe.Sizeof(C.lt_plan{}))))
		// Row-major D = A·B is column-major Dᵀ = Bᵀ·Aᵀ: the operands change places.
		if e := C.lt_plan_make(b.handle, plan, C.int64_t(p.n), C.int64_t(p.m), C.int64_t(p.k), flag(p.tb), flag(p.ta),
			C.int64_t(p.ldb), C.int64_t(p.lda), C.int64_t(p.ldd), C.int(p.in), C.int(p.out), flag(p.bias != 0), workspaceBytes); e != 0 {
			C.lt_plan_free(plan)
			return fmt.Errorf("matrix product %+v: cuBLASLt has no kernel (status %d)", key, int(e))
		}
		b.plans[key] = plan
	}
	c := p.c
	if c == 0 {
		c = p.d
	}
	if e := C.lt_run(b.handle, plan, C.uintptr_t(p.b), C.uintptr_t(p.a), C.uintptr_t(c), C.uintptr_t(p.d), C.uintptr_t(p.bias), C.float(p.beta),
		C.uintptr_t(b.workspaces[flag(side)]), workspaceBytes, handle(stream)); e != 0 {
		return fmt.Errorf("matrix product %+v: cuBLASLt status %d", key, int(e))
	}
	return nil
}

func (b *blas) close() error {
	for _, p := range b.plans {
		C.lt_plan_free(p)
	}
	b.plans = nil
	if e := C.lt_destroy(b.handle); e != 0 {
		return fmt.Errorf("cublasLtDestroy: status %d", int(e))
	}
	return nil
}

func flag(b bool) C.int {
	if b {
		return 1
	}
	return 0
}
