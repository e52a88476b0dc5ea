//go:build unix

package trainers

import (
	"errors"
	"os"
	"syscall"
)

// acquire takes a lock that ends with the process, however that ends.
func acquire(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, errors.New("another trainer is at work in this folder")
		}
		return nil, err
	}
	return f, nil
}
