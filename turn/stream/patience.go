// SPDX-License-Identifier: Apache-2.0

package stream

import "time"

// deadline is until when the client may be silent: a stranger has helloTimeout,
// any frame frameTimeout, and who has an allocation is looked up now and then.
func (c *conn) deadline() time.Time {
	switch {
	case !c.holds:
		return c.since.Add(helloTimeout)
	case !c.partial.IsZero():
		return c.partial.Add(frameTimeout)
	default:
		return c.since.Add(askInterval)
	}
}

// arm sets the read deadline, if it is not early enough already: waking early
// costs less than setting it for each read. It fails when the connection has
// ended or was spliced; whoever does that sets a deadline that this one must not
// push back.
func (c *conn) arm() error {
	now := time.Now()
	switch {
	case c.in == nil:
		c.partial = time.Time{}
	case c.partial.IsZero():
		c.partial = now
	}
	if want := c.deadline(); c.armed.After(want) || !c.armed.After(now) {
		c.armed = want
		_ = c.net.SetReadDeadline(want) // fails on a closed connection, as reading does
	}
	select {
	case <-c.done:
		return errEnded
	default:
	}
	if len(c.handed) > 0 {
		return errSpliced
	}
	return nil
}

// late decides what a read deadline that has passed means.
func (c *conn) late() error {
	c.armed = time.Time{}
	now := time.Now()
	if now.Before(c.deadline()) {
		return nil // it was only early, or it means end or Splice: arm tells
	}
	if c.holds && !c.partial.IsZero() {
		c.abort(Silent)
		return errSilent
	}
	held := c.holds
	if err := c.ask(); err != nil {
		return err
	}
	if !c.holds && !held {
		c.abort(Silent)
		return errSilent
	}
	return nil
}
