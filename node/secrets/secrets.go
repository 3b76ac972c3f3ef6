// SPDX-License-Identifier: Apache-2.0

// Package secrets keeps what the gateways of a mesh share and nobody else may
// know: the hashes of tokens, and the secret of TURN credentials. It is part of
// the replicated state, under keys that no service shows (docs/adr/0014).
package secrets

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/store"
)

const (
	// prefix is where secrets are; the services that show keys know it, too.
	prefix       = "/meshgate/secrets/"
	keyTURN      = prefix + "turn"
	prefixTokens = prefix + "tokens/" // HASH in hexadecimal

	// turnBytes is the length of the TURN secret.
	turnBytes = 32
	// maxTokens bounds the tokens of a mesh: each gateway has them in memory.
	maxTokens = 100_000
	// retryDelay is the pause after the store did not answer.
	retryDelay = time.Second
)

// Secrets are those of a mesh. Run keeps them up to date. All methods may be
// called by many goroutines at a time.
type Secrets struct {
	store store.Store
	log   *slog.Logger
	ready chan struct{} // closed once the state was read
	limit int           // of tokens

	mu         sync.Mutex // guards the fields below
	turn       []byte     // nil before there is one
	tokens     map[[sha256.Size]byte]mesh.Token
	generation uint64
	ended      map[string]time.Time // when holders lost a token, as far as it matters
	changed    chan struct{}        // closed and replaced at every change
}

// New makes Secrets of what s holds. A nil logger discards.
func New(s store.Store, logger *slog.Logger) *Secrets {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	return &Secrets{
		store: s, log: logger.With("component", "secrets"),
		ready: make(chan struct{}), limit: maxTokens,
		tokens: map[[sha256.Size]byte]mesh.Token{}, ended: map[string]time.Time{}, changed: make(chan struct{}),
	}
}

// Run follows the state until ctx ends, and then returns nil.
func (s *Secrets) Run(ctx context.Context) error {
	for {
		err := s.follow(ctx)
		if ctx.Err() != nil || errors.Is(err, store.ErrClosed) {
			return nil
		}
		if !errors.Is(err, store.ErrCompacted) {
			s.log.Warn("secrets of the mesh not followed, trying again", "err", err)
		}
		t := time.NewTimer(retryDelay)
		select {
		case <-ctx.Done():
			t.Stop()
			return nil
		case <-t.C:
		}
	}
}

func (s *Secrets) follow(ctx context.Context) error {
	entries, version, err := s.store.List(ctx, prefix)
	if err != nil {
		return err
	}
	s.load(entries)
	for change, err := range s.store.Watch(ctx, prefix, version) {
		if err != nil {
			return err
		}
		s.apply(change)
	}
	return ctx.Err()
}

// load replaces everything by the entries of a list.
func (s *Secrets) load(entries []store.Entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	before := s.tokens
	s.turn, s.tokens = nil, map[[sha256.Size]byte]mesh.Token{}
	for _, e := range entries {
		s.putLocked(e)
	}
	for hash, token := range before {
		if now, ok := s.tokens[hash]; !ok || now.Holder != token.Holder {
			s.endedLocked(token.Holder)
		}
	}
	s.publishLocked()
	select {
	case <-s.ready:
	default:
		close(s.ready)
	}
}

func (s *Secrets) apply(c store.Change) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range c.Events {
		if !e.Deleted {
			s.putLocked(e.Entry)
		} else if e.Key == keyTURN {
			s.turn = nil
		} else if hash, err := hashOf(e.Key); err == nil {
			if token, ok := s.tokens[hash]; ok {
				s.endedLocked(token.Holder)
			}
			delete(s.tokens, hash)
		}
	}
	s.publishLocked()
}

func (s *Secrets) publishLocked() {
	s.generation++
	close(s.changed)
	s.changed = make(chan struct{})
}

// putLocked takes over a value. One that makes no sense counts as absent.
func (s *Secrets) putLocked(e store.Entry) {
	if e.Key == keyTURN {
		s.turn = slices.Clone(e.Value)
		return
	}
	hash, err := hashOf(e.Key)
	if err != nil {
		s.log.Warn("secret of an unknown kind is left out", "key", e.Key)
		return
	}
	token, err := decodeToken(hash, e.Value)
	if err != nil {
		delete(s.tokens, hash)
		s.log.Warn("token makes no sense and is left out", "key", e.Key, "err", err)
		return
	}
	s.tokens[hash] = token
}

// Ready is closed once the secrets of the state are known.
func (s *Secrets) Ready() <-chan struct{} { return s.ready }

// TURN returns the secret of TURN credentials; nil while there is none. changed
// is closed when the secrets are others.
func (s *Secrets) TURN() (secret []byte, changed <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.turn), s.changed
}

// MakeTURN makes the secret of TURN credentials unless there is one. Of several
// gateways that do at a time one makes it for all.
func (s *Secrets) MakeTURN(ctx context.Context) error {
	if _, err := s.store.Get(ctx, keyTURN); !errors.Is(err, store.ErrNotFound) {
		return err
	}
	secret := make([]byte, turnBytes)
	_, _ = rand.Read(secret) // never fails
	_, err := s.store.Apply(ctx, store.Batch{
		If:  []store.Condition{{Key: keyTURN}},
		Ops: []store.Op{{Key: keyTURN, Value: secret}},
	})
	if err != nil && !errors.Is(err, store.ErrConflict) {
		return fmt.Errorf("make the TURN secret of the mesh: %w", err)
	}
	return nil
}

// hashOf reads the key of a token.
func hashOf(key string) (hash [sha256.Size]byte, err error) {
	text, ok := strings.CutPrefix(key, prefixTokens)
	if !ok {
		return hash, fmt.Errorf("%w: %q is no key of a token", mesh.ErrInvalid, key)
	}
	raw, err := hex.DecodeString(text)
	if err != nil || len(raw) != sha256.Size || hex.EncodeToString(raw) != text {
		return hash, fmt.Errorf("%w: %q is no SHA-256 in hexadecimal", mesh.ErrInvalid, text)
	}
	return [sha256.Size]byte(raw), nil
}

func keyOf(hash [sha256.Size]byte) string { return prefixTokens + hex.EncodeToString(hash[:]) }

// tokenRecord is the value of a token's key.
type tokenRecord struct {
	Holder    string    `json:"holder"`
	CreatedAt time.Time `json:"created_at"`
}

func encodeToken(t mesh.Token) ([]byte, error) {
	return json.Marshal(tokenRecord{Holder: t.Holder, CreatedAt: t.CreatedAt.UTC().Truncate(time.Second)})
}

func decodeToken(hash [sha256.Size]byte, value []byte) (mesh.Token, error) {
	var r tokenRecord
	if err := json.Unmarshal(value, &r); err != nil {
		return mesh.Token{}, fmt.Errorf("%w: %w", mesh.ErrInvalid, err)
	}
	if err := mesh.ValidName(r.Holder); err != nil {
		return mesh.Token{}, fmt.Errorf("holder: %w", err)
	}
	return mesh.Token{Hash: hash, Holder: r.Holder, CreatedAt: r.CreatedAt}, nil
}
