// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"iter"
	"time"
	"unicode/utf8"

	"github.com/klauspost/compress/snappy"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/meshgate/meshgate/node/store"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

const (
	// maxEntry bounds a log entry when unpacked, in bytes: the largest batch
	// and what protobuf adds to it.
	maxEntry = 4 * store.MaxBatch
	// maxSnapshot bounds a snapshot when unpacked, and maxRecord each of its fields, in
	// bytes.
	maxSnapshot = 1 << 30
	maxRecord   = maxEntry
)

// command is a decoded log entry: a batch, or the removal of expired keys.
type command struct {
	batch  store.Batch
	expire bool
	// at is the time from which times to live count; zero is the time of the
	// append to the log.
	at time.Time
}

// encodeBatch writes a batch as a log entry. What v1 can say is said in the
// v1 form; the rest takes an extension.
func encodeBatch(b store.Batch, now time.Time) ([]byte, error) {
	var e v1.RaftLogEntry
	if len(b.If) == 0 && len(b.Ops) == 1 && utf8.Valid(b.Ops[0].Value) {
		op := b.Ops[0]
		e.Type, e.Key, e.Value = v1.RaftCommandType_PUT, op.Key, string(op.Value)
		if op.Delete {
			e.Type = v1.RaftCommandType_DELETE
		}
		e.Ttl = duration(op.TTL)
	} else {
		e.Batch = store.BatchToProto(b)
	}
	e.Time = timestamppb.New(now)
	return pack(&e)
}

// encodeExpire writes the removal of what has expired at now as a log entry.
func encodeExpire(now time.Time) ([]byte, error) {
	return pack(&v1.RaftLogEntry{Expire: true, Time: timestamppb.New(now)})
}

func pack(e *v1.RaftLogEntry) ([]byte, error) {
	data, err := proto.Marshal(e)
	if err != nil {
		return nil, fmt.Errorf("encode log entry: %w", err)
	}
	return snappy.Encode(nil, data), nil
}

// decodeEntry reads a log entry. What it returns passes Batch.Validate.
func decodeEntry(data []byte) (command, error) {
	n, err := snappy.DecodedLen(data)
	if err != nil {
		return command{}, err
	}
	if n > maxEntry {
		return command{}, fmt.Errorf("%d bytes unpacked, the most is %d", n, maxEntry)
	}
	if data, err = snappy.Decode(nil, data); err != nil {
		return command{}, err
	}
	var e v1.RaftLogEntry
	if err := proto.Unmarshal(data, &e); err != nil {
		return command{}, err
	}
	c := command{expire: e.GetExpire()}
	if e.Time != nil {
		if err := e.Time.CheckValid(); err != nil {
			return command{}, err
		}
		c.at = e.Time.AsTime()
	}
	if c.expire {
		return c, nil
	}
	if c.batch, err = decodeBatch(&e); err != nil {
		return command{}, err
	}
	return c, c.batch.Validate()
}

func decodeBatch(e *v1.RaftLogEntry) (store.Batch, error) {
	var b store.Batch
	switch {
	case e.GetBatch() != nil:
		b = store.BatchFromProto(e.Batch)
	case e.GetType() == v1.RaftCommandType_PUT:
		b.Ops = []store.Op{{Key: e.GetKey(), Value: []byte(e.GetValue()), TTL: e.GetTtl().AsDuration()}}
	case e.GetType() == v1.RaftCommandType_DELETE:
		b.Ops = []store.Op{{Key: e.GetKey(), Delete: true}}
	default:
		return store.Batch{}, fmt.Errorf("unknown command %v", e.GetType())
	}
	return b, nil
}

// writeSnapshot writes entries as a gzip stream, whose trailer is a CRC-32.
func writeSnapshot(w io.Writer, entries iter.Seq[store.Entry], version uint64, now time.Time) error {
	s := &v1.RaftSnapshot{Kv: map[string]*v1.RaftDataItem{}, Version: version}
	for e := range entries {
		item := &v1.RaftDataItem{Key: e.Key, Version: e.Version}
		if utf8.Valid(e.Value) {
			item.Value = string(e.Value)
		} else {
			item.Data = e.Value
		}
		if !e.ExpiresAt.IsZero() {
			item.ExpiresAt = timestamppb.New(e.ExpiresAt)
			item.Ttl = duration(max(e.ExpiresAt.Sub(now), 1))
		}
		s.Kv[e.Key] = item
	}
	data, err := proto.MarshalOptions{Deterministic: true}.Marshal(s)
	if err != nil {
		return err
	}
	z, err := gzip.NewWriterLevel(w, gzip.BestSpeed)
	if err != nil {
		return err
	}
	if _, err := z.Write(data); err != nil {
		return err
	}
	return z.Close()
}

func decodeItem(key string, item *v1.RaftDataItem) (store.Entry, error) {
	e := store.Entry{Key: key, Value: item.GetData(), Version: item.GetVersion()}
	if item.GetValue() != "" {
		e.Value = []byte(item.GetValue())
	}
	if e.Version == 0 {
		return e, errors.New("no version")
	}
	if item.GetExpiresAt() != nil {
		if err := item.GetExpiresAt().CheckValid(); err != nil {
			return e, err
		}
		e.ExpiresAt = item.GetExpiresAt().AsTime()
	} else if item.GetTtl() != nil {
		return e, errors.New("a time to live without its end")
	}
	return e, nil
}

// duration returns d for the wire, where 0 is unset.
func duration(d time.Duration) *durationpb.Duration {
	if d == 0 {
		return nil
	}
	return durationpb.New(d)
}
