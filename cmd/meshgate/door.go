// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// doorFile is the socket in its data directory at which a node answers the
// commands of its own host.
const doorFile = "node.sock"

// doorPatience is how long a socket may take to be opened. It is on this host.
const doorPatience = time.Second

// openDoor listens for the commands of this host; nil without a data directory,
// and where that cannot be: they are a convenience, which keeps no node from
// serving.
func (p *nodeProcess) openDoor(ctx context.Context) net.Listener {
	if p.options.dataDir == "" {
		return nil
	}
	l, err := listenDoor(ctx, filepath.Join(p.options.dataDir, doorFile))
	if err != nil {
		p.options.log.Warn("commands on this host will not find the node by themselves", "err", err)
		return nil
	}
	return l
}

// listenDoor opens the socket at path, in place of one that a process left behind
// that is gone. Only its owner, and root, may connect to it.
func listenDoor(ctx context.Context, path string) (_ net.Listener, err error) {
	if answers(ctx, path) {
		return nil, fmt.Errorf("%s is another process's, which serves it: two nodes must not share a data directory", path)
	}
	// It gets its name when nobody else may connect any more.
	unnamed := path + ".new"
	if err := os.Remove(unnamed); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("remove a socket that was left behind: %w", err)
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "unix", unnamed)
	if err != nil {
		return nil, fmt.Errorf("listen for commands of this host: %w", err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false) // it does not know the name
	defer func() {
		if err != nil {
			err = errors.Join(err, l.Close())
		}
	}()
	if err := os.Chmod(unnamed, 0o600); err != nil {
		return nil, fmt.Errorf("close the socket for others: %w", err)
	}
	if err := os.Rename(unnamed, path); err != nil {
		return nil, fmt.Errorf("name the socket: %w", err)
	}
	return &door{Listener: l, path: path}, nil
}

// door is the socket of a node.
type door struct {
	net.Listener
	path string
}

// Accept implements net.Listener. It turns away who is neither the owner nor root.
func (d *door) Accept() (net.Conn, error) {
	for {
		c, err := d.Listener.Accept()
		if err != nil || ownUser(c) {
			return c, err
		}
		_ = c.Close() // nothing was promised to it
	}
}

// Close implements net.Listener, and removes the socket.
func (d *door) Close() error {
	err := d.Listener.Close()
	if gone := os.Remove(d.path); gone != nil && !errors.Is(gone, fs.ErrNotExist) {
		err = errors.Join(err, gone)
	}
	return err
}

// answers reports whether a process serves the socket at path.
func answers(ctx context.Context, path string) bool {
	d := net.Dialer{Timeout: doorPatience}
	c, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return false
	}
	_ = c.Close() // that it could be opened is all that was wanted
	return true
}

// door finds the socket of the node of this host that a command is for: in the
// data directory that was given, or of the only node that runs in the usual
// places. Empty: there is none.
func (c *access) door(ctx context.Context) (string, error) {
	if c.dataDir != "" {
		if _, err := os.Stat(filepath.Join(c.dataDir, localFile)); err == nil {
			return "", nil // a gateway's
		}
		path := filepath.Join(c.dataDir, doorFile)
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
	}
	if c.given {
		return "", nil
	}
	var found []string
	for _, base := range nodeHomes() {
		list, err := filepath.Glob(filepath.Join(base, "nodes", "*", doorFile))
		if err != nil {
			return "", err
		}
		found = append(found, list...)
	}
	found = slices.DeleteFunc(found, func(path string) bool { return !answers(ctx, path) })
	if err := ctx.Err(); err != nil {
		return "", err // who was not asked may be there
	}
	if len(found) > 1 {
		dirs := make([]string, 0, len(found))
		for _, path := range found {
			dirs = append(dirs, filepath.Dir(path))
		}
		return "", usagef("several nodes run on this host; name one with --data-dir: %s", strings.Join(dirs, ", "))
	}
	if len(found) == 1 {
		return found[0], nil
	}
	return "", nil
}

// nodeHomes are the directories in which nodes of this host keep theirs.
func nodeHomes() []string {
	homes := []string{defaultDataDir}
	if home, err := stateHome(); err == nil && os.Geteuid() != 0 {
		homes = append(homes, home)
	}
	return homes
}
