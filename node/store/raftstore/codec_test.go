// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"bytes"
	"compress/gzip"
	"errors"
	"log/slog"
	"math"
	"net"
	"os"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	"github.com/klauspost/compress/snappy"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"

	"github.com/meshgate/meshgate/node/store"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

var now = time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)

func unpack(t *testing.T, data []byte) *v1.RaftLogEntry {
	t.Helper()
	raw, err := snappy.Decode(nil, data)
	if err != nil {
		t.Fatal(err)
	}
	var e v1.RaftLogEntry
	if err := proto.Unmarshal(raw, &e); err != nil {
		t.Fatal(err)
	}
	return &e
}

// TestEncode_SpeaksV1WhereItCan compares entries with those of v1 nodes.
func TestEncode_SpeaksV1WhereItCan(t *testing.T) {
	at := timestamppb.New(now)
	tests := []struct {
		name  string
		batch store.Batch
		want  *v1.RaftLogEntry
	}{
		{"put", store.Batch{Ops: []store.Op{{Key: "k", Value: []byte("v")}}},
			&v1.RaftLogEntry{Type: v1.RaftCommandType_PUT, Key: "k", Value: "v", Time: at}},
		{"put with a time to live", store.Batch{Ops: []store.Op{{Key: "k", TTL: time.Second}}},
			&v1.RaftLogEntry{Type: v1.RaftCommandType_PUT, Key: "k", Ttl: durationpb.New(time.Second), Time: at}},
		{"delete", store.Batch{Ops: []store.Op{{Key: "k", Delete: true}}},
			&v1.RaftLogEntry{Type: v1.RaftCommandType_DELETE, Key: "k", Time: at}},
		{"binary value", store.Batch{Ops: []store.Op{{Key: "k", Value: []byte{0xff}}}},
			&v1.RaftLogEntry{Time: at, Batch: &v1.RaftBatch{Operations: []*v1.RaftOperation{{Key: "k", Value: []byte{0xff}}}}}},
		{"condition", store.Batch{If: []store.Condition{{Key: "c", Version: 3}}, Ops: []store.Op{{Key: "k", Delete: true}}},
			&v1.RaftLogEntry{Time: at, Batch: &v1.RaftBatch{
				Conditions: []*v1.RaftCondition{{Key: "c", Version: 3}},
				Operations: []*v1.RaftOperation{{Key: "k", Delete: true}},
			}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			data, err := encodeBatch(tt.batch, now)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, unpack(t, data), protocmp.Transform()); diff != "" {
				t.Errorf("entry (-want +got):\n%s", diff)
			}
			c, err := decodeEntry(data)
			want := command{batch: tt.batch, at: now}
			if diff := cmp.Diff(want, c, cmp.AllowUnexported(command{}), cmpopts.EquateEmpty()); diff != "" || err != nil {
				t.Errorf("decoded: %v (-want +got):\n%s", err, diff)
			}
		})
	}
}

func TestDecodeEntry_Refuses(t *testing.T) {
	tests := map[string]*v1.RaftLogEntry{
		"unknown command":     {Key: "k"},
		"command of later":    {Type: 77, Key: "k"},
		"empty key":           {Type: v1.RaftCommandType_PUT},
		"negative ttl":        {Type: v1.RaftCommandType_PUT, Key: "k", Ttl: durationpb.New(-1)},
		"endless ttl":         {Type: v1.RaftCommandType_PUT, Key: "k", Ttl: &durationpb.Duration{Seconds: 1 << 62}},
		"time out of range":   {Type: v1.RaftCommandType_PUT, Key: "k", Time: &timestamppb.Timestamp{Nanos: -1}},
		"empty batch":         {Batch: &v1.RaftBatch{}},
		"batch of a bad key":  {Batch: &v1.RaftBatch{Operations: []*v1.RaftOperation{{}}}},
		"delete with a value": {Batch: &v1.RaftBatch{Operations: []*v1.RaftOperation{{Key: "k", Value: []byte("v"), Delete: true}}}},
	}
	for name, e := range tests {
		data, err := pack(e)
		if err != nil {
			t.Fatal(err)
		}
		if c, err := decodeEntry(data); err == nil {
			t.Errorf("%s: got %+v", name, c)
		}
	}
	bomb := snappy.Encode(nil, make([]byte, maxEntry+1))
	if _, err := decodeEntry(bomb); err == nil || !strings.Contains(err.Error(), "unpacked") {
		t.Errorf("bomb of %d bytes: got %v", len(bomb), err)
	}
}

func FuzzDecodeEntry(f *testing.F) {
	for _, b := range []store.Batch{
		{Ops: []store.Op{{Key: "k", Value: []byte("v"), TTL: time.Second}}},
		{If: []store.Condition{{Key: "c"}}, Ops: []store.Op{{Key: "k", Delete: true}}},
	} {
		data, err := encodeBatch(b, now)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	expire, err := encodeExpire(now)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(expire)
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := decodeEntry(data)
		if err != nil || c.expire {
			return
		}
		if err := c.batch.Validate(); err != nil {
			t.Errorf("decoded %+v: %v", c.batch, err)
		}
		again, err := encodeBatch(c.batch, now)
		if err != nil {
			t.Fatal(err)
		}
		if c2, err := decodeEntry(again); err != nil || !cmp.Equal(c.batch, c2.batch, cmpopts.EquateEmpty()) {
			t.Errorf("%+v became %+v, %v", c.batch, c2.batch, err)
		}
	})
}

func TestSnapshot_KeepsEntries(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		version := rapid.Uint64Range(1, 1<<40).Draw(t, "version")
		entry := rapid.Custom(func(t *rapid.T) store.Entry {
			e := store.Entry{
				Key:     rapid.StringN(1, 8, 32).Draw(t, "key"),
				Value:   rapid.SliceOfN(rapid.Byte(), 0, 8).Draw(t, "value"),
				Version: rapid.Uint64Range(1, version).Draw(t, "written"),
			}
			if rapid.Bool().Draw(t, "leased") {
				e.ExpiresAt = now.Add(time.Duration(rapid.Int64Range(-1e12, 1e12).Draw(t, "ends")))
			}
			return e
		})
		want := rapid.SliceOfNDistinct(entry, 0, 10, func(e store.Entry) string { return e.Key }).Draw(t, "entries")
		var buf bytes.Buffer
		if err := writeSnapshot(&buf, slices.Values(want), version, now); err != nil {
			t.Fatal(err)
		}
		got, gotVersion, err := readSnapshot(&buf, math.MaxUint64)
		byKey := cmpopts.SortSlices(func(a, b store.Entry) bool { return a.Key < b.Key })
		if diff := cmp.Diff(want, got, byKey, cmpopts.EquateEmpty()); diff != "" || gotVersion != version || err != nil {
			t.Fatalf("got version %d, %v, want %d (-want +got):\n%s", gotVersion, err, version, diff)
		}
	})
}

func TestReadSnapshot_Refuses(t *testing.T) {
	zipped := func(parts ...[]byte) []byte {
		var buf bytes.Buffer
		z := gzip.NewWriter(&buf)
		for _, part := range parts {
			_, _ = z.Write(part)
		}
		_ = z.Close()
		return buf.Bytes()
	}
	raw := func(s *v1.RaftSnapshot) []byte {
		data, err := proto.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	zip := func(s *v1.RaftSnapshot) []byte { return zipped(raw(s)) }
	item := func(i *v1.RaftDataItem) []byte {
		return zip(&v1.RaftSnapshot{Version: 5, Kv: map[string]*v1.RaftDataItem{"k": i}})
	}
	good := item(&v1.RaftDataItem{Version: 5})
	flipped := bytes.Clone(good)
	flipped[len(flipped)-6] ^= 1 // within the CRC
	plain := raw(&v1.RaftSnapshot{Version: 5, Kv: map[string]*v1.RaftDataItem{"k": {Version: 5}}})
	many := &v1.RaftSnapshot{Version: 5, Kv: map[string]*v1.RaftDataItem{}}
	for i := range 4 {
		many.Kv[string(rune('a'+i))] = &v1.RaftDataItem{Version: 5}
	}
	for name, data := range map[string][]byte{
		"nothing":            nil,
		"no gzip":            []byte("{}"),
		"cut short":          good[:len(good)-1],
		"wrong CRC":          flipped,
		"no version":         item(&v1.RaftDataItem{}),
		"version of later":   item(&v1.RaftDataItem{Version: 6}),
		"ttl without an end": item(&v1.RaftDataItem{Version: 5, Ttl: durationpb.New(1)}),
		"a key twice":        zipped(plain, plain),
		"more than told":     zip(many),
		"no field":           zipped(plain, make([]byte, 9)),
		"a group":            zipped(plain, []byte{0x0b, 0x0c}),
		"a tag too long":     zipped(plain, bytes.Repeat([]byte{0xff}, 11)),
		"cut in a record":    zipped(plain[:5]),
		"cut in a number":    zipped(plain, []byte{0x10, 0x80}),
		"a key of no UTF-8":  zipped([]byte("\x0a\x08\x0a\x01\xff\x12\x03\xa0\x06\x05\xa0\x06\x05")),
		"a large record":     zipped(protowire.AppendVarint([]byte{0x0a}, maxRecord+1), make([]byte, maxRecord+1)),
		"bad end":            item(&v1.RaftDataItem{Version: 5, ExpiresAt: &timestamppb.Timestamp{Nanos: -1}}),
	} {
		if entries, _, err := readSnapshot(bytes.NewReader(data), 3); err == nil {
			t.Errorf("%s: got %v", name, entries)
		}
	}
	if _, _, err := readSnapshot(bytes.NewReader(good), 1); err != nil {
		t.Errorf("the good one: %v", err)
	}
}

// TestReadSnapshot_SkipsWhatItDoesNotKnow reads what a later version may write, and
// records in any order.
func TestReadSnapshot_SkipsWhatItDoesNotKnow(t *testing.T) {
	one := func(key string) []byte {
		data, err := proto.Marshal(&v1.RaftSnapshot{Kv: map[string]*v1.RaftDataItem{key: {Version: 5, Value: key}}})
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	var buf bytes.Buffer
	z := gzip.NewWriter(&buf)
	for _, part := range [][]byte{
		protowire.AppendFixed64(protowire.AppendTag(nil, 7, protowire.Fixed64Type), 1), one("b"),
		protowire.AppendBytes(protowire.AppendTag(nil, 9, protowire.BytesType), make([]byte, 99)),
		protowire.AppendVarint(protowire.AppendTag(nil, 100, protowire.VarintType), 5), one("a"),
		protowire.AppendFixed32(protowire.AppendTag(nil, 8, protowire.Fixed32Type), 1),
	} {
		_, _ = z.Write(part)
	}
	_ = z.Close()
	entries, version, err := readSnapshot(&buf, 2)
	want := []store.Entry{{Key: "a", Value: []byte("a"), Version: 5}, {Key: "b", Value: []byte("b"), Version: 5}}
	if diff := cmp.Diff(want, entries); diff != "" || version != 5 || err != nil {
		t.Errorf("version %d, %v (-want +got):\n%s", version, err, diff)
	}
}

// TestReadSnapshot_HoldsNoBomb reads little that unpacks to much: it is refused, and
// never held.
func TestReadSnapshot_HoldsNoBomb(t *testing.T) {
	version := protowire.AppendVarint(protowire.AppendTag(nil, 100, protowire.VarintType), 5)
	for name, part := range map[string][]byte{
		"no field at all":   make([]byte, 1<<20),
		"the same for ever": bytes.Repeat(version, 1<<18),
	} {
		var buf bytes.Buffer
		z, _ := gzip.NewWriterLevel(&buf, gzip.BestSpeed)
		for range 32 {
			_, _ = z.Write(part)
		}
		_ = z.Close()
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, _, err := readSnapshot(&buf, 1)
		runtime.ReadMemStats(&after)
		if got := after.TotalAlloc - before.TotalAlloc; got > 1<<20 {
			t.Errorf("%s: %d bytes allocated for %d (%v)", name, got, 32*len(part), err)
		}
	}
}

func FuzzReadSnapshot(f *testing.F) {
	var buf bytes.Buffer
	if err := writeSnapshot(&buf, slices.Values([]store.Entry{{Key: "k", Version: 1, ExpiresAt: now}}), 1, now); err != nil {
		f.Fatal(err)
	}
	f.Add(buf.Bytes())
	f.Fuzz(func(t *testing.T, data []byte) {
		entries, version, err := readSnapshot(bytes.NewReader(data), 3)
		for _, e := range entries {
			if err == nil && (e.Version == 0 || e.Version > version) {
				t.Errorf("entry %+v in a snapshot of version %d", e, version)
			}
		}
	})
}

// TestLogger_BridgesToSlog shows levels, keys and late formatting.
func TestLogger_BridgesToSlog(t *testing.T) {
	var buf bytes.Buffer
	l := newRaftLogger(slog.New(slog.NewTextHandler(&buf, &slog.HandlerOptions{Level: slog.LevelInfo}))).With("a", 1)
	l.Debug("no")
	l.Info("no")
	l.Warn("careful", "servers", hclog.Fmt("%d of %d", 1, 2))
	l.Named("x").Error("bad", "error", "cause", "text", "error")
	lines := strings.Split(strings.TrimSpace(buf.String()), "\n")
	if len(lines) != 2 || !strings.Contains(lines[0], `level=WARN msg=careful a=1 servers="1 of 2"`) ||
		!strings.Contains(lines[1], "level=WARN msg=bad a=1 err=cause text=error") {
		t.Errorf("got:\n%s", buf.String())
	}
}

// TestLogger_KeepsOrdinaryThingsFromOperators shows which of raft's warnings
// are none. The texts are raft's: with others they would be warnings again.
func TestLogger_KeepsOrdinaryThingsFromOperators(t *testing.T) {
	closed := &net.OpError{Op: "read", Net: "tcp", Err: net.ErrClosed}
	reset := &net.OpError{Op: "write", Net: "tcp", Err: os.NewSyscallError("write", syscall.EPIPE)}
	tests := []struct {
		msg  string
		args []any
		want string
	}{
		{"failed to heartbeat to", []any{"error", closed}, "DEBUG"},
		{"failed to get previous log", []any{"error", raft.ErrLogNotFound}, "DEBUG"},
		{"appendEntries rejected, sending older logs", nil, "DEBUG"},
		{"no known peers, aborting election", nil, "DEBUG"},
		{"rejecting pre-vote request since node is not in configuration", nil, "DEBUG"},
		{"failed to decode incoming command", []any{"error", closed}, "DEBUG"},
		{"failed to decode incoming command", []any{"error", raft.ErrTransportShutdown}, "DEBUG"},
		{"failed to flush response", []any{"error", reset}, "DEBUG"},
		{"failed to decode incoming command", []any{"error", errors.New("unknown rpc type 200")}, "WARN"},
		{"failed to decode incoming command", nil, "WARN"},
		{"failed to append to logs", []any{"error", closed}, "WARN"},
		{"clearing log suffix", nil, "WARN"},
	}
	for _, tt := range tests {
		var buf bytes.Buffer
		l := newRaftLogger(slog.New(slog.NewTextHandler(&buf, &slog.HandlerOptions{Level: slog.LevelDebug})))
		l.Error(tt.msg, tt.args...)
		if !strings.Contains(buf.String(), "level="+tt.want+" ") {
			t.Errorf("%s %v: got %q, want level %s", tt.msg, tt.args, buf.String(), tt.want)
		}
	}
}
