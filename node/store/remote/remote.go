// SPDX-License-Identifier: Apache-2.0

// Package remote is the store of a member that keeps no copy of the state: it
// reads, watches and changes the state through whichever gateway answers.
//
// All of a store's contract holds, whatever gateways come and go:
//
//   - Versions name the same state at every gateway, so a watch that breaks is
//     resumed at another one from the last version that it yielded: no change is
//     lost, none is yielded twice.
//   - Reads never go back in time. Each carries the highest version that this
//     store has seen, in whatever way; a gateway that lags behind it waits, or is
//     passed over. So a change is read by whoever made it, through any gateway.
//   - A batch whose answer was lost is never sent again: it ends with
//     store.ErrUncertain. One that surely was not taken is.
//
// A gateway that fails is left alone for a while that grows with every failure,
// with jitter, and the next one is asked at once. Nothing is cached, and nothing
// runs between calls.
//
// A state that was set back, by a restore from a backup, is behind what a store
// has seen before: it answers no more, and a new one has to be made.
package remote

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/meshgate/meshgate/node/store"
	meshgatev1 "github.com/meshgate/meshgate/proto/meshgate/v1"
	"github.com/meshgate/meshgate/proto/meshgate/v1/meshgatev1connect"
)

// Errors beside those of every store.
var (
	// ErrUnreachable says that no gateway gave an answer in time.
	ErrUnreachable = errors.New("no gateway answers")
	// ErrRefused says that every gateway refuses the caller: it has no right to
	// the state, or the gateways have no such service.
	ErrRefused = errors.New("gateways refuse access to the state")
)

const (
	defaultTimeout  = 5 * time.Second
	defaultPatience = 30 * time.Second
	defaultSilence  = 15 * time.Second
	// applyTimeouts is how many timeouts a change may take: the gateway tells of
	// its own after ten seconds whether it found a leader.
	applyTimeouts = 3
	// pulses is how many signs of life fit into the silence that ends a watch.
	pulses = 3
)

// Gateway is a gateway that keeps the state.
type Gateway struct {
	// Name is for logs and errors: the gateway's id or address.
	Name string
	// Client calls it. It bounds the messages that it takes at no less than 8 MiB,
	// and connections that are dead for long are best given up by it.
	Client meshgatev1connect.StoreClient
}

// Config says how to reach the state.
type Config struct {
	// Gateways are asked in this order; one that answers is asked until it fails.
	// At least one.
	Gateways []Gateway
	// Timeout is how long a gateway may take for the answer to a read, or for the
	// next part of one, until another is asked; a change may take three times as
	// long. 0 is 5 s.
	Timeout time.Duration
	// Patience is how long a read or a change goes on trying, unless its context
	// ends first. Sync and Watch have no end but that of their context. 0 is 30 s.
	Patience time.Duration
	// Silence is how long a watch hears nothing from a gateway, or hears that it is
	// cut off from the others, until it asks another; 0 is 15 s. It is at least
	// 300 ms and at most 3 min.
	Silence time.Duration
	// Logger may be nil: discard logs.
	Logger *slog.Logger
	// Registerer may be nil: metrics are not registered.
	Registerer prometheus.Registerer
}

// Store is a store.Store of the state that gateways keep. New makes one.
type Store struct {
	timeout, patience, silence time.Duration
	members                    *members
	metrics                    *metrics
	// seen is the highest version that any call has shown.
	seen atomic.Uint64
	// life ends with Close; end ends it.
	life context.Context
	end  context.CancelFunc
}

var _ store.Store = (*Store)(nil)

// New makes a store. It asks nobody yet. End it with Close.
func New(cfg Config) (*Store, error) {
	if err := cfg.validate(); err != nil {
		return nil, fmt.Errorf("remote store: %w", err)
	}
	m, err := newMetrics(cfg.Registerer)
	if err != nil {
		return nil, fmt.Errorf("remote store: %w", err)
	}
	s := &Store{timeout: cfg.Timeout, patience: cfg.Patience, silence: cfg.Silence, metrics: m}
	s.members = newMembers(cfg.Gateways, m, cfg.Logger.With("component", "remote"))
	s.life, s.end = context.WithCancel(context.Background())
	return s, nil
}

// validate also replaces zero values by what they stand for.
func (c *Config) validate() error {
	if len(c.Gateways) == 0 {
		return errors.New("Config.Gateways is empty")
	}
	for i, g := range c.Gateways {
		if g.Name == "" || g.Client == nil {
			return fmt.Errorf("Config.Gateways[%d] lacks a name or a client", i)
		}
	}
	for field, v := range map[*time.Duration]time.Duration{
		&c.Timeout: defaultTimeout, &c.Patience: defaultPatience, &c.Silence: defaultSilence,
	} {
		if *field < 0 {
			return errors.New("a time in Config is negative")
		}
		if *field == 0 {
			*field = v
		}
	}
	if c.Silence < 300*time.Millisecond || c.Silence > 3*time.Minute {
		return fmt.Errorf("Config.Silence %s is not between 300 ms and 3 min", c.Silence)
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return nil
}

// Close ends all calls and watches with store.ErrClosed. It does not wait for
// them, so that a watch may call it. It may be called more than once.
func (s *Store) Close() { s.end() }

// saw notes a version of the state.
func (s *Store) saw(version uint64) {
	for {
		seen := s.seen.Load()
		if version <= seen || s.seen.CompareAndSwap(seen, version) {
			return
		}
	}
}

// Get implements store.Store.
func (s *Store) Get(ctx context.Context, key string) (store.Entry, error) {
	var e store.Entry
	if err := s.usable(ctx); err != nil {
		return e, err
	}
	if store.ValidateKey(key) != nil {
		return e, fmt.Errorf("%w: %q", store.ErrNotFound, key) // no state can hold it
	}
	err := s.read(ctx, func(ctx context.Context, c meshgatev1connect.StoreClient) error {
		least := s.seen.Load()
		r, err := c.Get(ctx, connect.NewRequest(&meshgatev1.GetRequest{Key: key, AtLeast: least}))
		if err != nil {
			return err
		}
		e, err = decodeGet(r.Msg, key, least)
		s.sawIf(err, r.Msg.GetVersion())
		return err
	})
	return e, err
}

// sawIf notes the version of an answer that was good.
func (s *Store) sawIf(err error, version uint64) {
	if err == nil {
		s.saw(version)
	}
}

// List implements store.Store.
func (s *Store) List(ctx context.Context, prefix string) ([]store.Entry, uint64, error) {
	return s.list(ctx, prefix, "", 0)
}

// Page implements store.Store.
func (s *Store) Page(ctx context.Context, prefix, after string, limit int) ([]store.Entry, uint64, error) {
	if limit < 1 {
		return nil, 0, fmt.Errorf("%w: page of %d entries", store.ErrInvalid, limit)
	}
	return s.list(ctx, prefix, after, limit)
}

// Sync implements store.Store. What it brings up to date is the gateway that
// answers; every later read asks for no less, also from another one.
func (s *Store) Sync(ctx context.Context) error {
	ctx, cancel := s.open(ctx)
	defer cancel(nil)
	return s.try(ctx, func(ctx context.Context, c meshgatev1connect.StoreClient) error {
		ctx, cancel := context.WithTimeout(ctx, s.timeout)
		defer cancel()
		r, err := c.Sync(ctx, connect.NewRequest(&meshgatev1.SyncRequest{}))
		if err != nil {
			return judgeRead(err)
		}
		s.saw(r.Msg.GetVersion())
		return nil
	})
}

// Apply implements store.Store.
func (s *Store) Apply(ctx context.Context, batch store.Batch) (uint64, error) {
	if err := batch.Validate(); err != nil {
		return 0, err
	}
	if err := s.usable(ctx); err != nil {
		return 0, err
	}
	ctx, cancel := s.open(ctx)
	defer cancel(nil)
	ctx, stop := context.WithTimeoutCause(ctx, s.patience, ErrUnreachable)
	defer stop()
	// Encoded once: the caller may use its values again when this returns.
	request := &meshgatev1.ApplyRequest{Batch: store.BatchToProto(batch)}
	var version uint64
	err := s.try(ctx, func(ctx context.Context, c meshgatev1connect.StoreClient) error {
		ctx, cancel := context.WithTimeout(ctx, applyTimeouts*s.timeout)
		defer cancel()
		r, err := c.Apply(ctx, connect.NewRequest(request))
		if err == nil {
			version = r.Msg.GetVersion()
			s.saw(version)
			return nil
		}
		version = faultOf(err).GetVersion()
		s.saw(version)
		return judgeApply(err)
	})
	return version, err
}

// usable is the error of a call that need not begin.
func (s *Store) usable(ctx context.Context) error {
	if s.life.Err() != nil {
		return store.ErrClosed
	}
	return ctx.Err()
}

// open returns a context for a call, which Close ends.
func (s *Store) open(ctx context.Context) (context.Context, context.CancelCauseFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(s.life, func() { cancel(store.ErrClosed) })
	return ctx, func(cause error) { stop(); cancel(cause) }
}

// read makes a call of a read, with one gateway after the other.
func (s *Store) read(ctx context.Context, call func(context.Context, meshgatev1connect.StoreClient) error) error {
	ctx, cancel := s.open(ctx)
	defer cancel(nil)
	ctx, stop := context.WithTimeoutCause(ctx, s.patience, ErrUnreachable)
	defer stop()
	return s.try(ctx, func(ctx context.Context, c meshgatev1connect.StoreClient) error {
		ctx, cancel := context.WithTimeout(ctx, s.timeout)
		defer cancel()
		err := call(ctx, c)
		s.saw(faultOf(err).GetVersion())
		return judgeRead(err)
	})
}
