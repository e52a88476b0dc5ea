//go:build cuda

package cuda

/*
#cgo CFLAGS: -I${SRCDIR}/include
#cgo LDFLAGS: -lcuda
#include <cuda.h>

static CUresult capture(CUstream s) { return cuStreamBeginCapture(s, CU_STREAM_CAPTURE_MODE_RELAXED); }
static CUresult instantiate(CUgraphExec *x, CUgraph g) { return cuGraphInstantiateWithFlags(x, g, 0); }
static CUresult pinned(void **p, size_t n) { return cuMemHostAlloc(p, n, 0); }
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
