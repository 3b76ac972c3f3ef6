// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/meshgate/meshgate/gateway/api"
	"github.com/meshgate/meshgate/node/store"
	meshgatev1 "github.com/meshgate/meshgate/proto/meshgate/v1"
	"github.com/meshgate/meshgate/proto/meshgate/v1/meshgatev1connect"
	v1 "github.com/meshgate/meshgate/proto/v1"
	"github.com/meshgate/meshgate/proto/v1/v1connect"
)

// emptyOps is the batch of n operations without a field, as an ApplyRequest.
func emptyOps(n int) []byte {
	batch := bytes.Repeat([]byte{0x12, 0}, n)
	raw, err := proto.Marshal(&meshgatev1.ApplyRequest{Batch: &v1.RaftBatch{}})
	if err != nil || len(raw) != 2 {
		panic("the batch has the first field")
	}
	out := []byte{raw[0]}
	for size := len(batch); ; size >>= 7 { // a varint
		if size < 0x80 {
			return append(append(out, byte(size)), batch...)
		}
		out = append(out, byte(size)|0x80)
	}
}

func zipped(t testing.TB, raw []byte) string {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	if _, err := z.Write(raw); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// A small request that unpacks to countless empty messages is refused before one
// of them is made, of whoever it is.
func TestBadInput_ManyFields(t *testing.T) {
	s := serveStore(t)
	c := bearer(httpClient(t, true, "", nil), "admin")
	features := func(n int) string { return `{"id":"x","features":[` + strings.Repeat(`{},`, n-1) + `{}]}` }
	for _, tt := range []struct{ name, procedure, kind, body, want string }{
		{"a store's bomb", meshgatev1connect.StoreApplyProcedure, "proto", string(emptyOps(3_000_000)), "more than 262144 fields"},
		{"one more than a store's", meshgatev1connect.StoreApplyProcedure, "proto", string(emptyOps(api.MaxStoreFields)), "more than 262144 fields"},
		{"as many as a store's", meshgatev1connect.StoreApplyProcedure, "proto", string(emptyOps(api.MaxStoreFields - 1)), "more than 16384 operations"},
		{"another's bomb", v1connect.MembershipJoinProcedure, "proto", strings.Repeat("\x6a\x00", 500_000), "more than 65536 fields"},
		{"JSON", v1connect.MembershipJoinProcedure, "json", features(100_000), "more than 65536 fields"},
		{"JSON of another name", v1connect.MembershipJoinProcedure, "json; charset=utf-8", features(100_000), "more than 65536 fields"},
		{"less", v1connect.MembershipJoinProcedure, "json", features(300), "features has 300 entries"},
	} {
		a := ask(t, c, http.MethodPost, "http://"+s.public+tt.procedure, zipped(t, []byte(tt.body)), "Content-Type", "application/"+tt.kind, "Content-Encoding", "gzip")
		if !strings.Contains(a.text, `"code":"invalid_argument"`) || !strings.Contains(a.text, tt.want) {
			t.Errorf("%s: %d %.300s", tt.name, a.StatusCode, a.text)
		}
	}
}

// The largest batch that the state takes is within the bound.
func TestMaxStoreFields_FitTheLargestBatch(t *testing.T) {
	batch := &v1.RaftBatch{}
	full := store.BatchToProto(store.Batch{If: []store.Condition{{Key: "k", Version: 1}}, Ops: []store.Op{{Key: "k", Value: []byte("v")}}})
	full.Operations[0].Ttl = durationpb.New(1500 * time.Millisecond)
	for range store.MaxOps {
		batch.Conditions = append(batch.Conditions, full.GetConditions()...)
		batch.Operations = append(batch.Operations, full.GetOperations()...)
	}
	raw, err := proto.Marshal(&meshgatev1.ApplyRequest{Batch: batch})
	if err != nil {
		t.Fatal(err)
	}
	if err := (boundedProto{api.MaxStoreFields}).Unmarshal(raw, &meshgatev1.ApplyRequest{}); err != nil {
		t.Error(err)
	}
}

// Where roles do not depend on the message, who lacks them is refused before it
// is read: here it never comes.
func TestGate_RefusesBeforeTheMessage(t *testing.T) {
	s := serveStore(t)
	for procedure, rule := range s.rules {
		if !rule.blind {
			continue
		}
		if _, err := rule.actions(api.Caller{}, nil); err != nil {
			t.Errorf("%s looks at the message: %v", procedure, err)
		}
	}
	for _, procedure := range []string{
		meshgatev1connect.StoreApplyProcedure, meshgatev1connect.StoreListProcedure, meshgatev1connect.ClusterRemoveProcedure,
		meshgatev1connect.ClusterBackupProcedure, meshgatev1connect.TokensCreateTokenProcedure, v1connect.AdminListRolesProcedure, v1connect.MeshListNodesProcedure,
	} {
		body, never := io.Pipe()
		req, err := http.NewRequestWithContext(testContext(t), http.MethodPost, "http://"+s.public+procedure, body)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/grpc+proto")
		req.Header.Set("Te", "trailers")
		res, err := bearer(httpClient(t, true, "", nil), "nobody").Do(req)
		if err != nil {
			t.Fatalf("%s: %v", procedure, err)
		}
		if _, err := io.Copy(io.Discard, res.Body); err != nil {
			t.Errorf("%s: %v", procedure, err)
		}
		if status := res.Header.Get("Grpc-Status") + res.Trailer.Get("Grpc-Status"); status != "7" {
			t.Errorf("%s: status %q", procedure, status)
		}
		_, _ = never.Close(), res.Body.Close()
	}
}

// FuzzBoundedProto: within the bound it decodes what protobuf does, and nothing
// with more fields passes.
func FuzzBoundedProto(f *testing.F) {
	f.Add(emptyOps(3))
	f.Add(emptyOps(100))
	f.Add([]byte{0x0a, 0x80})
	f.Add([]byte{0x0b, 0x0c})
	f.Fuzz(func(t *testing.T, raw []byte) {
		const limit = 20
		got, want := &meshgatev1.ApplyRequest{}, &meshgatev1.ApplyRequest{}
		err, plain := (boundedProto{limit}).Unmarshal(raw, got), proto.Unmarshal(raw, want)
		if err == nil && (plain != nil || !cmp.Equal(want, got, protocmp.Transform())) {
			t.Errorf("%v, protobuf says %v, %v", got, want, plain)
		}
		if n := len(want.GetBatch().GetOperations()) + len(want.GetBatch().GetConditions()); err == nil && n > limit {
			t.Errorf("%d messages pass", n)
		}
		if left, spent := spend(raw, want.ProtoReflect().Descriptor(), len(raw)+1, maxNesting); plain == nil && err != nil && spent == nil && len(raw)+1-left <= limit {
			t.Errorf("refused with %d fields: %v", len(raw)+1-left, err)
		}
	})
}

// FuzzBoundedJSON: the same of JSON.
func FuzzBoundedJSON(f *testing.F) {
	f.Add([]byte(`{"id":"a\",{[\\","features":[{},{}]}`))
	f.Add([]byte(`{"features":[` + strings.Repeat(`{},`, 30) + `{}]}`))
	f.Add([]byte(`{"idd":"a"}`))
	f.Add([]byte(``))
	f.Fuzz(func(t *testing.T, raw []byte) {
		const limit = 20
		got, want := &v1.JoinRequest{}, &v1.JoinRequest{}
		err, plain := (jsonCodec{name: codecJSON, limit: limit, lenient: true}).Unmarshal(raw, got), protojson.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(raw, want)
		if err == nil && (plain != nil || !cmp.Equal(want, got, protocmp.Transform())) {
			t.Errorf("%v, protojson says %v, %v", got, want, plain)
		}
		same, known := &v1.JoinRequest{}, protojson.Unmarshal(raw, &v1.JoinRequest{})
		if strict := (jsonCodec{name: codecJSON, limit: limit}).Unmarshal(raw, same); (strict == nil) != (err == nil && known == nil) {
			t.Errorf("strictly %v, leniently %v, protojson says %v", strict, err, known)
		}
		if n := len(want.GetFeatures()) + len(want.GetRoutes()) + len(want.GetDirectPeers()); err == nil && n > limit {
			t.Errorf("%d elements pass", n)
		}
	})
}

func TestBoundedCodecs_RefuseOtherTypes(t *testing.T) {
	for _, c := range []interface {
		Marshal(any) ([]byte, error)
		Unmarshal([]byte, any) error
	}{boundedProto{1}, jsonCodec{name: codecJSON, limit: 1}} {
		_, err := c.Marshal("text")
		if err = errors.Join(err, c.Unmarshal([]byte("{}"), "text")); err == nil || strings.Count(err.Error(), "string is no protobuf message") != 2 {
			t.Errorf("%T: %v", c, err)
		}
	}
}
