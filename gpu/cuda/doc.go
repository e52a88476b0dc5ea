// Package cuda is the engine on an NVIDIA GPU, registered as "cuda" under the
// build tag of the same name; without the tag the package is empty. Weights go
// in once and stay, in float32; tokens and a teacher's activations go in with
// each call, losses, gradients or activations come out.
//
// Device, context, streams, events and modules are those of gorgonia.org/cu;
// what it lacks (graphs, function attributes, cuBLASLt) is in driver.go and
// cublaslt.go. The kernels are in gpu/kernels. To build:
//
//	eval "$(gpu/kernels/build.sh)"
//	go build -tags cuda ./...
//
// In float32 everything is that, the filters' networks float64; in bf16 the
// operands of matrix products and what is stored between them are bf16, sums and
// the residual stream float32. Sums have a fixed order: the same step twice gives
// the same bits.
//
// One goroutine, locked to its thread, makes every CUDA call of an Engine.
package cuda
