// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"math"
	"time"

	"connectrpc.com/connect"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/store"
	meshgatev1 "github.com/meshgate/meshgate/proto/meshgate/v1"
	"github.com/meshgate/meshgate/proto/meshgate/v1/meshgatev1connect"
)

const (
	// MaxStoreMessage is the largest request to the Store service, in bytes: that
	// of the largest batch and what protobuf adds to it.
	MaxStoreMessage = store.MaxBatch + 2<<20
	// MaxStoreFields is the largest number of fields of one, those of the messages
	// in it included: an operation has up to seven, a condition up to three.
	MaxStoreFields = 16 * store.MaxOps
	// storePart is the size of a part of a list or a change, in bytes. Only a
	// single entry makes a larger one.
	storePart = 1 << 20
	// behindPatience is how long a read waits for this gateway to reach the
	// version that it asks for. Replicas lag by milliseconds; one that lags for
	// longer is cut off, and the caller does better at another gateway.
	behindPatience = 2 * time.Second
)

// Store is the replicated state itself; a store.Store is one.
type Store interface {
	List(ctx context.Context, prefix string) ([]store.Entry, uint64, error)
	Page(ctx context.Context, prefix, after string, limit int) ([]store.Entry, uint64, error)
	Apply(ctx context.Context, batch store.Batch) (uint64, error)
	Watch(ctx context.Context, prefix string, after uint64) iter.Seq2[store.Change, error]
	Sync(ctx context.Context) error
}

// storeService serves meshgate.v1.Store. It answers from this gateway's copy of
// the state, and hides what is internal.
type storeService struct {
	store Store // nil on a node that keeps no state
	// synced is shared by the pulses of all watches.
	synced syncs
}

var _ meshgatev1connect.StoreHandler = (*storeService)(nil)

// NewStoreHandler makes the handler of meshgate.v1.Store alone. Who may call it
// is up to the caller.
func NewStoreHandler(s Store, opts ...connect.HandlerOption) Service {
	return late(meshgatev1connect.StoreName, meshgatev1connect.NewStoreHandler, opts)(&storeService{store: s})
}

// Get reads one key.
func (s *storeService) Get(ctx context.Context, req *connect.Request[meshgatev1.GetRequest]) (*connect.Response[meshgatev1.GetResponse], error) {
	key := req.Msg.GetKey()
	if err := s.reach(ctx, req.Msg.GetAtLeast()); err != nil {
		return nil, err
	}
	if err := store.ValidateKey(key); err != nil {
		return nil, faulty(fmt.Errorf("key: %w", err), 0)
	}
	// A key is the first of those that it is a prefix of. A page tells the
	// version of the state, too.
	page, version, err := s.store.Page(ctx, key, "", 1)
	if err != nil {
		return nil, faulty(err, 0)
	}
	if internal(key) || len(page) == 0 || page[0].Key != key {
		return nil, faulty(fmt.Errorf("%w: %q", store.ErrNotFound, key), version)
	}
	return connect.NewResponse(&meshgatev1.GetResponse{Entry: store.EntryToProto(page[0]), Version: version}), nil
}

// List sends the keys with a prefix. A client that reads slowly holds the
// entries of one version, and nobody up.
func (s *storeService) List(ctx context.Context, req *connect.Request[meshgatev1.ListRequest], stream *connect.ServerStream[meshgatev1.ListResponse]) error {
	m := req.Msg
	if err := checkRange(m.GetPrefix(), m.GetAfter()); err != nil {
		return err
	}
	if err := s.reach(ctx, m.GetAtLeast()); err != nil {
		return err
	}
	limit := math.MaxInt
	if m.GetLimit() > 0 {
		limit = int(m.GetLimit())
	}
	entries, version, err := s.read(ctx, string(m.GetPrefix()), string(m.GetAfter()), limit)
	if err != nil {
		return faulty(err, 0)
	}
	part, size := &meshgatev1.ListResponse{Version: version}, 0
	for _, e := range entries {
		n := len(e.Key) + len(e.Value)
		if size += n; size > storePart && len(part.Entries) > 0 {
			if err := stream.Send(part); err != nil {
				return err
			}
			part, size = &meshgatev1.ListResponse{Version: version}, n
		}
		part.Entries = append(part.Entries, store.EntryToProto(e))
	}
	part.Last = true
	return stream.Send(part)
}

// read returns the first visible entries, limit of them or fewer, with a prefix
// and behind after, all of one version.
func (s *storeService) read(ctx context.Context, prefix, after string, limit int) ([]store.Entry, uint64, error) {
	if limit < math.MaxInt {
		page, version, err := s.store.Page(ctx, prefix, after, limit)
		if err != nil {
			return nil, 0, err
		}
		if !anyInternal(page) {
			return page, version, nil
		}
	}
	// What is left out of a page would have to be made up for by another page,
	// perhaps of another version.
	all, version, err := s.store.List(ctx, prefix)
	if err != nil {
		return nil, 0, err
	}
	var entries []store.Entry
	for _, e := range all {
		if len(entries) == limit {
			break
		}
		if e.Key > after && !internal(e.Key) {
			entries = append(entries, e)
		}
	}
	return entries, version, nil
}

func anyInternal(entries []store.Entry) bool {
	for _, e := range entries {
		if internal(e.Key) {
			return true
		}
	}
	return false
}

// Apply makes a batch of changes.
func (s *storeService) Apply(ctx context.Context, req *connect.Request[meshgatev1.ApplyRequest]) (*connect.Response[meshgatev1.ApplyResponse], error) {
	if err := s.keeps(); err != nil {
		return nil, err
	}
	batch := store.BatchFromProto(req.Msg.GetBatch())
	if err := batch.Validate(); err != nil {
		return nil, faulty(fmt.Errorf("batch: %w", err), 0)
	}
	for _, c := range batch.If {
		if err := noInternal(c.Key); err != nil {
			return nil, fmt.Errorf("batch: conditions: %w", err)
		}
	}
	for _, op := range batch.Ops {
		if err := noInternal(op.Key); err != nil {
			return nil, fmt.Errorf("batch: operations: %w", err)
		}
	}
	version, err := s.store.Apply(ctx, batch)
	if err != nil {
		return nil, faulty(err, version)
	}
	return connect.NewResponse(&meshgatev1.ApplyResponse{Version: version}), nil
}

// Sync brings this gateway up to date.
func (s *storeService) Sync(ctx context.Context, _ *connect.Request[meshgatev1.SyncRequest]) (*connect.Response[meshgatev1.SyncResponse], error) {
	if err := s.keeps(); err != nil {
		return nil, err
	}
	if err := s.store.Sync(ctx); err != nil {
		return nil, faulty(err, 0)
	}
	version, err := s.version(ctx)
	if err != nil {
		return nil, faulty(err, 0)
	}
	return connect.NewResponse(&meshgatev1.SyncResponse{Version: version}), nil
}

// version is that of the state that this gateway has.
func (s *storeService) version(ctx context.Context) (uint64, error) {
	_, version, err := s.store.Page(ctx, "", "", 1)
	return version, err
}

// reach waits until this gateway has a version, but not for long.
func (s *storeService) reach(ctx context.Context, want uint64) error {
	if err := s.keeps(); err != nil {
		return err
	}
	if want == 0 {
		return nil
	}
	version, err := s.version(ctx)
	if err != nil || version >= want {
		return faulty(err, version)
	}
	patience := behindPatience
	if end, ok := ctx.Deadline(); ok {
		patience = min(patience, time.Until(end)*3/4) // the caller shall learn why
	}
	ctx, cancel := context.WithTimeoutCause(ctx, patience, errBehind)
	defer cancel()
	for version < want {
		for c, err := range s.store.Watch(ctx, "", version) {
			switch {
			case err == nil:
				version = c.Version
			case context.Cause(ctx) == errBehind:
				return behindFault(version, want)
			case !errors.Is(err, store.ErrCompacted): // then it holds a later state by now
				return faulty(err, version)
			}
			if err != nil || version >= want {
				break
			}
		}
		if version, err = s.version(ctx); err != nil {
			return faulty(err, 0)
		}
	}
	return nil
}

// keeps refuses on a node that does not keep the state.
func (s *storeService) keeps() error {
	if s.store == nil {
		return fmt.Errorf("%w: this node holds no state of the mesh; ask a gateway", mesh.ErrUnsupported)
	}
	return nil
}

// checkRange checks what bounds a list.
func checkRange(prefix, after []byte) error {
	for field, v := range map[string][]byte{"prefix": prefix, "after": after} {
		if len(v) > store.MaxKey {
			return faulty(fmt.Errorf("%w: %s: it is longer than %d bytes", store.ErrInvalid, field, store.MaxKey), 0)
		}
	}
	return nil
}

// errBehind says that this gateway lacks changes that the caller has seen.
var errBehind = fmt.Errorf("%w: this gateway lags behind", mesh.ErrUnavailable)

func behindFault(version, want uint64) error {
	return &storeFault{
		err:    fmt.Errorf("%w: it has version %d of the state, not yet %d; ask another gateway, or again", errBehind, version, want),
		detail: &meshgatev1.StoreFault{Kind: meshgatev1.StoreFault_KIND_BEHIND, Version: version},
	}
}

// storeFault is an error whose kind the client gets as a detail.
type storeFault struct {
	err    error
	detail *meshgatev1.StoreFault
}

// faulty gives an error of the state its detail; version is that of the state
// that gave it, or 0. An error that is none of the contract's stays as it is.
func faulty(err error, version uint64) error {
	if err == nil {
		return nil
	}
	if detail := store.FaultToProto(err, version); detail != nil {
		return &storeFault{err: err, detail: detail}
	}
	return err
}

// Error implements error.
func (f *storeFault) Error() string { return f.err.Error() }

// Unwrap makes the error that of the state.
func (f *storeFault) Unwrap() error { return f.err }
