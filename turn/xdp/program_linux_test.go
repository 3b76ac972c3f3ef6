// SPDX-License-Identifier: Apache-2.0

package xdp

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"

	"github.com/meshgate/meshgate/turn/core"
)

func ebpfRun(frame []byte, ingress uint32) ebpf.RunOptions {
	return ebpf.RunOptions{
		Data: frame, DataOut: make([]byte, len(frame)+256),
		Context: context{DataEnd: uint32(len(frame)), Ingress: ingress},
	}
}

func programs() []string { return []string{nativeProgram, genericProgram} }

// leaving is the frame in which data must leave.
func leaving(came packet, from, to netip.AddrPort, data []byte) packet {
	p := packet{
		excess: came.excess, srcMAC: net.HardwareAddr{0x02, 0, 0, 0, mac(to.Addr())[4], 1}, dstMAC: mac(to.Addr()),
		from: from, to: to, data: data, ttl: 64, whole: came.whole, check: came.check,
	}
	if came.from.Addr().Is6() && to.Addr().Is4() {
		p.whole = 20+8+len(data) > 1260
	}
	switch {
	case to.Addr().Is6() && came.check != wrong:
		p.check = full
	case came.check == partial:
		p.check = none
	}
	return p
}

// compare says how a frame that left differs from the one that should. The
// identification of a packet that may be fragmented is whatever it is.
func (w *world) compare(action uint32, out []byte, want packet) error {
	wanted := uint32(actionTX)
	if mac(want.to.Addr())[4] == 1 {
		wanted = actionRedirect
	}
	if want.from.Addr().Is4() && !want.whole && len(out) > 20 {
		want.id = binary.BigEndian.Uint16(out[18:])
	}
	switch frame := want.marshal(); {
	case action != wanted:
		return fmt.Errorf("%s, want %s", describe(action), describe(wanted))
	case !bytes.Equal(out, frame):
		return fmt.Errorf("%w:\n got % x\nwant % x", errWant, out, frame)
	default:
		return nil
	}
}

// up and down give a datagram to the core and to a program and compare what they send.
func (w *world) up(program string, came packet) error {
	w.Helper()
	sent := w.fromClient(came.from, came.data)
	if len(sent) != 1 || sent[0].Kind != core.SendPeer {
		return fmt.Errorf("the core sent %+v", sent)
	}
	action, out := w.run(program, came.marshal())
	return w.compare(action, out, leaving(came, w.relayed[sent[0].Relay], sent[0].Peer, sent[0].Data))
}

func (w *world) down(program string, id core.RelayID, came packet) error {
	w.Helper()
	sent := w.fromPeer(id, came.from, came.data)
	if len(sent) != 1 || sent[0].Kind != core.SendClient {
		return fmt.Errorf("the core sent %+v", sent)
	}
	action, out := w.run(program, came.marshal())
	return w.compare(action, out, leaving(came, serverOf(sent[0].Flow.Client), sent[0].Flow.Client, sent[0].Data))
}

func serverOf(client netip.AddrPort) netip.AddrPort {
	if client.Addr().Is4() {
		return server4
	}
	return server6
}

func clients() []netip.AddrPort { return []netip.AddrPort{client4, client6} }

func peers() []netip.AddrPort { return []netip.AddrPort{peer4, peer6, farPeer4, farPeer6} }

// checks are those that a program serves for datagrams of a family.
func checks(program string, ipv4 bool) []check {
	list := []check{full}
	if ipv4 {
		list = append(list, none)
	}
	if program == nativeProgram {
		list = append(list, partial)
	}
	return list
}

// TestProgram_SendsWhatTheCoreSends gives the same datagrams to the core and to
// the programs: what leaves is the same to the byte.
func TestProgram_SendsWhatTheCoreSends(t *testing.T) {
	w := newWorld(t)
	sizes := []int{0, 1, 2, 3, 4, 5, 63, 64, 67, 100, 511, 512, 513, 1023, 1200, 1233, 1240, 1400}
	lives := []uint8{57, 1, 255, 0} // who a packet is for takes it with any
	for _, client := range clients() {
		w.bind(client, peers()...)
		for i, peer := range peers() {
			id, relay := w.relay(client, peer)
			for _, program := range programs() {
				for n, size := range sizes {
					for _, c := range checks(program, client.Addr().Is4()) {
						came := received(client, serverOf(client), append(frame(0x4000+uint16(i), random(size)), random(n%4)...))
						came.check, came.whole = c, n%2 == 0 && client.Addr().Is4()
						came.ttl, came.tos = lives[n%len(lives)], uint8(n)
						if err := w.up(program, came); err != nil {
							t.Errorf("%s: %v to %v: %d bytes, padding %d, check %d: %v", program, client, peer, size, n%4, c, err)
						}
					}
					for _, c := range checks(program, peer.Addr().Is4()) {
						came := received(peer, relay, random(size))
						came.check, came.whole = c, n%2 == 0 && peer.Addr().Is4()
						came.ttl, came.tos = lives[n%len(lives)], uint8(n)
						if err := w.down(program, id, came); err != nil {
							t.Errorf("%s: %v to %v: %d bytes, check %d: %v", program, peer, client, size, c, err)
						}
					}
				}
			}
		}
		// Both have counted each packet, once it was credited.
		u := w.used(client)
		if u.SentPackets == 0 || u.SentPackets%2 != 0 || u.SentBytes%2 != 0 || u.ReceivedPackets == 0 || u.ReceivedPackets%2 != 0 || u.ReceivedBytes%2 != 0 {
			t.Errorf("counters %+v", u)
		}
	}
	if s := w.engine.Stats(); s.Bindings != 8 || s.Refused != 0 {
		t.Errorf("%+v", s)
	}
}

// TestProgram_SendsJumboFrames: on links that carry more, so does the program.
func TestProgram_SendsJumboFrames(t *testing.T) {
	w := newWorld(t)
	const mtu = 3450 // what fits a page, with what the kernel needs of it to run a program
	for _, name := range []string{"near", "far"} {
		must(t, netlink.LinkSetMTU(linkOf(t, name), mtu))
	}
	for _, client := range clients() {
		w.bind(client, peer4, peer6)
		for i, peer := range peers()[:2] {
			id, relay := w.relay(client, peer)
			for _, program := range programs() {
				for _, size := range []int{1500, 2047, 2048, 3071, mtu - 48 - 4} {
					for _, c := range checks(program, client.Addr().Is4()) {
						came := received(client, serverOf(client), frame(0x4000+uint16(i), random(size)))
						if came.check = c; client.Addr().Is6() {
							came.whole = false
						}
						if err := w.up(program, came); err != nil {
							t.Errorf("%s: %v to %v: %d bytes, check %d: %v", program, client, peer, size, c, err)
						}
					}
					if err := w.down(program, id, received(peer, relay, random(size))); err != nil {
						t.Errorf("%s: %v to %v: %d bytes: %v", program, peer, client, size, err)
					}
				}
			}
		}
	}
}

// TestProgram_KeepsWhatIsBroken says that a checksum that was wrong stays so: the
// native program does not add the data up.
func TestProgram_KeepsWhatIsBroken(t *testing.T) {
	w := newWorld(t)
	w.bind(client4, peer4, peer6)
	for _, channel := range []uint16{0x4000, 0x4001} {
		came := received(client4, server4, frame(channel, random(100)))
		came.check, came.excess = wrong, 0x0100
		if err := w.up(nativeProgram, came); err != nil {
			t.Error(err)
		}
		if action, out := w.run(genericProgram, came.marshal()); action != actionPass || !bytes.Equal(out, came.marshal()) {
			t.Errorf("the generic program: %s", describe(action))
		}
	}
}

// TestProgram_WritesNoZero: a checksum that comes to zero is sent as 0xffff, as
// zero says that there is none.
func TestProgram_WritesNoZero(t *testing.T) {
	w := newWorld(t)
	w.bind(client4, peer4, peer6)
	for i, peer := range []netip.AddrPort{peer4, peer6} {
		id, relay := w.relay(client4, peer)
		for _, program := range programs() {
			for _, c := range checks(program, true) {
				data := make([]byte, 100)
				came := received(client4, server4, frame(0x4000+uint16(i), data))
				came.check = c
				// What its checksum would be with zeros makes it zero.
				p := leaving(came, relay, peer, data)
				p.check = full
				head := len(p.marshal()) - len(data)
				copy(came.data[4:], p.marshal()[head-2:head])
				if err := w.up(program, came); err != nil {
					t.Errorf("%s: to %v, check %d: %v", program, peer, c, err)
				}
			}
			data := make([]byte, 100)
			came := received(peer, relay, data)
			p := leaving(came, server4, client4, frame(0x4000+uint16(i), data)).marshal()
			copy(data, p[len(p)-len(data)-4-2:])
			copy(data[2:], make([]byte, 98))
			if err := w.down(program, id, came); err != nil {
				t.Errorf("%s: from %v: %v", program, peer, err)
			}
		}
	}
}

// TestProgram_PadsFromEthernet: a frame has at least 60 bytes, of which the end
// may be no part of the packet.
func TestProgram_PadsFromEthernet(t *testing.T) {
	w := newWorld(t)
	w.bind(client4, peer4)
	_, relay := w.relay(client4, peer4)
	for _, program := range programs() {
		came := received(client4, server4, frame(0x4000, []byte("abc")))
		action, out := w.run(program, append(came.marshal(), make([]byte, 60-49)...))
		if err := w.compare(action, out, leaving(came, relay, peer4, []byte("abc"))); err != nil {
			t.Errorf("%s: %v", program, err)
		}
	}
}

// odd is a packet that is not the kernel path's business.
type odd struct {
	name  string
	frame []byte
}

// oddities are packets of a client and of a peer, each with something unusual.
func oddities(client, peer, relay netip.AddrPort) []odd {
	server := serverOf(client)
	data := []byte("0123456789abcdef")
	good := func() packet { return received(client, server, frame(0x4000, data)) }
	back := func() packet { return received(peer, relay, data) }
	other := func(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr(), a.Port()+1) }
	next := func(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Next(), a.Port()) }
	var all []odd
	add := func(name string, p packet, change ...func(b []byte) []byte) {
		b := p.marshal()
		for _, f := range change {
			b = f(b)
		}
		all = append(all, odd{name, b})
	}
	payload := func(name string, b []byte) { p := good(); p.data = b; add(name, p) }
	payload("an unknown channel", frame(0x4777, data))
	payload("a channel out of range", frame(0x5000, data))
	payload("more than there is", slices.Concat([]byte{0x40, 0, 0, byte(len(data) + 1)}, data))
	payload("far more than there is", slices.Concat([]byte{0x40, 0, 0xff, 0xff}, data))
	payload("a word of padding", append(frame(0x4000, data), 0, 0, 0, 0))
	payload("several messages", slices.Concat(frame(0x4000, data), frame(0x4000, data)))
	payload("half a header", []byte{0x40, 0, 0})
	payload("nothing", nil)
	payload("STUN", slices.Concat([]byte{0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42}, make([]byte, 12)))
	for _, dir := range []struct {
		name string
		p    func() packet
	}{{"client", good}, {"peer", back}} {
		n := dir.name + ": "
		with := func(name string, change func(p *packet)) { p := dir.p(); change(&p); add(n+name, p) }
		with("another port", func(p *packet) { p.from = other(p.from) })
		with("another host", func(p *packet) { p.from = next(p.from) })
		with("to another port", func(p *packet) { p.to = other(p.to) })
		with("to another address", func(p *packet) { p.to = next(p.to) })
		add(n+"broadcast", dir.p(), func(b []byte) []byte { copy(b, "\xff\xff\xff\xff\xff\xff"); return b })
		add(n+"VLAN", dir.p(), func(b []byte) []byte { return slices.Insert(b, 12, 0x81, 0x00, 0x00, 0x05) })
		add(n+"two VLANs", dir.p(), func(b []byte) []byte { return slices.Insert(b, 12, 0x88, 0xa8, 0, 5, 0x81, 0, 0, 6) })
		add(n+"another protocol", dir.p(), func(b []byte) []byte { b[12], b[13] = 0x88, 0xcc; return b })
		length := 14 + 20 + 4 // of the UDP header
		if client.Addr().Is6() && dir.name == "client" || peer.Addr().Is6() && dir.name == "peer" {
			length = 14 + 40 + 4
			for name, next := range map[string]byte{"TCP": 6, "UDP-Lite": 136} {
				add(n+name, dir.p(), func(b []byte) []byte { b[14+6] = next; return b })
			}
			for name, header := range map[string][]byte{
				"hop-by-hop options": {0, 17, 0, 1, 4, 0, 0, 0, 0}, "options": {60, 17, 0, 1, 4, 0, 0, 0, 0}, "a route": {43, 17, 0, 0, 0, 0, 0, 0, 0},
				"an atomic fragment": {44, 17, 0, 0, 0, 1, 2, 3, 4}, "first fragment": {44, 17, 0, 0, 1, 1, 2, 3, 4}, "a fragment": {44, 17, 0, 0, 8, 1, 2, 3, 4},
			} {
				add(n+name, dir.p(), func(b []byte) []byte {
					b[14+6], b[14+5] = header[0], b[14+5]+8
					return slices.Insert(b, 14+40, header[1:]...)
				})
			}
			with("no checksum", func(p *packet) { p.check = none })
			add(n+"IP length", dir.p(), func(b []byte) []byte { b[14+5]++; return b })
			add(n+"less IP", dir.p(), func(b []byte) []byte { b[14+5]--; return b })
			add(n+"version", dir.p(), func(b []byte) []byte { b[14] = 0x40 | b[14]&0xf; return b })
		} else {
			header := func(at int, to byte) func(b []byte) []byte {
				return func(b []byte) []byte {
					b[14+at] = to
					b[14+10], b[14+11] = 0, 0
					binary.BigEndian.PutUint16(b[14+10:], ^sum(0, b[14:34]))
					return b
				}
			}
			add(n+"TCP", dir.p(), header(9, 6))
			add(n+"first fragment", dir.p(), header(6, 0x20))
			add(n+"a fragment", dir.p(), header(7, 1))
			add(n+"the reserved bit", dir.p(), header(6, 0x80))
			add(n+"version", dir.p(), header(0, 0x65))
			add(n+"short header", dir.p(), header(0, 0x44))
			add(n+"IP length", dir.p(), header(3, 0xff))
			add(n+"IP checksum", dir.p(), func(b []byte) []byte { b[14+10] ^= 1; return b })
			add(n+"options", dir.p(), func(b []byte) []byte {
				b = slices.Insert(b, 34, 1, 1, 1, 1)
				b[14], b[14+3], b[14+10], b[14+11] = 0x46, b[14+3]+4, 0, 0
				binary.BigEndian.PutUint16(b[14+10:], ^sum(0, b[14:38]))
				return b
			})
		}
		if p := dir.p(); p.from.Addr().Is4() {
			// The keys of maps have IPv4 addresses so.
			mapped := func(a netip.AddrPort) netip.AddrPort {
				return netip.AddrPortFrom(netip.AddrFrom16(a.Addr().As16()), a.Port())
			}
			p.from, p.to = mapped(p.from), mapped(p.to)
			add(n+"IPv4 in IPv6", p)
		}
		add(n+"UDP length", dir.p(), func(b []byte) []byte { b[length+1]++; return b })
		add(n+"less UDP", dir.p(), func(b []byte) []byte { b[length+1]--; return b })
		add(n+"no UDP", dir.p(), func(b []byte) []byte { b[length+1] = 7; return b })
		whole := dir.p().marshal()
		for i := 14; i < len(whole); i++ {
			all = append(all, odd{fmt.Sprintf("%sthe first %d bytes", n, i), whole[:i]})
		}
	}
	return all
}

// TestProgram_PassesTheRest says that everything else goes on to user space as it was.
func TestProgram_PassesTheRest(t *testing.T) {
	w := newWorld(t)
	for _, client := range clients() {
		for _, peer := range peers()[:2] {
			w.bind(client, peer)
			_, relay := w.relay(client, peer)
			for _, program := range programs() {
				if err := w.up(program, received(client, serverOf(client), frame(0x4000, random(9)))); err != nil {
					t.Fatalf("nothing odd: %v", err)
				}
				for _, o := range oddities(client, peer, relay) {
					w.passes(program, fmt.Sprintf("%v and %v: %s", client, peer, o.name), o.frame)
				}
			}
			w.core.Evict(func(core.Info) bool { return true }, &w.out)
			w.drive()
		}
	}
	if s := w.engine.Stats(); s.Bindings != 0 {
		t.Errorf("%+v", s)
	}
}

func (w *world) passes(program, name string, frame []byte) {
	w.Helper()
	if action, out := w.run(program, frame); action != actionPass || !bytes.Equal(out, frame) {
		w.Errorf("%s: %s: %s\n got % x\nfrom % x", program, name, describe(action), out, frame)
	}
}

// TestProgram_PassesWhatIsPartial: the generic program sees datagrams that were
// put together as one, and none of them has a checksum of the whole.
func TestProgram_PassesWhatIsPartial(t *testing.T) {
	w := newWorld(t)
	w.bind(client4, peer4)
	w.bind(client6, peer6)
	for _, client := range clients() {
		came := received(client, serverOf(client), frame(0x4000, random(100)))
		came.check = partial
		w.passes(genericProgram, "partial", came.marshal())
		// One that happens to be right as well is still no checksum: the kernel adds to it.
		copy(came.data[4:], []byte{0, 0})
		b := came.marshal()
		udp := b[len(b)-len(came.data)-8:]
		pseudo := binary.BigEndian.Uint16(udp[6:]) // as far as it goes
		copy(came.data[4:], binary.BigEndian.AppendUint16(nil, ^sum(pseudo, udp)))
		if b = came.marshal(); sum(pseudo, b[len(b)-len(came.data)-8:]) != 0xffff {
			t.Fatal("it is not right")
		}
		w.passes(genericProgram, "partial and right", b)
	}
}

// TestProgram_ServesLoopback: there are no neighbours, and the kernel keeps the
// route with a packet, so that its IP version must stay.
func TestProgram_ServesLoopback(t *testing.T) {
	w := newWorld(t)
	at := func(addr string) netip.AddrPort { return netip.MustParseAddrPort(addr) }
	w.engine.cfg.Listeners = map[uint16]netip.AddrPort{0: at("127.0.0.1:3478"), 1: at("[::1]:3478")}
	until := time.Now().Add(time.Hour)
	for _, client := range []netip.AddrPort{at("127.0.0.1:1"), at("[::1]:1")} {
		flow := flowOf(client)
		relays := []netip.AddrPort{at("127.0.0.1:2"), at("[::1]:2")}
		peers := []netip.AddrPort{at("127.0.0.2:3"), at("[::1]:3")}
		w.engine.Changed(flow, func(yield func(core.Binding) bool) {
			for i := range peers {
				yield(core.Binding{Channel: 0x4000 + uint16(i), Relayed: relays[i], Peer: peers[i], ToPeer: until, FromPeer: until})
			}
		})
		for i, peer := range peers {
			data := random(10)
			came := packet{srcMAC: make([]byte, 6), dstMAC: make([]byte, 6), from: client, to: w.engine.cfg.Listeners[flow.Listener], data: frame(0x4000+uint16(i), data), ttl: 64, whole: true}
			for _, program := range programs() {
				options := ebpfRun(came.marshal(), 1)
				action, err := w.engine.programs.Programs[program].Run(&options)
				must(t, err)
				want := packet{srcMAC: make([]byte, 6), dstMAC: make([]byte, 6), from: relays[i], to: peer, data: data, ttl: 64, whole: true}
				switch served := action == actionTX && bytes.Equal(options.DataOut, want.marshal()); {
				case served != (int(flow.Listener) == i):
					t.Errorf("%s: %v to %v: %s\n% x", program, client, peer, describe(action), options.DataOut)
				case !served && !bytes.Equal(options.DataOut, came.marshal()):
					t.Errorf("%s: %v to %v: changed", program, client, peer)
				}
			}
		}
	}
}

// TestObject_IsThatOfTheSource: who changes the program must compile it.
func TestObject_IsThatOfTheSource(t *testing.T) {
	sum := sha256.New()
	for _, pattern := range []string{"program/*.h", "program/*.c"} {
		names, err := filepath.Glob(pattern)
		if err != nil || len(names) == 0 {
			t.Fatalf("%s: %v", pattern, err)
		}
		for _, name := range names {
			source, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			sum.Write(source)
		}
	}
	if !bytes.Contains(object, []byte("sha256:"+hex.EncodeToString(sum.Sum(nil)))) {
		t.Error("program/turn.o is not of these sources: install clang-14 and llvm-14, run make generate")
	}
}
