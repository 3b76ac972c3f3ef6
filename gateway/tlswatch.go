// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"crypto/x509"
	"time"
)

const (
	// warnBefore is how long before the end of a certificate its operator is
	// warned, each sayAgain.
	warnBefore = 14 * 24 * time.Hour
	sayAgain   = 24 * time.Hour
	// lookAgain is how soon a log tells that a certificate has ended, or that
	// another one is in its files.
	lookAgain = time.Minute
)

// standing is how clients take a certificate.
type standing int

const (
	good  standing = iota
	soon           // it ends within warnBefore
	early          // it is not valid yet
	ended
)

// standingOf is the standing of a certificate at now.
func standingOf(leaf *x509.Certificate, now time.Time) standing {
	switch {
	case now.After(leaf.NotAfter):
		return ended
	case now.Before(leaf.NotBefore):
		return early
	case leaf.NotAfter.Sub(now) < warnBefore:
		return soon
	}
	return good
}

// watch says in the log when the certificate ends soon, has ended or is another
// one: at once, when that changes, and then once a day. It returns when ctx ends.
func (c *certificates) watch(ctx context.Context) {
	tick := time.NewTicker(lookAgain)
	defer tick.Stop()
	var last judgement
	for {
		last = c.judge(time.Now(), last)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// judgement is what an operator was last told; the zero value is nothing.
type judgement struct {
	leaf     *x509.Certificate
	standing standing
	at       time.Time
}

// judge tells an operator what is wrong with the certificate at now, unless that is
// what last says, and what is new. It returns what the operator knows then.
func (c *certificates) judge(now time.Time, last judgement) judgement {
	leaf := c.current().Leaf
	next := judgement{leaf, standingOf(leaf, now), now}
	other := last.leaf != nil && !leaf.Equal(last.leaf)
	if other {
		c.log.Info("the public certificate is another one", "ends", leaf.NotAfter)
	}
	if last.leaf != nil && !other && next.standing == last.standing && now.Sub(last.at) < sayAgain {
		return last
	}
	switch next.standing {
	case ended:
		c.log.Error("the public certificate has expired, clients refuse it: put a new one into its files", "ended", leaf.NotAfter)
	case early:
		c.log.Error("the public certificate is not valid yet, clients refuse it: is the clock right?", "begins", leaf.NotBefore)
	case soon:
		c.log.Warn("the public certificate ends soon: put a new one into its files", "ends", leaf.NotAfter)
	case good:
	}
	return next
}
