//go:build !amd64 || purego

package dtype

func encodeFloat32(dst []byte, src []float32)             { encodeFloat32Twin(dst, src) }
func decodeFloat32(dst []float32, src []byte)             { decodeFloat32Twin(dst, src) }
func encodeFloat16(dst []byte, src []float32)             { encodeFloat16Twin(dst, src) }
func decodeFloat16(dst []float32, src []byte)             { decodeFloat16Twin(dst, src) }
func encodeBFloat16(dst []byte, src []float32)            { encodeBFloat16Twin(dst, src) }
func decodeBFloat16(dst []float32, src []byte)            { decodeBFloat16Twin(dst, src) }
func encodeInt8(dst []byte, src []float32, scale float32) { encodeInt8Twin(dst, src, scale) }
func decodeInt8(dst []float32, src []byte, scale float32) { decodeInt8Twin(dst, src, scale) }
func maxAbs(x []float32) uint32                           { return maxAbsTwin(x) }
