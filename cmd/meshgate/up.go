// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/meshgate/meshgate/node"
	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/peer"
	"github.com/meshgate/meshgate/node/wg"
	"github.com/meshgate/meshgate/turn"
)

// minPurgeAfter is the least time after which a node counts as gone for good.
const minPurgeAfter = time.Hour

// upConfig is what the flags of up say, as typed.
type upConfig struct {
	dev     bool
	dataDir string
	id      string

	listen        string
	publicAddress string
	publicIPv6    string
	domain        string
	publicURL     string
	metricsListen string
	origins       []string
	// trustedProxies and turnAllowPeers are networks or addresses.
	trustedProxies []string

	tlsCert, tlsKey string
	tlsOff          bool

	tokensFile, htpasswdFile string
	admin                    string

	meshDomain, meshIPv4, policy string
	staticIPv4                   []string
	allowUnproven                bool
	purgeAfter                   time.Duration

	wgMode      string
	wgPort      uint16
	wgInterface string
	wgMTU       int
	expose      []string
	routes      []string
	masquerade  bool
	exit        bool

	iceListen string

	cluster clusterConfig

	turnListen     string
	turnPorts      string
	turnSecretFile string
	turnAllowPeers []string
	turnProxies    []string
	turnUsersFile  string
	turnLimits     turn.Limits
	// turnSessionRate and turnNodeRate are what the credentials of the mesh say, in bytes
	// per second; 0: nothing.
	turnSessionRate, turnNodeRate int64

	turnXDP       string
	turnTCPRelays bool
	turnThreads   int // 0: one for each CPU
	turnDrainFor  time.Duration

	logLevel, logFormat string

	// given are the names of the flags that somebody has set, by whatever source.
	given map[string]bool
	// typed are the values of the command line, configFile is the file of others, and
	// settings are all values that hold, as text.
	typed      map[string][]string
	configFile string
	settings   map[string]string
}

func (c *upConfig) register(f *pflag.FlagSet) {
	f.String("config", "", "YAML file with any of these flags as keys; read again when it changes, for those that say so")
	f.BoolVar(&c.dev, "dev", false, "loopback only, no root, no TLS, state in memory, members reach each other, and a one-time admin token")
	f.StringVar(&c.dataDir, "data-dir", "/var/lib/meshgate", "where identity and state are kept; empty keeps them in memory")
	f.StringVar(&c.id, "id", "", "the gateway's node id (default: the host's name)")

	f.StringVar(&c.listen, "listen", ":8443", "address of the API and the console")
	f.StringVar(&c.publicAddress, "public-address", "", "IP address at which nodes and browsers reach this gateway")
	f.StringVar(&c.publicIPv6, "public-address-ipv6", "auto", "IPv6 address at which nodes reach this gateway besides --public-address; auto: a public one of this host; empty: none")
	f.StringVar(&c.domain, "domain", "", "DNS name of this gateway, for its certificate, its URL and, without --public-address, its address")
	f.StringVar(&c.publicURL, "public-url", "", "URL of the API as clients see it, when a proxy stands in front")
	f.StringVar(&c.metricsListen, "metrics.listen", "127.0.0.1:9090", "address of /metrics; empty for none")
	f.StringSliceVar(&c.origins, "cors.origins", nil, "origins whose pages may call the API, besides the gateway's own")

	f.StringSliceVar(&c.trustedProxies, "trusted-proxies", nil, "networks of proxies in front of --listen, whose X-Forwarded-For says who calls; nobody else's counts")

	f.StringVar(&c.tlsCert, "tls.cert-file", "", "certificate chain (PEM); read again when it changes")
	f.StringVar(&c.tlsKey, "tls.key-file", "", "private key of the certificate (PEM)")
	f.BoolVar(&c.tlsOff, "tls.off", false, "serve plain HTTP, for a proxy on the same host that ends TLS")

	f.StringVar(&c.tokensFile, "auth.tokens-file", "", "tokens and whom they stand for, as meshgate token create writes them; read again when it changes (default: tokens in the data directory)")
	f.StringVar(&c.htpasswdFile, "auth.htpasswd-file", "", "users with bcrypt hashes for basic authentication")
	f.StringVar(&c.admin, "mesh.admin", "admin", "the identity that may do everything; only used when the mesh is made")

	f.StringVar(&c.meshDomain, "mesh.domain", "webmesh.internal", "DNS domain of the mesh; only used when the mesh is made")
	f.StringVar(&c.meshIPv4, "mesh.ipv4-network", "172.16.0.0/12", "IPv4 network of the mesh; only used when the mesh is made")
	f.StringVar(&c.policy, "mesh.default-network-policy", "deny", "accept: members reach each other; deny: members reach gateways, and the admin reaches members; only used when the mesh is made")

	f.StringSliceVar(&c.staticIPv4, "mesh.static-ipv4", nil, "mesh addresses of certain nodes, as ID=ADDRESS; no other node gets them")
	f.BoolVar(&c.allowUnproven, "mesh.allow-unproven-joins", false, "let nodes join that do not prove that they hold their key, as v1 nodes do not")

	f.DurationVar(&c.purgeAfter, "mesh.purge-after", 0, "how long a node that runs Meshgate may be gone before it is removed from the mesh and its addresses are free, such as 720h; when it is back it needs a token and --again. 0 keeps all; the same on all gateways")

	f.StringVar(&c.wgMode, "wireguard.mode", "auto", "tun, netstack (no root), or auto: tun where the host allows it")
	f.Uint16Var(&c.wgPort, "wireguard.listen-port", 51820, "UDP port of WireGuard; 0 lets the host pick")
	f.StringVar(&c.wgInterface, "wireguard.interface", "meshgate0", "name of the interface in tun mode")
	f.IntVar(&c.wgMTU, "wireguard.mtu", 0, "MTU of the mesh, 1280 to 65535; 0 is 1420, or what the way to the gateways leaves if that is less")
	f.StringArrayVar(&c.expose, "expose", nil, "make a service of this host reachable on the mesh: tcp:8080=127.0.0.1:3000 (repeat for more)")
	f.StringSliceVar(&c.routes, "routes", nil, "networks that this node offers to reach")
	f.BoolVar(&c.exit, "exit", false, "in tun mode, offer this gateway to nodes as their way to the Internet: who chooses it with --exit-node has its packets leave with this host's address, as far as network ACLs let it; private networks stay closed but for --routes")
	f.BoolVar(&c.masquerade, "masquerade", true, "in tun mode, let packets of the mesh leave for --routes with this host's own address; without, these networks need a route to the mesh")

	f.StringVar(&c.iceListen, "ice.listen", ":3479", "UDP address for DataChannels that end at this gateway")
	f.StringVar(&c.turnListen, "turn.listen", ":3478", "UDP and TCP address of STUN and TURN; empty for none")
	f.StringVar(&c.turnPorts, "turn.relay-ports", "49152-65535", "ports for relayed traffic: UDP, and TCP for relays of RFC 6062")
	f.StringVar(&c.turnSecretFile, "turn.secret-file", "", "secret for TURN credentials, shared by gateways and other issuers; a second line is one of which credentials are still in use; read again when it changes (default: that of the mesh)")
	f.StringVar(&c.turnUsersFile, "turn.users-file", "", "users of TURN with passwords, for other applications: lines NAME:PASSWORD; read again when it changes. They reach --turn.allow-peers and each other")
	c.registerTURNLimits(f)
	f.StringVar(&c.turnXDP, "turn.xdp", "off", "let the kernel relay channels over UDP past this process: off, auto, generic or native. The host's packet filter does not see what it relays")
	f.BoolVar(&c.turnTCPRelays, "turn.tcp-relays", false, "give relays of TCP, too (RFC 6062), to clients on TCP and TLS: WebRTC needs none, and their users connect from this gateway's address to all of --turn.allow-peers but ports of mail")
	f.StringSliceVar(&c.turnProxies, "turn.trusted-proxies", nil, "networks of load balancers that begin their TCP connections to --turn.listen with a header of the PROXY protocol, version 2, which says who connects")
	f.StringSliceVar(&c.turnAllowPeers, "turn.allow-peers", nil, "networks that every user may relay to, besides gateways, relays and the other ends of sessions; 0.0.0.0/0 is the Internet without private networks; read again when the configuration file changes")
	f.DurationVar(&c.turnDrainFor, "turn.drain-for", 0, "how long a gateway that is told to end waits for its relays to end, while it sends new ones on to other gateways; 0: no longer than for calls. Without another gateway that is up it does not wait")

	c.cluster.register(f)

	f.StringVar(&c.logLevel, "log.level", "info", "debug, info, warn or error")
	f.StringVar(&c.logFormat, "log.format", "text", "text or json")
}

// devDefaults are the defaults of --dev, in place of all that need root, a
// public address or a disk.
func devDefaults() map[string]string {
	return map[string]string{
		"data-dir": "", "listen": "127.0.0.1:8080", "public-address": "127.0.0.1",
		"metrics.listen": "127.0.0.1:0", "tls.off": "true", "mesh.default-network-policy": "accept",
		"wireguard.mode": "netstack", "wireguard.listen-port": "0", "ice.listen": "127.0.0.1:0",
		"turn.listen": "127.0.0.1:0", "log.level": "warn", "id": "gateway",
	}
}

// setDevDefaults applies devDefaults. Flags that were set keep their value.
func (c *upConfig) setDevDefaults(f *pflag.FlagSet) error {
	for name, value := range devDefaults() {
		if f.Lookup(name).Changed {
			continue
		}
		if err := f.Set(name, value); err != nil {
			return err
		}
	}
	host, _, err := net.SplitHostPort(c.listen)
	if err != nil {
		return usagef("--listen %q: write it as HOST:PORT, such as 127.0.0.1:8080", c.listen)
	}
	if !peer.IsLoopback(host) {
		return usagef("--listen %q: a gateway for development (meshgate demo, meshgate up --dev) listens on loopback only; to serve others: meshgate up --public-address ADDRESS", c.listen)
	}
	return nil
}

func (a *app) upCommand() *cobra.Command {
	c := &upConfig{}
	cmd := &cobra.Command{
		Use:   "up",
		Short: "run a gateway",
		Args:  args(cobra.NoArgs, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			defer collectSeldom()()
			if err := c.load(cmd.Flags()); err != nil {
				return err
			}
			defer c.spareProcessors()()
			return flagged("up", a.up(cmd.Context(), c))
		},
	}
	c.register(cmd.Flags())
	return cmd
}

// spareProcessors lets goroutines run while the threads of TURN, one for each CPU,
// are busy: such a thread keeps a processor of the scheduler as long as packets come,
// up to 10 ms at a time. An operator's GOMAXPROCS counts.
func (c *upConfig) spareProcessors() (restore func()) {
	c.turnThreads = runtime.GOMAXPROCS(0)
	if c.turnListen == "" || os.Getenv("GOMAXPROCS") != "" {
		return func() {}
	}
	runtime.GOMAXPROCS(2 * c.turnThreads)
	return func() { runtime.GOMAXPROCS(c.turnThreads) }
}

// load completes the flags from environment and file and checks them together.
func (c *upConfig) load(f *pflag.FlagSet) error {
	path, _ := f.GetString("config")
	if path == "" {
		path = os.Getenv(envName("config"))
	}
	c.configFile, c.typed = path, typedFlags(f)
	if err := fromSources(f, path); err != nil {
		return err
	}
	c.given = map[string]bool{}
	f.Visit(func(f *pflag.Flag) { c.given[f.Name] = true })
	if c.dev {
		if err := c.setDevDefaults(f); err != nil {
			return err
		}
	}
	c.settings = map[string]string{}
	f.VisitAll(func(f *pflag.Flag) { c.settings[f.Name] = f.Value.String() })
	return c.validate()
}

// validate refuses combinations that cannot work, each with its own message.
func (c *upConfig) validate() error {
	switch {
	case (c.tlsCert == "") != (c.tlsKey == ""):
		return usagef("--tls.cert-file and --tls.key-file go together")
	case c.tlsOff && c.tlsCert != "":
		return usagef("--tls.off and --tls.cert-file exclude each other")
	case c.policy != "accept" && c.policy != "deny":
		return usagef("--mesh.default-network-policy %q: want accept or deny", c.policy)
	case c.publicAddress == "" && c.domain == "":
		return usagef("--public-address (or --domain) is needed: nodes and browsers must know where this gateway is. To try Meshgate on this machine alone: meshgate up --dev")
	}
	if u, err := url.Parse(c.publicURL); c.publicURL != "" && (err != nil || u.Host == "" || u.User != nil || u.Scheme != "https" && u.Scheme != "http") {
		return usagef("--public-url %q: write it as https://HOST[:PORT]", c.publicURL)
	}
	if err := c.validateCluster(); err != nil {
		return err
	}
	if err := c.checkDrain(); err != nil {
		return err
	}
	if err := c.checkTURNLimits(); err != nil {
		return err
	}
	if c.purgeAfter < 0 || c.purgeAfter != 0 && c.purgeAfter < minPurgeAfter {
		return usagef("--mesh.purge-after %s: give at least %s; nodes are switched off for a while", c.purgeAfter, minPurgeAfter)
	}
	if _, err := wireguardMode(c.wgMode); err != nil {
		return err
	}
	if _, err := parseStatic(c.staticIPv4); err != nil {
		return err
	}
	if _, err := networks("--trusted-proxies", c.trustedProxies); err != nil {
		return err
	}
	if p, err := netip.ParsePrefix(c.meshIPv4); err != nil || !p.Addr().Is4() || p.Bits() > 30 {
		return usagef("--mesh.ipv4-network %q: want an IPv4 network such as 172.16.0.0/12", c.meshIPv4)
	}
	if c.publicAddress != "" {
		if _, err := netip.ParseAddr(c.publicAddress); err != nil {
			return usagef("--public-address %q: want an IP address; a name goes into --domain", c.publicAddress)
		}
	}
	if c.publicIPv6 != "" && c.publicIPv6 != autoIPv6 {
		if a, err := netip.ParseAddr(c.publicIPv6); err != nil || !a.Is6() || a.Is4In6() || a.Zone() != "" {
			return usagef("--public-address-ipv6 %q: want an IPv6 address, auto, or nothing", c.publicIPv6)
		}
	}
	return nil
}

// autoIPv6 has the gateway look for an IPv6 address of its host.
const autoIPv6 = "auto"

// wireguardMode reads tun, netstack or auto.
func wireguardMode(text string) (wg.Mode, error) {
	switch text {
	case "netstack":
		return wg.ModeNetstack, nil
	case "tun":
		return wg.ModeTUN, nil
	case "auto":
		if canTUN() {
			return wg.ModeTUN, nil
		}
		return wg.ModeNetstack, nil
	}
	return 0, usagef("--wireguard.mode %q: want auto, tun or netstack", text)
}

// canTUN reports whether this process may make network interfaces.
func canTUN() bool {
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err != nil {
		return false
	}
	_ = f.Close() // nothing was written
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(status)) {
		if hex, ok := strings.CutPrefix(line, "CapEff:"); ok {
			caps, err := strconv.ParseUint(strings.TrimSpace(hex), 16, 64)
			const netAdmin = 12 // CAP_NET_ADMIN, capabilities(7)
			return err == nil && caps&(1<<netAdmin) != 0
		}
	}
	return false
}

// nodeID reads an id, or makes one of the host's name.
func nodeID(text string) (mesh.NodeID, error) {
	if text == "" {
		name, err := os.Hostname()
		if err != nil {
			return "", fmt.Errorf("read the host's name (give --id): %w", err)
		}
		text = name
	}
	id, err := mesh.ParseNodeID(text)
	if err != nil {
		return "", usagef("--id: %w", err)
	}
	return id, nil
}

func parseExposes(list []string) ([]node.Expose, error) {
	var out []node.Expose
	for _, text := range list {
		e, err := node.ParseExpose(text)
		if err != nil {
			return nil, usageError{err}
		}
		out = append(out, e)
	}
	return out, nil
}

func parseRoutes(list []string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, text := range list {
		p, err := netip.ParsePrefix(text)
		if err != nil || p != p.Masked() {
			return nil, usagef("--routes %q: want a network such as 192.168.7.0/24", text)
		}
		out = append(out, p)
	}
	return out, nil
}

// parseStatic reads ID=ADDRESS. Whether the addresses are in the mesh's network is
// for who knows that network.
func parseStatic(list []string) (map[mesh.NodeID]netip.Addr, error) {
	static := make(map[mesh.NodeID]netip.Addr, len(list))
	for _, text := range list {
		name, address, _ := strings.Cut(text, "=")
		id, err := mesh.ParseNodeID(name)
		addr, addrErr := netip.ParseAddr(address)
		if err != nil || addrErr != nil || !addr.Is4() {
			return nil, usagef("--mesh.static-ipv4 %q: want the id of a node and an IPv4 address, such as printer=172.16.9.1", text)
		}
		if _, ok := static[id]; ok {
			return nil, usagef("--mesh.static-ipv4: node %q is there twice", id)
		}
		static[id] = addr
	}
	return static, nil
}

// newLogger writes to standard error, so that standard output stays data.
func (a *app) newLogger(level, format string) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, usagef("--log.level %q: want debug, info, warn or error", level)
	}
	options := &slog.HandlerOptions{Level: l}
	switch format {
	case "text":
		return slog.New(slog.NewTextHandler(a.stderr, options)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(a.stderr, options)), nil
	}
	return nil, usagef("--log.format %q: want text or json", format)
}

// up runs a gateway until ctx ends.
func (a *app) up(ctx context.Context, c *upConfig) error {
	log, err := a.newLogger(c.logLevel, c.logFormat)
	if err != nil {
		return err
	}
	again := make(chan os.Signal, 1)
	if !c.dev { // whose terminal ends it
		signal.Notify(again, syscall.SIGHUP)
		defer signal.Stop(again)
	}
	c.tellStopTime(log)
	log.Info("starting", "version", version, "commit", commit, "data_dir", c.dataDir, "listen", c.listen)
	g, err := newGatewayProcess(ctx, c, log)
	if err != nil {
		return err
	}
	g.again = again
	err = g.run(ctx, func() error {
		if a.structured() {
			return a.print(g.ready())
		}
		return a.printReady(g)
	})
	if ctx.Err() != nil {
		log.Info("stopped")
	}
	return err
}
