// SPDX-License-Identifier: Apache-2.0

package xdp

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/meshgate/meshgate/turn/core"
)

// FuzzProgram gives the programs any frame. What they let pass is as it was, and
// what they send is what the core sends for the same datagram.
func FuzzProgram(f *testing.F) {
	for _, client := range clients() {
		for _, peer := range peers()[:2] {
			// The relays' ports depend on who asked before: both families, client4 first.
			relay := netip.AddrPortFrom(serverOf(peer).Addr(), relayPort(client, peer))
			channel := uint16(0x4000)
			if peer == peer6 {
				channel++
			}
			f.Add(received(client, serverOf(client), frame(channel, []byte("0123456789abcdef"))).marshal(), true)
			f.Add(received(peer, relay, []byte("0123456789abcdef")).marshal(), true)
			for i, o := range oddities(client, peer, relay) {
				if i%7 == 0 { // of each kind some
					f.Add(o.frame, i%2 == 0)
				}
			}
		}
	}
	// Programs run in the network of the thread, so that all of them need the same one.
	jobs, ready := make(chan func(*world)), make(chan struct{})
	go func() {
		defer close(ready)
		w := newWorld(f)
		for _, client := range clients() {
			w.bind(client, peer4, peer6)
			for _, peer := range peers()[:2] {
				if _, relay := w.relay(client, peer); relay.Port() != relayPort(client, peer) {
					f.Errorf("the relay of %v to %v is %v", client, peer, relay)
				}
			}
		}
		ready <- struct{}{}
		for job := range jobs {
			job(w)
		}
	}()
	if _, ok := <-ready; !ok {
		f.Fatal("there is no network to test in")
	}
	f.Cleanup(func() { close(jobs); <-ready })
	f.Fuzz(func(t *testing.T, frame []byte, mend bool) {
		if len(frame) < 14 || len(frame) > 3000 {
			return // the kernel runs no program on these
		}
		if mend {
			mendSums(frame)
		}
		done := make(chan error, len(programs()))
		jobs <- func(w *world) {
			for _, program := range programs() {
				done <- w.agree(program, frame)
			}
		}
		for _, program := range programs() {
			if err := <-done; err != nil {
				t.Errorf("%s: % x: %v", program, frame, err)
			}
		}
	})
}

// relayPort is the port of a relay in the world of FuzzProgram.
func relayPort(client, peer netip.AddrPort) uint16 {
	port := uint16(50001)
	if client == client6 {
		port += 2
	}
	if peer.Addr().Is6() {
		port++
	}
	return port
}

// agree runs a program on a frame and compares with what the core does.
func (w *world) agree(program string, frame []byte) error {
	action, out, err := w.try(program, frame)
	if err != nil {
		return err
	}
	if action == actionPass {
		if !bytes.Equal(out, frame) {
			return fmt.Errorf("it passed on % x", out)
		}
		return nil
	}
	came, ok := parse(frame)
	if !ok {
		return fmt.Errorf("%s: it is not one whole datagram", describe(action))
	}
	if program == genericProgram && (came.check == partial || came.check == wrong) {
		return fmt.Errorf("%s: its checksum does not cover it", describe(action))
	}
	var from, to netip.AddrPort
	var sent []core.Action
	if client := came.from; came.to == serverOf(client) {
		if sent = w.fromClient(client, came.data); len(sent) == 1 && sent[0].Kind == core.SendPeer {
			from, to = w.relayed[sent[0].Relay], sent[0].Peer
		}
	} else {
		for id, relay := range w.relayed {
			if relay == came.to {
				sent = w.fromPeer(id, came.from, came.data)
			}
		}
		if len(sent) == 1 && sent[0].Kind == core.SendClient && len(sent[0].Data) > 0 && sent[0].Data[0]>>4 == 4 {
			from, to = serverOf(sent[0].Flow.Client), sent[0].Flow.Client
		}
	}
	if !to.IsValid() {
		return fmt.Errorf("%s, but the core sent %+v", describe(action), sent)
	}
	return w.compare(action, out, leaving(came, from, to, sent[0].Data))
}

// parse reads a frame with a whole UDP datagram without anything unusual.
func parse(b []byte) (p packet, ok bool) {
	if len(b) < 14 || b[0]&1 != 0 {
		return p, false
	}
	var ip, udp []byte
	switch ip = b[14:]; binary.BigEndian.Uint16(b[12:]) {
	case 0x0800:
		if len(ip) < 28 || ip[0] != 0x45 || ip[9] != 17 || sum(0, ip[:20]) != 0xffff || (ip[6]&^0x40)|ip[7] != 0 {
			return p, false
		}
		length := int(binary.BigEndian.Uint16(ip[2:]))
		if length < 28 || length > len(ip) {
			return p, false
		}
		p.whole, udp = ip[6] == 0x40, ip[20:length]
		p.from, p.to = addrPort(ip[12:16], udp[0:]), addrPort(ip[16:20], udp[2:])
	case 0x86dd:
		if len(ip) < 48 || ip[0]>>4 != 6 || ip[6] != 17 {
			return p, false
		}
		length := 40 + int(binary.BigEndian.Uint16(ip[4:]))
		if length < 48 || length > len(ip) {
			return p, false
		}
		udp = ip[40:length]
		p.from, p.to = addrPort(ip[8:24], udp[0:]), addrPort(ip[24:40], udp[2:])
	default:
		return p, false
	}
	p.data = udp[8:]
	return p, int(binary.BigEndian.Uint16(udp[4:])) == len(udp) && p.judge(udp)
}

// judge finds out what the checksum of a datagram is worth; it is false if there must be one.
func (p *packet) judge(udp []byte) bool {
	field := binary.BigEndian.Uint16(udp[6:])
	pseudo := sum(0, slices.Concat(p.from.Addr().AsSlice(), p.to.Addr().AsSlice(), []byte{0, 17}, udp[4:6]))
	total := sum(pseudo, udp)
	switch {
	case field == 0:
		p.check = none
		return p.from.Addr().Is4()
	case field == pseudo:
		p.check = partial
	case total == 0xffff:
		p.check = full
	default:
		// What the field has too much.
		p.check, p.excess = wrong, total
	}
	return true
}

func addrPort(addr, port []byte) netip.AddrPort {
	a, _ := netip.AddrFromSlice(addr)
	return netip.AddrPortFrom(a, binary.BigEndian.Uint16(port))
}

// mendSums makes the checksums of a frame right, if there is room for them: most
// of what is changed would end there otherwise.
func mendSums(b []byte) {
	if len(b) < 14+48 {
		return
	}
	ip := b[14:]
	if binary.BigEndian.Uint16(b[12:]) == 0x0800 {
		ip[10], ip[11] = 0, 0
		binary.BigEndian.PutUint16(ip[10:], ^sum(0, ip[:20]))
	}
	p, ok := parse(b)
	if !ok || p.check != wrong {
		return
	}
	udp := ip[20:]
	if p.from.Addr().Is6() {
		udp = ip[40:]
	}
	right := sum(binary.BigEndian.Uint16(udp[6:]), binary.BigEndian.AppendUint16(nil, ^p.excess))
	if right == 0 {
		right = 0xffff
	}
	binary.BigEndian.PutUint16(udp[6:], right)
}
