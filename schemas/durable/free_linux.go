package durable

import "golang.org/x/sys/unix"

// Free is how many bytes a user may still write to the disk of path; ok is
// false where the system does not tell.
func Free(path string) (bytes int64, ok bool) {
	var s unix.Statfs_t
	if err := unix.Statfs(path, &s); err != nil {
		return 0, false
	}
	return int64(s.Bavail) * s.Bsize, true
}
