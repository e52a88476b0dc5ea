//go:build amd64 && !purego

#include "textflag.h"

// Each loop does 8 elements, n of them in all. Rounding is to nearest even: by
// the instruction's own mode, or by MXCSR's, which Go leaves there.

// func encodeFloat16asm(n int, dst *byte, src *float32)
TEXT ·encodeFloat16asm(SB), NOSPLIT, $0-24
	MOVQ n+0(FP), CX
	MOVQ dst+8(FP), DI
	MOVQ src+16(FP), SI

encodehalf:
	VMOVUPS (SI), Y0
	VCVTPS2PH $0, Y0, X0
	VMOVUPS X0, (DI)
	ADDQ $32, SI
	ADDQ $16, DI
	SUBQ $8, CX
	JNZ  encodehalf
	VZEROUPPER
	RET

// func decodeFloat16asm(n int, dst *float32, src *byte)
TEXT ·decodeFloat16asm(SB), NOSPLIT, $0-24
	MOVQ n+0(FP), CX
	MOVQ dst+8(FP), DI
	MOVQ src+16(FP), SI

decodehalf:
	VCVTPH2PS (SI), Y0
	VMOVUPS Y0, (DI)
	ADDQ $16, SI
	ADDQ $32, DI
	SUBQ $8, CX
	JNZ  decodehalf
	VZEROUPPER
	RET

// func encodeBFloat16asm(n int, dst *byte, src *float32)
// (b + 0x7fff + (b>>16 & 1)) >> 16, or for a NaN b>>16 | 0x40.
TEXT ·encodeBFloat16asm(SB), NOSPLIT, $0-24
	MOVQ n+0(FP), CX
	MOVQ dst+8(FP), DI
	MOVQ src+16(FP), SI
	MOVL $1, AX
	VMOVD AX, X5
	VPBROADCASTD X5, Y5
	MOVL $0x7fff, AX
	VMOVD AX, X6
	VPBROADCASTD X6, Y6
	MOVL $0x40, AX
	VMOVD AX, X7
	VPBROADCASTD X7, Y7

encodebrain:
	VMOVUPS (SI), Y0
	VPSRLD $16, Y0, Y1
	VPAND Y5, Y1, Y2
	VPADDD Y6, Y2, Y2
	VPADDD Y0, Y2, Y2
	VPSRLD $16, Y2, Y2
	VPOR Y7, Y1, Y1
	VCMPPS $3, Y0, Y0, Y3
	VPBLENDVB Y3, Y1, Y2, Y2
	VEXTRACTI128 $1, Y2, X1
	VPACKUSDW X1, X2, X2
	VMOVDQU X2, (DI)
	ADDQ $32, SI
	ADDQ $16, DI
	SUBQ $8, CX
	JNZ  encodebrain
	VZEROUPPER
	RET

// func decodeBFloat16asm(n int, dst *float32, src *byte)
TEXT ·decodeBFloat16asm(SB), NOSPLIT, $0-24
	MOVQ n+0(FP), CX
	MOVQ dst+8(FP), DI
	MOVQ src+16(FP), SI

decodebrain:
	VPMOVZXWD (SI), Y0
	VPSLLD $16, Y0, Y0
	VMOVDQU Y0, (DI)
	ADDQ $16, SI
	ADDQ $32, DI
	SUBQ $8, CX
	JNZ  decodebrain
	VZEROUPPER
	RET

// func encodeInt8asm(n int, dst *byte, src *float32, scale float64)
// The quotient is taken in float64, so that it is rounded once.
TEXT ·encodeInt8asm(SB), NOSPLIT, $0-32
	MOVQ n+0(FP), CX
	MOVQ dst+8(FP), DI
	MOVQ src+16(FP), SI
	VBROADCASTSD scale+24(FP), Y7
	MOVL $0x81818181, AX // four times -127
	VMOVD AX, X6
	VPBROADCASTD X6, X6

quantize:
	VCVTPS2PD (SI), Y0
	VCVTPS2PD 16(SI), Y1
	VDIVPD Y7, Y0, Y0
	VDIVPD Y7, Y1, Y1
	VCVTPD2DQY Y0, X0
	VCVTPD2DQY Y1, X1
	VPACKSSDW X1, X0, X0
	VPACKSSWB X0, X0, X0
	VPMAXSB X6, X0, X0
	VMOVQ X0, (DI)
	ADDQ $32, SI
	ADDQ $8, DI
	SUBQ $8, CX
	JNZ  quantize
	VZEROUPPER
	RET

// func decodeInt8asm(n int, dst *float32, src *byte, scale float32)
TEXT ·decodeInt8asm(SB), NOSPLIT, $0-28
	MOVQ n+0(FP), CX
	MOVQ dst+8(FP), DI
	MOVQ src+16(FP), SI
	VBROADCASTSS scale+24(FP), Y7

dequantize:
	VPMOVSXBD (SI), Y0
	VCVTDQ2PS Y0, Y0
	VMULPS Y7, Y0, Y0
	VMOVUPS Y0, (DI)
	ADDQ $8, SI
	ADDQ $32, DI
	SUBQ $8, CX
	JNZ  dequantize
	VZEROUPPER
	RET

// func maxAbsasm(n int, x *float32) uint32
TEXT ·maxAbsasm(SB), NOSPLIT, $0-20
	MOVQ n+0(FP), CX
	MOVQ x+8(FP), SI
	VPCMPEQD Y7, Y7, Y7
	VPSRLD $1, Y7, Y7 // all but the sign
	VPXOR Y0, Y0, Y0

largest:
	VPAND (SI), Y7, Y1
	VPMAXUD Y1, Y0, Y0
	ADDQ $32, SI
	SUBQ $8, CX
	JNZ  largest
	VEXTRACTI128 $1, Y0, X1
	VPMAXUD X1, X0, X0
	VPSHUFD $0x4e, X0, X1
	VPMAXUD X1, X0, X0
	VPSHUFD $0xb1, X0, X1
	VPMAXUD X1, X0, X0
	VMOVD X0, AX
	MOVL AX, ret+16(FP)
	VZEROUPPER
	RET
