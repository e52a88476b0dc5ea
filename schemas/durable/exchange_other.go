//go:build !linux

package durable

import "errors"

// exchange has no portable form: replace then renames twice.
func exchange(a, b string) error { return errors.ErrUnsupported }

// unsyncable: some systems cannot fsync a folder at all.
func unsyncable(error) bool { return true }
