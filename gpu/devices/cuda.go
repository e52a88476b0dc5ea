//go:build cuda

package devices

import _ "github.com/scavenge/scavenge/gpu/cuda"
