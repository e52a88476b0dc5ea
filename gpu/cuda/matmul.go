//go:build cuda

package cuda

/*
#include <cuda.h>
#include <string.h>

// A matrix of bf16 rows ld elements apart in boxes of 128 rows of 64 elements,
// each row of a box 128 bytes with its 16-byte chunks permuted; zeros past the
// end. shuffled: of each 32 rows of a box the one that is 8 q + 2 j + i comes in
// the order i, q, j, and the rows end at the next multiple of 32.
static CUresult encode_operand(void *to, CUdeviceptr base, cuuint64_t rows, cuuint64_t cols, cuuint64_t ld, int shuffled) {
  CUtensorMap map;
  const cuuint64_t size[2] = {cols, rows}, stride[1] = {2 * ld};
  const cuuint64_t size5[5] = {cols, 2, 4, 4, (rows + 31) / 32}, stride5[4] = {2 * ld, 16 * ld, 4 * ld, 64 * ld};
  const cuuint32_t box[2] = {64, 128}, box5[5] = {64, 2, 4, 4, 4}, one[5] = {1, 1, 1, 1, 1};
  CUresult r = cuTensorMapEncodeTiled(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, shuffled ? 5 : 2, (void *)base, shuffled ? size5 : size, shuffled ? stride5 : stride, shuffled ? box5 : box, one,
                                      CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  memcpy(to, &map, sizeof map);
  return r;
}
*/
import "C"

import (
	"fmt"
	"unsafe"
)

// What matmul_hopper.cuh fixes: the rows of a strip of A and of a tile of B, the
// threads of a block, its shared memory in bytes, and the most columns of A of
// which it holds a strip.
const (
	matmulTile     = 128
	matmulThreads  = 384
	matmulShared   = 14*matmulTile*64*2 + 1024
	matmulResident = 512
)

// matmulWidest is the width up to which head_hopper.cu was faster than logits: at
// 2048 the products, both of whose operands are streamed, take what it saves.
const matmulWidest = 1024

// matrix is a bf16 operand [rows, cols], its rows following each other; cols is a
// multiple of 8, base is aligned to 16 bytes.
type matrix struct {
	base       ptr
	rows, cols int
}

func (q *queue) operandMap(o matrix, shuffled int) (m tensorMap) {
	if q.err != nil {
		return m
	}
	if err := check(C.encode_operand(unsafe.Pointer(&m), C.CUdeviceptr(o.base), C.cuuint64_t(o.rows), C.cuuint64_t(o.cols), C.cuuint64_t(o.cols), C.int(shuffled)), "tensor map"); err != nil {
		q.err = fmt.Errorf("%w: [%d, %d]", err, o.rows, o.cols)
	}
	return m
}

// matmul launches a kernel on the product of rows row0 … row0 + rows − 1 of a with
// all rows of b, both [·, k]. args is what its epilogue takes. parts is into how
// many parts b's tiles are cut for each strip of a; 0 gives each block as many
// tiles. b is read up to 31 rows past its end; what is there does not matter.
func (q *queue) matmul(name string, a, b matrix, row0, rows, parts int, args ...any) {
	if a.cols > matmulResident {
		name += "_streamed"
	}
	items := parts
	if parts == 0 {
		items = ceil(b.rows, matmulTile)
	}
	grid := min(ceil(rows, matmulTile)*items, q.multiprocessors)
	q.launch(name, [3]int{grid, 1, 1}, [2]int{matmulThreads, 1}, matmulShared, append([]any{q.operandMap(a, 0), q.operandMap(b, 1), row0, rows, b.rows, a.cols, parts}, args...)...)
}

// maxParts bounds into how many parts the tiles of a product are cut.
const maxParts = 64

// matmulParts is into how many parts the tiles of cols rows of B are cut for each
// strip of rows of A, so that all blocks go through B together: as many as give
// the block with the most work the least of it, cost tiles, where a new strip
// counts as one.
func matmulParts(rows, cols, multiprocessors int) (parts, cost int) {
	strips, tiles := ceil(rows, matmulTile), ceil(cols, matmulTile)
	for p := 1; p <= min(tiles, maxParts); p++ {
		if c := ceil(strips*p, multiprocessors) * (ceil(tiles, p) + 1); p == 1 || c < cost {
			parts, cost = p, c
		}
	}
	return parts, cost
}

// matmulChunk is how many of n rows, at most limit or one strip, make the chunks
// whose products with cols rows of B cost least in all.
func matmulChunk(n, cols, limit, multiprocessors int) int {
	best, least := 0, 0
	most := max(1, min(limit/matmulTile, ceil(n, matmulTile)))
	for strips := most; strips > most/2; strips-- {
		chunk := strips * matmulTile
		_, cost := matmulParts(chunk, cols, multiprocessors)
		cost *= n / chunk
		if rest := n % chunk; rest > 0 {
			_, last := matmulParts(rest, cols, multiprocessors)
			cost += last
		}
		if best == 0 || cost < least {
			best, least = chunk, cost
		}
	}
	return min(best, n)
}
