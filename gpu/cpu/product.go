package cpu

import (
	"sync"

	"github.com/scavenge/scavenge/gpu/cpu/simd"
)

// matrix is a view of a slice: element (i, j) is data[i·row + j·col].
type matrix[T simd.Float] struct {
	data     []T
	row, col int
}

// rows is a row-major matrix of some width, across its transpose.
func rows[T simd.Float](data []T, width int) matrix[T]   { return matrix[T]{data, width, 1} }
func across[T simd.Float](data []T, width int) matrix[T] { return matrix[T]{data, 1, width} }

// Sizes of the blocks that a product is cut into, chosen so that a block of B's
// panels stays in the second-level cache and one panel in the first
// (Goto and van de Geijn 2008). They fix the order of summation.
const (
	blockK    = 256  // of the inner dimension
	blockRows = 48   // of C, for one worker at a time
	blockCols = 512  // of C, for one worker at a time
	packCols  = 2048 // of B, packed at a time
)

// product computes C = A·B, or C += A·B, for A [m, k] and B [k, n], where row i
// of C is c[i·rc : i·rc+n]. Each element is one sum in ascending k, rounded
// every blockK terms, whatever m, n and the number of workers: a row of C
// depends on nothing but its row of A.
func product[T simd.Float](w workers, m, n, k int, a, b matrix[T], c []T, rc int, add bool) {
	cols := simd.Cols[T]()
	if m <= 0 || n <= 0 {
		return
	}
	if k <= 0 {
		for i := range m {
			if !add {
				clear(c[i*rc : i*rc+n])
			}
		}
		return
	}
	for jc := 0; jc < n; jc += packCols {
		nc := min(packCols, n-jc)
		panels := (nc + cols - 1) / cols
		packed := borrow[T](panels * cols * min(k, blockK))
		for pc := 0; pc < k; pc += blockK {
			kc := min(blockK, k-pc)
			w.slice(panels, 8, func(from, to int) {
				for p := from; p < to; p++ {
					packPanel((*packed)[p*cols*kc:(p+1)*cols*kc], b, pc, kc, jc+p*cols, min(cols, n-jc-p*cols), cols)
				}
			})
			rowBlocks, colBlocks := (m+blockRows-1)/blockRows, (nc+blockCols-1)/blockCols
			w.each(rowBlocks*colBlocks, func(t int) {
				i0, j0 := t/colBlocks*blockRows, t%colBlocks*blockCols
				block(min(blockRows, m-i0), min(blockCols, nc-j0), kc,
					a.at(i0, pc), *packed, j0/cols, c[i0*rc+jc+j0:], rc, add || pc > 0)
			})
		}
		giveBack(packed)
	}
}

func (a matrix[T]) at(i, j int) matrix[T] {
	return matrix[T]{a.data[i*a.row+j*a.col:], a.row, a.col}
}

// packPanel lays out cols columns of B from j (of which n exist, the rest are
// zero) for rows k0 … k0+kc, as the tiles want them: row after row.
func packPanel[T simd.Float](dst []T, b matrix[T], k0, kc, j, n, cols int) {
	src := b.data[k0*b.row+j*b.col:]
	switch {
	case b.col == 1 && n == cols:
		simd.CopyRows(kc, dst, src, b.row)
	case b.col == 1:
		for k := range kc {
			d := dst[k*cols : (k+1)*cols]
			clear(d[copy(d, src[k*b.row:k*b.row+n]):])
		}
	default:
		for x := range n {
			column := src[x*b.col:]
			for k := range kc {
				dst[k*cols+x] = column[k*b.row]
			}
		}
		for x := n; x < cols; x++ {
			for k := range kc {
				dst[k*cols+x] = 0
			}
		}
	}
}

// block computes m × n elements of C from rows of A and packed panels of B.
func block[T simd.Float](m, n, k int, a matrix[T], packed []T, panel int, c []T, rc int, add bool) {
	cols := simd.Cols[T]()
	full := m / simd.Rows * simd.Rows
	buffer := borrow[T](blockRows*k + simd.Rows*cols)
	defer giveBack(buffer)
	gathered, edge := (*buffer)[:blockRows*k], (*buffer)[blockRows*k:]
	from := full // A's rows are read where they lie, but for the last few,
	if a.col != 1 {
		from = 0 // and but for columns that lie apart: those are gathered, tile by tile
	}
	gather(gathered, a, from, m, k)
	for i := 0; i < m; i += simd.Rows {
		ai := matrix[T]{a.data[i*a.row:], a.row, a.col}
		if i >= from {
			ai = matrix[T]{gathered[(i-from)*k:], 1, simd.Rows}
		}
		for j := 0; j < n; j += cols {
			bo := (panel + j/cols) * cols * k
			if i < full && j+cols <= n {
				simd.Tile(k, ai.data, ai.row, ai.col, packed, bo, cols, c[i*rc+j:], rc, add)
				continue
			}
			simd.Tile(k, ai.data, ai.row, ai.col, packed, bo, cols, edge, cols, false)
			for r := range min(simd.Rows, m-i) {
				d := c[(i+r)*rc+j:][:min(cols, n-j)]
				for x := range d {
					if add {
						d[x] += edge[r*cols+x]
					} else {
						d[x] = edge[r*cols+x]
					}
				}
			}
		}
	}
}

// gather lays out rows from … m of A in tiles of simd.Rows, column after
// column, with zeros for the rows past m.
func gather[T simd.Float](dst []T, a matrix[T], from, m, k int) {
	if a.row == 1 {
		tiles := (m - from) / simd.Rows
		simd.Gather(tiles, k, dst, a.data[from:], a.col)
		from += tiles * simd.Rows
		dst = dst[tiles*simd.Rows*k:]
	}
	for i := from; i < m; i += simd.Rows {
		rowsLeft := min(simd.Rows, m-i)
		for kk := range k {
			d := dst[(i-from)*k+kk*simd.Rows:][:simd.Rows]
			for r := range rowsLeft {
				d[r] = a.data[(i+r)*a.row+kk*a.col]
			}
			clear(d[rowsLeft:])
		}
	}
}

// Scratch of one worker, for the length of one call; contents are arbitrary.
var scratch32, scratch64 sync.Pool

func scratch[T simd.Float]() *sync.Pool {
	if _, ok := any(T(0)).(float32); ok {
		return &scratch32
	}
	return &scratch64
}

func borrow[T simd.Float](n int) *[]T {
	if s, ok := scratch[T]().Get().(*[]T); ok && cap(*s) >= n {
		*s = (*s)[:n]
		return s
	}
	s := make([]T, n)
	return &s
}

func giveBack[T simd.Float](s *[]T) { scratch[T]().Put(s) }
