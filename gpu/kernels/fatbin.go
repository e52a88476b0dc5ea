//go:build cuda

package kernels

import _ "embed"

// Fatbin is the kernels' machine code for each architecture, and PTX. If the
// compiler says here that kernels.fatbin does not match any file, run
// gpu/kernels/build.sh first.
//
//go:embed kernels.fatbin
var Fatbin string
