// SPDX-License-Identifier: Apache-2.0

package turn

import (
	"crypto/hmac"
	"crypto/md5"
	"crypto/rand"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	minSecret = 16  // bytes: 128 bits, below which a secret could be guessed offline from one credential
	maxUser   = 480 // bytes: USERNAME ends at 508 and carries the expiry too
)

// ErrWeakSecret says that a shared secret has fewer than 16 bytes.
var ErrWeakSecret = errors.New("secret is shorter than 16 bytes")

// Credential is what a TURN client logs in with. It prints as a placeholder:
// passwords do not belong in logs.
type Credential struct {
	// Username is "<unix expiry>:<user>".
	Username string
	// Password is base64(HMAC-SHA1(secret, Username)).
	Password string
	// ExpiresAt is the second from which the server refuses the credential.
	ExpiresAt time.Time
}

// String hides the password.
func (c Credential) String() string { return "[credential]" }

// GoString hides the password.
func (c Credential) GoString() string { return c.String() }

// LogValue hides the password.
func (c Credential) LogValue() slog.Value { return slog.StringValue(c.String()) }

// Secrets mints the expiring credentials of the TURN REST convention
// (draft-uberti-behave-turn-rest-00) and verifies them. It keeps no record of
// what it minted: the secret is the record, so servers that share one accept
// each other's credentials. It is safe for concurrent use. The zero value
// mints nothing that anybody accepts, and accepts nothing.
type Secrets struct {
	mu                sync.RWMutex // guards the fields below
	current, previous []byte
	awaited           bool // another current is on its way
}

// NewSecrets returns secrets that mint with current and accept previous as
// well, so that a new secret can be given out while credentials of the old one
// are still in use. A nil current is drawn at random; a nil previous means none.
func NewSecrets(current, previous []byte) (*Secrets, error) {
	if current == nil {
		current = make([]byte, 32)
		rand.Read(current) // never fails (crypto/rand)
	}
	if len(current) < minSecret {
		return nil, fmt.Errorf("current turn secret: %w", ErrWeakSecret)
	}
	if previous != nil && len(previous) < minSecret {
		return nil, fmt.Errorf("previous turn secret: %w", ErrWeakSecret)
	}
	return &Secrets{current: slices.Clone(current), previous: slices.Clone(previous)}, nil
}

// Await has the server answer no request with a credential until Rotate or
// Settle is called: the secret that those were minted with is on its way. A
// server that refused them would have clients give up credentials that are good.
func (s *Secrets) Await() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.awaited = true
}

// Settle ends Await: no other secret is to be expected.
func (s *Secrets) Settle() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.awaited = false
}

// Rotate makes next the secret to mint with; the one before stays good for
// what was minted with it, the one before that is forgotten.
func (s *Secrets) Rotate(next []byte) error {
	if len(next) < minSecret {
		return fmt.Errorf("next turn secret: %w", ErrWeakSecret)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.previous, s.current, s.awaited = s.current, slices.Clone(next), false
	return nil
}

// Mint returns a credential for user that ends after ttl. The server counts
// quotas by user and hands it to the hooks of its Config. A user that is empty
// or longer than 480 bytes gets the zero Credential, which no server accepts.
func (s *Secrets) Mint(user string, ttl time.Duration) Credential {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if user == "" || len(user) > maxUser || len(s.current) == 0 {
		return Credential{}
	}
	expiry := time.Now().Add(ttl).Unix()
	username := strconv.FormatInt(expiry, 10) + ":" + user
	return Credential{Username: username, Password: password(s.current, username), ExpiresAt: time.Unix(expiry, 0)}
}

// failure tells why a request is not authenticated. It is for metrics alone:
// the client learns nothing but 401.
type failure string

const (
	authenticated failure = ""
	anonymous     failure = "anonymous"
	mismatch      failure = "mismatch"
	expired       failure = "expired"
	revoked       failure = "revoked"
	undecided     failure = "undecided" // the secret is awaited
)

// authenticate finds out who signed m for realm, and with which long-term key
// (RFC 8489 section 9.2.2). Every failure costs the same work: the MAC is
// computed before anything is said about the user or the expiry.
func (s *Secrets) authenticate(m message, realm string, now time.Time) (user string, key []byte, _ failure) {
	signed, mac := m.split()
	username, ok := signed.get(attrUsername)
	if mac == nil || !ok {
		return "", nil, anonymous
	}
	keys, awaited := s.keys(string(username), realm)
	for _, k := range keys {
		if hmac.Equal(signed.mac(k), mac) {
			key = k
		}
	}
	end, user, ok := strings.Cut(string(username), ":")
	expiry, err := strconv.ParseUint(end, 10, 63)
	switch {
	case key == nil && awaited:
		return "", nil, undecided
	case key == nil, !ok, err != nil, user == "":
		return "", nil, mismatch
	case now.Unix() >= int64(expiry):
		return "", nil, expired
	}
	return user, key, authenticated
}

// keys returns the long-term keys of username under each secret, and whether
// there may soon be another.
func (s *Secrets) keys(username, realm string) (keys [][]byte, awaited bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, secret := range [][]byte{s.current, s.previous} {
		if len(secret) == 0 {
			continue
		}
		key := md5.Sum([]byte(username + ":" + realm + ":" + password(secret, username)))
		keys = append(keys, key[:])
	}
	return keys, s.awaited
}

// draw returns a number for a user, the n-th of many, which is the same as long
// as the secret is and which nobody can tell who does not know that.
func (s *Secrets) draw(user string, n int) uint32 {
	s.mu.RLock()
	defer s.mu.RUnlock()
	h := hmac.New(sha256.New, s.current)
	fmt.Fprintf(h, "relay port %d of %s", n, user) // a hash takes everything
	return binary.BigEndian.Uint32(h.Sum(nil))
}

func password(secret []byte, username string) string {
	h := hmac.New(sha1.New, secret)
	h.Write([]byte(username))
	return base64.StdEncoding.EncodeToString(h.Sum(nil))
}
