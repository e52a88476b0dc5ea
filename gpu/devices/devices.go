// Package devices makes every engine of this build known to gpu.Open: import
// it for its side effect in a program that takes --device.
package devices

import _ "github.com/scavenge/scavenge/gpu/cpu"
