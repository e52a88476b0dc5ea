//go:build cuda

package cuda

/*
#cgo CFLAGS: -I${SRCDIR}/include
#cgo LDFLAGS: -lcuda
#include <cuda.h>

static CUresult capture(CUstream s) { return cuStreamBeginCapture(s, CU_STREAM_CAPTURE_MODE_RELAXED); }
static CUresult instantiate(CUgraphExec *x, CUgraph g) { return cuGraphInstantiateWithFlags(x, g, 0); }
static CUresult pinned(void **p, size_t n) { return cuMemHostAlloc(p, n, 0); }
// The arguments lie in slots of 8 bytes, the i-th from slot at[i] on.
static CUresult launch(CUfunction f, const unsigned *grid, const unsigned *block, unsigned shared, CUstream s, char *slots, const int *at, int n) {
  void *args[64];
  if (n > 64) return CUDA_ERROR_INVALID_VALUE;
  for (int i = 0; i < n; i++) args[i] = slots + 8 * at[i];
  return cuLaunchKernel(f, grid[0], grid[1], grid[2], block[0], block[1], 1, shared, s, args, 0);
}
static const char *message(CUresult r) {
  const char *s = 0;
  return cuGetErrorString(r, &s) == CUDA_SUCCESS && s ? s : "unknown error";
}
*/
import "C"

import (
	"fmt"
	"unsafe"

	"gorgonia.org/cu"
)

// handle is the C pointer inside one of gorgonia's one-pointer structs.
func handle[T cu.Stream | cu.Function](h T) unsafe.Pointer {
	return *(*unsafe.Pointer)(unsafe.Pointer(&h))
}

func check(r C.CUresult, what string) error {
	if r == C.CUDA_SUCCESS {
		return nil
	}
	return fmt.Errorf("%s: %s (CUDA error %d)", what, C.GoString(C.message(r)), int(r))
}

// allowShared raises the dynamic shared memory that a function may be launched
// with, which is 48 KB by default.
func allowShared(f cu.Function, bytes int) error {
	return check(C.cuFuncSetAttribute(C.CUfunction(handle(f)), C.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, C.int(bytes)), "shared memory")
}

// allocPinned is page-locked host memory, which the GPU copies from by itself.
func allocPinned(bytes int) ([]byte, error) {
	var p unsafe.Pointer
	if err := check(C.pinned(&p, C.size_t(bytes)), "page-locked memory"); err != nil {
		return nil, err
	}
	return unsafe.Slice((*byte)(p), bytes), nil
}

func freePinned(b []byte) error {
	return check(C.cuMemFreeHost(unsafe.Pointer(&b[0])), "page-locked memory")
}

// builtFor tells whether a function was compiled for one virtual architecture
// (80: compute_80, from which a newer card's driver makes its own code).
func builtFor(f cu.Function, architecture int) (bool, error) {
	var v C.int
	err := check(C.cuFuncGetAttribute(&v, C.CU_FUNC_ATTRIBUTE_PTX_VERSION, C.CUfunction(handle(f))), "attribute of a kernel")
	return int(v) == architecture, err
}

// arguments are a kernel's, packed for launchKernel.
type arguments struct {
	slots []uint64
	at    []C.int // the first slot of each
}

func (a *arguments) add(slots ...uint64) {
	a.at = append(a.at, C.int(len(a.slots)))
	a.slots = append(a.slots, slots...)
}

// launchKernel is cuLaunchKernel. gorgonia's own copies 8 bytes an argument; a
// tensor map has 128.
func launchKernel(f cu.Function, grid [3]int, block [2]int, shared int, s cu.Stream, a arguments) error {
	g := [3]C.uint{C.uint(grid[0]), C.uint(grid[1]), C.uint(grid[2])}
	b := [2]C.uint{C.uint(block[0]), C.uint(block[1])}
	var slots *C.char
	var at *C.int
	if len(a.at) > 0 {
		slots, at = (*C.char)(unsafe.Pointer(&a.slots[0])), &a.at[0]
	}
	return check(C.launch(C.CUfunction(handle(f)), &g[0], &b[0], C.uint(shared), C.CUstream(handle(s)), slots, at, C.int(len(a.at))), "launch")
}

// graph is a captured sequence of launches, replayed by one call.
type graph struct {
	graph C.CUgraph
	exec  C.CUgraphExec
}

// beginCapture makes later work on the stream part of a graph instead of
// running it.
func beginCapture(s cu.Stream) error { return check(C.capture(C.CUstream(handle(s))), "graph capture") }

func endCapture(s cu.Stream) (*graph, error) {
	g := &graph{}
	if err := check(C.cuStreamEndCapture(C.CUstream(handle(s)), &g.graph), "graph capture"); err != nil {
		return nil, err
	}
	if err := check(C.instantiate(&g.exec, g.graph), "graph instantiation"); err != nil {
		C.cuGraphDestroy(g.graph)
		return nil, err
	}
	return g, nil
}

func (g *graph) launch(s cu.Stream) error {
	return check(C.cuGraphLaunch(g.exec, C.CUstream(handle(s))), "graph launch")
}

func (g *graph) destroy() error {
	err := check(C.cuGraphExecDestroy(g.exec), "graph")
	if e := check(C.cuGraphDestroy(g.graph), "graph"); err == nil {
		err = e
	}
	return err
}
