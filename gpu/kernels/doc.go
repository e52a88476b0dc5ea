// Package kernels holds the CUDA kernels of gpu/cuda: one operator a file, its
// equations and shapes on top, forward and backward together. build.sh
// compiles them into kernels.fatbin, which the package embeds under the build
// tag cuda.
package kernels
