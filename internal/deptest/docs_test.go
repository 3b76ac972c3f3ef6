// SPDX-License-Identifier: Apache-2.0

package deptest

import (
	"fmt"
	"go/ast"
	"go/token"
	"maps"
	"path"
	"slices"
	"strings"
	"testing"
)

// licence is the first line of every file that people write.
const licence = "// SPDX-License-Identifier: Apache-2.0"

// forbiddenNames say nothing about what is inside.
func forbiddenNames() []string {
	return []string{
		"util", "utils", "common", "helper", "helpers", "misc", "type", "types",
		"interface", "interfaces", "impl", "manager", "managers",
	}
}

func TestFiles_HaveTellingNames(t *testing.T) {
	report(t, checkNames(repository(t)))
}

func TestFiles_NameTheirLicence(t *testing.T) {
	report(t, checkLicence(repository(t)))
}

func TestPackages_HaveOnePackageComment(t *testing.T) {
	report(t, checkPackageComments(repository(t)))
}

func TestExportedNames_AreDocumented(t *testing.T) {
	report(t, checkExported(repository(t)))
}

// checkNames finds files and packages that are named after nothing. A suffix
// such as _linux or _test does not save a name.
func checkNames(files []*source) []string {
	var violations []string
	for _, f := range files {
		stem, _, _ := strings.Cut(strings.TrimSuffix(path.Base(f.path), ".go"), "_")
		for _, name := range []string{stem, path.Base(f.dir)} {
			if slices.Contains(forbiddenNames(), name) {
				violations = append(violations, fmt.Sprintf("%s: %q says nothing", f.path, name))
			}
		}
	}
	return violations
}

// checkLicence finds files whose first line is not the licence.
func checkLicence(files []*source) []string {
	var violations []string
	for _, f := range files {
		if !f.generated() && f.head != licence {
			violations = append(violations, fmt.Sprintf("%s: the first line is not %q", f.path, licence))
		}
	}
	return violations
}

// checkPackageComments finds packages with no package comment or with several,
// and comments that do not begin as godoc shows them. Packages that a tool
// wrote, and those of tests beside a package, need none.
func checkPackageComments(files []*source) []string {
	comments := make(map[string][]*source)
	for _, f := range files {
		if f.test() && path.Base(f.dir) != "deptest" && hasProduction(files, f.dir) {
			if f.syntax.Doc != nil {
				comments[f.dir] = append(comments[f.dir], f)
			}
			continue
		}
		if _, ok := comments[f.dir]; !ok && !f.generated() {
			comments[f.dir] = nil
		}
		if f.syntax.Doc != nil {
			comments[f.dir] = append(comments[f.dir], f)
		}
	}
	var violations []string
	for _, dir := range slices.Sorted(maps.Keys(comments)) {
		with := comments[dir]
		if len(with) != 1 {
			violations = append(violations, fmt.Sprintf("%s: %d package comments, want 1", dir, len(with)))
			continue
		}
		name := with[0].syntax.Name.Name
		prefix := "Package " + name + " "
		if name == "main" {
			prefix = "Command " + path.Base(dir) + " "
		}
		if !strings.HasPrefix(with[0].syntax.Doc.Text(), prefix) {
			violations = append(violations, fmt.Sprintf("%s: the package comment does not begin with %q", with[0].path, prefix))
		}
	}
	return violations
}

// hasProduction reports whether a folder holds files that are not for tests.
func hasProduction(files []*source, dir string) bool {
	return slices.ContainsFunc(files, func(f *source) bool { return f.dir == dir && !f.test() })
}

// checkExported finds exported names of packages, and exported methods of
// exported types, whose comment is missing or does not begin with the name. The
// fields of a struct and the methods of an interface are left to its comment.
func checkExported(files []*source) []string {
	var violations []string
	for _, f := range files {
		if f.test() || f.generated() {
			continue
		}
		for _, decl := range f.syntax.Decls {
			switch d := decl.(type) {
			case *ast.FuncDecl:
				if d.Name.IsExported() && visible(d) && !documents(d.Doc, d.Name.Name) {
					violations = append(violations, fmt.Sprintf("%s: %s is not documented", f.at(d), d.Name.Name))
				}
			case *ast.GenDecl:
				violations = append(violations, checkGroup(f, d)...)
			}
		}
	}
	return violations
}

// visible reports whether a function can be named outside its package: whether
// it is no method, or one of an exported type.
func visible(d *ast.FuncDecl) bool {
	if d.Recv == nil {
		return true
	}
	t := d.Recv.List[0].Type
	for {
		switch x := t.(type) {
		case *ast.StarExpr:
			t = x.X
		case *ast.IndexExpr:
			t = x.X
		case *ast.IndexListExpr:
			t = x.X
		case *ast.Ident:
			return x.IsExported()
		default:
			return true
		}
	}
}

// checkGroup checks a declaration of types, constants or variables. In a group
// of constants or variables, the comment of the group speaks for all.
func checkGroup(f *source, d *ast.GenDecl) []string {
	var violations []string
	for _, spec := range d.Specs {
		switch s := spec.(type) {
		case *ast.TypeSpec:
			doc := s.Doc
			if doc == nil && !d.Lparen.IsValid() {
				doc = d.Doc
			}
			if s.Name.IsExported() && !documents(doc, s.Name.Name) {
				violations = append(violations, fmt.Sprintf("%s: %s is not documented", f.at(s), s.Name.Name))
			}
		case *ast.ValueSpec:
			grouped := d.Tok == token.CONST || d.Tok == token.VAR
			if s.Doc != nil || s.Comment != nil || (grouped && d.Doc != nil) {
				continue
			}
			for _, name := range s.Names {
				if name.IsExported() {
					violations = append(violations, fmt.Sprintf("%s: %s is not documented", f.at(s), name.Name))
				}
			}
		}
	}
	return violations
}

// documents reports whether doc is a comment on name: it begins with the name,
// with an article before it or without.
func documents(doc *ast.CommentGroup, name string) bool {
	words := strings.Fields(doc.Text())
	if len(words) > 1 && slices.Contains([]string{"A", "An", "The"}, words[0]) {
		words = words[1:]
	}
	return len(words) > 0 && strings.TrimRight(words[0], ",.:;") == name
}
