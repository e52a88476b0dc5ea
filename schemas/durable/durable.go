// Package durable writes files, folders and links that are there whole or not
// at all: content goes to a temporary name beside the final one, is fsynced,
// and is renamed. A process killed at any moment leaves either what was there
// before or all of what should be, and perhaps a temporary that Sweep removes.
package durable

import (
	"bufio"
	"crypto/rand"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// Fault, when set, is called before every step that changes what a reader of
// the disk sees, with the step's name and path. Tests set it, before any
// writing starts, to kill the process in between.
var Fault func(step, path string)

func at(step, path string) {
	if Fault != nil {
		Fault(step, path)
	}
}

const mark = ".tmp-"

// temporary is a name beside path that no reader takes for a finished file.
func temporary(path string) string {
	dir, base := filepath.Split(path)
	return filepath.Join(dir, "."+base+mark+rand.Text()[:12])
}

// File is a file being written: Commit gives it its name, Abort removes it.
type File struct {
	*os.File
	path string
}

// Create starts a file that will be called path. Its folder must exist.
func Create(path string) (*File, error) {
	at("create", path)
	f, err := os.OpenFile(temporary(path), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o666)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return &File{f, path}, nil
}

// Commit flushes the file to the disk and gives it its name, replacing a file
// that has it. After an error nothing of the file is left.
func (f *File) Commit() error {
	at("sync", f.path)
	err := f.Sync()
	if e := f.Close(); err == nil {
		err = e
	}
	if err == nil {
		at("rename", f.path)
		err = os.Rename(f.Name(), f.path)
	}
	if err != nil {
		os.Remove(f.Name())
		return fmt.Errorf("%s: %w", f.path, err)
	}
	return syncFolder(filepath.Dir(f.path))
}

// Abort gives the file up.
func (f *File) Abort() {
	f.Close()
	os.Remove(f.Name())
}

// WriteFile makes a file of what fill writes.
func WriteFile(path string, fill func(w io.Writer) error) error {
	f, err := Create(path)
	if err != nil {
		return err
	}
	w := bufio.NewWriterSize(f, 1<<20)
	at("write", path)
	if err = fill(w); err == nil {
		err = w.Flush()
	}
	if err != nil {
		f.Abort()
		return fmt.Errorf("%s: %w", path, err)
	}
	return f.Commit()
}

// WriteFolder makes a folder of the files that fill writes into the temporary
// folder it is given. It replaces a folder of the same name, at one stroke
// where the system can exchange two names.
func WriteFolder(path string, fill func(tmp string) error) error {
	path = filepath.Clean(path)
	if err := os.MkdirAll(filepath.Dir(path), 0o777); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	tmp := temporary(path)
	at("mkdir", path)
	if err := os.Mkdir(tmp, 0o777); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	err := fill(tmp)
	if err == nil {
		err = syncFolder(tmp)
	}
	if err == nil {
		at("rename", path)
		if err = replace(tmp, path); err != nil {
			err = fmt.Errorf("%s: %w", path, err)
		}
	}
	if err != nil {
		os.RemoveAll(tmp)
		return err
	}
	return syncFolder(filepath.Dir(path))
}

// replace renames the folder tmp to path and removes the folder that was there.
func replace(tmp, path string) error {
	if _, err := os.Lstat(path); err != nil {
		return os.Rename(tmp, path)
	}
	if exchange(tmp, path) == nil {
		at("remove", path)
		return os.RemoveAll(tmp)
	}
	old := temporary(path)
	if err := os.Rename(path, old); err != nil {
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		os.Rename(old, path)
		return err
	}
	return os.RemoveAll(old)
}

// Link makes path a symbolic link to target, replacing a link that is there.
func Link(target, path string) error {
	tmp := temporary(path)
	at("link", path)
	if err := os.Symlink(target, tmp); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	at("rename", path)
	if err := os.Rename(tmp, path); err != nil {
		os.Remove(tmp)
		return fmt.Errorf("%s: %w", path, err)
	}
	return syncFolder(filepath.Dir(path))
}

// Sweep removes from a folder the temporaries that killed writers left. No
// other writer may be at work there.
func Sweep(dir string) error {
	list, err := os.ReadDir(dir)
	if os.IsNotExist(err) {
		return nil
	} else if err != nil {
		return err
	}
	for _, e := range list {
		if strings.HasPrefix(e.Name(), ".") && strings.Contains(e.Name(), mark) {
			if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// syncFolder makes the names in a folder survive a power cut.
func syncFolder(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Sync(); err != nil && !unsyncable(err) {
		return fmt.Errorf("%s: %w", dir, err)
	}
	return nil
}
