// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"time"
	"unicode/utf8"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/policy"
	v1 "github.com/meshgate/meshgate/proto/v1"
	"github.com/meshgate/meshgate/proto/v1/v1connect"
)

const (
	// pageSize is how many keys are read from the state at a time: a client
	// that reads slowly holds one page, not all keys.
	pageSize = 512
	// maxListBytes bounds the keys in one answer to LIST. v1 clients take
	// messages of 4 MiB and read one.
	maxListBytes = 2 << 20
	// maxValue bounds a published value, in bytes.
	maxValue = 512 << 10
	// maxTTL is the longest time to live.
	maxTTL = 100 * 365 * 24 * time.Hour
)

// What v1 clients compare errors within an answer with.
const (
	errorNoKey = "key not found"
	errorEOF   = "EOF"
)

// Keys reads and writes raw keys of the replicated state; *node.Node is one.
// On a node that holds no state every method returns an error that wraps
// mesh.ErrUnsupported.
type Keys interface {
	// Key returns the item of a key, or an error that wraps mesh.ErrNotFound.
	Key(ctx context.Context, key string) (mesh.Item, error)
	// Keys returns the first items, limit of them or fewer, whose keys start
	// with prefix and come after the key after.
	Keys(ctx context.Context, prefix, after string, limit int) ([]mesh.Item, error)
	// Publish writes a key. A ttl of 0 is for ever. If guard is not nil, and what
	// the mesh is, is not as in guard any more, nothing is written and the error
	// wraps store.ErrConflict.
	Publish(ctx context.Context, key string, value []byte, ttl time.Duration, guard *mesh.Snapshot) error
	// WatchKeys yields every change to keys that start with prefix, from the
	// call on, and ends with an error.
	WatchKeys(ctx context.Context, prefix string) (iter.Seq2[mesh.Item, error], error)
}

// queryService serves v1.StorageQueryService. What a caller may read is decided
// before, by KeyActions and PrefixActions.
type queryService struct {
	state State
	keys  Keys
}

var _ v1connect.StorageQueryServiceHandler = (*queryService)(nil)

// QueryActions are the actions that a query takes. One that makes no sense
// takes the right to read everything, so that only those who have it learn why.
func QueryActions(c Caller, q *v1.QueryRequest) ([]mesh.Action, error) {
	switch q.GetCommand() {
	case v1.QueryRequest_GET:
		return KeyActions(c, q.GetQuery())
	case v1.QueryRequest_LIST, v1.QueryRequest_ITER:
		return PrefixActions(c, q.GetQuery())
	}
	return []mesh.Action{everyKey()}, nil
}

// Query reads a key, the keys with a prefix, or these with their values.
func (q *queryService) Query(ctx context.Context, req *connect.Request[v1.QueryRequest], stream *connect.ServerStream[v1.QueryResponse]) error {
	query := req.Msg.GetQuery()
	if err := checkKey("query", query); err != nil {
		return err
	}
	s, err := whole(ctx, q.state)
	if err != nil {
		return err
	}
	found := q.found(ctx, s, query)
	switch req.Msg.GetCommand() {
	case v1.QueryRequest_GET:
		return q.get(ctx, query, stream.Send)
	case v1.QueryRequest_LIST:
		return listKeys(query, found, stream.Send)
	case v1.QueryRequest_ITER:
		return iterate(found, stream.Send)
	}
	return fmt.Errorf("%w: command: unknown value %d; want GET, LIST or ITER", mesh.ErrInvalid, req.Msg.GetCommand())
}

// get sends the one answer to GET.
func (q *queryService) get(ctx context.Context, key string, send func(*v1.QueryResponse) error) error {
	if key == "" {
		return fmt.Errorf("%w: query is empty; GET reads one key", mesh.ErrInvalid)
	}
	item, err := q.keys.Key(ctx, key)
	if errors.Is(err, mesh.ErrNotFound) {
		return send(&v1.QueryResponse{Key: key, Error: errorNoKey})
	}
	if err != nil {
		return err
	}
	return send(answer(item))
}

// found yields what the caller may see of the keys with a prefix, page by page.
func (q *queryService) found(ctx context.Context, s *mesh.Snapshot, prefix string) iter.Seq2[mesh.Item, error] {
	wide := policy.Allowed(s, CallerFrom(ctx).ID, everyKey())
	return func(yield func(mesh.Item, error) bool) {
		for after := ""; ; {
			page, err := q.keys.Keys(ctx, prefix, after, pageSize)
			if err != nil {
				yield(mesh.Item{}, err)
				return
			}
			for _, item := range page {
				if after = item.Key; visible(item.Key, wide) && !yield(item, nil) {
					return
				}
			}
			if len(page) < pageSize {
				return
			}
		}
	}
}

// listKeys sends the answer to LIST: one message, or several when the keys do
// not fit.
func listKeys(prefix string, found iter.Seq2[mesh.Item, error], send func(*v1.QueryResponse) error) error {
	out, size := &v1.QueryResponse{Key: prefix}, 0
	for item, err := range found {
		if err != nil {
			return err
		}
		if size += len(item.Key); size > maxListBytes {
			if err := send(out); err != nil {
				return err
			}
			out, size = &v1.QueryResponse{Key: prefix}, len(item.Key)
		}
		out.Value = append(out.Value, item.Key)
	}
	return send(out)
}

// iterate sends the answers to ITER and their end.
func iterate(found iter.Seq2[mesh.Item, error], send func(*v1.QueryResponse) error) error {
	for item, err := range found {
		if err != nil {
			return err
		}
		if err := send(answer(item)); err != nil {
			return err
		}
	}
	return send(&v1.QueryResponse{Error: errorEOF})
}

// answer is one key with its value.
func answer(item mesh.Item) *v1.QueryResponse {
	text, data := split(item.Value)
	return &v1.QueryResponse{Key: item.Key, Value: []string{text}, Data: data}
}

// split returns a value as the text that it is, or else as data: a message
// with other text than UTF-8 cannot be sent.
func split(value []byte) (text string, data []byte) {
	if utf8.Valid(value) {
		return string(value), nil
	}
	return "", value
}

// Publish writes a key of an application.
func (q *queryService) Publish(ctx context.Context, req *connect.Request[v1.PublishRequest]) (*connect.Response[v1.PublishResponse], error) {
	m := req.Msg
	if err := checkPublished(m.GetKey()); err != nil {
		return nil, err
	}
	if n := len(m.GetValue()); n > maxValue {
		return nil, fmt.Errorf("%w: value: %d bytes are too many, the most is %d", mesh.ErrInvalid, n, maxValue)
	}
	ttl, err := lifetime(m.GetTtl())
	if err != nil {
		return nil, err
	}
	if err := q.keys.Publish(ctx, m.GetKey(), []byte(m.GetValue()), ttl, guard(ctx)); err != nil {
		return nil, err
	}
	return connect.NewResponse(&v1.PublishResponse{}), nil
}

func lifetime(d *durationpb.Duration) (time.Duration, error) {
	if d == nil {
		return 0, nil
	}
	ttl := d.AsDuration()
	if d.CheckValid() != nil || ttl < 0 || ttl > maxTTL {
		return 0, fmt.Errorf("%w: ttl: it is not between 0 and 100 years", mesh.ErrInvalid)
	}
	return ttl, nil
}

// Subscribe sends every change to keys with a prefix, until the client goes. It
// answers with headers at once: a change that is made after they came is sent.
func (q *queryService) Subscribe(ctx context.Context, req *connect.Request[v1.SubscribeRequest], stream *connect.ServerStream[v1.SubscriptionEvent]) error {
	prefix := req.Msg.GetPrefix()
	if err := checkKey("prefix", prefix); err != nil {
		return err
	}
	s, err := whole(ctx, q.state)
	if err != nil {
		return err
	}
	wide := policy.Allowed(s, CallerFrom(ctx).ID, everyKey())
	changes, err := q.keys.WatchKeys(ctx, prefix)
	if err != nil {
		return err
	}
	if err := stream.Conn().Send(nil); err != nil {
		return err
	}
	for item, err := range changes {
		if err != nil {
			return fmt.Errorf("subscription to %q: %w", prefix, err)
		}
		if !visible(item.Key, wide) {
			continue
		}
		text, data := split(item.Value)
		if err := stream.Send(&v1.SubscriptionEvent{Key: item.Key, Value: text, Data: data, Deleted: item.Deleted}); err != nil {
			return err
		}
	}
	return ctx.Err()
}
