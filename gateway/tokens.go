// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"strings"

	"github.com/meshgate/meshgate/node/mesh"
)

// minToken is the least length of a token in characters. Random ones of this
// length cannot be guessed, so that failures need not be limited.
const minToken = 22

// Tokens authenticates by bearer tokens. Only their hashes are kept.
type Tokens struct {
	fixed map[[sha256.Size]byte]string
	file  *watched[map[[sha256.Size]byte]string] // nil without a file
}

var _ Authenticator = (*Tokens)(nil)

// NewTokens takes fixed tokens, each with the id of its holder, and the path
// of a token file, which may be empty.
//
// A token file has one line per token, "HASH ID", where HASH is the SHA-256 of
// the token in hexadecimal. Empty lines and lines that begin with # are
// skipped. A changed file counts from the next call on; while it cannot be
// read, the tokens read last stay valid.
func NewTokens(fixed map[string]string, path string, logger *slog.Logger) (*Tokens, error) {
	t := &Tokens{fixed: make(map[[sha256.Size]byte]string, len(fixed))}
	for token, id := range fixed {
		if len(token) < minToken {
			return nil, fmt.Errorf("token of %q is shorter than %d characters and could be guessed", id, minToken)
		}
		if err := mesh.ValidName(id); err != nil {
			return nil, fmt.Errorf("holder of a token: %w", err)
		}
		t.fixed[sha256.Sum256([]byte(token))] = id
	}
	if path != "" {
		var err error
		if t.file, err = watch(logger, parseTokens, path); err != nil {
			return nil, fmt.Errorf("token file: %w", err)
		}
	}
	return t, nil
}

// Authenticate implements Authenticator. The time it takes tells nothing of
// value: it depends on the hash of the token, which a guesser cannot steer.
func (t *Tokens) Authenticate(_ context.Context, c Credentials) (Identity, error) {
	if c.Token == "" {
		return Identity{}, ErrOtherKind
	}
	hash := sha256.Sum256([]byte(c.Token))
	if id, ok := t.fixed[hash]; ok {
		return Identity{ID: id}, nil
	}
	if t.file != nil {
		if id, ok := t.file.get()[hash]; ok {
			return Identity{ID: id, Stands: func() bool {
				now, settled := t.file.getSettled()
				return now[hash] == id || !settled
			}}, nil
		}
	}
	return Identity{}, fmt.Errorf("%w: the token is unknown or no longer valid; ask an administrator for a new one", mesh.ErrUnauthenticated)
}

// Generation implements Authenticator.
func (t *Tokens) Generation() uint64 {
	if t.file == nil {
		return 0
	}
	return t.file.generation()
}

// parseTokens reads a token file.
func parseTokens(files [][]byte) (map[[sha256.Size]byte]string, error) {
	tokens := make(map[[sha256.Size]byte]string)
	lines := bufio.NewScanner(bytes.NewReader(files[0]))
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		text, id, _ := strings.Cut(line, " ")
		hash, err := hex.DecodeString(text)
		if err != nil || len(hash) != sha256.Size {
			return nil, fmt.Errorf(`line %d: write "HASH ID" with the SHA-256 of the token in hexadecimal`, n)
		}
		id = strings.TrimSpace(id)
		if err := mesh.ValidName(id); err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		key := [sha256.Size]byte(hash)
		if _, ok := tokens[key]; ok {
			return nil, fmt.Errorf("line %d: a token that is there already", n)
		}
		tokens[key] = id
	}
	if err := lines.Err(); err != nil {
		return nil, errors.Join(errors.New("read lines"), err)
	}
	return tokens, nil
}
