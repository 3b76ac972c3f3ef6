// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A context that names a file that cannot be read is kept, as the file may come
// later, and told.
func TestContextSet_WarnsOfATokenFileThatIsNotThere(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "token")
	set := func() string {
		var stdout, stderr bytes.Buffer
		args := []string{"context", "set", "home", "--contexts-file", filepath.Join(dir, "contexts.yaml"), "--server", "https://gw1:8443", "--token-file", file}
		if code := run(t.Context(), args, &stdout, &stderr); code != exitOK {
			t.Errorf("exit code %d, %s", code, &stderr)
		}
		return stderr.String()
	}
	if text := set(); !strings.Contains(text, "warning") || !strings.Contains(text, file) {
		t.Errorf("without the file: %q", text)
	}
	if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if text := set(); strings.Contains(text, "warning") {
		t.Errorf("with the file: %q", text)
	}
}
