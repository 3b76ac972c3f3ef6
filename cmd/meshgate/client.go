// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/pflag"

	"github.com/meshgate/meshgate/node/durable"
	"github.com/meshgate/meshgate/node/peer"
)

// localFile tells the commands on a gateway's own host how to reach it. It
// holds the admin token and is readable by its owner only.
const localFile = "local.json"

// defaultDataDir is where a gateway keeps its state unless told otherwise.
const defaultDataDir = "/var/lib/meshgate"

// access is how a command reaches a gateway.
type access struct {
	URL string `json:"url"`
	// Token is a bearer token.
	Token string `json:"token"`
	// Pin is "sha256:HEX" of the gateway's key, for a self-signed certificate.
	Pin string `json:"pin,omitempty"`
	// CertFile is the certificate that the gateway of this host shows; its key
	// is the pin, which changes with a renewal.
	CertFile string `json:"cert_file,omitempty"`

	caFile, tokenFile, dataDir string
	// authorities are what tls has read from caFile.
	authorities []byte
	// near says that a node of this host may be asked as well as a gateway. It
	// comes before the current context: what is asked is how this host fares.
	near bool
	// given says that dataDir was.
	given bool
	// prefix is before the names of the flags, as in "cluster.".
	prefix string
	// context is the name of a saved one, from contextsFile; empty: the
	// current one, from the usual file.
	context, contextsFile string
	// dialer connects to the gateway; nil is the usual one.
	dialer func(ctx context.Context, network, address string) (net.Conn, error)
}

// registerServer adds the flags of commands that call a gateway.
func (c *access) registerServer(f *pflag.FlagSet) {
	f.StringVar(&c.URL, "server", "", "URL of the gateway (default: that of the context, else the gateway of this host)")
	f.StringVar(&c.context, "context", "", "name of a saved context (default: the current one)")
	f.StringVar(&c.contextsFile, "contexts-file", "", contextsUsage)
	f.StringVar(&c.dataDir, "data-dir", defaultDataDir, "data directory of this host's gateway, used without --server and contexts")
	c.registerTrust(f)
}

// registerNear is registerServer for commands that a node of this host answers,
// too, in one order for all: what was named, the node of this host, the current
// context, the gateway of this host.
func (c *access) registerNear(f *pflag.FlagSet) {
	c.near = true
	c.registerServer(f)
	f.Lookup("server").Usage = "URL of a gateway (default: the node of this host is asked, or else the gateway of the current context, or else that of this host)"
	f.Lookup("context").Usage = "name of a saved context, whose gateway is asked (default: the current one, where no node runs)"
	f.Lookup("data-dir").Usage = "data directory of the node or the gateway of this host that is asked, used without --server and --context"
}

// registerTrust adds the flags that say who we are and whom we believe.
func (c *access) registerTrust(f *pflag.FlagSet) {
	f.StringVar(&c.Token, "token", "", "token that the gateway gave out")
	f.StringVar(&c.tokenFile, "token-file", "", "file that holds the token")
	f.StringVar(&c.Pin, "pin", "", "sha256:HEX of the gateway's key, instead of a certificate authority")
	f.StringVar(&c.caFile, "ca-file", "", "certificate authorities (PEM) to believe instead of the system's")
}

// dial completes the flags from the environment and connects.
func (c *access) dial(ctx context.Context, f *pflag.FlagSet) (*peer.Public, error) {
	if err := fromSources(f, ""); err != nil {
		return nil, err
	}
	c.given = f.Changed("data-dir")
	if c.URL != "" && c.context != "" {
		return nil, usagef("--server and --context name two gateways; give one")
	}
	if c.URL == "" && c.context == "" && c.near {
		if node, err := c.local(ctx); node != nil || err != nil {
			return node, err
		}
	}
	if c.URL == "" && (c.context != "" || c.dataDir == "" || !c.given) {
		if err := c.fromContext(); err != nil {
			return nil, err
		}
	}
	return c.connect(ctx)
}

// connect completes c from files and this host's gateway, and makes a client
// of it. The caller closes it.
func (c *access) connect(ctx context.Context) (*peer.Public, error) {
	if c.Token == "" && c.tokenFile != "" {
		raw, err := os.ReadFile(c.tokenFile)
		if err != nil {
			return nil, fmt.Errorf("read token: %w", err)
		}
		if c.Token = strings.TrimSpace(string(raw)); c.Token == "" {
			return nil, usagef("--%stoken-file %s is empty", c.prefix, c.tokenFile)
		}
	}
	if c.URL == "" {
		if err := c.fromHost(); err != nil {
			return nil, err
		}
	}
	opts, err := c.tls()
	if err != nil {
		return nil, err
	}
	p, err := peer.NewPublic(c.URL, c.Token, opts)
	if err != nil {
		return nil, usageError{err}
	}
	return p, nil
}

// local is the client of the node on this host; nil: there is none.
func (c *access) local(ctx context.Context) (*peer.Public, error) {
	socket, err := c.door(ctx)
	if err != nil || socket == "" {
		return nil, err
	}
	return peer.NewLocal(socket), nil
}

// fromHost takes URL, token and pin from the gateway on this host.
func (c *access) fromHost() error {
	path := filepath.Join(c.dataDir, localFile)
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return usagef("which gateway? Give --server and --token (or %s and %s), keep them with meshgate context set, "+
			"or give --data-dir of a gateway on this host; none runs from %s", envName("server"), envName("token"), c.dataDir)
	}
	if err != nil {
		return fmt.Errorf("read access to this host's gateway: %w", err)
	}
	var l access
	if err := json.Unmarshal(raw, &l); err != nil {
		return fmt.Errorf("parse %s: %w", path, err)
	}
	c.URL, c.Pin = l.URL, l.Pin
	if l.CertFile != "" {
		if c.Pin, err = pinOf(l.CertFile); err != nil {
			return err
		}
	}
	if c.Token == "" {
		c.Token = l.Token
	}
	return nil
}

// pinOf is the pin of the first certificate in a PEM file.
func pinOf(path string) (string, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("read certificate of this host's gateway: %w", err)
	}
	block, _ := pem.Decode(raw)
	if block == nil {
		return "", fmt.Errorf("%s holds no PEM certificate", path)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return "", fmt.Errorf("certificate in %s: %w", path, err)
	}
	return fmt.Sprintf("sha256:%x", peer.PinOf(cert)), nil
}

// writeLocal leaves c for the commands on this host, unless it is there.
func (c *access) writeLocal(dataDir string) error {
	raw, err := json.Marshal(c)
	if err != nil {
		return err
	}
	path := filepath.Join(dataDir, localFile)
	raw = append(raw, '\n')
	if there, err := os.ReadFile(path); err == nil && bytes.Equal(there, raw) {
		return nil
	}
	if err := durable.WriteFile(path, raw); err != nil {
		return fmt.Errorf("write access for this host: %w", err)
	}
	return nil
}

// tls says whom to believe.
func (c *access) tls() (peer.TLSOptions, error) {
	opts := peer.TLSOptions{Dial: c.dialer}
	if c.Pin != "" {
		raw, err := hex.DecodeString(strings.TrimPrefix(c.Pin, "sha256:"))
		if err != nil || len(raw) != sha256.Size {
			return opts, usagef("--%spin %q: want sha256: and 64 hex digits, as meshgate up prints them", c.prefix, c.Pin)
		}
		copy(opts.Pin[:], raw)
		if opts.Pin == [sha256.Size]byte{} { // which would count as none
			return opts, usagef("--%spin: nobody has a key with a pin of zeros; take the one that meshgate up prints", c.prefix)
		}
	}
	if c.caFile != "" {
		raw, err := os.ReadFile(c.caFile)
		if err != nil {
			return opts, fmt.Errorf("read certificate authorities: %w", err)
		}
		c.authorities, opts.RootCAs = raw, x509.NewCertPool()
		if !opts.RootCAs.AppendCertsFromPEM(raw) {
			return opts, usagef("--%sca-file %s holds no PEM certificate", c.prefix, c.caFile)
		}
	}
	return opts, nil
}

// explain is an error as a person wants to read it: what was refused, in the
// server's words, and what to do about the usual causes.
func explain(err error) string {
	text := err.Error()
	var said advised
	if errors.As(err, &said) {
		return text
	}
	var rpc *connect.Error
	if errors.As(err, &rpc) {
		text = strings.Replace(text, rpc.Code().String()+": ", "", 1)
	}
	text = plain(text)
	for _, h := range hints {
		if strings.Contains(text, h.cause) {
			return text + ". " + h.advice
		}
	}
	return text
}

// advised is an error that says what to do already.
type advised struct{ error }

func (e advised) Unwrap() error { return e.error }

// advise adds to an error of a call what to do about it with the flags of c, if
// they differ from those that explain knows.
func (c *access) advise(err error) error {
	var advice string
	switch {
	case c.prefix == "":
		return err
	case peer.Distrusted(err):
		advice = fmt.Sprintf("Is %s the gateway? A self-signed one is believed with --%spin sha256:..., as its meshgate up prints it, another authority with --%sca-file", c.URL, c.prefix, c.prefix)
	case strings.Contains(err.Error(), "no credentials"):
		advice = fmt.Sprintf("Give --%stoken-file", c.prefix)
	default:
		return err
	}
	return advised{fmt.Errorf("%w. %s", err, advice)}
}

// hints are next steps for causes that only their text tells: those of the
// operating system and of TLS reach us through several libraries.
var hints = []struct{ cause, advice string }{ //nolint:gochecknoglobals // a constant table
	{"certificate signed by unknown authority", "A self-signed gateway is believed with --pin sha256:... (meshgate up prints it)"},
	{"certificate is not trusted", "A self-signed gateway is believed with --pin sha256:... (meshgate up prints it)"},
	{"is not the expected one: it is sha256", "Compare --pin with what meshgate up prints on the gateway's host"},
	{"certificate is valid for", "Use a name that is in the certificate, or --pin sha256:... (meshgate up prints it)"},
	{"connection refused", "Is the gateway running, and is this its address?"},
	{"HTTP response to HTTPS client", "This gateway speaks plain HTTP: write http:// (on this machine only), or put TLS in front of it"},
	{fmt.Sprintf("is larger than configured max %d", peer.MaxMessage), "A list as large as that is not taken at once: meshgate get KIND NAME shows one of it, meshgate delete KIND NAME makes it smaller"},
	{"no credentials", "Give --token-file, --token or MESHGATE_TOKEN"},
	{"no route to host", "Is this the gateway's address, and can this machine reach it?"},
	{"i/o timeout", "Is this the gateway's address, and does a firewall let its port through?"},
	{`unknown unit "d" in duration`, "Write days as hours: 2160h are 90 days"},
	{"no answer on any path", "meshgate status NODE says whether the node is up"},
	{"may ask for its own paths only", "Have a gateway ask: ping --from takes --server and --token-file of somebody who may read the mesh (get on edges)"},
	{"unexpected EOF", "What answers there is not the API of a gateway, or it broke off: the API is at --listen of meshgate up, port 8443 unless it was set; TURN, at 3478, is another port"},
	{"is larger than configured max", "That is what one message may have: split it over several calls"},
	{"no such host", "Is the name spelled right?"},
	{localFile + ": permission denied", "It holds the admin token of this host's gateway: use sudo, or give --server and --token-file"},
	{"put on edges", "A token lets its holder join under its own name and no other: join as that name (--id of meshgate join and up), or use the admin's token"},
	{"no role that grants", "Use a token that may do this, such as the admin's, or ask an administrator for a role"},
	{"device or resource busy", "Another program, perhaps another meshgate, has an interface of this name: choose another with --wireguard.interface, or --wireguard.mode netstack"},
	{"address already in use", "Another program has this port: stop it, or give this one another (port 0 picks a free one)"},
	{"bind: permission denied", "Ports below 1024 need root or CAP_NET_BIND_SERVICE"},
	{"mkdir /var/lib/meshgate", "Run as root, or choose --data-dir; to try it out: meshgate up --dev"},
}
