// SPDX-License-Identifier: Apache-2.0

package remote

import (
	"context"
	"errors"
	"math"
	"time"

	"connectrpc.com/connect"

	"github.com/meshgate/meshgate/node/store"
	meshgatev1 "github.com/meshgate/meshgate/proto/meshgate/v1"
	"github.com/meshgate/meshgate/proto/meshgate/v1/meshgatev1connect"
)

// errSilent says that a gateway has sent nothing for too long.
var errSilent = errors.New("gateway is silent")

// errCutShort says that a stream ended before its last message.
var errCutShort = errors.New("the answer was cut short")

// list reads entries of one version; a limit of 0 is none. A list that breaks is
// read anew: its parts belong to one version, which is gone with the stream.
func (s *Store) list(ctx context.Context, prefix, after string, limit int) ([]store.Entry, uint64, error) {
	if err := s.usable(ctx); err != nil {
		return nil, 0, err
	}
	ctx, cancel := s.open(ctx)
	defer cancel(nil)
	ctx, stop := context.WithTimeoutCause(ctx, s.patience, ErrUnreachable)
	defer stop()
	var got listing
	err := s.try(ctx, func(ctx context.Context, c meshgatev1connect.StoreClient) error {
		got = listing{prefix: prefix, after: after, limit: limit, least: s.seen.Load()}
		err := s.listOnce(ctx, c, &got)
		s.saw(faultOf(err).GetVersion())
		return judgeRead(err)
	})
	if err != nil {
		return nil, 0, err
	}
	s.saw(got.version)
	return got.entries, got.version, nil
}

func (s *Store) listOnce(ctx context.Context, c meshgatev1connect.StoreClient, l *listing) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	// It watches over each part, so that a long list is no slow one.
	timer := time.AfterFunc(s.timeout, func() { cancel(errSilent) })
	defer timer.Stop()
	stream, err := c.List(ctx, connect.NewRequest(&meshgatev1.ListRequest{
		Prefix: []byte(l.prefix), After: []byte(l.after), Limit: uint32(min(l.limit, math.MaxUint32)), AtLeast: l.least,
	}))
	if err != nil {
		return silence(ctx, err)
	}
	defer func() {
		cancel(nil) // Close waits for what is under way otherwise
		_ = stream.Close()
	}()
	for !l.whole && stream.Receive() {
		if err := l.add(stream.Msg()); err != nil {
			return err
		}
		timer.Reset(s.timeout)
	}
	if l.whole {
		return nil
	}
	if err := stream.Err(); err != nil {
		return silence(ctx, err)
	}
	return errCutShort
}

// silence names the cause of a stream that was given up.
func silence(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); errors.Is(cause, errSilent) {
		return cause
	}
	return err
}
