// SPDX-License-Identifier: Apache-2.0

package remote

import (
	"errors"
	"fmt"
	"strings"

	"github.com/meshgate/meshgate/node/store"
	meshgatev1 "github.com/meshgate/meshgate/proto/meshgate/v1"
)

// maxChange bounds what a change may grow to from its parts, in bytes of keys and
// values. Batches have at most store.MaxBatch; the removal of what has expired
// together may have more.
const maxChange = 64 << 20

// errTooLarge says that a change has more than maxChange.
var errTooLarge = errors.New("change is too large to be watched")

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{store.ErrMalformed}, args...)...)
}

// decodeGet reads the answer to a read of key at a version of no less than least.
func decodeGet(m *meshgatev1.GetResponse, key string, least uint64) (store.Entry, error) {
	if m.GetVersion() < least {
		return store.Entry{}, fmt.Errorf("%w: version %d is less than %d", errBehind, m.GetVersion(), least)
	}
	e, err := store.EntryFromProto(m.GetEntry())
	if err != nil {
		return store.Entry{}, err
	}
	if e.Key != key || e.Version > m.GetVersion() {
		return store.Entry{}, malformed("key %q of version %d in the answer for %q of version %d", e.Key, e.Version, key, m.GetVersion())
	}
	return e, nil
}

// listing is a list that arrives in parts.
type listing struct {
	prefix, after string
	limit         int // 0: none
	least         uint64

	entries []store.Entry
	version uint64
	begun   bool
	whole   bool // the last part is there
}

// add takes the next part.
func (l *listing) add(m *meshgatev1.ListResponse) error {
	switch {
	case l.whole:
		return malformed("a part after the last one of a list")
	case l.begun && m.GetVersion() != l.version:
		return malformed("a list of versions %d and %d", l.version, m.GetVersion())
	case m.GetVersion() < l.least:
		return fmt.Errorf("%w: version %d is less than %d", errBehind, m.GetVersion(), l.least)
	case l.limit > 0 && len(m.GetEntries()) > l.limit-len(l.entries):
		return malformed("more than %d entries", l.limit)
	}
	l.begun, l.version, l.whole = true, m.GetVersion(), m.GetLast()
	for _, p := range m.GetEntries() {
		e, err := store.EntryFromProto(p)
		switch {
		case err != nil:
			return err
		case e.Version > l.version:
			return malformed("key %q of version %d in a list of version %d", e.Key, e.Version, l.version)
		case e.Key <= l.after || !strings.HasPrefix(e.Key, l.prefix):
			return malformed("key %q under prefix %q after %q", e.Key, l.prefix, l.after)
		}
		l.entries, l.after = append(l.entries, e), e.Key
	}
	return nil
}

// changes is a watch that arrives in messages.
type changes struct {
	prefix string
	// after is the version up to which all has arrived.
	after uint64

	part store.Change // of which more is to come; Version is 0 when there is none
	size int          // of part
}

// add takes the next message. It returns a change, once all of it is there, or
// nil after a pulse or a part. after moves with both changes and pulses.
func (c *changes) add(m *meshgatev1.WatchResponse) (*store.Change, error) {
	if len(m.GetEvents()) == 0 {
		return nil, c.pulse(m)
	}
	version := m.GetVersion()
	switch {
	case version <= c.after:
		return nil, malformed("change of version %d after version %d", version, c.after)
	case c.part.Version != 0 && version != c.part.Version:
		return nil, malformed("change of version %d within that of version %d", version, c.part.Version)
	}
	c.part.Version = version
	for _, p := range m.GetEvents() {
		e, err := store.EventFromProto(p, version)
		if err != nil {
			return nil, err
		}
		if !strings.HasPrefix(e.Key, c.prefix) {
			return nil, malformed("key %q under prefix %q", e.Key, c.prefix)
		}
		if c.size += len(e.Key) + len(e.Value); c.size > maxChange {
			return nil, errTooLarge
		}
		c.part.Events = append(c.part.Events, e)
	}
	if m.GetMore() {
		return nil, nil
	}
	whole := c.part
	c.after, c.part, c.size = version, store.Change{}, 0
	return &whole, nil
}

// pulse takes a message without events.
func (c *changes) pulse(m *meshgatev1.WatchResponse) error {
	switch {
	case m.GetMore():
		return malformed("a part of a change without events")
	case c.part.Version != 0:
		return malformed("a pulse within the change of version %d", c.part.Version)
	case m.GetVersion() < c.after:
		return malformed("a pulse of version %d after version %d", m.GetVersion(), c.after)
	}
	c.after = m.GetVersion()
	return nil
}
