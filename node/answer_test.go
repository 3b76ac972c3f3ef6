// SPDX-License-Identifier: Apache-2.0

package node

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/meshgate/meshgate/node/mesh"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// filled sets every field of m to a value made of from; depth bounds messages
// within messages.
func filled[M proto.Message](t *testing.T, m M, from uint64, depth int) M {
	t.Helper()
	r := m.ProtoReflect()
	value := func(fd protoreflect.FieldDescriptor, message func() protoreflect.Value) (protoreflect.Value, bool) {
		switch fd.Kind() {
		case protoreflect.StringKind:
			return protoreflect.ValueOfString(fmt.Sprintf("%s-%d", fd.Name(), from)), true
		case protoreflect.Uint64Kind:
			return protoreflect.ValueOfUint64(from), true
		case protoreflect.Int64Kind:
			return protoreflect.ValueOfInt64(int64(from)), true
		case protoreflect.MessageKind:
			v := message()
			filled(t, v.Message().Interface(), from, depth-1)
			return v, true
		default: // of messages within
			return protoreflect.Value{}, false
		}
	}
	for i := range r.Descriptor().Fields().Len() {
		fd := r.Descriptor().Fields().Get(i)
		if depth == 0 || fd.IsMap() {
			continue
		}
		if !fd.IsList() {
			if v, ok := value(fd, func() protoreflect.Value { return r.NewField(fd) }); ok {
				r.Set(fd, v)
			}
			continue
		}
		list := r.Mutable(fd).List()
		if v, ok := value(fd, list.NewElement); ok {
			list.Append(v)
		}
	}
	return m
}

// Every field of an answer is either the news or what the join said: a field that
// is added to the API has to be one of the two.
func TestUpdated_TakesTheNewsAndKeepsTheRest(t *testing.T) {
	base := filled(t, &v1.JoinResponse{}, 1, 3)
	for name, news := range map[string]*v1.PeerConfigurations{
		"all of it": filled(t, &v1.PeerConfigurations{}, 2, 3),
		"nobody":    {},
	} {
		got := updated(base, news).ProtoReflect()
		fields, carried := got.Descriptor().Fields(), news.ProtoReflect().Descriptor().Fields()
		for i := range fields.Len() {
			fd := fields.Get(i)
			if !base.ProtoReflect().Has(fd) {
				t.Fatalf("the test has no %s", fd.Name())
			}
			want := base.ProtoReflect().Get(fd)
			twin := carried.ByName(fd.Name())
			switch {
			case fd.Name() == "time": // a clock is read once
				want = (&v1.JoinResponse{}).ProtoReflect().Get(fd)
			case fd.Name() == "gateway_id": // that took the node, whoever tells the news
			case twin != nil:
				want = news.ProtoReflect().Get(twin)
			}
			if !got.Get(fd).Equal(want) {
				t.Errorf("%s: %s is %v, not %v", name, fd.Name(), got.Get(fd), want)
			}
		}
		for i := range carried.Len() {
			if fd := carried.Get(i); fields.ByName(fd.Name()) == nil {
				t.Errorf("the news carry %s, which no answer to a join has", fd.Name())
			}
		}
	}
	if !proto.Equal(base, filled(t, &v1.JoinResponse{}, 1, 3)) {
		t.Error("the answer to the join itself has changed")
	}
}

func TestBehind_ListsNetworksOfPeersOnce(t *testing.T) {
	self := &mesh.Node{ID: "a", IPv4: netip.MustParsePrefix("172.16.0.2/32"), IPv6: netip.MustParsePrefix("fd00::2:0/112")}
	s := &mesh.Snapshot{IPv4: netip.MustParsePrefix("172.16.0.0/12"), IPv6: netip.MustParsePrefix("fd00::/32")}
	plan := &mesh.Plan{Self: self, Peers: mesh.PeersOf(
		mesh.Peer{Node: &mesh.Node{ID: "b"}, AllowedIPs: networks("172.16.0.1/32", "192.168.8.0/24", "fd00::1:0/112", "fd77::/64")},
		mesh.Peer{Node: &mesh.Node{ID: "c"}, AllowedIPs: networks("172.16.0.0/12", "192.168.7.0/24", "192.168.8.0/24")},
	)}
	if got, want := behind(s, plan), networks("192.168.7.0/24", "192.168.8.0/24", "fd77::/64"); !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	self.IPv6 = netip.Prefix{}
	if got, want := behind(s, plan), networks("192.168.7.0/24", "192.168.8.0/24"); !slices.Equal(got, want) {
		t.Errorf("without IPv6: %v, want %v", got, want)
	}
}
