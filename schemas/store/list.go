package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// List yields what is in a folder, in no order. A folder that is not there is
// an empty one.
func List(ctx context.Context, dir string) iter.Seq2[Info, error] { return entries(ctx, dir, false) }

// entries is List or, if deep, all files below dir, without the folders.
func entries(ctx context.Context, dir string, deep bool) iter.Seq2[Info, error] {
	return func(yield func(Info, error) bool) {
		if !Remote(dir) {
			if _, err := walk(ctx, dir, deep, yield); err != nil {
				yield(Info{}, err)
			}
			return
		}
		b, name, err := bucketOf(ctx, dir)
		if err != nil {
			yield(Info{}, err)
			return
		}
		root, _, _ := strings.Cut(strings.SplitAfter(dir, "://")[1], "/")
		root = dir[:strings.Index(dir, "://")+3] + root
		for i, err := range b.List(ctx, folder(name), deep) {
			if err != nil {
				yield(Info{}, failed("list", dir, err))
				return
			}
			if strings.HasSuffix(i.Path, "/") && !i.Folder || i.Path == "" {
				continue // what some programs make to stand for a folder
			}
			i.Path = root + "/" + strings.TrimSuffix(i.Path, "/")
			if !yield(i, nil) {
				return
			}
		}
	}
}

// readEntries is how many entries of a folder are read at a time: it may have
// millions.
const readEntries = 1024

// walk lists a local folder. It says whether yield still wants more.
func walk(ctx context.Context, dir string, deep bool, yield func(Info, error) bool) (more bool, err error) {
	f, err := os.Open(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	} else if err != nil {
		return false, err
	}
	defer f.Close()
	for {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		list, err := f.ReadDir(readEntries)
		if err == io.EOF {
			return true, nil
		} else if err != nil {
			return false, err
		}
		for _, e := range list {
			p := filepath.Join(dir, e.Name())
			if e.IsDir() && deep {
				if more, err := walk(ctx, p, deep, yield); err != nil || !more {
					return more, err
				}
				continue
			}
			st, err := e.Info()
			if err == nil && st.Mode()&fs.ModeSymlink != 0 {
				st, err = os.Stat(p)
			}
			switch {
			case errors.Is(err, fs.ErrNotExist) && !deep: // it went away meanwhile
				continue
			case err != nil:
				return false, err
			case deep && !st.Mode().IsRegular():
				return false, failed("open", p, errNotRegular)
			}
			if !yield(localInfo(p, st), nil) {
				return false, nil
			}
		}
	}
}

var errNotRegular = errors.New("not a regular file")

// Find yields the files that what names: a file, all those below a folder, or
// those that match a glob of path.Match, in no order. It is an error that there
// is none.
func Find(ctx context.Context, what string) iter.Seq2[Info, error] {
	return func(yield func(Info, error) bool) {
		found, folders := false, false
		stopped := false
		each := func(list iter.Seq2[Info, error]) bool {
			for i, err := range list {
				if err == nil && i.Folder {
					folders = true // dir/* is meant for the files
					continue
				}
				found = found || err == nil
				if !yield(i, err) || err != nil {
					stopped = true
					return false
				}
			}
			return true
		}
		i, err := Stat(ctx, what) // also names with *, ? or [ in them
		glob := strings.ContainsAny(what, "*?[")
		switch {
		case err == nil && !i.Folder:
			if err = regular(i); err == nil {
				i.Path = clean(what)
			}
			yield(i, err)
			return
		case err == nil, Remote(what) && !glob && errors.Is(err, fs.ErrNotExist):
			if !each(entries(ctx, what, true)) {
				return
			}
			if !found && err == nil {
				yield(Info{}, errors.New("a folder without files"))
			} else if !found {
				yield(Info{}, errors.New("no such file"))
			}
			return
		case !errors.Is(err, fs.ErrNotExist):
			yield(Info{}, err)
			return
		case !glob:
			yield(Info{}, errors.New("no such file"))
			return
		}
		if err := checkGlob(what); err != nil {
			yield(Info{}, err)
			return
		}
		each(match(ctx, clean(what)))
		switch {
		case found || stopped:
		case folders:
			yield(Info{}, errors.New("matches folders only"))
		default:
			yield(Info{}, errors.New("no such file"))
		}
	}
}

func regular(i Info) error {
	if Remote(i.Path) {
		return nil
	}
	if st, err := os.Stat(i.Path); err != nil {
		return err
	} else if !st.Mode().IsRegular() {
		return errNotRegular
	}
	return nil
}

func clean(p string) string {
	if Remote(p) {
		return Join(p)
	}
	return filepath.Clean(p)
}

func checkGlob(glob string) error {
	_, err := path.Match(strings.ReplaceAll(glob, "/", ""), "")
	if err != nil {
		return fmt.Errorf("not a glob: %w", err)
	}
	return nil
}

// match yields what matches a glob, an element of the path at a time.
func match(ctx context.Context, glob string) iter.Seq2[Info, error] {
	return func(yield func(Info, error) bool) {
		at := strings.IndexAny(glob, "*?[")
		if at < 0 { // the rest below a folder that matched
			if i, err := Stat(ctx, glob); err == nil {
				yield(i, nil)
			} else if !errors.Is(err, fs.ErrNotExist) {
				yield(Info{}, err)
			} else if Remote(glob) {
				for range entries(ctx, glob, false) {
					yield(Info{Path: glob, Folder: true}, nil)
					return
				}
			}
			return
		}
		isSeparator := func(r rune) bool { return r == '/' || !Remote(glob) && r == filepath.Separator }
		from := strings.LastIndexFunc(glob[:at], isSeparator) + 1
		to := len(glob)
		if end := strings.IndexFunc(glob[at:], isSeparator); end >= 0 {
			to = at + end
		}
		dir := "."
		if from > 0 {
			dir = glob[:max(1, from-1)]
		}
		for i, err := range entries(ctx, dir, false) {
			if err != nil {
				if !Remote(dir) && !errors.Is(err, ctx.Err()) {
					return // as filepath.Glob: what is no folder, or closed to us, has no matches
				}
				yield(i, err)
				return
			}
			ok, err := path.Match(glob[from:to], Base(i.Path))
			if err != nil {
				yield(Info{}, fmt.Errorf("not a glob: %w", err))
				return
			}
			if !ok {
				continue
			}
			if to == len(glob) {
				if !i.Folder {
					err = regular(i)
				}
				if !yield(i, err) || err != nil {
					return
				}
				continue
			}
			if !i.Folder {
				continue
			}
			for i, err := range match(ctx, i.Path+glob[to:]) {
				if !yield(i, err) {
					return
				}
			}
		}
	}
}
