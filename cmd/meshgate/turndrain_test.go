// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/store/raftstore"
	v1 "github.com/meshgate/meshgate/proto/v1"
	"github.com/meshgate/meshgate/turn"
)

// alternateText is an alternate in short.
func alternateText(a turn.Alternate) string {
	text := transportName(a.Stream, a.Secure) + " " + a.Addr.String()
	if a.Domain != "" {
		text += " " + a.Domain
	}
	return text
}

// Clients go where a gateway is up, has the right to be one, serves TURN, and is found.
func TestAlternates(t *testing.T) {
	gate := func(id mesh.NodeID, endpoint, api string, wireguard ...string) *mesh.Node {
		n := &mesh.Node{ID: id, PublicKey: mesh.PublicKey{id[2]}, PrimaryEndpoint: endpoint, API: mesh.API{URL: api}, Features: []mesh.Feature{
			{Kind: v1.Feature_NODES, Port: 8443}, {Kind: v1.Feature_MEMBERSHIP, Port: 8443}, {Kind: v1.Feature_TURN_SERVER, Port: 3478},
		}}
		for _, at := range wireguard {
			n.WireGuardEndpoints = append(n.WireGuardEndpoints, netip.MustParseAddrPort(at))
		}
		return n
	}
	silent := gate("gw6", "192.0.2.6", "https://192.0.2.6")
	silent.Features = silent.Features[:2]
	s := &mesh.Snapshot{
		Nodes: mesh.NodesOf(
			gate("gw1", "192.0.2.1", "https://192.0.2.1"),
			gate("gw2", "192.0.2.2", "https://192.0.2.2:8443", "192.0.2.2:51820", "[2001:db8::2]:51820"),
			gate("gw3", "192.0.2.3", "https://gw3.example.org", "192.0.2.3:51820"),
			gate("gw4", "192.0.2.4", "http://192.0.2.4:8080"),
			gate("gw5", "192.0.2.5", "https://192.0.2.5"),
			silent,
			gate("gw7", "192.0.2.7", "https://192.0.2.7"),
			gate("gw8", "192.0.2.8", "https://lost.example.org:0"),
			gate("gw9", "192.0.2.9", "https://192.0.2.9"), // drains, too
		),
		Roles: []mesh.Role{{Name: "voters", Rules: []mesh.Rule{{Resources: []v1.RuleResource{v1.RuleResource_RESOURCE_VOTES}, Verbs: []v1.RuleVerb{v1.RuleVerb_VERB_PUT}}}}},
	}
	for i := range 9 {
		if i+1 != 7 { // which only says that it is a gateway
			s.Bindings = append(s.Bindings, mesh.RoleBinding{Name: fmt.Sprint(i), Role: "voters", Subjects: []mesh.Subject{{Type: v1.SubjectType_SUBJECT_NODE, Name: fmt.Sprint("gw", i+1)}}})
		}
	}
	up := func(id string) raftstore.Replica { return raftstore.Replica{ID: id, Known: true} }
	replicas := []raftstore.Replica{
		up("gw1"), {ID: "gw2", Leader: true}, {ID: "gw3", Answers: true}, up("gw4"),
		{ID: "gw5", Known: true, LastContact: time.Minute}, up("gw6"), up("gw7"), up("gw8"), up("gw9"), {ID: "gwa"},
	}
	find := func(_ context.Context, network, name string) ([]netip.Addr, error) {
		if network != "ip" || name != "gw3.example.org" {
			return nil, errors.New("no such host")
		}
		return []netip.Addr{netip.MustParseAddr("192.0.2.33"), netip.MustParseAddr("2001:db8::33")}, nil
	}
	var got []string
	gives := func(_ context.Context, addrs []netip.AddrPort) bool {
		return len(addrs) == 0 || addrs[0] != netip.MustParseAddrPort("192.0.2.9:3478")
	}
	for _, a := range alternates(t.Context(), s, "gw1", replicas, find, gives) {
		got = append(got, alternateText(a))
	}
	want := []string{
		"UDP 192.0.2.2:3478", "TCP 192.0.2.2:3478", "UDP [2001:db8::2]:3478", "TCP [2001:db8::2]:3478", "TLS 192.0.2.2:8443",
		"UDP 192.0.2.3:3478", "TCP 192.0.2.3:3478", "TLS 192.0.2.33:443 gw3.example.org", "TLS [2001:db8::33]:443 gw3.example.org",
		"UDP 192.0.2.4:3478", "TCP 192.0.2.4:3478",
		"UDP 192.0.2.8:3478", "TCP 192.0.2.8:3478",
	}
	slices.Sort(want)
	slices.Sort(got)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if list := alternates(t.Context(), nil, "gw1", replicas, find, gives); len(list) != 0 {
		t.Errorf("without a state: %v", list)
	}
}

// draining is a TURN server whose last relay ends at a time.
type draining struct {
	to   []turn.Alternate
	ends time.Time
}

func (d *draining) Drain(to []turn.Alternate) { d.to = to }
func (d *draining) Undrain()                  { d.to = nil }
func (d *draining) Allocations() []turn.Allocation {
	if time.Now().Before(d.ends) {
		return make([]turn.Allocation, 1)
	}
	return nil
}

func TestWaitDrained_WaitsForTheLastRelay(t *testing.T) {
	for name, tt := range map[string]struct {
		life, patience, stopped time.Duration
		atLeast, atMost         time.Duration
	}{
		"a relay ends":      {life: 25 * time.Second, patience: time.Minute, atLeast: 25 * time.Second, atMost: 25*time.Second + drainEach},
		"none is there":     {patience: time.Minute, atMost: drainEach},
		"one goes on":       {life: time.Hour, patience: 64*time.Second + 1, atLeast: 64 * time.Second, atMost: 65 * time.Second},
		"nobody waits":      {life: time.Hour},
		"nothing is served": {life: time.Hour, patience: time.Minute, stopped: 5 * time.Second, atLeast: 5 * time.Second, atMost: 5 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				if tt.stopped > 0 {
					time.AfterFunc(tt.stopped, cancel)
				}
				began, looks := time.Now(), 0
				d := &draining{ends: began.Add(tt.life)}
				waitDrained(ctx, d, func() []turn.Alternate {
					looks++
					return make([]turn.Alternate, looks%2) // there is another gateway, and then none
				}, tt.patience, slog.New(slog.DiscardHandler))
				took := time.Since(began)
				least, most := 1+int(took/(drainLookEach*3/2+drainEach)), 1+int(took/drainLookEach)
				if took < tt.atLeast || took > tt.atMost || looks < least || looks > most || len(d.to) != looks%2 {
					t.Errorf("it took %v, looked %d times and sends clients to %d", took, looks, len(d.to))
				}
			})
		})
	}
}

// A gateway that is alone has nobody to send clients to, and does not wait.
func TestOutlast_EndsAtOnceAlone(t *testing.T) {
	p := devGateway(t, "turn.drain-for", "1h")
	told, tell := context.WithCancelCause(t.Context())
	ctx, cancel, gotOver := p.outlast(told)
	defer cancel(nil)
	why := errors.New("told to end")
	tell(why)
	select {
	case <-ctx.Done():
	case <-time.After(time.Minute):
		t.Fatal("it goes on")
	}
	if context.Cause(ctx) != why { //nolint:errorlint // it is the very value
		t.Errorf("because of %v", context.Cause(ctx))
	}
	gotOver()
	for _, d := range []string{"-1s", "25h"} {
		c := &upConfig{turnDrainFor: 0}
		if err := c.checkDrain(); err != nil {
			t.Error(err)
		}
		c.turnDrainFor, _ = time.ParseDuration(d)
		if err := c.checkDrain(); err == nil || !strings.Contains(err.Error(), "--turn.drain-for") {
			t.Errorf("%s: %v", d, err)
		}
	}
}

// One that ends by itself, with what it waited for, leaves nothing behind.
func TestOutlast_EndsWithWhatIsServed(t *testing.T) {
	p := devGateway(t)
	_, cancel, gotOver := p.outlast(t.Context())
	cancel(nil)
	gotOver()
}

// A gateway that drains, too, or is away, gives no relays, though it would send its
// clients to one that does.
func TestGivesRelays(t *testing.T) {
	p := devGateway(t, "turn.secret-file", secretOf(t, "the secret of both gateways"))
	other := devGateway(t, "turn.secret-file", secretOf(t, "the secret of both gateways"))
	at := other.turn.UDPAddrs()[:1]
	gives := func(what string, want bool) {
		t.Helper()
		if got := p.givesRelays(t.Context(), at); got != want {
			t.Errorf("%s: %v", what, got)
		}
	}
	gives("it serves", true)
	other.turn.Drain([]turn.Alternate{{Addr: p.turn.UDPAddrs()[0]}})
	gives("it drains", false)
	other.turn.Undrain()
	gives("it serves again", true)
	if n := len(other.turn.Allocations()); n > 0 {
		t.Errorf("%d relays are left there", n)
	}
}

func secretOf(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}
