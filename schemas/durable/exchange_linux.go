package durable

import (
	"errors"

	"golang.org/x/sys/unix"
)

// exchange swaps two names at one stroke.
func exchange(a, b string) error {
	return unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE)
}

// unsyncable tells the file systems that do not fsync folders from real errors.
func unsyncable(err error) bool { return errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOTSUP) }
