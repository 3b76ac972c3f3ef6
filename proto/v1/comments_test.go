// SPDX-License-Identifier: Apache-2.0

package v1_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// declaration matches a line that declares something, and captures its name.
var declaration = regexp.MustCompile(
	`^\s*(?:(?:service|message|enum|oneof|rpc) (\w+)|(?:repeated |optional )?[\w.]+(?:<\w+, [\w.]+>)? (\w+) = \d+;|(\w+) = \d+;)`)

// TestProtos_AreDocumented wants a comment that begins with the name above each
// service, rpc, message, field, enum and enum value.
func TestProtos_AreDocumented(t *testing.T) {
	files, err := filepath.Glob("*.proto")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range append(files, "../meshgate/v1/store.proto", "../meshgate/v1/watch.proto") {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		found := 0
		comment := ""
		for i, line := range strings.Split(string(text), "\n") {
			if words, ok := strings.CutPrefix(strings.TrimSpace(line), "//"); ok {
				if comment == "" {
					comment = strings.TrimSpace(words)
				}
				continue
			}
			if names := declaration.FindStringSubmatch(line); names != nil {
				found++
				name := names[1] + names[2] + names[3]
				if comment != name && !strings.HasPrefix(comment, name+" ") {
					t.Errorf("%s:%d: the comment on %s is %q", file, i+1, name, comment)
				}
			}
			comment = ""
		}
		if found == 0 {
			t.Errorf("%s: found nothing to document", file)
		}
	}
}
