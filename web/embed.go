// SPDX-License-Identifier: Apache-2.0

// Package web holds the built files of the web console.
package web

import (
	"embed"
	"io/fs"
)

// dist is what the console's build wrote; only a placeholder without it, so
// that the Go program builds without npm.
//
//go:embed all:console/dist
var dist embed.FS

// Console returns the files of the console, index.html at the root; false when
// the console was not built into this program.
func Console() (files fs.FS, ok bool) {
	files, err := fs.Sub(dist, "console/dist")
	if err != nil {
		return nil, false
	}
	if _, err := fs.Stat(files, "index.html"); err != nil {
		return nil, false
	}
	return files, true
}
