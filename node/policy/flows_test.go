// SPDX-License-Identifier: Apache-2.0

package policy_test

import (
	"encoding/binary"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/policy"
)

const unclear = mesh.PacketUnclear

// question and answer are of a conversation that onlyDNS accepts in one direction.
func question() mesh.Packet { return packet("a", "b", udp, unclear, 5000, 53) }
func answer() mesh.Packet   { return packet("b", "a", udp, unclear, 53, 5000) }

func onlyDNS() *mesh.Snapshot { return filterSnapshot(ported(true, "a", "b", udp, 53)) }

func TestFlows_AnswersPassAsLongAsTheConversationLives(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		flows := policy.NewFlows()
		f := policy.ForwardFilter(onlyDNS(), flows)
		expect := func(want bool, what string) {
			t.Helper()
			if got := f.Allow(answer()); got != want {
				t.Fatalf("%s: Allow = %v", what, got)
			}
		}
		expect(false, "before the question")
		if !f.Allow(question()) {
			t.Fatal("the question is refused")
		}
		expect(true, "after the question")
		time.Sleep(policy.FlowTimeout - time.Second)
		expect(true, "shortly before the end")
		time.Sleep(policy.FlowTimeout - time.Second)
		expect(true, "kept alive by an answer")
		time.Sleep(policy.FlowTimeout + 2*time.Second)
		expect(false, "after a silence")
		f.Allow(question())
		expect(true, "asked again")
		// Filters come and go with snapshots; conversations stay.
		f = policy.ForwardFilter(onlyDNS(), flows)
		expect(true, "with the next snapshot")
		f = policy.ForwardFilter(filterSnapshot(ported(true, "a", "b", udp, 54)), flows)
		expect(false, "after the ACL is gone")
	})
}

func TestFlows_AnswersAreToTheAskerAlone(t *testing.T) {
	f := policy.ForwardFilter(onlyDNS(), policy.NewFlows())
	f.Allow(question())
	for name, p := range map[string]mesh.Packet{
		"to another port":        packet("b", "a", udp, unclear, 53, 5001),
		"from another port":      packet("b", "a", udp, unclear, 54, 5000),
		"of another protocol":    packet("b", "a", mesh.ProtocolSCTP, unclear, 53, 5000),
		"from another node":      packet("c", "a", udp, unclear, 53, 5000),
		"TCP from the same port": packet("b", "a", tcp, mesh.PacketOpens, 53, 5000),
	} {
		if f.Allow(p) {
			t.Errorf("an answer %s passes", name)
		}
	}
}

// Nothing is remembered where ports make no difference, so that a mesh without
// such ACLs pays nothing.
func TestFlows_RemembersOnlyWhatItMust(t *testing.T) {
	for name, s := range map[string]*mesh.Snapshot{
		"no ports":                 filterSnapshot(mesh.ACL{Accept: true}),
		"both directions accepted": filterSnapshot(ported(false, "a", "b", tcp, 22), mesh.ACL{Accept: true}),
	} {
		flows := policy.NewFlows()
		f := policy.ForwardFilter(s, flows)
		if !f.Allow(question()) || !f.Allow(answer()) {
			t.Errorf("%s: refused", name)
		}
		if n := policy.Remembered(flows); n != 0 {
			t.Errorf("%s: %d conversations remembered", name, n)
		}
	}
}

// A node that opens more conversations than there is room for drives out its
// own, and hardly any of others.
func TestFlows_AFloodIsBounded(t *testing.T) {
	s := filterSnapshot(mesh.ACL{Accept: true, Protocols: []mesh.Protocol{udp}, DestinationNodes: []string{"b"}})
	s.Routes[0].Destinations = prefixes("10.0.0.0/8")
	flows := policy.NewFlows()
	f := policy.ForwardFilter(s, flows)
	const others = 64
	other := func(i int) mesh.Packet {
		p := question()
		p.Src = netip.AddrFrom4([4]byte{10, 0, 1, byte(i)})
		return p
	}
	for i := range others {
		if !f.Allow(other(i)) {
			t.Fatal("refused")
		}
	}
	var wg sync.WaitGroup
	for worker := range 4 {
		wg.Go(func() {
			for i := range 20000 {
				p := question()
				p.SrcPort, p.DstPort = uint16(worker*20000+i), uint16(i)
				f.Allow(p)
			}
		})
	}
	wg.Wait()
	if n := policy.Remembered(flows); n > policy.FlowRegion+others {
		t.Errorf("%d conversations remembered", n)
	}
	alive := 0
	for i := range others {
		p := other(i)
		p.Src, p.Dst, p.SrcPort, p.DstPort = p.Dst, p.Src, p.DstPort, p.SrcPort
		if f.Allow(p) {
			alive++
		}
	}
	// Each is in one of 128 regions by chance; more than a few in the flooded
	// one means that regions do not work.
	if alive < others*3/4 {
		t.Errorf("a flood of one node left %d of %d conversations of others", alive, others)
	}
}

func BenchmarkFilter_Ports(b *testing.B) {
	b.Run("TCP", func(b *testing.B) {
		f := policy.ForwardFilter(filterSnapshot(ported(true, "a", "b", tcp, 80, 443)), policy.NewFlows())
		p := packet("b", "a", tcp, mesh.PacketContinues, 443, 5000)
		b.ReportAllocs()
		for b.Loop() {
			if !f.Allow(p) {
				b.Fatal("refused")
			}
		}
	})
	b.Run("UDP", func(b *testing.B) {
		f := policy.ForwardFilter(onlyDNS(), policy.NewFlows())
		f.Allow(question())
		p := answer()
		b.ReportAllocs()
		for b.Loop() {
			if !f.Allow(p) {
				b.Fatal("refused")
			}
		}
	})
	b.Run("UDP flood", func(b *testing.B) {
		f := policy.ForwardFilter(onlyDNS(), policy.NewFlows())
		p := question()
		b.ReportAllocs()
		for b.Loop() {
			p.SrcPort++
			f.Allow(p)
		}
	})
}

// BenchmarkLarge is a mesh of 10 000 nodes and 1000 ACLs, half of them with
// ports, that name groups of up to all nodes.
func BenchmarkLarge(b *testing.B) {
	s := largeSnapshot()
	src, dst := s.Node("n1"), s.Node("n9999")
	p := mesh.Packet{Src: src.Addrs()[0], Dst: dst.Addrs()[0], Protocol: tcp, Kind: mesh.PacketOpens, SrcPort: 5000, DstPort: 443}
	flow := policy.Flow{SrcNode: "n1", Src: p.Src, DstNode: "n9999", Dst: p.Dst, Protocol: tcp, Port: 443}
	b.Run("compile", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			policy.Compile(s)
		}
	})
	b.Run("build filter", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			policy.ForwardFilter(s, policy.NewFlows())
		}
	})
	n := policy.Compile(s)
	b.Run("connection", func(b *testing.B) {
		for b.Loop() {
			n.Decide(flow)
		}
	})
	f := policy.ForwardFilter(s, policy.NewFlows())
	b.Run("packet, remembered", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			f.Allow(p)
		}
	})
	b.Run("packet, decided", func(b *testing.B) {
		b.ReportAllocs()
		var i uint32
		for b.Loop() {
			i++
			var raw [4]byte
			binary.BigEndian.PutUint32(raw[:], 172<<24|16<<16+i%10000)
			p.Src = netip.AddrFrom4(raw)
			binary.BigEndian.PutUint32(raw[:], 172<<24|16<<16+i/10000%10000)
			p.Dst = netip.AddrFrom4(raw)
			f.Allow(p)
		}
	})
	action := mesh.Action{Resource: edges, Verb: put, Name: "x"}
	b.Run("action", func(b *testing.B) {
		for b.Loop() {
			policy.Allowed(s, "n7777", action)
		}
	})
}

// What passes where only answers do.
func TestFlows_Answers(t *testing.T) {
	flows := policy.NewFlows()
	flows.Sent(question())
	flows.Sent(packet("a", "b", tcp, mesh.PacketOpens, 5000, 80))
	for _, test := range []struct {
		name string
		p    mesh.Packet
		want bool
	}{
		{"an answer", answer(), true},
		{"an answer to another port", packet("b", "a", udp, unclear, 53, 5001), false},
		{"another one's", packet("c", "a", udp, unclear, 53, 5000), false},
		{"a call", packet("b", "a", tcp, mesh.PacketOpens, 80, 5000), false},
		{"the rest of a connection", packet("b", "a", tcp, mesh.PacketContinues, 80, 5000), true},
		{"an error", packet("b", "a", mesh.ProtocolICMP, mesh.PacketReports, 0, 0), true},
		{"a later fragment", packet("b", "a", udp, mesh.PacketFragment, 0, 0), true},
		{"nonsense", packet("b", "a", udp, mesh.PacketBroken, 0, 0), false},
	} {
		if got := flows.Answers(test.p); got != test.want {
			t.Errorf("%s: %v, want %v", test.name, got, test.want)
		}
	}
}
