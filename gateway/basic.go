// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"bufio"
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/bcrypt"
	"golang.org/x/sync/singleflight"

	"github.com/meshgate/meshgate/node/mesh"
)

const (
	// minCost is the least bcrypt cost that a password file may use.
	minCost = 12
	// maxPassword is how much of a password bcrypt looks at, in bytes.
	maxPassword = 72
	// userFailures may happen at once for one user from one network, and then
	// again at userFailureRate per second. The same holds for a network as a
	// whole, whatever names it tries.
	userFailures       = 5
	userFailureRate    = 5.0 / 60
	networkFailures    = 50
	networkFailureRate = 50.0 / 60
	// provenFor is how long a right password is remembered, so that a client
	// that calls often does not cost a bcrypt each time.
	provenFor = time.Minute
	maxProven = 4096
)

// Passwords authenticates users by an htpasswd file with bcrypt hashes.
type Passwords struct {
	users   *watched[passwordFile]
	byUser  *buckets // failures by network and user
	byNet   *buckets // failures by network
	looks   singleflight.Group
	working chan struct{} // a slot per bcrypt under way: the CPU is for others too

	key    [sha256.Size]byte // random; without it proven is of no use to a reader of memory dumps
	mu     sync.Mutex        // guards proven
	proven map[[sha256.Size]byte]time.Time
}

var _ Authenticator = (*Passwords)(nil)

// passwordFile is a parsed htpasswd file.
type passwordFile struct {
	hashes map[string][]byte
	// dummy is compared when the user is unknown, at the same cost as the
	// others, so that the time of the answer does not tell who exists.
	dummy []byte
}

// hash is the hash to compare a password of user with, and whether it may match.
func (f passwordFile) hash(user string) (hash []byte, known bool) {
	if hash, known = f.hashes[user]; !known {
		return f.dummy, false
	}
	return hash, true
}

// NewPasswords reads the htpasswd file at path: lines "NAME:HASH" with bcrypt
// hashes of cost 12 or more, as "htpasswd -B -C 12" writes them. A changed file
// counts from the next call on.
func NewPasswords(path string, logger *slog.Logger) (*Passwords, error) {
	return newPasswords(path, logger, minCost)
}

func newPasswords(path string, logger *slog.Logger, cost int) (*Passwords, error) {
	p := &Passwords{
		byUser:  newBuckets(userFailureRate, userFailures),
		byNet:   newBuckets(networkFailureRate, networkFailures),
		working: make(chan struct{}, max(1, runtime.GOMAXPROCS(0)/2)),
		proven:  make(map[[sha256.Size]byte]time.Time),
	}
	if _, err := rand.Read(p.key[:]); err != nil {
		return nil, fmt.Errorf("draw a key: %w", err)
	}
	var err error
	p.users, err = watch(logger, func(files [][]byte) (passwordFile, error) { return parsePasswords(files[0], cost) }, path)
	if err != nil {
		return nil, fmt.Errorf("password file: %w", err)
	}
	return p, nil
}

// Authenticate implements Authenticator. A token is taken from the buckets
// before the password is looked at and given back when it is right: guesses
// that are made at the same time count too.
func (p *Passwords) Authenticate(_ context.Context, c Credentials) (Identity, error) {
	if c.Username == "" {
		return Identity{}, ErrOtherKind
	}
	hash, known := p.users.get().hash(c.Username)
	proof := p.proof(c, hash)
	if known && p.isProven(proof) {
		return p.identity(c.Username, hash), nil
	}
	// Equal calls share one look, so that a page which starts with ten calls
	// is not taken for ten guesses.
	_, err, _ := p.looks.Do(string(proof[:]), func() (any, error) { return nil, p.look(c, hash, known) })
	if err != nil {
		return Identity{}, err
	}
	p.remember(proof)
	return p.identity(c.Username, hash), nil
}

// identity is user, whose password matches hash, as long as that is its hash.
func (p *Passwords) identity(user string, hash []byte) Identity {
	return Identity{ID: user, Stands: func() bool {
		file, settled := p.users.getSettled()
		now, known := file.hash(user)
		return known && bytes.Equal(now, hash) || !settled
	}}
}

// Generation implements Authenticator.
func (p *Passwords) Generation() uint64 { return p.users.generation() }

// errTooManyGuesses is the answer without a look at the password.
var errTooManyGuesses = fmt.Errorf("%w: too many wrong passwords; wait a minute", mesh.ErrExhausted)

// lookTimeout is how long a login waits for its turn: bcrypt takes a quarter
// of a second of a core, and others wait, too.
const lookTimeout = 5 * time.Second

// look compares the password of c with hash, if failures before leave it a try.
func (p *Passwords) look(c Credentials, hash []byte, known bool) error {
	from := network(c.From)
	user := from + " " + c.Username
	if !p.byNet.take(from) {
		return errTooManyGuesses
	}
	if !p.byUser.take(user) {
		p.byNet.giveBack(from) // nothing was looked at: others behind the address keep their tries
		return errTooManyGuesses
	}
	busy := time.NewTimer(lookTimeout)
	defer busy.Stop()
	select {
	case p.working <- struct{}{}:
		defer func() { <-p.working }()
	case <-busy.C:
		p.byNet.giveBack(from)
		p.byUser.giveBack(user)
		return fmt.Errorf("%w: too many logins at this moment; try again", mesh.ErrExhausted)
	}
	// bcrypt sees 72 bytes only: two passwords with the same beginning would be one.
	err := bcrypt.CompareHashAndPassword(hash, []byte(c.Password)[:min(len(c.Password), maxPassword)])
	if err != nil || !known || len(c.Password) > maxPassword {
		return fmt.Errorf("%w: user name or password is wrong", mesh.ErrUnauthenticated)
	}
	p.byNet.giveBack(from)
	p.byUser.giveBack(user)
	return nil
}

// proof stands for "this user has shown this password for this hash".
func (p *Passwords) proof(c Credentials, hash []byte) [sha256.Size]byte {
	mac := hmac.New(sha256.New, p.key[:])
	for _, part := range [][]byte{[]byte(c.Username), []byte(c.Password), hash} {
		fmt.Fprintf(mac, "%d:", len(part))
		mac.Write(part)
	}
	return [sha256.Size]byte(mac.Sum(nil))
}

func (p *Passwords) isProven(proof [sha256.Size]byte) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	until, ok := p.proven[proof]
	return ok && time.Now().Before(until)
}

func (p *Passwords) remember(proof [sha256.Size]byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	if len(p.proven) >= maxProven {
		for k, until := range p.proven {
			if now.After(until) {
				delete(p.proven, k)
			}
		}
	}
	if len(p.proven) < maxProven {
		p.proven[proof] = now.Add(provenFor)
	}
}

// parsePasswords reads an htpasswd file whose hashes have at least cost.
func parsePasswords(raw []byte, cost int) (passwordFile, error) {
	f := passwordFile{hashes: make(map[string][]byte)}
	highest := cost
	lines := bufio.NewScanner(bytes.NewReader(raw))
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		name, hash, _ := strings.Cut(line, ":")
		if err := mesh.ValidName(name); err != nil {
			return f, fmt.Errorf("line %d: %w", n, err)
		}
		if _, ok := f.hashes[name]; ok {
			return f, fmt.Errorf("line %d: user %q is there already", n, name)
		}
		have, err := bcrypt.Cost([]byte(hash))
		if err != nil || have < cost {
			return f, fmt.Errorf("line %d: user %q has no bcrypt hash of cost %d or more; write it with htpasswd -B -C %d", n, name, cost, cost)
		}
		highest = max(highest, have)
		f.hashes[name] = []byte(hash)
	}
	if err := lines.Err(); err != nil {
		return f, errors.Join(errors.New("read lines"), err)
	}
	var err error
	if f.dummy, err = bcrypt.GenerateFromPassword([]byte(rand.Text()), highest); err != nil {
		return f, fmt.Errorf("make a hash: %w", err)
	}
	return f, nil
}
