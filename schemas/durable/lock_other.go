//go:build !unix

package durable

import (
	"errors"
	"os"
)

// ErrLocked is wrapped by Lock's error where another process has the lock.
var ErrLocked = errors.New("another process is at work here")

// Lock only makes the file: these systems have no portable lock that ends with
// its process.
func Lock(path string) (unlock func() error, err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o666)
	if err != nil {
		return nil, err
	}
	return f.Close, nil
}
