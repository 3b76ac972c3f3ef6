// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"io/fs"
	"net/http"
	"path"
	"strings"
)

// console serves the files of the web console. A path without a file is a page
// of the console, which index.html shows.
type console struct {
	root  fs.FS
	files http.Handler
}

func newConsole(root fs.FS) *console { return &console{root: root, files: http.FileServerFS(root)} }

// ServeHTTP implements http.Handler.
func (c *console) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	name := strings.TrimPrefix(path.Clean("/"+r.URL.Path), "/")
	info, err := fs.Stat(c.root, name)
	switch {
	case name == "" || name == "index.html":
		c.index(w, r)
	case err == nil && info.Mode().IsRegular():
		if strings.HasPrefix(name, "assets/") {
			// Their names hold a hash of their content.
			w.Header().Set("Cache-Control", "public, max-age=31536000, immutable")
		} else {
			w.Header().Set("Cache-Control", "no-cache")
		}
		c.files.ServeHTTP(w, r)
	case path.Ext(name) == "" && strings.Contains(r.Header.Get("Accept"), "text/html"):
		c.index(w, r)
	default:
		http.NotFound(w, r)
	}
}

func (c *console) index(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", "no-cache")
	http.ServeFileFS(w, r, c.root, "index.html")
}
