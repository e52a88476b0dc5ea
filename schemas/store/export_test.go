package store

import (
	"testing"
	"time"
)

// Hurry makes the pauses between tries short.
func Hurry(t testing.TB) {
	before := pause
	pause = time.Millisecond
	t.Cleanup(func() { pause = before })
}
