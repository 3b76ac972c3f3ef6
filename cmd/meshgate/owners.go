// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
)

// owner is the user and the group of a file.
type owner struct{ user, group int }

// owners looks at whose files are, and changes it.
type owners struct {
	of     func(fs.FileInfo) (o owner, known bool)
	change func(path string, o owner) error
}

// systemOwners are those of the file system. Where files have no such owners,
// nothing is changed.
var systemOwners = owners{of: ownerOf, change: func(path string, o owner) error { return os.Lchown(path, o.user, o.group) }} //nolint:gochecknoglobals // a constant

// hand gives the named entries of dir, with all inside of them, to the owner of
// dir: what root writes has to be readable by the gateway, which is another user
// under its unit. Entries that are not there are left out.
func (o owners) hand(dir string, names ...string) error {
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	want, known := o.of(info)
	if !known {
		return nil
	}
	for _, name := range names {
		err := filepath.Walk(filepath.Join(dir, name), func(path string, info fs.FileInfo, err error) error {
			if err != nil {
				return err
			}
			if is, _ := o.of(info); is == want {
				return nil
			}
			return o.change(path, want)
		})
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}
