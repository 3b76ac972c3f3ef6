// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// attempt is how long a replica may work on one request.
	attempt = time.Second
	// persistence is how long a client tries to get an operation done that
	// surely did not happen yet.
	persistence = 15 * time.Second
	// retryPause is the pause before the next attempt.
	retryPause = 30 * time.Millisecond
	// slots are how many keys are in use at a time.
	slots = 10
	// perKey is how many operations a key gets before another one takes its
	// place: what the checker has to look at grows fast with it.
	perKey = 120
)

// keyspace hands out the keys of the moment.
type keyspace struct {
	mu   sync.Mutex // guards the fields below
	uses [slots]int
}

func (k *keyspace) pick(random *rand.Rand) string {
	slot := random.IntN(slots)
	k.mu.Lock()
	defer k.mu.Unlock()
	n := k.uses[slot]
	k.uses[slot]++
	return keyOf(slot, n/perKey)
}

// all are the keys that were ever handed out.
func (k *keyspace) all() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	var keys []string
	for slot, n := range k.uses {
		for generation := range (n + perKey - 1) / perKey {
			keys = append(keys, keyOf(slot, generation))
		}
	}
	return keys
}

func keyOf(slot, generation int) string { return fmt.Sprintf("/chaos/%d/%d", slot, generation) }

// clients use the cluster.
type clients struct {
	addresses []string // of all replicas
	history   *history
	keys      keyspace
	pace      time.Duration // the longest pause between two operations
	names     atomic.Int64  // of clients; whoever loses an answer goes on as another one
	// worst is the error of an answer that no replica should give.
	worst atomic.Pointer[error]
}

// client is one of them, with a connection to each replica.
type client struct {
	*clients
	id     int
	n      int // operations
	random *rand.Rand
	links  []*link
	at     int // the replica in use
}

func (c *clients) newClient(seed uint64) *client {
	one := &client{clients: c, id: int(c.names.Add(1)), random: rand.New(rand.NewPCG(seed, 1))}
	for _, address := range c.addresses {
		one.links = append(one.links, &link{address: address})
	}
	one.at = one.random.IntN(len(one.links))
	return one
}

func (c *client) close() {
	for _, l := range c.links {
		l.close()
	}
}

// run makes operations until ctx ends.
func (c *client) run(ctx context.Context) {
	defer c.close()
	for ctx.Err() == nil {
		c.operate(ctx)
		if c.pace > 0 {
			pause(ctx, time.Duration(c.random.Int64N(int64(c.pace))))
		}
		if c.random.IntN(50) == 0 {
			c.next()
		}
	}
}

// next turns to another replica.
func (c *client) next() { c.at = (c.at + 1 + c.random.IntN(len(c.links)-1)) % len(c.links) }

// operate makes one operation of a random kind.
func (c *client) operate(ctx context.Context) {
	key := c.keys.pick(c.random)
	switch kind := c.random.IntN(10); {
	case kind < 4:
		c.read(ctx, key)
	case kind < 7:
		c.write(ctx, step{key: key, write: c.value()}, 0)
	case kind < 8:
		c.write(ctx, step{key: key}, 0)
	default: // compare and set, or compare and remove
		seen, ok := c.read(ctx, key)
		if !ok {
			return
		}
		in := step{key: key, write: c.value(), swap: true, old: seen.Value}
		if c.random.IntN(5) == 0 {
			in.write = ""
		}
		c.write(ctx, in, seen.Version)
	}
}

// value is one that nobody else writes.
func (c *client) value() string {
	c.n++
	return fmt.Sprintf("%d.%d", c.id, c.n)
}

// read asks replicas until one answers.
func (c *client) read(ctx context.Context, key string) (response, bool) {
	call := c.history.now()
	for until := time.Now().Add(persistence); time.Now().Before(until) && ctx.Err() == nil; c.next() {
		r, err := c.links[c.at].ask(request{Verb: verbGet, Key: key, Within: attempt})
		if err == nil && r.Status == statusOK {
			c.history.answered(c.id, call, step{key: key, read: true}, result{value: r.Value})
			return r, true
		}
		pause(ctx, retryPause)
	}
	c.history.skipped()
	return response{}, false
}

// write asks replicas until one has done it, or may have.
func (c *client) write(ctx context.Context, in step, version uint64) {
	call := c.history.now()
	r := request{Verb: verbPut, Key: in.key, Value: in.write, Delete: in.write == "", Swap: in.swap, If: version, Within: attempt}
	for until := time.Now().Add(persistence); time.Now().Before(until) && ctx.Err() == nil; c.next() {
		answer, err := c.links[c.at].ask(r)
		var notSent notSentError
		switch {
		case errors.As(err, &notSent), err == nil && answer.Status == statusRefused:
			pause(ctx, retryPause)
			continue
		case err != nil || answer.Status == statusUnknown:
			c.history.lost(c.id, call, in)
			c.id = int(c.names.Add(1))
			c.next()
		case answer.Status == statusConflict && !in.swap || answer.Status != statusOK && answer.Status != statusConflict:
			err := fmt.Errorf("%s answers %+v to %+v", c.links[c.at].address, answer, r)
			c.worst.Store(&err)
		default:
			c.history.answered(c.id, call, in, result{conflict: answer.Status == statusConflict})
		}
		return
	}
	c.history.skipped()
}

// readAll reads every key at one replica.
func (c *clients) readAll(ctx context.Context, replica int) error {
	keys := make(chan string)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer close(keys)
	errs := make(chan error, 1)
	for range 4 {
		wg.Go(func() {
			one := c.newClient(0)
			defer one.close()
			one.at = replica
			for key := range keys {
				if err := one.readAt(ctx, key); err != nil {
					select {
					case errs <- err:
					default:
					}
				}
			}
		})
	}
	for _, key := range c.keys.all() {
		select {
		case keys <- key:
		case err := <-errs:
			return err
		}
	}
	return nil
}

// readAt reads a key at the client's replica and at no other.
func (c *client) readAt(ctx context.Context, key string) (err error) {
	call := c.history.now()
	for until := time.Now().Add(persistence); time.Now().Before(until) && ctx.Err() == nil; {
		var r response
		r, err = c.links[c.at].ask(request{Verb: verbGet, Key: key, Within: attempt})
		if err == nil && r.Status == statusOK {
			c.history.answered(c.id, call, step{key: key, read: true}, result{value: r.Value})
			return nil
		}
		if err == nil {
			err = errors.New(r.Error)
		}
		pause(ctx, retryPause)
	}
	return fmt.Errorf("read %s at %s: %w", key, c.links[c.at].address, errors.Join(err, ctx.Err()))
}

// pause waits for d or until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
