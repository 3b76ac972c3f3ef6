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

// rates are what bounds the bytes of each user that holds allocations. It is safe
// for concurrent use.
type rates struct {
	mu        sync.Mutex // guards the fields below
	perSecond int64      // 0: no bound yet
	users     map[string]*core.Rate
}

// of returns the rate of a user who gets an allocation. It is there without a bound,
// too: there may be one before the allocation ends.
func (r *rates) of(user string) *core.Rate {
	r.mu.Lock()
	defer r.mu.Unlock()
	rate := r.users[user]
	if rate == nil {
		rate = core.NewRate(r.perSecond)
		r.users[user] = rate
	}
	return rate
}

// set changes the rates, also of those who hold something.
func (r *rates) set(perSecond int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.perSecond = perSecond
	for _, rate := range r.users {
		rate.Set(perSecond)
	}
}

// keep forgets the rates of all but those who hold something. Who is getting an
// allocation just now holds it already.
func (r *rates) keep(held func(user string) bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for user := range r.users {
		if !held(user) {
			delete(r.users, user)
		}
	}
}
