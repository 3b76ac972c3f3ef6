// SPDX-License-Identifier: Apache-2.0

package xdp

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/cilium/ebpf"
)

// What programs return (enum xdp_action).
const (
	actionDrop     = 1
	actionPass     = 2
	actionTX       = 3
	actionRedirect = 4
)

// rehearsal is a binding that is there for the self-test alone, on the loopback
// interface, where packets come from nobody else and no route is asked for.
type rehearsal struct {
	client, server, relay, peer netip.AddrPort
	channel                     uint16
	data                        string
}

// rehearse runs each program on a packet of each direction and looks at what
// comes out. Nothing is attached yet.
func rehearse(programs *ebpf.Collection) (err error) {
	at := func(port uint16) netip.AddrPort {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), port)
	}
	r := rehearsal{client: at(1), server: at(2), relay: at(3), peer: at(4), channel: 0x4000, data: "as it should be"}
	undo, err := r.prepare(programs.Maps)
	defer func() { err = errors.Join(err, undo()) }()
	if err != nil {
		return err
	}
	plain := datagram(r.relay, r.peer, []byte(r.data))
	framed := datagram(r.client, r.server, frame(r.channel, []byte(r.data)))
	back := datagram(r.server, r.client, frame(r.channel, []byte(r.data)))
	come := datagram(r.peer, r.relay, []byte(r.data))
	for name, program := range programs.Programs {
		if err := run(program, framed, plain); err != nil {
			return fmt.Errorf("%s: to a peer: %w", name, err)
		}
		if err := run(program, come, back); err != nil {
			return fmt.Errorf("%s: to a client: %w", name, err)
		}
	}
	return nil
}

// prepare fills the maps; undo empties them, whatever was filled. The test
// uses slot 0, and no meter.
func (r *rehearsal) prepare(maps map[string]*ebpf.Map) (undo func() error, err error) {
	client, back := newFromClient(r.client, r.server, r.channel), newFromPeer(r.peer, r.relay)
	toPeer, toClient := newWay(r.relay, r.peer, r.channel, 0, 0), newWay(r.server, r.client, r.channel, 0, 0)
	var slot [2 * sideWords]uint64
	for i := range 2 {
		slot[i*sideWords+sideUntil], slot[i*sideWords+sideTouch] = 1<<63, 1<<63
	}
	undo = func() error {
		errs := []error{zero(maps["outcomes"])}
		for _, err := range []error{
			maps["from_clients"].Delete(&client), maps["from_peers"].Delete(&back),
			maps["slots"].Put(uint32(0), make([]uint64, len(slot))),
		} {
			if !errors.Is(err, ebpf.ErrKeyNotExist) {
				errs = append(errs, err)
			}
		}
		return errors.Join(errs...)
	}
	return undo, errors.Join(
		maps["slots"].Put(uint32(0), slot[:]),
		maps["from_clients"].Put(&client, &toPeer), maps["from_peers"].Put(&back, &toClient),
	)
}

// zero clears an array of struct count.
func zero(m *ebpf.Map) error {
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return err
	}
	for i := range m.MaxEntries() {
		if err := m.Put(i, make([][2]uint64, cpus)); err != nil {
			return err
		}
	}
	return nil
}

// run gives a packet to a program, which must send it back as want.
func run(p *ebpf.Program, packet, want []byte) error {
	got := make([]byte, len(packet)+256)
	options := ebpf.RunOptions{Data: packet, DataOut: got}
	action, err := p.Run(&options)
	switch {
	case err != nil:
		return err
	case action != actionTX:
		return fmt.Errorf("it returned %d, want %d", action, actionTX)
	case !bytes.Equal(options.DataOut, want):
		return fmt.Errorf("it made % x of % x, want % x", options.DataOut, packet, want)
	}
	return nil
}

// frame is ChannelData without padding.
func frame(channel uint16, data []byte) []byte {
	b := binary.BigEndian.AppendUint16(nil, channel)
	b = binary.BigEndian.AppendUint16(b, uint16(len(data)))
	return append(b, data...)
}

// datagram is an Ethernet frame without addresses with a UDP datagram over IPv4
// in it, as the program writes them for others that may not be fragmented.
func datagram(from, to netip.AddrPort, data []byte) []byte {
	const ethernet, ip, udp = 14, 20, 8
	b := make([]byte, ethernet+ip+udp, ethernet+ip+udp+len(data))
	binary.BigEndian.PutUint16(b[12:], 0x0800)
	h := b[ethernet:]
	h[0], h[8], h[9] = 0x45, 64, 17
	binary.BigEndian.PutUint16(h[2:], uint16(ip+udp+len(data)))
	binary.BigEndian.PutUint16(h[6:], 0x4000)
	copy(h[12:], from.Addr().AsSlice())
	copy(h[16:], to.Addr().AsSlice())
	binary.BigEndian.PutUint16(h[10:], ^sum(0, h[:ip]))
	u := h[ip:]
	binary.BigEndian.PutUint16(u, from.Port())
	binary.BigEndian.PutUint16(u[2:], to.Port())
	binary.BigEndian.PutUint16(u[4:], uint16(udp+len(data)))
	b = append(b, data...)
	pseudo := slices.Concat(h[12:ip], []byte{0, 17}, u[4:6])
	binary.BigEndian.PutUint16(b[ethernet+ip+6:], ^sum(sum(0, pseudo), b[ethernet+ip:]))
	return b
}

// sum adds 16-bit words of b to start as checksums of the Internet do (RFC 1071).
func sum(start uint16, b []byte) uint16 {
	total := uint32(start)
	for ; len(b) > 1; b = b[2:] {
		total += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		total += uint32(b[0]) << 8
	}
	for total > 0xffff {
		total = total&0xffff + total>>16
	}
	return uint16(total)
}
