// SPDX-License-Identifier: Apache-2.0

package deptest

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// module is the import path of the root.
const module = "github.com/meshgate/meshgate"

// source is one parsed Go file.
type source struct {
	// path and dir are relative to the root, with slashes.
	path, dir string
	// head is the first line.
	head   string
	syntax *ast.File
	fset   *token.FileSet
}

// test reports whether the file is built for tests only.
func (s *source) test() bool { return strings.HasSuffix(s.path, "_test.go") }

// generated reports whether a tool wrote the file.
func (s *source) generated() bool { return ast.IsGenerated(s.syntax) }

// at returns where a node of the file stands, as "path:line".
func (s *source) at(n ast.Node) string {
	return s.path + ":" + strconv.Itoa(s.fset.Position(n.Pos()).Line)
}

// imports returns the import paths of the file.
func (s *source) imports() []string {
	var paths []string
	for _, spec := range s.syntax.Imports {
		if p, err := strconv.Unquote(spec.Path.Value); err == nil {
			paths = append(paths, p)
		}
	}
	return paths
}

// load parses every Go file of the module, for whatever system it is built:
// the files themselves are read, since Go's cache of test results knows of no
// files that a child process reads.
func load(root fs.FS) ([]*source, error) {
	var files []*source
	err := fs.WalkDir(root, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			return enter(root, name)
		}
		if path.Ext(name) != ".go" {
			return nil
		}
		text, err := fs.ReadFile(root, name)
		if err != nil {
			return err
		}
		fset := token.NewFileSet()
		syntax, err := parser.ParseFile(fset, name, text, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		head, _, _ := strings.Cut(string(text), "\n")
		files = append(files, &source{path: name, dir: path.Dir(name), head: head, syntax: syntax, fset: fset})
		return nil
	})
	return files, err
}

// enter skips folders that are not of the module: hidden ones, test data,
// dependencies of the web parts and other modules.
func enter(root fs.FS, dir string) error {
	if dir == "." {
		return nil
	}
	base := path.Base(dir)
	if strings.HasPrefix(base, ".") || strings.HasPrefix(base, "_") ||
		base == "testdata" || base == "node_modules" {
		return fs.SkipDir
	}
	if _, err := fs.Stat(root, path.Join(dir, "go.mod")); err == nil {
		return fs.SkipDir
	}
	return nil
}

// repository returns the files of the module that this test belongs to.
func repository(t testing.TB) []*source {
	t.Helper()
	files, err := loadRepository()
	if err != nil {
		t.Fatal(err)
	}
	if len(files) == 0 {
		t.Fatal("no Go files found")
	}
	return files
}

// loadRepository reads the module once for all tests, none of which change it.
var loadRepository = sync.OnceValues(func() ([]*source, error) { return load(os.DirFS("../..")) })

// within reports whether the path p is dir or lies below it.
func within(p, dir string) bool { return p == dir || strings.HasPrefix(p, dir+"/") }
