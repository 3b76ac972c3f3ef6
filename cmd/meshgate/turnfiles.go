// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/meshgate/meshgate/turn"
)

// turnFilesEach is how often the files of TURN are read again: what has changed is
// taken over when two looks have found the same, since who writes a file may not be
// done. maxTURNFile is how large they may be.
const (
	turnFilesEach = 5 * time.Second
	maxTURNFile   = 4 << 20
)

// followedFile is a file that is read again as it changes.
type followedFile struct {
	flag, path string
	taken      []byte // what it said when that was taken over, or refused
	next       []byte // what the last look found, if that is something else; nil: nothing
	failed     int    // looks in a row at which it could not be read
}

// openTURNFiles makes the secrets and the users of TURN, of files if the operator
// has given some.
func (p *gatewayProcess) openTURNFiles() error {
	var lines [2][]byte
	if file := p.cfg.turnSecretFile; file != "" {
		raw, err := readTURNFile(file)
		if err != nil {
			return fmt.Errorf("read TURN secret (--turn.secret-file): %w", err)
		}
		if lines, err = secretLines(raw); err != nil {
			return usagef("--turn.secret-file %s %w", file, err)
		}
		p.secretFile = followedFile{flag: "--turn.secret-file", path: file, taken: raw}
	}
	var err error
	if p.secrets, err = turn.NewSecrets(lines[0], lines[1]); err != nil {
		return fmt.Errorf("TURN secret: %w", err)
	}
	if lines[0] == nil {
		p.secrets.Await() // that of the mesh
	}
	file := p.cfg.turnUsersFile
	if file == "" {
		return nil
	}
	raw, err := readTURNFile(file)
	if err != nil {
		return fmt.Errorf("read TURN users (--turn.users-file): %w", err)
	}
	p.usersFile = followedFile{flag: "--turn.users-file", path: file, taken: raw}
	p.turnUsers = &turn.Users{}
	if _, err := p.turnUsers.Set(raw); err != nil {
		return usagef("--turn.users-file %s: %w", file, err)
	}
	return nil
}

func readTURNFile(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, unreadable(err)
	}
	if info.Size() > maxTURNFile {
		return nil, fmt.Errorf("%s has %d bytes: it may have %d", path, info.Size(), maxTURNFile)
	}
	raw, err := os.ReadFile(path)
	return raw, unreadable(err)
}

// unreadable adds to an error of a file who it is that may not read it: files are
// often made by root, which the gateway seldom runs as.
func unreadable(err error) error {
	if errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("%w: the user that runs the gateway (uid %d) must be able to read the file and to enter its directories", err, os.Geteuid())
	}
	return err
}

// secretLines reads a file of secrets: the first line mints credentials, those of
// the second, if there is one, are taken as well.
func secretLines(raw []byte) (lines [2][]byte, err error) {
	n := 0
	for line := range bytes.Lines(raw) {
		line = bytes.TrimSpace(line)
		if len(line) == 0 {
			continue
		}
		if n == len(lines) {
			return lines, errors.New("has more than two lines: give it a secret to mint with, and one more of which credentials are still in use")
		}
		lines[n] = line
		n++
	}
	if n == 0 {
		return lines, errors.New("is empty")
	}
	return lines, nil
}

// followTURN reads what the operator has written for TURN again as it changes, until
// ctx ends, also while the gateway waits for others: it relays meanwhile. A word of
// again has it read at once. What is wrong is told once, and what was read before
// goes on.
func (p *gatewayProcess) followTURN(ctx context.Context, again <-chan os.Signal) {
	tick := time.NewTicker(turnFilesEach)
	defer tick.Stop()
	for looks := 1; ; {
		select {
		case <-ctx.Done():
			return
		case <-again:
			p.log.Info("told to read files again: those of TURN are read now; tokens, passwords and certificates are followed anyway, all else holds from the next start on")
			p.rereadTURNFiles(true)
			p.rereadConfig()
		case <-tick.C:
			p.rereadTURNFiles(false)
			if looks++; looks%2 == 0 {
				p.rereadConfig()
			}
		}
	}
}

// rereadTURNFiles takes over what has changed in the files of TURN: at once if it is
// whole, else when the next look finds the same.
func (p *gatewayProcess) rereadTURNFiles(whole bool) {
	if p.turn == nil {
		return
	}
	p.reread(&p.secretFile, whole, func(raw []byte) error {
		lines, err := secretLines(raw)
		if err != nil {
			return err
		}
		return p.secrets.Replace(lines[0], lines[1])
	})
	p.reread(&p.usersFile, whole, p.takeUsers)
}

// takeUsers makes the users those of a file, and ends the relays of who is gone. A file
// without a line is none that somebody has written.
func (p *gatewayProcess) takeUsers(raw []byte) error {
	before := p.turnUsers.Len()
	if before > 0 && len(bytes.TrimSpace(raw)) == 0 {
		return errors.New("is empty; to have no users give it a line that begins with #")
	}
	gone, err := p.turnUsers.Set(raw)
	if len(gone)*2 > before {
		p.log.Warn("more than half of the users are no longer in --turn.users-file", "n", len(gone))
	}
	for _, user := range gone {
		if n := p.turn.Evict(user); n > 0 {
			p.log.Info("relays ended: their user is no longer in --turn.users-file", "user", user, "n", n)
		}
	}
	return err
}

// reread hands the text of a file to take if it is not what it was, and whole or the
// same as at the last look.
func (p *gatewayProcess) reread(f *followedFile, whole bool, take func(raw []byte) error) {
	if f.path == "" {
		return
	}
	raw, err := readTURNFile(f.path)
	if err != nil {
		f.next = nil
		if f.failed++; f.failed == 2 || whole { // one that is not there for a moment is being replaced
			p.log.Warn("a file of TURN cannot be read; what it said before goes on, and the next start fails", "flag", f.flag, "err", err)
		}
		return
	}
	if f.failed >= 2 {
		p.log.Info("a file of TURN can be read again", "flag", f.flag)
	}
	f.failed = 0
	switch {
	case bytes.Equal(raw, f.taken):
		f.next = nil
		return
	case !whole && (f.next == nil || !bytes.Equal(raw, f.next)):
		f.next = raw
		return
	}
	f.taken, f.next = raw, nil
	if err := take(raw); err != nil {
		p.log.Warn("a file of TURN is not taken over; what it said before goes on", "flag", f.flag, "err", err)
		return
	}
	p.log.Info("a file of TURN was read again", "flag", f.flag)
}
