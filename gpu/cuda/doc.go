// Package cuda is the engine on an NVIDIA GPU, registered as "cuda" under the
// build tag of the same name; without the tag the package is empty. Weights go
// in once and stay, in float32; tokens and a teacher's activations go in with
// each call, losses, gradients or activations come out.
//
// Device, context, streams, events and modules are those of gorgonia.org/cu;
// what it lacks (graphs, function attributes, cuBLASLt) is in driver.go and cublaslt.go. The kernels are in gpu/kernels.
//
// One goroutine, locked to its thread, makes every CUDA call of an Engine.
package cuda
