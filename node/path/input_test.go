// SPDX-License-Identifier: Apache-2.0

package path_test

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/path"
)

func TestAgent_AddRemoteRefusesWhatIsNoCandidate(t *testing.T) {
	for _, tt := range []struct {
		name string
		in   path.Candidate
		addr string
		want string // in the error; "" for none
	}{
		{name: "host", addr: "198.51.100.9:1"},
		{name: "private", addr: "192.168.0.9:1"},
		{name: "of a carrier", addr: "100.64.0.9:1"},
		{name: "IPv6", addr: "[2001:db8::9]:1"},
		{name: "unique local", addr: "[fd12::9]:1"},
		{name: "relayed", in: path.Candidate{Kind: path.Relayed, Transport: path.TLS, Relay: "gw-1"}, addr: "203.0.113.9:1"},
		{name: "no address", want: "address is missing"},
		{name: "no port", addr: "198.51.100.9:0", want: "no port"},
		{name: "unspecified", addr: "0.0.0.0:1", want: "special"},
		{name: "unspecified IPv6", addr: "[::]:1", want: "special"},
		{name: "this network", addr: "0.1.2.3:1", want: "special"},
		{name: "loopback", addr: "127.0.0.1:1", want: "special"},
		{name: "another loopback", addr: "127.8.8.8:1", want: "special"},
		{name: "loopback IPv6", addr: "[::1]:1", want: "special"},
		{name: "link-local", addr: "169.254.1.1:1", want: "special"},
		{name: "metadata of a cloud", addr: "169.254.169.254:80", want: "special"},
		{name: "link-local IPv6", addr: "[fe80::1]:1", want: "special"},
		{name: "zone", addr: "[fe80::1%eth0]:1", want: "zone"},
		{name: "multicast", addr: "224.0.0.1:1", want: "special"},
		{name: "multicast IPv6", addr: "[ff02::1]:1", want: "special"},
		{name: "broadcast", addr: "255.255.255.255:1", want: "special"},
		{name: "reserved", addr: "240.0.0.1:1", want: "special"},
		{name: "mapped", addr: "[::ffff:198.51.100.9]:1", want: "special"},
		{name: "mapped loopback", addr: "[::ffff:127.0.0.1]:1", want: "special"},
		{name: "compatible", addr: "[::127.0.0.1]:1", want: "special"},
		{name: "NAT64 of loopback", addr: "[64:ff9b::7f00:1]:1", want: "special"},
		{name: "6to4", addr: "[2002:7f00:1::1]:1", want: "special"},
		{name: "Teredo", addr: "[2001:0:1::1]:1", want: "special"},
		{name: "ISATAP", addr: "[2001:db8::5efe:7f00:1]:1", want: "special"},
		{name: "mesh", addr: "10.99.0.7:51820", want: "in the mesh"},
		{name: "unknown kind", in: path.Candidate{Kind: 4}, addr: "198.51.100.9:1", want: "kind 4"},
		{name: "peer-reflexive", in: path.Candidate{Kind: path.PeerReflexive}, addr: "198.51.100.9:1", want: "peer-reflexive"},
		{name: "unknown transport", in: path.Candidate{Kind: path.Relayed, Transport: 4}, addr: "198.51.100.9:1", want: "transport 4"},
		{name: "relayed by nothing", in: path.Candidate{Kind: path.Relayed}, addr: "198.51.100.9:1", want: "transport none"},
		{name: "host by TCP", in: path.Candidate{Transport: path.TCP}, addr: "198.51.100.9:1", want: "transport TCP"},
		{name: "long relay", in: path.Candidate{Kind: path.Relayed, Transport: path.UDP, Relay: strings.Repeat("x", 254)}, addr: "198.51.100.9:1", want: "relay: name is longer"},
		{name: "relay with a line", in: path.Candidate{Kind: path.Relayed, Transport: path.UDP, Relay: "gw\n1"}, addr: "198.51.100.9:1", want: "relay: name"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			v := newVictim(t)
			if tt.addr != "" {
				tt.in.Addr = netip.MustParseAddrPort(tt.addr)
			}
			ways := v.a.State().Ways
			err := v.a.AddRemote(v.now, tt.in)
			if tt.want == "" {
				if err != nil || v.a.State().Ways <= ways {
					t.Fatalf("error %v, %d ways after %d", err, v.a.State().Ways, ways)
				}
				return
			}
			if !errors.Is(err, mesh.ErrInvalid) || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), "candidate") {
				t.Errorf("error %v, want one with %q", err, tt.want)
			}
			if v.a.State().Ways != ways {
				t.Error("there is a new way")
			}
		})
	}
}

func TestAgent_AddRemoteIsBounded(t *testing.T) {
	v := newVictim(t)
	add := func(i int) error {
		return v.a.AddRemote(v.now, path.Candidate{Addr: netip.AddrPortFrom(peerAddr.Addr(), uint16(1000+i))})
	}
	for i := range 40 {
		if err := add(0); err != nil {
			t.Fatalf("the same for the %dth time: %v", i, err)
		}
	}
	var refused error
	for i := range 40 {
		if err := add(i); err != nil {
			refused = err
		}
	}
	if !errors.Is(refused, mesh.ErrInvalid) || !strings.Contains(refused.Error(), "too many") {
		t.Errorf("error %v", refused)
	}
	if n := v.a.State().Ways; n > 2*path.MaxRemote {
		t.Errorf("%d ways of two sockets", n)
	}
	v.now = v.now.Add(10 * time.Second)
	if err := add(100); err != nil {
		t.Errorf("later there is room: %v", err)
	}
}

func TestAgent_AddRemoteNeedsCredentials(t *testing.T) {
	a, err := path.New(path.Config{Self: "alice", Peer: "bob", Local: path.NewCredentials()})
	if err != nil {
		t.Fatal(err)
	}
	err = a.AddRemote(time.Unix(1, 0), path.Candidate{Addr: peerAddr})
	if !errors.Is(err, mesh.ErrInvalid) || !strings.Contains(err.Error(), "credentials") {
		t.Errorf("error %v", err)
	}
	if s := a.State(); s.Standing || !strings.Contains(s.Why, "not said yet") {
		t.Errorf("state: %+v", s)
	}
}

func TestCredentials_RefusesWhatCannotBeOnes(t *testing.T) {
	good := path.NewCredentials()
	for _, tt := range []struct {
		name string
		in   path.Credentials
		want string
	}{
		{"good", good, ""},
		{"of another program", path.Credentials{Ufrag: "abcd", Password: strings.Repeat("x", 22)}, ""},
		{"no ufrag", path.Credentials{Password: good.Password}, "ufrag"},
		{"long ufrag", path.Credentials{Ufrag: strings.Repeat("x", 33), Password: good.Password}, "ufrag"},
		{"colon", path.Credentials{Ufrag: "abcd:efg", Password: good.Password}, "ufrag"},
		{"no password", path.Credentials{Ufrag: good.Ufrag}, "password"},
		{"short password", path.Credentials{Ufrag: good.Ufrag, Password: strings.Repeat("x", 21)}, "password"},
		{"long password", path.Credentials{Ufrag: good.Ufrag, Password: strings.Repeat("x", 65)}, "password"},
		{"not ASCII", path.Credentials{Ufrag: good.Ufrag, Password: strings.Repeat("é", 15)}, "password"},
	} {
		err := tt.in.Validate()
		if tt.want == "" {
			if err != nil {
				t.Errorf("%s: %v", tt.name, err)
			}
			continue
		}
		if !errors.Is(err, mesh.ErrInvalid) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: error %v, want one with %q", tt.name, err, tt.want)
		}
		if tt.in.Password != "" && strings.Contains(err.Error(), tt.in.Password) {
			t.Errorf("%s: the error shows the password", tt.name)
		}
	}
	if other := path.NewCredentials(); other == good || other.Validate() != nil {
		t.Error("new credentials are not new")
	}
}

func TestAgent_SetRemoteRefusesItsOwnCredentials(t *testing.T) {
	v := newVictim(t)
	if err := v.a.SetRemote(v.now, v.own, 5); !errors.Is(err, mesh.ErrInvalid) || !strings.Contains(err.Error(), "ufrag") {
		t.Errorf("error %v", err)
	}
	if err := v.a.SetRemote(v.now, path.Credentials{}, 5); !errors.Is(err, mesh.ErrInvalid) {
		t.Errorf("error %v", err)
	}
}

func TestNew_RefusesWhatCannotBeAPair(t *testing.T) {
	for name, cfg := range map[string]path.Config{
		"no credentials":      {Self: "a", Peer: "b"},
		"foreign credentials": {Self: "a", Peer: "b", Local: path.Credentials{Ufrag: "abcd", Password: strings.Repeat("x", 22)}},
		"one node":            {Self: "a", Peer: "a", Local: path.NewCredentials()},
	} {
		if _, err := path.New(cfg); !errors.Is(err, mesh.ErrInvalid) {
			t.Errorf("%s: error %v", name, err)
		}
	}
}

func TestAgent_SetLocalRefusesWhatItCannotHave(t *testing.T) {
	v := newVictim(t)
	at := netip.MustParseAddrPort("192.168.1.1:1")
	for name, tt := range map[string]struct {
		socket path.Socket
		local  []path.Candidate
	}{
		"no address":           {0, []path.Candidate{{}}},
		"a relay of nothing":   {2, []path.Candidate{{Addr: at}}},
		"a relayed native":     {0, []path.Candidate{{Kind: path.Relayed, Transport: path.UDP, Addr: at}}},
		"a relay by no way":    {2, []path.Candidate{{Kind: path.Relayed, Addr: at}}},
		"a native by some way": {0, []path.Candidate{{Transport: path.UDP, Addr: at}}},
		"too many":             {0, make([]path.Candidate, path.MaxLocal+1)},
	} {
		if err := v.a.SetLocal(v.now, tt.socket, tt.local); !errors.Is(err, mesh.ErrInvalid) {
			t.Errorf("%s: error %v", name, err)
		}
	}
	relay := []path.Candidate{{Kind: path.Relayed, Transport: path.UDP, Addr: at}}
	var err error
	for n := path.Socket(1); n < 20 && err == nil; n++ {
		err = v.a.SetLocal(v.now, n, relay)
	}
	if !errors.Is(err, mesh.ErrInvalid) || !strings.Contains(err.Error(), "more than") {
		t.Errorf("error %v", err)
	}
	for n := path.Socket(0); n < 20; n++ {
		if err := v.a.SetLocal(v.now, n, nil); err != nil {
			t.Error(err)
		}
	}
	if s := v.a.State(); s.Ways > 0 || !strings.Contains(s.Why, "no address of its own") {
		t.Errorf("state without sockets: %+v", s)
	}
}
