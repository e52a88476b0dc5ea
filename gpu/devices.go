package gpu

import (
	"fmt"
	"sort"
	"strings"
	"sync"
)

var (
	mu      sync.Mutex
	openers = map[string]func(ordinal string) (Engine, error){}
)

// Register makes a kind of device known to Open; engines call it from init.
func Register(kind string, open func(ordinal string) (Engine, error)) {
	mu.Lock()
	defer mu.Unlock()
	openers[kind] = open
}

// Open opens a device by the name that --device takes: "cpu", "cuda:0".
func Open(device string) (Engine, error) {
	kind, ordinal, _ := strings.Cut(device, ":")
	mu.Lock()
	open := openers[kind]
	var known []string
	for k := range openers {
		known = append(known, k)
	}
	mu.Unlock()
	if open == nil {
		sort.Strings(known)
		hint := ""
		if kind == "cuda" {
			hint = "; build with -tags cuda for an NVIDIA GPU"
		}
		return nil, fmt.Errorf("device %q: %w (this program has %s%s)", device, ErrDevice, strings.Join(known, ", "), hint)
	}
	return open(ordinal)
}
