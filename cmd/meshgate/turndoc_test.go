// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// What docs/turn.md tells operators to set and to watch is there.
func TestTurnDoc_NamesWhatThereIs(t *testing.T) {
	read := func(name string) string {
		raw, err := os.ReadFile("../../docs/" + name)
		if err != nil {
			t.Fatal(err)
		}
		return string(raw)
	}
	text, flags, metrics := read("turn.md"), read("config.md"), read("metrics.md")
	named := 0
	for _, flag := range regexp.MustCompile(`--[a-z][a-z0-9.-]*[a-z0-9]`).FindAllString(text, -1) {
		named++
		if flag != "--output" && !strings.Contains(flags, "| `"+flag+"` |") {
			t.Errorf("there is no flag %s", flag)
		}
	}
	for _, metric := range regexp.MustCompile(`meshgate_turn_[a-z_]*[a-z]`).FindAllString(text, -1) {
		named++
		if !strings.Contains(metrics, "| `"+metric+"` |") {
			t.Errorf("there is no metric %s", metric)
		}
	}
	if named < 40 {
		t.Errorf("only %d names were found", named)
	}
}
