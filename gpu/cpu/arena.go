package cpu

import "sync"

// arena lends the buffers of a step and takes them all back at its end, so
// that steps of the same shape allocate nothing. Contents of a buffer are
// arbitrary: operators write every element.
type arena struct {
	mu    sync.Mutex
	free  map[int][][]float32
	lent  [][]float32
	bytes int64 // of all buffers, lent or free
}

func newArena() *arena { return &arena{free: map[int][][]float32{}} }

func (a *arena) take(n int) []float32 {
	a.mu.Lock()
	defer a.mu.Unlock()
	var b []float32
	if f := a.free[n]; len(f) > 0 {
		b, a.free[n] = f[len(f)-1], f[:len(f)-1]
	} else {
		b = make([]float32, n)
		a.bytes += 4 * int64(n)
	}
	a.lent = append(a.lent, b)
	return b
}

func (a *arena) zeros(n int) []float32 {
	b := a.take(n)
	clear(b)
	return b
}

// tensor is a rows × cols tensor on a buffer of the arena.
func (a *arena) tensor(rows, cols int) *tensor { return newTensor(a.take(rows*cols), rows, cols) }

// mark is a point to release to.
func (a *arena) mark() int { return len(a.lent) }

// release takes back what was lent since a mark, but for the buffers in keep.
func (a *arena) release(mark int, keep ...[]float32) {
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
func (a *arena) trim() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.free = map[int][][]float32{}
	a.bytes = 0
	for _, b := range a.lent {
		a.bytes += 4 * int64(len(b))
	}
}
