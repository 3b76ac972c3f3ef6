// SPDX-License-Identifier: Apache-2.0

package wg

import (
	"bytes"
	"net/netip"
	"slices"
	"testing"

	"github.com/meshgate/meshgate/node/mesh"
)

// No two addresses look the same when veiled, and none like one that can be veiled.
func TestVeil_IsOneToOne(t *testing.T) {
	for name, table := range map[string]*veilBytes{"IPv4": &veils4, "IPv6": &veils6} {
		n := 0
		for i := range 256 {
			b := byte(i)
			veiled := table[veiling][b]
			if veiled == 0 {
				continue
			}
			n++
			if table[lifting][veiled] != b || table[veiling][veiled] != 0 || table[lifting][b] != 0 {
				t.Errorf("%s: %d is veiled as %d, and that lifted is %d", name, b, veiled, table[lifting][veiled])
			}
		}
		if n == 0 {
			t.Errorf("%s: nothing can be veiled", name)
		}
	}
	for text, want := range map[string]bool{
		"10.0.0.0/8": true, "10.99.0.2/32": true, "172.16.0.0/12": true, "192.168.1.0/24": true, "100.64.0.0/10": true, "198.18.0.0/15": true,
		"fd99::2:0/112": true, "2001:db8::/32": true, "2000::/3": true, "fc00::/7": true,
		"10.0.0.0/7": false, "0.0.0.0/0": false, "203.0.113.0/24": false, "8.8.8.8/32": false, "224.0.0.0/4": false, "240.0.0.0/8": false,
		"::/0": false, "2000::/2": false, "fc00::/6": false, "fe80::/10": false, "a000::/3": false, "::ffff:10.0.0.0/104": false,
	} {
		p := netip.MustParsePrefix(text)
		if got := CanVeil(p); got != want {
			t.Errorf("CanVeil(%s) = %v", text, got)
		}
		if !want {
			continue
		}
		veiled := (&Peer{Veiled: []netip.Prefix{p}}).networks()[0]
		if !TouchesVeil(veiled) || TouchesVeil(p) || CanVeil(veiled) || veiled != veiled.Masked() || !isVeiled(veiled.Addr()) || isVeiled(p.Addr()) {
			t.Errorf("%s is veiled as %s", text, veiled)
		}
	}
	for text, want := range map[string]bool{"240.0.0.0/4": true, "128.0.0.0/1": true, "0.0.0.0/0": false, "::/0": false, "8000::/1": true, "7d00::1/128": true} {
		if got := TouchesVeil(netip.MustParsePrefix(text)); got != want {
			t.Errorf("TouchesVeil(%s) = %v", text, got)
		}
	}
	if CanVeil(netip.Prefix{}) {
		t.Error("no network can be veiled")
	}
}

// packetOf is an IP packet without content.
func packetOf(src, dst string) []byte {
	p := packetTo(netip.MustParseAddr(dst))
	if a := netip.MustParseAddr(src); a.Is4() {
		copy(p[12:], a.AsSlice())
	} else {
		copy(p[8:], a.AsSlice())
	}
	return p
}

// FuzzVeil veils what may be a packet, and lifts the veil of what may have come.
func FuzzVeil(f *testing.F) {
	f.Add(packetOf("10.0.0.1", "192.168.0.1"))
	f.Add(packetOf("fd00::1", "2001:db8::1"))
	f.Add(packetOf("240.0.0.1", "243.0.0.1"))
	f.Add([]byte{0x45})
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, first := range []int{veiling, lifting} {
			got := bytes.Clone(b)
			src, dst := ends(got)
			if !turn(src, dst, first) {
				if !bytes.Equal(got, b) {
					t.Fatalf("%x became %x", b, got)
				}
				continue
			}
			if turn(src, dst, first) || !turn(src, dst, 1-first) || !bytes.Equal(got, b) {
				t.Fatalf("%x came back as %x", b, got)
			}
		}
	})
}

// scriptedPlane is a plane that has some packets to send, and keeps those that come.
type scriptedPlane struct {
	plane
	out, in [][]byte
}

func (p *scriptedPlane) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	for i, b := range p.out {
		sizes[i] = copy(bufs[i][offset:], b)
	}
	return len(p.out), nil
}

func (p *scriptedPlane) Write(bufs [][]byte, offset int) (int, error) {
	for _, b := range bufs {
		p.in = append(p.in, b[offset:])
	}
	return len(bufs), nil
}

// Packets go veiled to the peers that are to have them so, where no network of another
// peer is nearer; of those that come, what lies behind a veiled peer is lifted.
func TestGate_Veils(t *testing.T) {
	hub, near, on, off := new(contact), new(contact), new(contact), new(contact)
	network := netip.MustParsePrefix
	behind := func(list ...string) (networks []netip.Prefix) {
		for _, text := range list {
			networks = append(networks, network(text))
		}
		return networks
	}
	p := &scriptedPlane{}
	g := testGate(t, false, nil)
	g.plane = p
	g.filter.current.Store(&rules{routes: newPrefixSet([]route{
		{network("10.1.0.0/16"), hub}, {network("10.0.0.0/8"), hub}, {network("10.1.7.0/24"), near}, {network("fd00::/8"), hub},
	})})
	set := func(onIsOn bool) {
		g.veils.Store(newVeils(map[mesh.WireGuardKey]veiledPeer{
			{1}: {on, behind("10.1.0.0/16", "fd01::/16"), onIsOn},
			{2}: {off, behind("10.2.0.0/16"), false},
		}))
	}
	bufs, sizes := make([][]byte, 8), make([]int, 8)
	for i := range bufs {
		bufs[i] = make([]byte, 64)
	}
	cases := []struct{ src, dst, wantSrc, wantDst string }{
		{"10.9.0.1", "10.1.0.1", "240.9.0.1", "240.1.0.1"},
		{"fd09::1", "fd01::1", "7d09::1", "7d01::1"},
		{"192.168.0.1", "10.1.0.1", "243.168.0.1", "240.1.0.1"},
		{"10.9.0.1", "10.1.7.1", "10.9.0.1", "10.1.7.1"},       // behind another peer
		{"10.9.0.1", "10.2.0.1", "10.9.0.1", "10.2.0.1"},       // not there yet
		{"10.9.0.1", "10.3.0.1", "10.9.0.1", "10.3.0.1"},       // no such peer
		{"203.0.113.1", "10.1.0.1", "203.0.113.1", "10.1.0.1"}, // cannot be
	}
	for _, c := range cases {
		p.out = append(p.out, packetOf(c.src, c.dst))
	}
	for _, onIsOn := range []bool{false, true, false, true} { // what was decided is forgotten
		set(onIsOn)
		n, err := g.Read(bufs, sizes, 16)
		if n != len(cases) || err != nil {
			t.Fatal(n, err)
		}
		for i, c := range cases {
			want := packetOf(c.src, c.dst)
			if onIsOn {
				want = packetOf(c.wantSrc, c.wantDst)
			}
			if got := bufs[i][16 : 16+sizes[i]]; !bytes.Equal(got, want) {
				t.Errorf("on %v: from %s to %s: %x, want %x", onIsOn, c.src, c.dst, got, want)
			}
		}
	}
	came := []struct {
		src, dst, wantSrc, wantDst string
		want                       verdict
	}{
		{"240.1.0.1", "240.9.0.1", "10.1.0.1", "10.9.0.1", deliver},
		{"7d01::1", "7d09::1", "fd01::1", "fd09::1", deliver},
		{"240.2.0.1", "240.9.0.1", "10.2.0.1", "10.9.0.1", deliver}, // that it sends elsewhere does not matter
		{"10.1.0.1", "10.9.0.1", "10.1.0.1", "10.9.0.1", deliver},   // by way of the gateway
		{"240.3.0.1", "240.9.0.1", "240.3.0.1", "240.9.0.1", dropMartian},
		{"240.1.0.1", "10.9.0.1", "240.1.0.1", "10.9.0.1", dropMartian},
		{"240.1.0.1", "203.0.113.1", "240.1.0.1", "203.0.113.1", dropMartian},
		{"240.1.0.1", "243.168.0.1", "10.1.0.1", "192.168.0.1", forward},
	}
	judge := (&rules{own: []netip.Addr{netip.MustParseAddr("10.9.0.1"), netip.MustParseAddr("fd09::1")}}).judge
	var packets [][]byte
	for _, c := range came {
		packets = append(packets, slices.Concat(make([]byte, 16), packetOf(c.src, c.dst)))
	}
	if n, err := g.Write(packets, 16); n != len(came) || err != nil {
		t.Fatal(n, err)
	}
	for i, c := range came {
		if want := packetOf(c.wantSrc, c.wantDst); !bytes.Equal(p.in[i], want) || judge(p.in[i]) != c.want {
			t.Errorf("from %s to %s: %x, want %x; verdict %v", c.src, c.dst, p.in[i], want, judge(p.in[i]))
		}
	}
	g.veils.Store(newVeils(nil))
	p.in = nil
	b := slices.Concat(make([]byte, 16), packetOf("240.1.0.1", "240.9.0.1"))
	if _, err := g.Write([][]byte{b}, 16); err != nil || judge(p.in[0]) != dropMartian {
		t.Errorf("without veiled peers: %x, %v", p.in[0], err)
	}
}

// veiledGate is a gate all of whose packets go veiled.
func veiledGate(tb testing.TB) *gate {
	tb.Helper()
	g := testGate(tb, false, nil)
	g.filter.current.Store(&rules{})
	all := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8")}
	g.veils.Store(newVeils(map[mesh.WireGuardKey]veiledPeer{{1}: {new(contact), all, true}}))
	return g
}

// there veils packets, and lifts the veils again.
func (g *gate) there(tb testing.TB, bufs [][]byte, sizes []int) {
	first := bufs[0][0] & bufs[0][12] // of IPv4 alone, where it matters
	g.veil(g.veils.Load(), g.filter.load().routes, bufs, sizes, 0)
	src, _, _ := addresses(bufs[0])
	g.lift(bufs, 0)
	if !isVeiled(src) || bufs[0][0]&bufs[0][12] != first {
		tb.Fatalf("%v is not veiled, or came as %x", src, bufs[0])
	}
}

// Veils cost no memory.
func TestGate_VeilsCostNoMemory(t *testing.T) {
	g := veiledGate(t)
	bufs, sizes := [][]byte{packetOf("10.9.0.1", "10.1.0.1"), packetOf("fd09::1", "fd01::1")}, []int{20, 40}
	if n := testing.AllocsPerRun(100, func() { g.there(t, bufs, sizes) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// BenchmarkGate_Veil measures what veils add to a batch of packets on its way out,
// and on its way in.
func BenchmarkGate_Veil(b *testing.B) {
	for name, ends := range map[string][2]string{"IPv4": {"10.9.0.1", "10.1.0.1"}, "IPv6": {"fd09::1", "fd01::1"}} {
		g := veiledGate(b)
		bufs, sizes := make([][]byte, 128), make([]int, 128)
		for i := range bufs {
			bufs[i] = packetOf(ends[0], ends[1])
			sizes[i] = len(bufs[i])
		}
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				g.there(b, bufs, sizes)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(bufs)), "ns/packet")
		})
	}
}
