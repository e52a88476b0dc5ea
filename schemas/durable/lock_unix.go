//go:build unix

package durable

import (
	"errors"
	"fmt"
	"os"
	"syscall"
)

// ErrLocked is wrapped by Lock's error where another process has the lock.
var ErrLocked = errors.New("another process is at work here")

// Lock takes the lock that the file path stands for, which it makes if need
// be. The lock ends with unlock or with the process, however that ends.
func Lock(path string) (unlock func() error, err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o666)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			err = ErrLocked
		}
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return f.Close, nil
}
