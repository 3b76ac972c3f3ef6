// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/peer"
)

// fakeTunnel is a device whose dials end when open is closed, or never.
type fakeTunnel struct {
	peers atomic.Pointer[[]mesh.PeerStats]
	asked atomic.Int64
	cost  time.Duration
	open  chan struct{}
}

func (f *fakeTunnel) set(peers ...mesh.PeerStats) { f.peers.Store(&peers) }

func (f *fakeTunnel) Stats() (mesh.InterfaceStats, error) {
	f.asked.Add(1)
	time.Sleep(f.cost) // in a bubble
	return mesh.InterfaceStats{Peers: *f.peers.Load()}, nil
}

func (f *fakeTunnel) DialContext(ctx context.Context, _, _ string) (net.Conn, error) {
	select {
	case <-ctx.Done():
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: ctx.Err()}
	case <-f.open:
		a, b := net.Pipe()
		return a, b.Close()
	}
}

// statsOf is a peer that carries the addresses of o.
func statsOf(o *mesh.Node, endpoint string, heard time.Time, more ...string) mesh.PeerStats {
	p := mesh.PeerStats{PublicKey: o.PublicKey.WireGuard(), Endpoint: endpoint, LastHandshake: heard, AllowedIPs: o.Prefixes()}
	for _, text := range more {
		p.AllowedIPs = append(p.AllowedIPs, netip.MustParsePrefix(text))
	}
	return p
}

func TestDialPeer_SaysSinceWhenThePeerIsSilent(t *testing.T) {
	const endpoint = "192.0.2.1:51820"
	for _, tc := range []struct {
		name     string
		peer     string
		endpoint string
		heard    time.Duration // before now; 0: never
		young    bool          // the node has just started
		joined   bool          // the peer has just joined
		to       string
		took     time.Duration
		want     string
		err      error
	}{
		{"never and nowhere", "phone", "", 0, false, false, "172.16.0.2:80", 0, "phone has never shaken hands with this node; start WireGuard on it", mesh.ErrUnavailable},
		{"a Meshgate node", "nas", "", 0, false, false, "172.16.0.3:80", 0, "nas has never shaken hands with this node; start Meshgate on it", mesh.ErrUnavailable},
		{"never, but somewhere", "phone", endpoint, 0, false, false, "172.16.0.2:80", silentDial, "phone has never shaken hands", mesh.ErrUnavailable},
		{"never since we started", "phone", "", 0, true, false, "172.16.0.2:80", 10 * time.Second, "phone has never shaken hands", mesh.ErrUnavailable},
		{"never since it joined", "phone", "", 0, false, true, "172.16.0.2:80", 10 * time.Second, "phone has never shaken hands", mesh.ErrUnavailable},
		{"silent", "phone", endpoint, 12*time.Minute + 5*time.Second, false, false, "172.16.0.2:80", silentDial, "phone was last heard 12m ago", mesh.ErrUnavailable},
		{"silent for days", "phone", endpoint, 75 * time.Hour, false, false, "172.16.0.2:80", silentDial, "phone was last heard 3d ago", mesh.ErrUnavailable},
		{"silent, and in the way", "phone", endpoint, time.Hour, false, false, "192.168.7.9:80", silentDial, "phone, through which 192.168.7.9 is reached, was last heard 1h0m ago", mesh.ErrUnavailable},
		{"heard", "phone", endpoint, time.Minute, false, false, "172.16.0.2:80", 10 * time.Second, "deadline", context.DeadlineExceeded},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := world(t)
				n := self(t, s, "gate", true)
				d := &fakeTunnel{}
				o := s.Node(mesh.NodeID(tc.peer))
				var heard time.Time
				if tc.heard != 0 {
					heard = time.Now().Add(-tc.heard)
				}
				if tc.young {
					n.opened = time.Now()
				}
				if tc.joined {
					o.JoinedAt = time.Now()
				}
				d.set(statsOf(o, tc.endpoint, heard, "192.168.7.0/24"))
				start := time.Now()
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				defer cancel()
				_, err := n.dialPeer(ctx, d, s, "tcp", netip.MustParseAddrPort(tc.to))
				if !errors.Is(err, tc.err) || !strings.Contains(err.Error(), tc.want) {
					t.Errorf("got %v, want %v with %q", err, tc.err, tc.want)
				}
				if took := time.Since(start); took != tc.took {
					t.Errorf("it took %v, want %v", took, tc.took)
				}
			})
		})
	}
}

// TestDialPeer_GoesOnWhenThePeerAnswers shows that a peer that was only idle is
// not given up.
func TestDialPeer_GoesOnWhenThePeerAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := world(t)
		n, d := self(t, s, "gate", true), &fakeTunnel{open: make(chan struct{})}
		phone := s.Node("phone")
		d.set(statsOf(phone, "192.0.2.1:1", time.Now().Add(-time.Hour)))
		time.AfterFunc(2*time.Second, func() { d.set(statsOf(phone, "192.0.2.1:1", time.Now())) })
		time.AfterFunc(5*time.Second, func() { close(d.open) })
		c, err := n.dialPeer(t.Context(), d, s, "tcp", netip.MustParseAddrPort("172.16.0.2:80"))
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
}

// TestDialPeer_EndsWithItsContext shows that who gave up is not told a story.
func TestDialPeer_EndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := world(t)
		n, d := self(t, s, "gate", true), &fakeTunnel{}
		d.set(statsOf(s.Node("phone"), "192.0.2.1:1", time.Time{}))
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		if _, err := n.dialPeer(ctx, d, s, "tcp", netip.MustParseAddrPort("172.16.0.2:80")); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v, want Canceled", err)
		}
	})
}

// Who asks how a silent node is hears since when it is silent, before his own
// patience ends, and not that some deadline was exceeded.
func TestRemoteStatus_SaysSinceWhenTheNodeIsSilent(t *testing.T) {
	for name, tc := range map[string]struct {
		carrier mesh.NodeID
		heard   time.Duration // before the answer; 0: never
		silent  time.Duration // before the answer, as the mesh noted; 0: it has not
		want    string
	}{
		"a while":           {"nas", 95 * time.Second, 0, "nas did not answer within 5s; it was last heard 1m ago; see that it is on"},
		"a moment":          {"nas", 20 * time.Second, 0, "it was last heard 20s ago; see that it is on and online"},
		"never":             {"nas", 0, 0, "nas has never shaken hands with this node; start Meshgate on it"},
		"noted by the mesh": {"phone", time.Second, 3*time.Hour + time.Minute, "nas has not been heard since 1999-12-31T20:59:00Z, 3h ago; see that it is on"},
		"through another":   {"phone", time.Second, 0, "it is reached through phone, and meshgate status says when it was last heard"},
		"nowhere":           {"", time.Second, 0, "no tunnel of this node leads to it now"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := world(t)
				n := self(t, s, "gate", true)
				answered := time.Now().Add(statusPatience)
				nas := s.Node("nas")
				p := mesh.PeerStats{AllowedIPs: nas.Prefixes()}
				if tc.heard != 0 {
					p.LastHandshake = answered.Add(-tc.heard)
				}
				if tc.silent != 0 {
					s.Silent = map[mesh.NodeID]time.Time{"nas": answered.Add(-tc.silent - statusPatience)}
				}
				if tc.carrier != "" {
					p.PublicKey = s.Node(tc.carrier).PublicKey.WireGuard()
				}
				n.contacts.last.Store(&contactsView{mesh.InterfaceStats{Peers: []mesh.PeerStats{p}}, answered.Add(time.Second)})
				var err error
				n.peers, err = peer.New(peer.Config{Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
					<-ctx.Done()
					return nil, ctx.Err()
				}})
				if err != nil {
					t.Fatal(err)
				}
				defer n.peers.Close()
				_, err = n.RemoteStatus(t.Context(), "nas")
				if !errors.Is(err, mesh.ErrUnavailable) || !strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), "deadline") {
					t.Errorf("got %v, want that %s", err, tc.want)
				}
				if late := time.Since(answered); late != 0 {
					t.Errorf("told %v late", late)
				}
			})
		})
	}
}

// TestContacts_BoundsWhatAskingCosts shows that a device with many peers is not
// asked for every connection.
func TestContacts_BoundsWhatAskingCosts(t *testing.T) {
	for _, tc := range []struct{ cost, period time.Duration }{
		{time.Millisecond, 20 * time.Millisecond},
		{10 * time.Second, time.Second},
	} {
		synctest.Test(t, func(t *testing.T) {
			var c contacts
			d := &fakeTunnel{cost: tc.cost}
			d.set()
			ask := func(want int64) {
				t.Helper()
				if _, err := c.stats(d.Stats); err != nil {
					t.Fatal(err)
				}
				if got := d.asked.Load(); got != want {
					t.Errorf("cost %v: asked %d times, want %d", tc.cost, got, want)
				}
			}
			ask(1)
			time.Sleep(tc.period - 1)
			ask(1)
			time.Sleep(time.Nanosecond)
			ask(2)
		})
	}
}

func TestBrief(t *testing.T) {
	for d, want := range map[time.Duration]string{
		59*time.Second + time.Second/2: "59s", 3*time.Minute + 59*time.Second: "3m", time.Hour + 5*time.Minute: "1h5m", 47 * time.Hour: "47h", 49 * time.Hour: "2d",
	} {
		if got := brief(d); got != want {
			t.Errorf("brief(%v) = %q, want %q", d, got, want)
		}
	}
}
