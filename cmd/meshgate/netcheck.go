// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"github.com/meshgate/meshgate/node"
	"github.com/meshgate/meshgate/node/netcheck"
	"github.com/meshgate/meshgate/node/peer"
	meshgatev1 "github.com/meshgate/meshgate/proto/meshgate/v1"
)

// The ports of a gateway that has not been asked for them.
const (
	usualSTUN      = 3478
	usualWireGuard = 51820
)

func (a *app) netcheckCommand() *cobra.Command {
	var to access
	cmd := &cobra.Command{
		Use:   "netcheck [URL]",
		Short: "find out what this network lets through to the gateways",
		Long: "netcheck says how the NAT of this network treats UDP, how far the gateways are, and which\n" +
			"transports of TURN get through to them. It asks the node of this host for the gateways,\n" +
			"or the gateway of the context, or the one at URL. Without a token, a gateway at URL tells\n" +
			"nothing, and its usual ports are looked at, without TURN.",
		Args: args(cobra.MaximumNArgs(1), "at most the URL of a gateway"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				if err := cmd.Flags().Set("server", args[0]); err != nil {
					return usageError{err}
				}
			}
			gate, err := to.dial(cmd.Context(), cmd.Flags())
			if err != nil {
				return err
			}
			defer gate.Close()
			return a.netcheck(cmd.Context(), gate, &to)
		},
	}
	to.registerNear(cmd.Flags())
	return cmd
}

// netcheck looks at the network and prints what it finds.
func (a *app) netcheck(ctx context.Context, gate *peer.Public, to *access) error {
	asked, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	servers, err := gate.Paths().ListServers(asked, connect.NewRequest(&meshgatev1.ListServersRequest{}))
	var list *meshgatev1.ListServersResponse
	switch code := connect.CodeOf(err); {
	case err == nil:
		if list = servers.Msg; list.GetNoCredential() != "" {
			fmt.Fprintf(a.stderr, "meshgate: warning: TURN is not tried: %s\n", list.GetNoCredential())
		}
	case to.URL == "":
		return fmt.Errorf("ask for the gateways: %w", err)
	case code == connect.CodeUnauthenticated, code == connect.CodePermissionDenied, code == connect.CodeUnimplemented, code == connect.CodeUnavailable, code == connect.CodeDeadlineExceeded:
		fmt.Fprintf(a.stderr, "meshgate: warning: the gateway does not tell its servers (%s); its usual ports are looked at\n", explain(err))
	default:
		return fmt.Errorf("ask for the gateways: %w", err)
	}
	trust, err := to.tls()
	if err != nil {
		return err
	}
	targets := targetsOf(ctx, list, gate.URL(), trust)
	if len(targets) == 0 {
		return errors.New("no gateway of the mesh says where it is reached; give the URL of one")
	}
	report, err := netcheck.Check(ctx, netcheck.Config{Targets: targets, Addrs: ownAddrs()})
	if err != nil {
		return err
	}
	if a.structured() {
		return a.print(report)
	}
	return a.printReport(report)
}

// ownAddrs are the addresses of this host.
func ownAddrs() []netip.Addr {
	list, err := net.InterfaceAddrs()
	if err != nil {
		return nil // a host without a NAT is then taken for one with
	}
	var out []netip.Addr
	for _, a := range list {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			out = append(out, p.Addr().Unmap())
		}
	}
	return out
}

// targetsOf makes targets of what a gateway or a node told, or, where that is
// nothing, of the URL of a gateway. trust is whom to believe; where it names nobody,
// whom the node that told believes.
func targetsOf(ctx context.Context, list *meshgatev1.ListServersResponse, base string, trust peer.TLSOptions) []netcheck.Target {
	var out []netcheck.Target
	known := trust.Pin != [sha256.Size]byte{}
	usual := trust // of TURN servers that are no gateway's, as nodes do
	if !known && trust.RootCAs == nil {
		trust.RootCAs = authoritiesOf(list.GetTrust())
		usual = pinned(trust, list.GetTrust().GetPin())
	}
	index := map[string]int{}
	// find is the target of a gateway, by its name for people.
	find := func(name string) *netcheck.Target {
		i, ok := index[name]
		if !ok {
			i = len(out)
			index[name] = i
			out = append(out, netcheck.Target{Gateway: name, TLS: usual.Config()})
		}
		return &out[i]
	}
	hosts := map[string]string{} // of gateways, to their ids
	for _, g := range list.GetGateways() {
		t := find(g.GetId())
		for _, text := range g.GetWireguardEndpoints() {
			at, err := netip.ParseAddrPort(text)
			if err == nil {
				t.STUN = append(t.STUN, at)
				hosts[at.Addr().String()] = g.GetId()
			}
		}
		if u, err := url.Parse(g.GetApiUrl()); err == nil && u.Hostname() != "" {
			hosts[u.Hostname()] = g.GetId()
		}
		if known {
			continue
		}
		pin := g.GetApiPin()
		if told := list.GetTrust(); told.GetUrl() == g.GetApiUrl() && usual.Pin != [sha256.Size]byte{} {
			pin = told.GetPin()
		}
		t.TLS = pinned(trust, pin).Config()
	}
	for _, s := range list.GetIceServers() {
		for _, uri := range s.GetUrls() {
			host := node.HostOf(uri)
			t := find(cmp.Or(hosts[host], host))
			if strings.HasPrefix(uri, "stun:") {
				t.STUN = append(addressesOf(ctx, host, portOfURI(uri)), t.STUN...)
				continue
			}
			if strings.HasSuffix(uri, "?transport=udp") {
				// It answers STUN at the same port, maybe over another version of IP.
				for _, at := range addressesOf(ctx, host, portOfURI(strings.TrimSuffix(uri, "?transport=udp"))) {
					if !slices.Contains(t.STUN, at) {
						t.STUN = append(t.STUN, at)
					}
				}
			}
			t.TURN = append(t.TURN, uri)
			t.Username, t.Password = s.GetUsername(), s.GetCredential()
		}
	}
	if u, err := url.Parse(base); list == nil && err == nil {
		t := find(u.Hostname())
		for _, port := range []uint16{usualSTUN, usualWireGuard} {
			t.STUN = append(t.STUN, addressesOf(ctx, u.Hostname(), port)...)
		}
	}
	return out
}

// authoritiesOf are those that a node believes; nil: those of the system.
func authoritiesOf(told *meshgatev1.GatewayTrust) *x509.CertPool {
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(told.GetAuthorities()) {
		return nil
	}
	return pool
}

// pinned is trust with the pin of a gateway, if there is one.
func pinned(trust peer.TLSOptions, pin string) peer.TLSOptions {
	own := access{Pin: pin}
	if opts, err := own.tls(); err == nil {
		trust.Pin = opts.Pin
	}
	return trust
}

// portOfURI is the port in the URI of a STUN server (RFC 7064).
func portOfURI(uri string) uint16 {
	_, at, _ := strings.Cut(uri, ":")
	return portOf(at, usualSTUN)
}

// addressesOf are the addresses of a host with a port; none if they cannot be found.
func addressesOf(ctx context.Context, host string, port uint16) []netip.AddrPort {
	if a, err := netip.ParseAddr(host); err == nil {
		return []netip.AddrPort{netip.AddrPortFrom(a.Unmap(), port)}
	}
	found, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return nil
	}
	var out []netip.AddrPort
	for _, a := range found {
		out = append(out, netip.AddrPortFrom(a.Unmap(), port))
	}
	return out
}

// printReport prints what was found for people.
func (a *app) printReport(r netcheck.Report) error {
	rows := append(familyRows("IPv4", r.IPv4), familyRows("IPv6", r.IPv6)...)
	rows = append(rows, []string{"filtering", "unknown: it takes a server that answers from another address, which gateways do not"})
	if err := table(a.stdout, rows); err != nil {
		return err
	}
	rows = [][]string{{"GATEWAY", "WHAT", "WHERE", "RESULT"}}
	for _, g := range r.Gateways {
		for _, p := range g.UDP {
			result := "no answer"
			if p.RoundTrip > 0 {
				result = fmt.Sprintf("%s, sees %s", millisecondsOf(p.RoundTrip), p.Mapped)
			}
			rows = append(rows, []string{g.Gateway, "STUN", p.Address.String(), result})
		}
		for _, t := range g.TURN {
			result := t.Error
			if t.Took > 0 {
				result = fmt.Sprintf("%s, relays at %s", millisecondsOf(t.Took), t.Relayed)
			}
			rows = append(rows, []string{g.Gateway, "TURN/" + t.Transport, t.URI, result})
		}
	}
	fmt.Fprintln(a.stdout)
	if err := table(a.stdout, rows); err != nil {
		return err
	}
	_, err := fmt.Fprintf(a.stdout, "\n%s\n", r.Advice)
	return err
}

func millisecondsOf(ms float64) string {
	return milliseconds(time.Duration(ms * float64(time.Millisecond)))
}

// familyRows are what is known of UDP over one version of IP.
func familyRows(name string, f netcheck.Family) [][]string {
	switch {
	case !f.Here:
		return [][]string{{name, "not tried: this host has no such address"}}
	case !f.Asked:
		return [][]string{{name, "not tried: no gateway says that it has such an address"}}
	case !f.Works:
		return [][]string{{name, "UDP is blocked, or the gateways are not reached"}}
	}
	rows := [][]string{
		{name, "UDP works, seen as " + f.Mapped.String()},
		{name + " mapping", cmp.Or(string(f.Mapping), "unknown: only one port of one gateway answers")},
	}
	if f.Hairpin != "" {
		rows = append(rows, []string{name + " hairpin", f.Hairpin})
	}
	return rows
}
