//go:build cuda

package cuda

/*
#include <cuda.h>
#include <string.h>

// A tensor of bf16 elements [rows, length, parts, d] in boxes of [1, high, 1, 64],
// each row of a box 128 bytes with its 16-byte chunks permuted; zeros past the end.
static CUresult encode(void *to, CUdeviceptr base, cuuint64_t d, cuuint64_t parts, cuuint64_t length, cuuint64_t rows, cuuint64_t ld, cuuint32_t high) {
  CUtensorMap map;
  const cuuint64_t size[4] = {d, parts, length, rows}, stride[3] = {2 * d, 2 * ld, 2 * ld * length};
  const cuuint32_t box[4] = {64, 1, high, 1}, one[4] = {1, 1, 1, 1};
  CUresult r = cuTensorMapEncodeTiled(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 4, (void *)base, size, stride, box, one, CU_TENSOR_MAP_INTERLEAVE_NONE,
                                      CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  memcpy(to, &map, sizeof map);
  return r;
}
*/
import "C"

import (
	"fmt"
	"unsafe"
)

// tensorMap tells a Hopper card's copy engine where a tensor lies: a kernel's
// argument of 128 bytes (CUtensorMap).
type tensorMap [16]uint64

// What attention_hopper.cu reads at a time, and a warp writes.
const (
	boxRead  = 64
	boxWrite = 16
)

// headMap is the map of rows sequences of length positions at p, each position
// parts vectors of d bf16 elements, positions ld elements apart, in boxes of high
// positions of one part. p, d and ld are multiples of 16 bytes.
func (q *queue) headMap(p ptr, rows, length, parts, d, ld, high int) (m tensorMap) {
	if q.err != nil {
		return m
	}
	if err := check(C.encode(unsafe.Pointer(&m), C.CUdeviceptr(p), C.cuuint64_t(d), C.cuuint64_t(parts), C.cuuint64_t(length), C.cuuint64_t(rows), C.cuuint64_t(ld), C.cuuint32_t(high)), "tensor map"); err != nil {
		q.err = fmt.Errorf("%w: [%d, %d, %d, %d], positions %d apart", err, rows, length, parts, d, ld)
	}
	return m
}
