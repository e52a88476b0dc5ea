package transforms

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// planned lists what globs name, and groups it.
func planned(globs []string, groupBytes int64) (groups []Group, err error) {
	l, err := List(context.Background(), globs, groupBytes)
	if err != nil {
		return nil, err
	}
	defer l.Close()
	for g, err := range l.Groups() {
		if err != nil {
			return nil, err
		}
		groups = append(groups, g)
	}
	return groups, nil
}

// What a listing has on the disk comes in the same order as what is in memory,
// each file once.
func TestALongListIsSortedOnTheDisk(t *testing.T) {
	dir := t.TempDir()
	for i := range 500 {
		os.MkdirAll(filepath.Join(dir, fmt.Sprint(i%7)), 0o777)
		os.WriteFile(filepath.Join(dir, fmt.Sprint(i%7), fmt.Sprint(i*7919%1000)+".txt"), bytes.Repeat([]byte("x"), i%5), 0o666)
	}
	globs := []string{dir, filepath.Join(dir, "*", "*1.txt"), filepath.Join(dir, "3")}
	want, err := planned(globs, 100)
	if err != nil {
		t.Fatal(err)
	}
	defer func(n int) { heldFiles = n }(heldFiles)
	heldFiles = 17
	got, err := planned(globs, 100)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%d groups and %d, %v", len(got), len(want), err)
	}
	last, n := "", 0
	for _, g := range got {
		for _, p := range g.Pieces {
			if p.Path <= last {
				t.Errorf("%s after %s", p.Path, last)
			}
			last = p.Path
			n++
		}
	}
	if n != 500 {
		t.Errorf("%d files, want 500", n)
	}
}

func TestPlanGroupsFilesInTheOrderOfTheirNames(t *testing.T) {
	dir := t.TempDir()
	for i, size := range []int{100, 200, 300, 1000, 50, 60} {
		os.WriteFile(filepath.Join(dir, fmt.Sprintf("%d.txt", i)), bytes.Repeat([]byte("x"), size), 0o666)
	}
	os.WriteFile(filepath.Join(dir, "big.jsonl"), bytes.Repeat([]byte("\n"), 1300), 0o666)
	os.Mkdir(filepath.Join(dir, "folder"), 0o777)
	groups, err := planned([]string{filepath.Join(dir, "[3-9].txt"), filepath.Join(dir, "*"), filepath.Join(dir, "0.txt")}, 500)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, g := range groups {
		var s []string
		for _, p := range g.Pieces {
			s = append(s, fmt.Sprintf("%s %d-%d", filepath.Base(p.Name), p.Start, p.End))
		}
		got = append(got, strings.Join(s, ", "))
	}
	want := []string{"0.txt 0-100, 1.txt 0-200", "2.txt 0-300", "3.txt 0-1000", "4.txt 0-50, 5.txt 0-60", "big.jsonl 0-433", "big.jsonl 433-866", "big.jsonl 866-1300"}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

func TestPlanRefusesWhatItCannotRead(t *testing.T) {
	dir := t.TempDir()
	os.Mkdir(filepath.Join(dir, "sub"), 0o777)
	for _, c := range []struct{ glob, want string }{
		{filepath.Join(dir, "none"), "no such file"}, {filepath.Join(dir, "*.txt"), "no such file"}, {filepath.Join(dir, "sub"), "without files"},
		{filepath.Join(dir, "*"), "folders only"}, {"[", "glob"}, {os.DevNull, "not a regular file"},
	} {
		if _, err := planned([]string{c.glob}, 0); err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), c.glob) {
			t.Errorf("%s: %v, want %q", c.glob, err, c.want)
		}
	}
	if groups, err := planned(nil, 0); err != nil || len(groups) != 0 {
		t.Errorf("no globs: %v, %v", groups, err)
	}
}

func TestAFolderIsAllFilesBelowIt(t *testing.T) {
	dir := t.TempDir()
	os.MkdirAll(filepath.Join(dir, "a", "b"), 0o777)
	for _, name := range []string{"z.txt", "a/y.txt", "a/b/x.txt"} {
		os.WriteFile(filepath.Join(dir, name), []byte("text"), 0o666)
	}
	groups, err := planned([]string{dir, filepath.Join(dir, "z.txt")}, 0)
	var names []string
	for _, g := range groups {
		for _, p := range g.Pieces {
			names = append(names, p.Name)
		}
	}
	want := []string{filepath.Join(dir, "a/b/x.txt"), filepath.Join(dir, "a/y.txt"), filepath.Join(dir, "z.txt")}
	if err != nil || !slices.Equal(names, want) {
		t.Errorf("%q, %v; want %q", names, err, want)
	}
}
