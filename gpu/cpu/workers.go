package cpu

import (
	"sync"
	"sync/atomic"
)

// workers is how many goroutines share an operator's work.
type workers int

// each calls f(0) … f(n−1), shared among the workers, and waits. How work is
// cut into n parts never depends on the number of workers, and no two parts
// write the same element, so neither do results.
func (w workers) each(n int, f func(i int)) {
	if w <= 1 || n <= 1 {
		for i := range n {
			f(i)
		}
		return
	}
	var next atomic.Int64
	var wg sync.WaitGroup
	loop := func() {
		for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
			f(i)
		}
	}
	for range min(int(w), n) - 1 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			loop()
		}()
	}
	loop()
	wg.Wait()
}

// slice is each over the pieces [from, to) of n elements, size at a time.
func (w workers) slice(n, size int, f func(from, to int)) {
	w.each((n+size-1)/size, func(i int) { f(i*size, min(n, (i+1)*size)) })
}
