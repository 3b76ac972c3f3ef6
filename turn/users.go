// SPDX-License-Identifier: Apache-2.0

package turn

import (
	"bufio"
	"bytes"
	"fmt"
	"strings"
	"sync"

	"github.com/meshgate/meshgate/turn/core"
)

// staticPrefix is before the names of static users where they stand beside those
// of Secrets, so that neither has what is the other's.
const staticPrefix = "static:"

const (
	minPassword    = 12 // characters: anybody may guess offline who has seen one request
	maxStaticUsers = 10_000
)

// Users are static users of a server, for applications that cannot ask for expiring
// credentials. To quotas, lists and hooks the user NAME is "static:NAME". AllowUser
// is not asked about them, and AllowPeer has most likely never heard of them: they
// reach AllowNetworks and each other. It is safe for concurrent use; the zero value
// has none.
type Users struct {
	mu        sync.RWMutex // guards passwords
	passwords map[string]string
}

// Set makes the users those of a file of lines NAME:PASSWORD. Empty lines, and
// those that begin with #, are skipped. Who is not there any more is let in no
// more: gone are these users, whose allocations are for Evict to end. On an error
// nothing changes.
func (u *Users) Set(file []byte) (gone []string, err error) {
	passwords := make(map[string]string)
	lines := bufio.NewScanner(bytes.NewReader(file))
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		name, password, ok := strings.Cut(line, ":")
		switch _, twice := passwords[name]; {
		case !ok:
			return nil, fmt.Errorf("line %d of the turn users is not NAME:PASSWORD", n)
		case name == "" || len(staticPrefix+name) > maxUser:
			return nil, fmt.Errorf("line %d of the turn users has a name of %d bytes: give it 1 to %d", n, len(name), maxUser-len(staticPrefix))
		case len(password) < minPassword:
			return nil, fmt.Errorf("line %d of the turn users has a password of %d bytes: give %q at least %d, random ones", n, len(password), name, minPassword)
		case twice:
			return nil, fmt.Errorf("line %d of the turn users has %q again", n, name)
		case len(passwords) == maxStaticUsers:
			return nil, fmt.Errorf("line %d of the turn users is one too many: there may be %d", n, maxStaticUsers)
		}
		passwords[name] = password
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("read turn users: %w", err)
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	for name := range u.passwords {
		if _, ok := passwords[name]; !ok {
			gone = append(gone, staticPrefix+name)
		}
	}
	u.passwords = passwords
	return gone, nil
}

// Len is how many there are.
func (u *Users) Len() int {
	u.mu.RLock()
	defer u.mu.RUnlock()
	return len(u.passwords)
}

// account returns the account of a name; false when there is none.
func (u *Users) account(name []byte, realm string) (core.Account, bool) {
	u.mu.RLock()
	password, ok := u.passwords[string(name)]
	u.mu.RUnlock()
	if !ok {
		return core.Account{}, false
	}
	key := core.NewKey(string(name), realm, password)
	return core.Account{User: staticPrefix + string(name), Keys: []core.Key{key}}, true
}
