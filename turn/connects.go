// SPDX-License-Identifier: Apache-2.0

package turn

import (
	"sync"
	"time"
)

// connects bounds how fast each user connects its relays of TCP to peers: what is
// refused by the one and taken by the other tells who has which ports open. It is
// safe for concurrent use.
type connects struct {
	mu        sync.Mutex // guards the fields below
	perSecond int
	users     map[string]time.Time // until when what they may do is spent
}

// take says whether a user may connect at now, after a burst of two seconds' worth.
func (c *connects) take(now time.Time, user string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	each := time.Second / time.Duration(c.perSecond)
	at := c.users[user]
	if first := now.Add(each - 2*time.Second); at.Before(first) {
		at = first
	}
	if at.After(now) {
		return false
	}
	c.users[user] = at.Add(each)
	return true
}

// set changes the bound.
func (c *connects) set(perSecond int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.perSecond = perSecond
}

// sweep forgets users who may do all again.
func (c *connects) sweep(now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for user, at := range c.users {
		if now.Sub(at) > 2*time.Second {
			delete(c.users, user)
		}
	}
}
