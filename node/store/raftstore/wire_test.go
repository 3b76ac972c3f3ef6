// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"google.golang.org/protobuf/proto"

	"github.com/meshgate/meshgate/node/store"
	pb "github.com/meshgate/meshgate/proto/meshgate/v1"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

func TestFrame_Bounds(t *testing.T) {
	var buf bytes.Buffer
	hello := &pb.ReplicaHello{To: strings.Repeat("x", maxGreeting)}
	if err := writeFrame(&buf, hello, maxGreeting); err == nil || buf.Len() > 0 {
		t.Errorf("wrote %d bytes with %v, want an error", buf.Len(), err)
	}
	if err := writeFrame(&buf, hello, 2*maxGreeting); err != nil {
		t.Fatal(err)
	}
	var got pb.ReplicaHello
	if _, err := readFrame(bytes.NewReader(buf.Bytes()), &got, maxGreeting); err == nil {
		t.Error("read a frame beyond the limit")
	}
	if _, err := readFrame(iotest.OneByteReader(bytes.NewReader(buf.Bytes())), &got, 2*maxGreeting); err != nil || got.GetTo() != hello.GetTo() {
		t.Errorf("got %d bytes, %v", len(got.GetTo()), err)
	}
	for n := range 10 {
		if _, err := readFrame(bytes.NewReader(buf.Bytes()[:n]), &got, 2*maxGreeting); err == nil {
			t.Errorf("the first %d bytes were enough", n)
		}
	}
}

// TestFrame_HoldsTheLargestBatch has the most operations and conditions.
func TestFrame_HoldsTheLargestBatch(t *testing.T) {
	var b store.Batch
	for range store.MaxOps {
		b.If = append(b.If, store.Condition{Key: strings.Repeat("k", 8), Version: 1 << 62})
		b.Ops = append(b.Ops, store.Op{Key: "k", Value: make([]byte, 200), TTL: store.MaxTTL})
	}
	rest := store.MaxBatch - store.MaxOps*(8+1+200)
	b.Ops[0].Value = make([]byte, 200+rest)
	if err := b.Validate(); err != nil {
		t.Fatal(err)
	}
	req := &pb.ReplicaRequest{Id: 1 << 62, TimeoutMs: 1 << 62, Call: &pb.ReplicaRequest_Apply{Apply: store.BatchToProto(b)}}
	if n := proto.Size(req); n > maxFrame {
		t.Errorf("it has %d bytes, the most is %d", n, maxFrame)
	}
}

func FuzzReadFrame(f *testing.F) {
	for _, m := range []proto.Message{
		&pb.ReplicaRequest{Id: 1, Call: &pb.ReplicaRequest_Apply{Apply: &v1.RaftBatch{Operations: []*v1.RaftOperation{{Key: "k"}}}}},
		&pb.ReplicaRequest{Id: 2, TimeoutMs: 3, Call: &pb.ReplicaRequest_Change{Change: &pb.ReplicaChange{Action: 1, Id: "x"}}},
		&pb.ReplicaResponse{Id: 3, Status: &pb.ReplicaStatus{Code: 3, Message: "m"}, Version: 4},
	} {
		var buf bytes.Buffer
		if err := writeFrame(&buf, m, maxFrame); err != nil {
			f.Fatal(err)
		}
		f.Add(buf.Bytes())
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var req pb.ReplicaRequest
		if n, err := readFrame(bytes.NewReader(data), &req, maxFrame); err == nil {
			if n+4 > len(data) {
				t.Errorf("read %d bytes of %d", n+4, len(data))
			}
			_ = store.BatchFromProto(req.GetApply()).Validate()
		}
		var resp pb.ReplicaResponse
		n, err := readFrame(bytes.NewReader(data), &resp, maxFrame)
		if again, err2 := readFrame(newFrameReader(bytes.NewReader(data)), &pb.ReplicaResponse{}, maxFrame); (err == nil) != (err2 == nil) || err == nil && n != again {
			t.Errorf("at once: %d bytes, %v; piece by piece: %d bytes, %v", again, err2, n, err)
		}
		if err == nil {
			if err := errorOf(resp.GetStatus()); err != nil {
				_ = err.Error()
				_ = errors.Is(err, store.ErrFull)
			}
		}
	})
}

func FuzzReadBackup(f *testing.F) {
	info := BackupInfo{Time: now, Version: 3, Keys: 1}
	var buf bytes.Buffer
	sums := &sumWriter{w: &buf}
	_, _ = sums.Write(info.header())
	if err := writeSnapshot(sums, slices.Values([]store.Entry{{Key: "k", Version: 3}}), 3, now); err != nil {
		f.Fatal(err)
	}
	f.Add(buf.Bytes()[backupHeader:], uint64(3), uint64(1))
	f.Fuzz(func(t *testing.T, state []byte, version, keys uint64) {
		// With a right frame around it, so that the state is read.
		var buf bytes.Buffer
		sums := &sumWriter{w: &buf}
		_, _ = sums.Write(BackupInfo{Time: now, Version: version, Keys: int(keys)}.header())
		_, _ = sums.Write(state)
		_, _ = sums.Write([]byte{0, 0, 0, 0, byte(len(state) >> 24), byte(len(state) >> 16), byte(len(state) >> 8), byte(len(state))})
		s := sums.sum
		buf.Write([]byte{byte(s >> 24), byte(s >> 16), byte(s >> 8), byte(s)})
		info, entries, err := readBackup(&buf)
		if err == nil && (info.Keys != len(entries) || info.Version != version) {
			t.Errorf("got %+v with %d entries", info, len(entries))
		}
		_, _, _ = readBackup(bytes.NewReader(state))
	})
}

// TestStatus_KeepsErrors sends errors through a status and back.
func TestStatus_KeepsErrors(t *testing.T) {
	for _, want := range []error{
		store.ErrConflict, store.ErrFull, store.ErrInvalid, store.ErrUncertain, store.ErrNotLeader,
		ErrNotMember, ErrUnsafe, ErrOtherCluster,
	} {
		err := fmt.Errorf("key %q: %w", "k", want)
		if want == store.ErrNotLeader {
			err = fmt.Errorf("apply: %w", &store.NotLeaderError{Leader: "b"})
		}
		got := errorOf(statusOf(err))
		if !errors.Is(got, want) || got.Error() != err.Error() {
			t.Errorf("%v became %v", err, got)
		}
	}
	var leads *store.NotLeaderError
	if err := errorOf(statusOf(&store.NotLeaderError{Leader: "b"})); !errors.As(err, &leads) || leads.Leader != "b" {
		t.Errorf("got %v, want the leader named", err)
	}
	for _, err := range []error{
		fmt.Errorf("%w: %w", context.DeadlineExceeded, store.ErrUncertain),
		fmt.Errorf("%w: %w", store.ErrClosed, store.ErrUncertain),
		fmt.Errorf("%w: %w", ErrDisk, store.ErrUncertain),
	} {
		if got := errorOf(statusOf(err)); !errors.Is(got, store.ErrUncertain) || errors.Is(got, store.ErrNotLeader) {
			t.Errorf("%v became %v, want ErrUncertain", err, got)
		}
	}
	long := statusOf(errors.New(strings.Repeat("ü", maxMessage)))
	if n := len(long.GetMessage()); n > maxMessage || n < maxMessage-4 {
		t.Errorf("a long text has %d bytes", n)
	}
}
