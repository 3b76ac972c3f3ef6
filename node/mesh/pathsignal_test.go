// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	v1 "github.com/meshgate/meshgate/proto/v1"
)

func testPathSignal() *v1.PathSignal {
	return &v1.PathSignal{
		Ufrag: "aB+/", Password: strings.Repeat("p0", 11), Session: 3,
		Candidates: []*v1.PathCandidate{
			{Kind: v1.PathCandidate_KIND_HOST, Address: "192.168.1.2:51820"},
			{Kind: v1.PathCandidate_KIND_SERVER_REFLEXIVE, Address: "[2001:db8::1]:7"},
			{Kind: v1.PathCandidate_KIND_RELAY, Address: "203.0.113.1:50000", Transport: v1.PathCandidate_TRANSPORT_TLS, Relay: "gw-1"},
		},
	}
}

func TestPathSignal_RoundTrip(t *testing.T) {
	want := testPathSignal()
	s, err := PathSignalFromProto(want)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, PathSignalToProto(s), protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
	mapped := testPathSignal()
	mapped.Candidates[0].Address = "[::ffff:192.168.1.2]:51820"
	if m, err := PathSignalFromProto(mapped); err != nil || m.Candidates[0].Addr != s.Candidates[0].Addr {
		t.Errorf("an IPv4 address within IPv6: %v, %v", m.Candidates, err)
	}
}

func TestPathSignalFromProto_BadInput(t *testing.T) {
	const letters = ` letters, digits, "+" and "/"`
	set := func(field *string, text string) { *field = text }
	for name, c := range map[string]struct {
		change func(p *v1.PathSignal)
		want   string
	}{
		"no ufrag":           {func(p *v1.PathSignal) { p.Ufrag = "" }, "path.ufrag: not 4 to 64" + letters},
		"a short ufrag":      {func(p *v1.PathSignal) { p.Ufrag = "abc" }, "path.ufrag: not 4 to 64" + letters},
		"a long ufrag":       {func(p *v1.PathSignal) { p.Ufrag = strings.Repeat("u", 65) }, "path.ufrag: not 4 to 64" + letters},
		"a colon in ufrag":   {func(p *v1.PathSignal) { p.Ufrag = "ab:cd" }, "path.ufrag: not 4 to 64" + letters},
		"no password":        {func(p *v1.PathSignal) { p.Password = "" }, "path.password: not 22 to 128" + letters},
		"a short password":   {func(p *v1.PathSignal) { p.Password = strings.Repeat("p", 21) }, "path.password: not 22 to 128" + letters},
		"a long password":    {func(p *v1.PathSignal) { p.Password = strings.Repeat("p", 129) }, "path.password: not 22 to 128" + letters},
		"a line in password": {func(p *v1.PathSignal) { p.Password += "\n" }, "path.password: not 22 to 128" + letters},
		"no session":         {func(p *v1.PathSignal) { p.Session = 0 }, "path.session: it is 0"},
		"too many candidates": {func(p *v1.PathSignal) {
			for len(p.Candidates) <= MaxPathCandidates {
				p.Candidates = append(p.Candidates, p.Candidates[0])
			}
		}, "path.candidates: 17 entries, at most 16 are taken"},
		"no kind":         {func(p *v1.PathSignal) { p.Candidates[1].Kind = 0 }, "path.candidates[1].kind: 0 is none"},
		"another kind":    {func(p *v1.PathSignal) { p.Candidates[1].Kind = 4 }, "path.candidates[1].kind: 4 is none"},
		"no candidate":    {func(p *v1.PathSignal) { p.Candidates[0] = nil }, "path.candidates[0].kind: 0 is none"},
		"other transport": {func(p *v1.PathSignal) { p.Candidates[2].Transport = 9 }, "path.candidates[2].transport: 9 is none"},
		"a host with a transport": {func(p *v1.PathSignal) { p.Candidates[0].Transport = v1.PathCandidate_TRANSPORT_UDP },
			"path.candidates[0].kind: a candidate with a transport or a relay is a KIND_RELAY"},
		"a host with a relay": {func(p *v1.PathSignal) { p.Candidates[0].Relay = "gw-1" },
			"path.candidates[0].kind: a candidate with a transport or a relay is a KIND_RELAY"},
		"a relay that is no id": {func(p *v1.PathSignal) { p.Candidates[2].Relay = "gw/1" }, "path.candidates[2].relay: "},
		"no address":            {func(p *v1.PathSignal) { set(&p.Candidates[0].Address, "") }, `path.candidates[0].address: not an "ip:port"`},
		"a name":                {func(p *v1.PathSignal) { set(&p.Candidates[0].Address, "localhost:80") }, `path.candidates[0].address: not an "ip:port"`},
		"no port":               {func(p *v1.PathSignal) { set(&p.Candidates[0].Address, "192.0.2.1") }, `path.candidates[0].address: not an "ip:port"`},
		"a long address":        {func(p *v1.PathSignal) { set(&p.Candidates[0].Address, "[::1%"+strings.Repeat("z", 64)+"]:1") }, `path.candidates[0].address: not an "ip:port"`},
		"port 0":                {func(p *v1.PathSignal) { set(&p.Candidates[0].Address, "192.0.2.1:0") }, "path.candidates[0].address: the port is 0"},
		"unspecified":           {func(p *v1.PathSignal) { set(&p.Candidates[0].Address, "0.0.0.0:1") }, "path.candidates[0].address: not a unicast address beyond a link"},
		"broadcast":             {func(p *v1.PathSignal) { set(&p.Candidates[0].Address, "255.255.255.255:1") }, "path.candidates[0].address: not a unicast address beyond a link"},
		"multicast":             {func(p *v1.PathSignal) { set(&p.Candidates[0].Address, "[ff02::1]:1") }, "path.candidates[0].address: not a unicast address beyond a link"},
		"link-local":            {func(p *v1.PathSignal) { set(&p.Candidates[0].Address, "169.254.169.254:80") }, "path.candidates[0].address: not a unicast address beyond a link"},
		"a zone":                {func(p *v1.PathSignal) { set(&p.Candidates[0].Address, "[fe80::1%eth0]:1") }, "path.candidates[0].address: not a unicast address beyond a link"},
		"mapped link-local":     {func(p *v1.PathSignal) { set(&p.Candidates[0].Address, "[::ffff:169.254.1.1]:1") }, "path.candidates[0].address: not a unicast address beyond a link"},
	} {
		t.Run(name, func(t *testing.T) {
			p := testPathSignal()
			c.change(p)
			_, err := PathSignalFromProto(p)
			if !errors.Is(err, ErrInvalid) || !strings.HasPrefix(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
			if err != nil && p.Password != "" && strings.Contains(err.Error(), p.Password) {
				t.Errorf("the error tells the password: %v", err)
			}
		})
	}
	if _, err := PathSignalFromProto(nil); !errors.Is(err, ErrInvalid) {
		t.Errorf("no signal: %v", err)
	}
}

// Whatever was taken is within the bounds, and is the same when it has gone over
// the wire again.
func FuzzPathSignalFromProto(f *testing.F) {
	raw, err := proto.Marshal(testPathSignal())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, raw []byte) {
		p := new(v1.PathSignal)
		if proto.Unmarshal(raw, p) != nil {
			return
		}
		s, err := PathSignalFromProto(p)
		if err != nil {
			if !errors.Is(err, ErrInvalid) {
				t.Fatalf("an error of another kind: %v", err)
			}
			return
		}
		if len(s.Candidates) > MaxPathCandidates || s.Session == 0 {
			t.Fatalf("taken: %d candidates, session %d", len(s.Candidates), s.Session)
		}
		for _, c := range s.Candidates {
			if a := c.Addr.Addr(); a.Is4In6() || a.IsMulticast() || a.IsUnspecified() || a.IsLinkLocalUnicast() || c.Addr.Port() == 0 {
				t.Fatalf("taken: %v", c)
			}
		}
		again, err := PathSignalFromProto(PathSignalToProto(s))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(s, again, cmp.Comparer(func(a, b PathCandidate) bool { return a == b })); diff != "" {
			t.Fatal(diff)
		}
	})
}
