package main

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/scavenge/scavenge/schemas/durable"
)

// goSource is the folder of the sources that the Go toolchain on this machine
// came with: real English that is wherever this program can be built.
func goSource(ctx context.Context) (string, error) {
	root := runtime.GOROOT() // the toolchain that built this, if it is still there
	if out, err := exec.CommandContext(ctx, "go", "env", "GOROOT").Output(); err == nil {
		root = strings.TrimSpace(string(out))
	}
	src := filepath.Join(root, "src")
	if s, err := os.Stat(filepath.Join(src, "fmt")); err != nil || !s.IsDir() {
		return "", fmt.Errorf("no Go sources in %q to take text from: install Go, or name text files with --input", src)
	}
	return src, nil
}

// document is one JSON line of the corpus: the doc comments of one package.
type document struct {
	Text   string `json:"text"`
	Source string `json:"source"` // the package's folder below src
}

// docComments writes the doc comments of all packages below src to a file of
// JSON lines, a document a package folder in lexical order. A comment that
// stands in several places (the twins of syscall for each system, vendored
// copies) is kept once, so that no held-out text is also trained on.
func docComments(ctx context.Context, src, path string) (documents int, err error) {
	seen := map[[sha256.Size]byte]bool{}
	err = durable.WriteFile(path, func(w io.Writer) error {
		enc := json.NewEncoder(w)
		err := filepath.WalkDir(src, func(dir string, d fs.DirEntry, err error) error {
			if err != nil || !d.IsDir() {
				return err
			}
			if name := d.Name(); name == "testdata" || name == "vendor" {
				return fs.SkipDir
			}
			if err := ctx.Err(); err != nil {
				return err
			}
			text := strings.Join(packageComments(dir, seen), "\n\n")
			if len(text) < 200 { // a package that says nothing
				return nil
			}
			documents++
			return enc.Encode(document{text, strings.TrimPrefix(filepath.ToSlash(dir), filepath.ToSlash(src)+"/")})
		})
		if err == nil && documents == 0 {
			err = fmt.Errorf("no doc comments below %s", src)
		}
		return err
	})
	return documents, err
}

// packageComments lists the doc comments of a folder's Go files that were not
// seen before, in the order of the files and of their declarations. Files that
// do not parse and generated files are passed over.
func packageComments(dir string, seen map[[sha256.Size]byte]bool) []string {
	names, _ := filepath.Glob(filepath.Join(dir, "*.go"))
	slices.Sort(names)
	var list []string
	for _, name := range names {
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil || ast.IsGenerated(file) {
			continue
		}
		for _, c := range declared(file) {
			text := strings.TrimSpace(c.Text())
			key := sha256.Sum256([]byte(text))
			if len(text) < 20 || seen[key] {
				continue
			}
			seen[key] = true
			list = append(list, text)
		}
	}
	return list
}

// declared lists the comments that document something, in file order.
func declared(file *ast.File) []*ast.CommentGroup {
	var list []*ast.CommentGroup
	ast.Inspect(file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.File:
			list = append(list, n.Doc)
		case *ast.GenDecl:
			list = append(list, n.Doc)
		case *ast.FuncDecl:
			list = append(list, n.Doc)
		case *ast.TypeSpec:
			list = append(list, n.Doc)
		case *ast.ValueSpec:
			list = append(list, n.Doc)
		case *ast.Field:
			list = append(list, n.Doc)
		}
		return true
	})
	list = slices.DeleteFunc(list, func(c *ast.CommentGroup) bool { return c == nil })
	slices.SortFunc(list, func(a, b *ast.CommentGroup) int { return cmp.Compare(a.Pos(), b.Pos()) })
	return list
}
