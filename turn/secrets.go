// SPDX-License-Identifier: Apache-2.0

package turn

import (
	"crypto/hmac"
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

	"github.com/meshgate/meshgate/turn/core"
)

const (
	minSecret = 16      // bytes: 128 bits, below which a secret could be guessed offline from one credential
	maxUser   = 480     // bytes: USERNAME ends at 508 and carries the expiry and the bound, too
	maxExpiry = 1 << 33 // seconds: in the year 2242, which is never, and near enough to be counted in nanoseconds
	maxBound  = 1 << 40 // bytes per second: more than any host relays, and 13 digits of a USERNAME
)

// ErrWeakSecret says that a shared secret has fewer than 16 bytes.
var ErrWeakSecret = errors.New("secret is shorter than 16 bytes")

// Credential is what a TURN client logs in with. It prints as a placeholder:
// passwords do not belong in logs.
type Credential struct {
	// Username is "<unix expiry>:<user>", or "<unix expiry>/<bytes per second>:<user>"
	// with a bound.
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
// each other's credentials, and the bounds in them. It is safe for concurrent use. The zero value
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

// Replace makes current and previous the secrets, as NewSecrets would: what others
// were minted with is refused.
func (s *Secrets) Replace(current, previous []byte) error {
	next, err := NewSecrets(current, previous)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.current, s.previous, s.awaited = next.current, next.previous, false
	return nil
}

// Mint returns a credential for user that ends after ttl. The server counts
// quotas by user and hands it to the hooks of its Config. A user that is empty,
// longer than 480 bytes or begins with "static:" gets the zero Credential, which
// no server accepts.
func (s *Secrets) Mint(user string, ttl time.Duration) Credential {
	return s.MintBounded(user, ttl, 0)
}

// MintBounded is Mint for a user whose allocations relay no more than so many bytes per
// second, all together and in both directions, at whichever server they are: the
// bound is part of what the secret signs. 0 or less is no bound. It adds to what a server
// has for every user (Limits.BytesPerSecond): the lower one counts.
func (s *Secrets) MintBounded(user string, ttl time.Duration, bytesPerSecond int64) Credential {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if !usable(user) || len(s.current) == 0 {
		return Credential{}
	}
	expiry := time.Now().Add(ttl).Unix()
	username := strconv.FormatInt(expiry, 10)
	if bytesPerSecond > 0 {
		username += "/" + strconv.FormatInt(min(bytesPerSecond, maxBound), 10)
	}
	username += ":" + user
	return Credential{Username: username, Password: password(s.current, username), ExpiresAt: time.Unix(expiry, 0)}
}

// account returns what core shall know of a username of the convention, in a
// realm, at a moment: the keys under each secret, the bound, and the end of it. Whether
// the client has one of the keys, and whether the end has come, is for core to find out.
func (s *Secrets) account(username []byte, realm string) (core.Account, bool) {
	name := string(username)
	a, ok := parseUsername(name)
	if !ok {
		return core.Account{}, false
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	a.Awaited, a.Drawn = s.awaited, true
	for _, secret := range [][]byte{s.current, s.previous} {
		if len(secret) > 0 {
			a.Keys = append(a.Keys, core.NewKey(name, realm, password(secret, name)))
		}
	}
	return a, true
}

// parseUsername reads a username of the convention, in which a bound may stand behind
// the expiry. The expiry is digits alone elsewhere, so that nobody's username is taken
// for one with a bound. A bound that is none is refused, and so is 0: who mints it
// means something else than no bound.
func parseUsername(name string) (core.Account, bool) {
	head, user, ok := strings.Cut(name, ":")
	end, bound, bounded := strings.Cut(head, "/")
	expiry, err := strconv.ParseUint(end, 10, 63)
	if !ok || err != nil || !usable(user) {
		return core.Account{}, false
	}
	a := core.Account{User: user, Expires: time.Unix(int64(min(expiry, maxExpiry)), 0)}
	if bounded {
		n, err := strconv.ParseUint(bound, 10, 63)
		if err != nil || n == 0 {
			return core.Account{}, false
		}
		a.BytesPerSecond = int64(min(n, maxBound))
	}
	return a, true
}

// usable says whether there can be a credential for user.
func usable(user string) bool {
	return user != "" && len(user) <= maxUser && !strings.HasPrefix(user, staticPrefix)
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
