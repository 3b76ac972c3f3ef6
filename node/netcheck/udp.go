// SPDX-License-Identifier: Apache-2.0

package netcheck

import (
	"bytes"
	"context"
	"crypto/rand"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/meshgate/meshgate/node/path"
)

// again is when a STUN server is asked, after the beginning: some packets get lost.
func again() []time.Duration {
	return []time.Duration{0, 250 * time.Millisecond, 600 * time.Millisecond, 1200 * time.Millisecond}
}

// family looks at UDP over one version of IP. The ports are those that were asked.
func family(ctx context.Context, cfg Config, targets []Target, network string) (Family, map[netip.AddrPort]Port) {
	servers := serversOf(targets, network)
	ports := make(map[netip.AddrPort]Port, len(servers))
	for _, at := range servers {
		ports[at] = Port{Address: at}
	}
	f := Family{Here: here(cfg.Addrs, servers, network), Asked: len(servers) > 0}
	if !f.Here || !f.Asked {
		return f, ports
	}
	var lc net.ListenConfig
	conn, err := lc.ListenPacket(ctx, network, ":0")
	if err != nil {
		cfg.Logger.Debug("no socket", "network", network, "err", err)
		return f, ports
	}
	defer func() { _ = conn.Close() }() // it was for asking
	answers := ask(ctx, conn, servers)
	for _, a := range answers {
		ports[a.server] = Port{Address: a.server, RoundTrip: milliseconds(a.took), Mapped: a.mapped}
	}
	if len(answers) == 0 {
		return f, ports
	}
	f.Works, f.Mapped, f.Mapping = true, answers[0].mapped, mappingOf(answers, cfg.Addrs)
	if f.Mapping != NoNAT {
		f.Hairpin = hairpin(ctx, conn, network, answers[0].server)
	}
	return f, ports
}

// here reports whether this host has an address from which a server of the family
// may be reached.
func here(own []netip.Addr, servers []netip.AddrPort, network string) bool {
	loopback := slices.ContainsFunc(servers, func(at netip.AddrPort) bool { return at.Addr().IsLoopback() })
	return len(own) == 0 || slices.ContainsFunc(own, func(a netip.Addr) bool {
		return a.Is4() == (network == "udp4") && !a.IsLinkLocalUnicast() && (loopback || !a.IsLoopback())
	})
}

// serversOf are the STUN servers of one family, of each gateway in turn.
func serversOf(targets []Target, network string) []netip.AddrPort {
	var list []netip.AddrPort
	for i := 0; len(list) < maxServers; i++ {
		more := false
		for _, t := range targets {
			if i >= len(t.STUN) {
				continue
			}
			more = true
			at := t.STUN[i]
			if at.Addr().Is4() == (network == "udp4") && !slices.Contains(list, at) && len(list) < maxServers {
				list = append(list, at)
			}
		}
		if !more {
			break
		}
	}
	return list
}

// answer is what a STUN server says of a socket.
type answer struct {
	server, mapped netip.AddrPort
	took           time.Duration
}

// question is a request that waits for its answer.
type question struct {
	server netip.AddrPort
	at     time.Time
}

// ask asks servers from one socket where its packets come from, until all have
// answered or none does any more. The answers are in the order of servers.
func ask(ctx context.Context, conn net.PacketConn, servers []netip.AddrPort) []answer {
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })() // a deadline would be overwritten
	asked := make(map[path.Transaction]question)
	got := make(map[netip.AddrPort]answer, len(servers))
	began, times := time.Now(), again()
	for i := range times {
		until := began.Add(stunTime)
		if i+1 < len(times) {
			until = began.Add(times[i+1])
		}
		for _, server := range servers {
			if _, ok := got[server]; ok {
				continue
			}
			id, b := request()
			asked[id] = question{server, time.Now()}
			_, _ = conn.WriteTo(b, net.UDPAddrFromAddrPort(server)) // who lost it is asked again
		}
		_ = conn.SetReadDeadline(until)
		for len(got) < len(servers) {
			a, err := receive(conn, asked)
			if err != nil {
				break // it is time to ask again, or the test is over
			}
			if _, twice := got[a.server]; !twice && a.mapped.IsValid() {
				got[a.server] = a
			}
		}
	}
	var list []answer
	for _, server := range servers {
		if a, ok := got[server]; ok {
			list = append(list, a)
		}
	}
	return list
}

// request is a Binding request with an id of its own.
func request() (path.Transaction, []byte) {
	var id path.Transaction
	_, _ = rand.Read(id[:]) // it never fails
	m := path.Message{Type: path.BindingRequest, ID: id, Fingerprint: true, Length: path.AskLength}
	return id, m.Marshal("")
}

// receive reads one datagram. It is an answer if it has a mapped address; an error
// is that of the socket.
func receive(conn net.PacketConn, asked map[path.Transaction]question) (answer, error) {
	var buf [path.MaxMessage + 1]byte
	n, from, err := conn.ReadFrom(buf[:])
	if err != nil {
		return answer{}, err
	}
	at, ok := from.(*net.UDPAddr)
	m, err := path.ParseMessage(buf[:n])
	if err != nil || !ok || m.Type != path.BindingSuccess {
		return answer{}, nil
	}
	q, ok := asked[m.ID]
	if !ok || q.server != unmapped(at.AddrPort()) {
		return answer{}, nil
	}
	return answer{server: q.server, mapped: m.Mapped, took: time.Since(q.at)}, nil
}

func unmapped(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

// mappingOf tells from answers to one socket, at least one, how a NAT maps.
func mappingOf(answers []answer, own []netip.Addr) Mapping {
	if slices.Contains(own, answers[0].mapped.Addr()) {
		return NoNAT
	}
	if len(answers) < 2 {
		return UnknownMapping
	}
	byAddress := make(map[netip.Addr]netip.AddrPort)
	same, perAddress := true, true
	ports := 0 // how many were compared with another of their address
	for _, a := range answers {
		same = same && a.mapped == answers[0].mapped
		before, ok := byAddress[a.server.Addr()]
		if !ok {
			byAddress[a.server.Addr()] = a.mapped
			continue
		}
		ports++
		perAddress = perAddress && before == a.mapped
	}
	switch {
	case same && len(byAddress) > 1:
		return EndpointIndependent
	case same:
		return PortIndependent
	case perAddress && ports > 0:
		return AddressDependent
	default:
		return AddressAndPortDependent
	}
}

// hairpin sends to the public address of another socket of this host.
func hairpin(ctx context.Context, from net.PacketConn, network string, server netip.AddrPort) string {
	var lc net.ListenConfig
	to, err := lc.ListenPacket(ctx, network, ":0")
	if err != nil {
		return ""
	}
	defer func() { _ = to.Close() }() // it was for asking
	found := ask(ctx, to, []netip.AddrPort{server})
	if len(found) == 0 {
		return ""
	}
	defer context.AfterFunc(ctx, func() { _ = to.Close() })()
	_, b := request()
	if _, err := from.WriteTo(b, net.UDPAddrFromAddrPort(found[0].mapped)); err != nil {
		return "no"
	}
	_ = to.SetReadDeadline(time.Now().Add(hairpinTime))
	var buf [path.MaxMessage + 1]byte
	for {
		n, _, err := to.ReadFrom(buf[:])
		switch {
		case ctx.Err() != nil:
			return ""
		case err != nil:
			return "no"
		case bytes.Equal(buf[:n], b):
			return "yes"
		}
	}
}
