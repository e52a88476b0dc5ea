//go:build !linux

package durable

// Free does not know on these systems.
func Free(string) (bytes int64, ok bool) { return 0, false }
