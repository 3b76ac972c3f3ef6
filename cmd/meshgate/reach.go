// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/meshgate/meshgate/gateway"
	"github.com/meshgate/meshgate/node/durable"
	"github.com/meshgate/meshgate/node/mesh"
)

// loadToken reads the admin token, or makes one at the first start. Whoever may
// read it may read the state as well.
func (p *gatewayProcess) loadToken() error {
	if p.cfg.dataDir == "" {
		p.token = rand.Text()
		return nil
	}
	path := filepath.Join(p.cfg.dataDir, tokenFile)
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		p.token = rand.Text()
		return durable.WriteFile(path, []byte(p.token+"\n"))
	}
	if err != nil {
		return fmt.Errorf("read admin token: %w", err)
	}
	if p.token = strings.TrimSpace(string(raw)); len(p.token) < len(rand.Text()) {
		return fmt.Errorf("the admin token in %s is damaged; restore it, or remove the file to get a new one", path)
	}
	return nil
}

// leaveAccess tells the commands on this host how to reach the gateway. They
// are a convenience: a disk that is full must not keep the gateway from serving.
func (p *gatewayProcess) leaveAccess(g *gateway.Gateway) error {
	if p.cfg.dataDir == "" {
		return nil
	}
	if pin, ok := g.Pin(); ok && p.cfg.tlsCert == "" {
		p.pin = fmt.Sprintf("sha256:%x", pin)
	}
	a := p.access()
	a.URL = p.localURL()
	if p.cfg.tlsCert != "" {
		var err error
		if a.CertFile, err = filepath.Abs(p.cfg.tlsCert); err != nil {
			return err
		}
	}
	if err := a.writeLocal(p.cfg.dataDir); err != nil {
		p.log.Warn("commands on this host will not find the gateway by themselves", "err", err)
	}
	return nil
}

// access is how a client reaches this gateway as its admin.
func (p *gatewayProcess) access() *access {
	return &access{URL: p.url(), Token: p.token, Pin: p.pin}
}

// api is where nodes that lose their gateway find this one. A proxy in front of
// it may show another certificate than its own.
func (p *gatewayProcess) api() (mesh.API, error) {
	a := mesh.API{URL: p.url()}
	if p.tls == nil || p.tls.SelfSignedDir == "" || p.cfg.publicURL != "" {
		return a, nil
	}
	var err error
	if a.Pin, err = p.tls.Pin(); err != nil {
		return a, fmt.Errorf("--data-dir: %w", err)
	}
	return a, nil
}

// url is the API as clients see it.
func (p *gatewayProcess) url() string {
	if p.cfg.publicURL != "" {
		return p.cfg.publicURL
	}
	host := cmp.Or(p.cfg.domain, p.address.String())
	return p.schemeURL(host)
}

// localURL is the API from this host.
func (p *gatewayProcess) localURL() string {
	at := p.public.Addr().(*net.TCPAddr).AddrPort().Addr()
	if at.IsUnspecified() {
		at = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	return p.schemeURL(at.Unmap().String())
}

func (p *gatewayProcess) schemeURL(host string) string {
	scheme := "https"
	if p.cfg.tlsOff {
		scheme = "http"
	}
	u := url.URL{Scheme: scheme, Host: hostPortURL(host, uint16(p.public.Addr().(*net.TCPAddr).Port))}
	return u.String()
}

// ready is the line for --output json.
func (p *gatewayProcess) ready() ready {
	r := ready{Event: "ready", URL: p.url(), Token: p.token}
	if p.metrics != nil {
		r.Metrics = "http://" + p.metrics.Addr().String() + "/metrics"
	}
	if p.turn != nil {
		r.TURN = netip.AddrPortFrom(p.address, p.turn.UDPAddrs()[0].Port()).String()
	}
	self := p.node.Snapshot().Node(p.node.Self())
	if addrs := self.Addrs(); len(addrs) > 0 {
		r.Nodes = []readyNode{{ID: string(self.ID), Address: addrs[0].String()}}
	}
	return r
}

// printReady tells a person where the gateway is and how to get in.
func (a *app) printReady(p *gatewayProcess) error {
	fmt.Fprintf(a.stdout, "Gateway %s is up: %s\n", p.node.Self(), p.url())
	switch {
	case p.cfg.dev && p.token != "":
		fmt.Fprintf(a.stdout, "Open   %s\n", consoleURL(p.url(), p.token))
	case p.token != "":
		fmt.Fprintf(a.stdout, "The admin token is in %s\n", filepath.Join(p.cfg.dataDir, tokenFile))
	}
	if p.pin != "" {
		fmt.Fprintf(a.stdout, "The certificate is self-signed; clients believe it with --pin %s\n", p.pin)
	}
	return nil
}

// consoleURL signs in to the console. The token is in the fragment, which no
// browser sends to a server.
func consoleURL(base, token string) string { return base + "/#token=" + token }
