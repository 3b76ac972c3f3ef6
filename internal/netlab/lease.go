// SPDX-License-Identifier: Apache-2.0

//go:build linux

package netlab

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// leases is where each lab has a file with its name. The process that runs the
// lab holds a lock on it, which the kernel takes away when the process ends,
// however it ends: a file without a lock tells of leftovers.
const leases = "/run/meshgate-netlab"

// lease is the right to a name.
type lease struct {
	name string
	file *os.File
}

// newLease takes a name that begins with prefix.
func newLease(prefix string) (*lease, error) {
	if err := os.MkdirAll(leases, 0o700); err != nil {
		return nil, fmt.Errorf("lease a name: %w", err)
	}
	for range 100 {
		name := fmt.Sprintf("%s-%06x", prefix, rand.N(1<<24))
		file, err := os.OpenFile(filepath.Join(leases, name), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("lease a name: %w", err)
		}
		// Whoever sweeps right now may have taken the file for a leftover.
		if locked(file) {
			return &lease{name: name, file: file}, nil
		}
		_ = file.Close()
	}
	return nil, fmt.Errorf("lease a name: all names that were tried are taken; look into %s", leases)
}

// end gives the name back. Nothing that bears it may be left.
func (l *lease) end() error {
	return errors.Join(os.Remove(l.file.Name()), l.file.Close())
}

// locked reports whether the file could be locked and still is the one that
// its name stands for.
func locked(file *os.File) bool {
	if unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
		return false
	}
	here, err := file.Stat()
	if err != nil {
		return false
	}
	there, err := os.Stat(file.Name())
	return err == nil && os.SameFile(here, there)
}

// sweep removes the leftovers of labs whose process is gone.
func sweep() error {
	list, err := os.ReadDir(leases)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("sweep leftovers: %w", err)
	}
	var errs []error
	for _, entry := range list {
		if err := sweepOne(entry.Name()); err != nil {
			errs = append(errs, fmt.Errorf("sweep leftovers of %s: %w", entry.Name(), err))
		}
	}
	return errors.Join(errs...)
}

func sweepOne(name string) error {
	file, err := os.OpenFile(filepath.Join(leases, name), os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // its owner was quicker
	}
	if err != nil {
		return err
	}
	defer file.Close()
	if !locked(file) {
		return nil // its owner lives
	}
	spaces, err := os.ReadDir(netnsDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var paths []string
	for _, s := range spaces {
		if strings.HasPrefix(s.Name(), name+".") {
			paths = append(paths, filepath.Join(netnsDir, s.Name()))
		}
	}
	if err := discard(paths); err != nil {
		return err // the file stays, for the next one to try
	}
	return os.Remove(file.Name())
}
