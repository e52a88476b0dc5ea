package cpu

import (
	"sync"
	"unsafe"

	"github.com/scavenge/scavenge/gpu/cpu/simd"
)

// arena lends the buffers of a step and takes them all back at its end, so
// that steps of the same shape allocate nothing. Contents of a buffer are
// arbitrary: operators write every element.
type arena[T simd.Float] struct {
	mu    sync.Mutex
	free  map[int][][]T
	lent  [][]T
	bytes int64 // of all buffers, lent or free
}

func newArena[T simd.Float]() *arena[T] { return &arena[T]{free: map[int][][]T{}} }

func (a *arena[T]) take(n int) []T {
	a.mu.Lock()
	defer a.mu.Unlock()
	var b []T
	if f := a.free[n]; len(f) > 0 {
		b, a.free[n] = f[len(f)-1], f[:len(f)-1]
	} else {
		b = make([]T, n)
		a.bytes += int64(unsafe.Sizeof(T(0))) * int64(n)
	}
	a.lent = append(a.lent, b)
	return b
}

func (a *arena[T]) zeros(n int) []T {
	b := a.take(n)
	clear(b)
	return b
}

// tensor is a rows × cols tensor on a buffer of the arena.
func (a *arena[T]) tensor(rows, cols int) *tensor[T] { return newTensor(a.take(rows*cols), rows, cols) }

// mark is a point to release to.
func (a *arena[T]) mark() int { return len(a.lent) }

// release takes back what was lent since a mark, but for the buffers in keep.
func (a *arena[T]) release(mark int, keep ...[]T) {
	a.mu.Lock()
	defer a.mu.Unlock()
	lent := a.lent[mark:]
	a.lent = a.lent[:mark]
next:
	for _, b := range lent {
		for _, k := range keep {
			if len(b) > 0 && len(k) > 0 && &b[0] == &k[0] {
				a.lent = append(a.lent, b)
				continue next
			}
		}
		a.free[len(b)] = append(a.free[len(b)], b)
	}
}

// trim forgets the free buffers. Steps of ever new shapes would hold buffers
// of each otherwise.
func (a *arena[T]) trim() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.free = map[int][][]T{}
	a.bytes = 0
	for _, b := range a.lent {
		a.bytes += int64(unsafe.Sizeof(T(0))) * int64(len(b))
	}
}
