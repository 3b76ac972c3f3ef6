// SPDX-License-Identifier: Apache-2.0

package storetest

import (
	"slices"
	"strings"
	"testing"
)

// testPage reads every prefix in pages of every size and compares with a list.
func testPage(t *testing.T, f fixture) {
	f.wantPages("", 1)
	for _, key := range []string{"b/2", "a", "b/1", "b", "c", "b/10", "bb", "ü", "b/\u007f"} {
		f.put(key, "x")
	}
	version := f.delete("c")
	for _, prefix := range []string{"", "b", "b/", "b/1", "b/10", "z", "ü"} {
		for limit := range 10 {
			f.wantPages(prefix, limit+1)
		}
	}
	// The key to begin after need not be there, nor have the prefix.
	for after, want := range map[string]string{
		"": "b/1 b/10 b/2 b/\u007f", "a": "b/1 b/10 b/2 b/\u007f", "b/": "b/1 b/10 b/2 b/\u007f",
		"b/1": "b/10 b/2 b/\u007f", "b/11": "b/2 b/\u007f", "b/2": "b/\u007f", "b/\u007f": "", "c": "", "ü": "",
	} {
		entries, got, err := f.Page(f.ctx, "b/", after, 100)
		if err != nil || got != version {
			t.Fatalf("page after %q: version %d, want %d: %v", after, got, version, err)
		}
		var keys []string
		for _, e := range entries {
			keys = append(keys, e.Key)
		}
		if text := strings.Join(keys, " "); text != want {
			t.Errorf("page after %q: got %q, want %q", after, text, want)
		}
	}
}

// wantPages checks that the pages under prefix, of limit entries but the last,
// hold what a list holds.
func (f fixture) wantPages(prefix string, limit int) {
	f.t.Helper()
	want, _ := f.list(prefix)
	var got []string
	after := ""
	for {
		entries, _, err := f.Page(f.ctx, prefix, after, limit)
		if err != nil || len(entries) > limit {
			f.t.Fatalf("page of %d under %q after %q: %d entries, %v", limit, prefix, after, len(entries), err)
		}
		for _, e := range entries {
			got, after = append(got, e.Key+"="+string(e.Value)), e.Key
		}
		if len(entries) < limit {
			break
		}
	}
	if !slices.Equal(got, want) {
		f.t.Fatalf("pages of %d under %q: got %q, want %q", limit, prefix, got, want)
	}
}
