// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"time"
	"unsafe"

	"github.com/pion/stun"
	"golang.org/x/sys/unix"
)

// floodSockets is how many ports a flood comes from, of each of the forged
// addresses.
const floodSockets = 16

// floodOrder has a transfer run while a server is flooded. The flood is over with
// the transfer.
type floodOrder struct {
	transferOrder
	At netip.AddrPort // of the server
	// Packets is the rate of the flood, in packets per second.
	Packets float64
}

// flooded tells of a flood: packets sent and bytes of their payload, and those
// of the answers.
type flooded struct {
	Sent  uint64
	Kinds map[string]*traffic
}

// traffic is what went to a server and what came from it, in bytes of UDP payload.
type traffic struct{ In, Out uint64 }

// factor is how many bytes came out for each that went in.
func (t traffic) factor() float64 { return float64(t.Out) / float64(max(t.In, 1)) }

// worst is the greatest factor of all kinds of packets.
func (f flooded) worst() (kind string, factor float64) {
	for _, name := range slices.Sorted(maps.Keys(f.Kinds)) {
		if x := f.Kinds[name].factor(); kind == "" || x > factor {
			kind, factor = name, x
		}
	}
	return kind, factor
}

// add counts another flood to this one.
func (f *flooded) add(other flooded) {
	f.Sent += other.Sent
	for kind, t := range other.Kinds {
		if f.Kinds == nil {
			f.Kinds = make(map[string]*traffic)
		}
		if f.Kinds[kind] == nil {
			f.Kinds[kind] = &traffic{}
		}
		f.Kinds[kind].In += t.In
		f.Kinds[kind].Out += t.Out
	}
}

// flood floods a server beside a transfer.
func (l *load) flood(list []*client, o floodOrder) (r flooded, t transferred, err error) {
	f, err := newFlooder(o.At)
	if err != nil {
		return r, t, err
	}
	defer f.close()
	last, due := time.Time{}, 0.0
	t, err = l.transfer(list, o.transferOrder, func(now time.Time) {
		if last.IsZero() {
			last = now
		}
		due = min(o.Packets/50, due+now.Sub(last).Seconds()*o.Packets)
		last = now
		for ; due >= batch; due -= batch {
			f.send()
		}
		f.drain()
	})
	// Answers may be a little late.
	for end := time.Now().Add(lull); time.Now().Before(end); {
		f.drain()
	}
	return f.result(), t, errors.Join(err, f.failed)
}

// kind is one of the packets of a flood: as short as those are that a server
// answers, or such that they cost it much.
type kind struct {
	name     string
	datagram []byte
	traffic
}

// kinds are those of a flood.
func kinds() ([]*kind, error) {
	request := func(method stun.Method, with ...stun.Setter) []byte {
		m, err := stun.Build(append([]stun.Setter{stun.TransactionID, stun.NewType(method, stun.ClassRequest)}, with...)...)
		if err != nil {
			return nil
		}
		return m.Raw
	}
	list := []*kind{
		{name: "allocate", datagram: request(stun.MethodAllocate, transportUDP())},
		{name: "binding", datagram: request(stun.MethodBinding)},
		{name: "refresh", datagram: request(stun.MethodRefresh)},
		{name: "wrong credential", datagram: request(stun.MethodAllocate, transportUDP(), stun.NewUsername("4102444800:nobody"),
			stun.NewRealm("meshgate"), stun.NewNonce("0123456789abcdef"), stun.NewShortTermIntegrity("wrong"))},
		{name: "channel data", datagram: []byte{channel >> 8, channel & 0xff, 0, 4, 1, 2, 3, 4}},
		{name: "junk", datagram: []byte("\x16\xfe\xff not what anybody would speak here")},
	}
	for _, k := range list {
		if k.datagram == nil {
			return nil, fmt.Errorf("cannot build the packet %q of a flood", k.name)
		}
	}
	return list, nil
}

// flooder sends batches from forged addresses, all kinds in turns.
type flooder struct {
	sockets []int
	kinds   []*kind
	to      unix.RawSockaddrInet4
	next    int
	random  *rand.Rand
	sent    uint64
	in      *receiver
	failed  error

	headers  [batch]mmsghdr
	vectors  [batch]unix.Iovec
	controls [batch][]byte
	data     [batch][]byte
}

func newFlooder(to netip.AddrPort) (_ *flooder, err error) {
	f := &flooder{to: sockaddr(to), in: newReceiver(), random: rand.New(rand.NewPCG(1, 2))}
	if f.kinds, err = kinds(); err != nil {
		return nil, err
	}
	for range floodSockets {
		fd, _, err := openUDP()
		if err != nil {
			f.close()
			return nil, err
		}
		f.sockets = append(f.sockets, fd)
	}
	for i := range f.headers {
		f.controls[i] = make([]byte, unix.CmsgSpace(unix.SizeofInet4Pktinfo))
		h := (*unix.Cmsghdr)(unsafe.Pointer(&f.controls[i][0]))
		h.Level, h.Type = unix.IPPROTO_IP, unix.IP_PKTINFO
		h.SetLen(unix.CmsgLen(unix.SizeofInet4Pktinfo))
		k := f.kinds[i%len(f.kinds)]
		f.data[i] = slices.Clone(k.datagram)
		f.vectors[i].Base = &f.data[i][0]
		f.vectors[i].SetLen(len(f.data[i]))
		m := &f.headers[i]
		m.Iov, m.Control = &f.vectors[i], &f.controls[i][0]
		m.SetIovlen(1)
		m.SetControllen(len(f.controls[i]))
		m.Name, m.Namelen = (*byte)(unsafe.Pointer(&f.to)), uint32(unsafe.Sizeof(f.to))
	}
	return f, nil
}

func (f *flooder) close() {
	for _, fd := range f.sockets {
		unix.Close(fd)
	}
}

// transaction is where the id of a STUN message begins. Its first byte is the
// kind here, the next ones differ from packet to packet.
const transaction = 8

// send sends one batch. A kind is always at the same places of it.
func (f *flooder) send() {
	network := netip.MustParsePrefix(forged).Addr().As4()
	for i := range f.headers {
		from := f.random.Uint32()>>2 | binary.BigEndian.Uint32(network[:])
		// struct in_pktinfo: the interface, then the address to send from.
		binary.BigEndian.PutUint32(f.controls[i][unix.CmsgLen(0)+4:], from)
		if d := f.data[i]; len(d) >= stunHeader {
			d[transaction] = byte(i % len(f.kinds))
			binary.BigEndian.PutUint64(d[transaction+1:], f.random.Uint64())
		}
	}
	fd := f.sockets[f.next%len(f.sockets)]
	f.next++
	n, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, uintptr(fd), uintptr(unsafe.Pointer(&f.headers)), batch, unix.MSG_DONTWAIT, 0, 0)
	if errno != 0 {
		if errno != unix.EAGAIN {
			f.failed = os.NewSyscallError("flood", errno)
		}
		return
	}
	f.sent += uint64(n)
	for i := range int(n) {
		f.kinds[i%len(f.kinds)].In += uint64(len(f.data[i]))
	}
}

// stunHeader is the length of the header of a STUN message.
const stunHeader = 20

// drain counts the answers.
func (f *flooder) drain() {
	for _, fd := range f.sockets {
		for i := range f.in.receive(fd) {
			length, begin := f.in.datagram(i)
			f.answered(length, begin)
		}
	}
}

// answered counts an answer. Those whose transaction is none of the flood's go
// to what has no transaction.
func (f *flooder) answered(length int, begin []byte) {
	if len(begin) >= stunHeader && int(begin[transaction]) < len(f.kinds) {
		if k := f.kinds[begin[transaction]]; len(k.datagram) >= stunHeader {
			k.Out += uint64(length)
			return
		}
	}
	for _, k := range f.kinds {
		if k.name == "channel data" {
			k.Out += uint64(length)
		}
	}
}

func (f *flooder) result() flooded {
	r := flooded{Sent: f.sent, Kinds: make(map[string]*traffic)}
	for _, k := range f.kinds {
		r.Kinds[k.name] = &k.traffic
	}
	return r
}

// floodKinds are the names of the kinds, in their order.
func floodKinds() (names []string) {
	list, err := kinds()
	if err != nil {
		return nil
	}
	for _, k := range list {
		names = append(names, k.name)
	}
	return names
}
