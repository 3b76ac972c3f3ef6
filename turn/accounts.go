// SPDX-License-Identifier: Apache-2.0

package turn

import (
	"strings"
	"sync"
	"time"

	"github.com/meshgate/meshgate/turn/core"
)

// accounts are all who may come: core.Authenticator of a server.
type accounts struct {
	realm   string
	secrets *Secrets
	users   *Users // nil: none
	allow   func(user string) bool
}

var _ core.Authenticator = (*accounts)(nil)

// Authenticate implements core.Authenticator.
func (a *accounts) Authenticate(_ time.Time, username []byte) (core.Account, bool) {
	if a.users != nil {
		if account, ok := a.users.account(username, a.realm); ok {
			return account, true
		}
	}
	return a.secrets.account(username, a.realm)
}

// admit says whether a user that has shown its key may come. Static users have
// been let in by the operator.
func (a *accounts) admit(user string) bool {
	return a.allow == nil || strings.HasPrefix(user, staticPrefix) || a.allow(user)
}

// rates are what bounds the bytes of each user that holds allocations: what the
// operator says of every user, or what its credential says if that is less. It is safe
// for concurrent use.
type rates struct {
	// changed is told of a user that has shown a credential of another bound. It is
	// called with requests and must not wait for r.
	changed func(user string)

	mu        sync.Mutex // guards the fields below
	perSecond int64      // of every user; 0: no bound yet
	users     map[string]*userRate
}

// userRate is the rate of a user; rates.mu guards the bound.
type userRate struct {
	*core.Rate
	bound int64 // of the credential that was shown last; 0: it says nothing
}

func newRates(perSecond int64, changed func(user string)) *rates {
	return &rates{perSecond: perSecond, changed: changed, users: make(map[string]*userRate)}
}

// of returns the rate of a user who makes an allocation or refreshes one, by a
// credential with a bound; 0 is none. The rate is there without a bound, too: there may
// be one before the allocation ends.
func (r *rates) of(user string, bound int64) *core.Rate {
	r.mu.Lock()
	defer r.mu.Unlock()
	perSecond := lower(r.perSecond, bound)
	rate := r.users[user]
	if rate == nil {
		rate = &userRate{Rate: core.NewRate(perSecond)}
		r.users[user] = rate
	}
	if rate.bound = bound; rate.PerSecond() != perSecond {
		rate.Set(perSecond)
		r.changed(user)
	}
	return rate.Rate
}

// set changes what every user has, also those who hold something.
func (r *rates) set(perSecond int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.perSecond = perSecond
	for _, rate := range r.users {
		rate.Set(lower(perSecond, rate.bound))
	}
}

// keep forgets the rates of all but those who hold something, and those who have used
// up theirs: they would have another one by making an allocation anew. Who is getting
// an allocation just now holds it already.
func (r *rates) keep(now time.Time, held func(user string) bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for user, rate := range r.users {
		if !held(user) && rate.Idle(now) {
			delete(r.users, user)
		}
	}
}

// lower is the lower one of two bounds; 0 is no bound.
func lower(a, b int64) int64 {
	if a == 0 || b != 0 && b < a {
		return b
	}
	return a
}
