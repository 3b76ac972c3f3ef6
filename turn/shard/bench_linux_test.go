// SPDX-License-Identifier: Apache-2.0

package shard

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"
	"unsafe"

	"github.com/pion/logging"
	pion "github.com/pion/turn/v3"
	"golang.org/x/sys/unix"
)

// runner sends bursts of datagrams through a server, by a client and a peer that
// send as the shard does, and waits for each burst.
type runner struct {
	testing.TB
	client, peer  *burst
	server, relay netip.AddrPort
	fromClient    [][]byte
	fromPeer      [][]byte
	buf           []byte
	poll          []unix.PollFd
}

func newRunner(t testing.TB, server netip.AddrPort, n, size int) *runner {
	t.Helper()
	r := &runner{TB: t, client: newBurst(t, loopback4), peer: newBurst(t, loopback4), server: server, buf: make([]byte, 1<<16)}
	c := &client{TB: t, UDPConn: netConn(t, r.client.port.socket), server: server, user: "ann"}
	r.relay = c.allocate()
	c.bind(0x4000, r.peer.port.socket.Addr())
	for i := range n {
		r.fromClient = append(r.fromClient, channelData(0x4000, payload(i, size)))
		r.fromPeer = append(r.fromPeer, payload(i, size))
	}
	r.poll = []unix.PollFd{{Events: unix.POLLIN}}
	return r
}

func (r *runner) up()   { r.move(r.client, r.peer, r.server, r.fromClient) }
func (r *runner) down() { r.move(r.peer, r.client, r.relay, r.fromPeer) }

func (r *runner) move(from, to *burst, at netip.AddrPort, packets [][]byte) {
	for _, p := range packets {
		from.add(from.port, at, false, p)
	}
	from.flush()
	fd := to.port.socket.fd
	for got := 0; got < len(packets); {
		_, _, errno := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(&r.buf[0])), uintptr(len(r.buf)), unix.MSG_DONTWAIT, 0, 0)
		switch errno {
		case 0:
			got++
		case unix.EAGAIN:
			r.poll[0].Fd = int32(fd)
			if n, err := unix.Poll(r.poll, int(patience/time.Millisecond)); n == 0 && err == nil {
				r.Fatalf("%d of %d datagrams arrived", got, len(packets))
			}
		default:
			r.Fatal(errno)
		}
	}
}

// startPion serves with the engine that this package replaces.
func startPion(b *testing.B) netip.AddrPort {
	b.Helper()
	conn, at := socket(b, loopback4)
	key := pion.GenerateAuthKey("ann", "meshgate", "ann")
	s, err := pion.NewServer(pion.ServerConfig{
		Realm:         "meshgate",
		AuthHandler:   func(string, string, net.Addr) ([]byte, bool) { return key, true },
		LoggerFactory: &logging.DefaultLoggerFactory{DefaultLogLevel: logging.LogLevelDisabled},
		PacketConnConfigs: []pion.PacketConnConfig{{
			PacketConn:            conn,
			RelayAddressGenerator: &pion.RelayAddressGeneratorStatic{RelayAddress: loopback4.AsSlice(), Address: "127.0.0.1"},
		}},
	})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { s.Close() })
	return at
}

// BenchmarkRelay moves bursts through both engines and through pion's server, and
// says what CPU time the whole process takes for a datagram: half of it or less is
// the server's.
func BenchmarkRelay(b *testing.B) {
	for name, start := range map[string]func(*testing.B) netip.AddrPort{
		"thread": func(b *testing.B) netip.AddrPort { return newWorld(b).udp[loopback4] },
		"portable": func(b *testing.B) netip.AddrPort {
			return newWorld(b, func(c *Config) { c.Portable = true }).udp[loopback4]
		},
		"pion": startPion,
	} {
		for _, n := range []int{1, 8} {
			for way, move := range map[string]func(*runner){"up": (*runner).up, "down": (*runner).down} {
				b.Run(fmt.Sprintf("%s/burst %d/%s", name, n, way), func(b *testing.B) {
					r := newRunner(b, start(b), n, 100)
					move(r)
					b.ReportAllocs()
					before := cpu(b)
					for b.Loop() {
						move(r)
					}
					b.ReportMetric(float64((cpu(b)-before).Nanoseconds())/float64(b.N*n), "cpu-ns/packet")
				})
			}
		}
	}
}

func cpu(t testing.TB) time.Duration {
	t.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		t.Fatal(os.NewSyscallError("getrusage", err))
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
