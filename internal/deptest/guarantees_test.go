// SPDX-License-Identifier: Apache-2.0

package deptest

import (
	"fmt"
	"go/ast"
	"os"
	"regexp"
	"testing"
)

// promised finds the tests that a document names, as "`folder.Test`".
var promised = regexp.MustCompile("`([a-z0-9_/-]+)\\.((?:Test|Run|Fuzz)[A-Za-z0-9_]*)`")

// TestGuarantees_AreShownByTests shows that each test which a promise names is
// there.
func TestGuarantees_AreShownByTests(t *testing.T) {
	text, err := os.ReadFile("../../docs/guarantees.md")
	if err != nil {
		t.Fatal(err)
	}
	missing, named := checkPromises(string(text), repository(t))
	if named < 50 {
		t.Errorf("the document names %d tests, want all that it stands on", named)
	}
	report(t, missing)
}

// TestGuarantees_AMissingTestIsFound shows that the check can fail.
func TestGuarantees_AMissingTestIsFound(t *testing.T) {
	missing, named := checkPromises("`internal/deptest.TestGuarantees_AreShownByTests` and `gateway.TestOfNothing`", repository(t))
	if named != 2 || len(missing) != 1 {
		t.Errorf("got %d named and missing %q, want 2 and the second", named, missing)
	}
}

// checkPromises finds tests that a document names and nobody wrote.
func checkPromises(text string, files []*source) (missing []string, named int) {
	there := map[string]bool{}
	for _, f := range files {
		for _, decl := range f.syntax.Decls {
			if fn, ok := decl.(*ast.FuncDecl); ok && fn.Recv == nil {
				there[f.dir+"."+fn.Name.Name] = true
			}
		}
	}
	for _, match := range promised.FindAllStringSubmatch(text, -1) {
		named++
		if name := match[1] + "." + match[2]; !there[name] {
			missing = append(missing, fmt.Sprintf("docs/guarantees.md names %s, which is not there", name))
		}
	}
	return missing, named
}
