// SPDX-License-Identifier: Apache-2.0

// Package wg is a node's WireGuard interface, in userspace: on a TUN device of
// the host or, without any privilege, on a network stack of its own.
//
// A Device follows a Config: Set makes the least change that leads there, so
// that sessions, learned endpoints and open connections survive. Besides UDP,
// WireGuard datagrams may travel over attached packet connections, such as
// WebRTC DataChannels, and over packet sockets, such as TURN allocations. A Path
// leads to a peer over any of the sockets, and is moved without WireGuard, or
// the connections in it, taking notice; STUN that arrives on a socket is handed
// to whoever looks for paths.
//
// A Device may be a hub: packets of one peer for another are sent on if
// Config.Allow agrees to each of them.
//
// Memory: a peer takes 36 KB in the library. Of more than Options.Resident
// peers only those are there that send or receive, and the others take 2 KB; see
// docs/adr/0016-idle-peers.md. The library takes 64 KiB of address space for
// each datagram in flight and has no limit that could be set from outside; what
// bounds it is its queues (1024 batches per peer and direction) and the speed of
// the decryption that empties them. Queues of this package are bounded to 1024
// packets towards WireGuard, to 256 datagrams per attached connection and
// direction, to 512 datagrams from all packet sockets together, and to 512
// handshake messages that wait for the doorman; 1024 handshakes that were begun
// are watched. Options.Lean is for processes
// with many devices; see docs/adr/0029-lean-nodes.md.
package wg

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/prometheus/client_golang/prometheus"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
)

// Mode chooses what stands behind a Device.
type Mode int

const (
	// ModeNetstack is a network stack inside the process. It needs no rights;
	// only this process reaches the mesh.
	ModeNetstack Mode = iota
	// ModeTUN is a network interface of the host. It needs the right to make one.
	ModeTUN
)

// String returns "netstack" or "tun".
func (m Mode) String() string {
	if m == ModeTUN {
		return "tun"
	}
	return "netstack"
}

const (
	defaultName = "meshgate0"
	// minMTU is what IPv6 asks of a link; maxMTU leaves room for WireGuard's
	// framing in the largest datagram.
	minMTU = 1280
	maxMTU = 65535 - 80
	// frameOverhead is what WireGuard adds to a packet (32 bytes and padding
	// to 16), plus one byte that tells a datagram that fits from one cut off.
	frameOverhead = device.MessageTransportSize + device.PaddingMultiple + 1
	// minFrame lets peers with a larger MTU than ours through.
	minFrame = 2048
)

// Options are what stays fixed in the life of a Device. The zero value is a
// netstack device.
type Options struct {
	Mode Mode
	// InterfaceName defaults to "meshgate0". On macOS it must be "utun" or "utunN".
	InterfaceName string
	// MTU is that of packets inside the tunnel; 0 means 1420.
	MTU int
	// Addresses are in force until the first Set.
	Addresses []netip.Prefix
	// Logger defaults to one that discards.
	Logger *slog.Logger
	// Registerer takes the metrics; nil leaves them unregistered.
	Registerer prometheus.Registerer
	// Resident is up to how many peers are always ready to send and receive, at
	// 36 KB each; 0 means 512, negative none. When there are more, a peer is made
	// ready when it calls or there is a packet for it, and until it has been quiet
	// for ten minutes. Always ready are those with a keepalive and an endpoint,
	// and those of AttachPeer and OpenPath.
	Resident int
	// Lean makes a device of ModeNetstack that is one of many in its process. It
	// takes 1 MiB in place of 33, of which most is room for 128 datagrams at a time
	// in each direction: it receives and sends one by one, which costs more for
	// each, and its queues have half of the usual length, or an eighth. A host with several
	// addresses chooses the one that its packets leave from.
	Lean bool
	// STUN takes each STUN message that arrives on a socket, instead of
	// WireGuard. It is called from several goroutines, which receive nothing
	// meanwhile: it must not wait, and keeps nothing of b. It may send with
	// SendSTUN, and move paths; what else a Device does may wait for it to end. Nobody has checked more of a message than that its length is what
	// its header says. Nil leaves such datagrams to WireGuard, which drops them.
	STUN func(s Socket, from netip.AddrPort, b []byte)
}

// Config is the wanted state of a Device.
type Config struct {
	PrivateKey mesh.WireGuardPrivateKey
	// ListenPort is the UDP port; 0 keeps the present one, or lets the system choose.
	ListenPort uint16
	// Addresses are our own: the address of each prefix, not the network.
	// Packets for the rest of the network of a prefix go to the peer that has
	// a more specific allowed prefix, or nowhere.
	Addresses []netip.Prefix
	// Peers are looked at by each Set. Lists are more peers, in lists that nobody
	// changes after: one that the Set before was given too, as the same memory,
	// is not looked at again.
	Peers []Peer
	Lists [][]Peer
	// Allow decides about each packet from a peer that is for another address
	// than ours; nil allows all. Accept decides about those for our own
	// addresses; nil accepts all. Sent is told of each packet that we send
	// ourselves, before it goes out; nil is not told. They are called from
	// several goroutines at once, for each packet, and must not wait.
	Allow, Accept func(mesh.Packet) bool
	Sent          func(mesh.Packet)
	// Seek is told to which mesh addresses we send packets ourselves, each again
	// after a second at the earliest, as far as a table of 256 remembers. It must
	// not wait; nil is not told.
	Seek func(dst netip.Addr)
	// Mark is that of the UDP sockets (SO_MARK); 0 is none. It takes the right to
	// administer the network.
	Mark uint32
	// Networks are those of the mesh. Names of endpoints that resolve into one
	// are not used.
	Networks []netip.Prefix
	// OneMachine lets names of endpoints stand for loopback addresses.
	OneMachine bool
}

// Peer is a WireGuard peer.
type Peer struct {
	Key mesh.WireGuardKey
	// Name is what the logs call the peer; empty means its key.
	Name string
	// Endpoint is "address:port" or "name:port"; empty when the peer calls us.
	Endpoint string
	// AllowedIPs are the networks behind the peer. No two peers share a
	// prefix; of overlapping ones the more specific wins.
	AllowedIPs []netip.Prefix
	// Veiled are networks of which packets are taken from the peer besides, veiled,
	// whoever has them behind it: see CanVeil, which has to hold for each of them. No
	// two peers share one.
	Veiled []netip.Prefix
	// Veil has packets for Veiled go to the peer, veiled, in place of where they
	// would go else. The other end has to have this node's networks as Veiled.
	Veil bool
	// Keepalive is rounded down to seconds; 0 means none.
	Keepalive time.Duration
}

// ErrNoRoute says that an address is neither ours nor behind a peer.
var ErrNoRoute = fmt.Errorf("no route: no peer carries the address: %w", mesh.ErrUnavailable)

// Device is a WireGuard interface. Its methods may be called concurrently.
type Device struct {
	mode    Mode
	name    string
	logger  *slog.Logger
	peerLog *peerLog
	metrics *metrics
	filter  *filter
	plane   plane
	gate    *gate
	bind    *bind
	wg      *device.Device
	closed  atomic.Bool
	// mtu is Options.MTU.
	mtu int
	// resident is Options.Resident, but 0 means none.
	resident int
	// nobody is the key of a peer that does not exist. In the library it has
	// what is behind idle peers: else the library would take packets from there
	// of any peer with a larger network around it, and send them there.
	nobody mesh.WireGuardKey
	// roster finds contacts for the doorman.
	roster roster
	// wakes are what Read asks keep for.
	wakes  chan wakeRequest
	attend sync.Once // starts doorman and keep
	// turned wakes steer, which steering starts.
	turned   chan struct{}
	steering sync.Once

	// changing guards what the library is told about peers, and the fields of
	// contacts that say so. It is held for no longer than the library takes.
	changing sync.Mutex
	// setting is the right to change the fields below; a channel, for a wait
	// that a context ends. Whoever changes applied or lazy holds changing, too.
	setting chan struct{}
	up      bool
	applied applied
	// lazy is true when peers may be idle.
	lazy    bool
	doorman *doorman // nil before the first peers were idle
	// unsure is true when applied may be wrong, since a Set did not end well.
	unsure bool
	// routes are the allowed IPs of all peers, veiled ones among them.
	routes *prefixSet
	// veiledPeers are those of the last Set that ended well.
	veiledPeers map[mesh.WireGuardKey]veiledPeer
}

// New makes a device. It does nothing until the first Set.
func New(o Options) (*Device, error) {
	if o.InterfaceName == "" {
		o.InterfaceName = defaultName
	}
	if o.MTU == 0 {
		o.MTU = device.DefaultMTU
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Lean && o.Mode != ModeNetstack {
		return nil, fmt.Errorf("a device of mode %v cannot be lean: %w", o.Mode, mesh.ErrInvalid)
	}
	if o.MTU < minMTU || o.MTU > maxMTU {
		return nil, fmt.Errorf("mtu %d is not in %d..%d: %w", o.MTU, minMTU, maxMTU, mesh.ErrInvalid)
	}
	initial := Config{Addresses: o.Addresses}
	if err := initial.validateAddresses(); err != nil {
		return nil, err
	}
	m, err := newMetrics(o.Registerer)
	if err != nil {
		return nil, err
	}
	d := &Device{
		mode: o.Mode, name: o.InterfaceName, mtu: o.MTU, metrics: m, filter: new(filter),
		logger:   o.Logger.With("component", "wg"),
		resident: o.Resident,
		wakes:    make(chan wakeRequest),
		turned:   make(chan struct{}, 1),
		setting:  make(chan struct{}, 1),
		unsure:   true, // the library has not been asked yet
	}
	if o.Resident == 0 {
		d.resident = defaultResident
	}
	nobody, err := mesh.GenerateKey()
	if err != nil {
		m.unregister()
		return nil, err
	}
	d.nobody = nobody.WireGuard().Public()
	d.peerLog = newPeerLog(d.logger)
	d.peerLog.nobody = libraryName(d.nobody)
	frames := newFramePool(max(minFrame, o.MTU+frameOverhead))
	sizes, native := sizesOf(o.Lean), newNative
	if o.Lean {
		native = newLean
	}
	if o.Mode == ModeTUN {
		d.plane, err = newHostTUN(o.InterfaceName, o.MTU, d.filter, m)
	} else {
		d.plane, err = newNetstack(o.InterfaceName, o.MTU, sizes, d.filter, frames, m)
	}
	if err != nil {
		m.unregister()
		return nil, err
	}
	d.bind = newBind(native(), sizes, frames, o.STUN, m)
	d.bind.calls.renew = d.callAnew
	d.gate = &gate{plane: d.plane, filter: d.filter, metrics: m, paths: &d.bind.paths, wake: d.wake}
	d.wg = device.NewDevice(d.gate, d.bind.extended(), d.peerLog.library())
	if name, err := d.plane.Name(); err == nil {
		d.name = name // the system may have chosen another
	}
	if err := d.setAddresses(&initial, false); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

// Close ends the device, all its connections and attached connections. It
// returns after all goroutines that belong to attached connections are gone.
func (d *Device) Close() error {
	if d.closed.Swap(true) {
		return nil
	}
	d.bind.shutdown()
	d.wg.Close()
	d.plane.wait()
	d.metrics.unregister()
	return nil
}

// Name returns the name of the interface.
func (d *Device) Name() string { return d.name }

// ListenPort returns the UDP port that WireGuard listens on; 0 before the first Set.
func (d *Device) ListenPort() uint16 { return uint16(d.bind.port.Load()) }

// Attach lets WireGuard datagrams in through conn: whoever proves to be a peer
// there gets the answers there. At most 20 handshake messages a second are let
// in, and nothing that is no WireGuard message. The device owns conn from now
// on, also after an error.
//
// The connection stays attached until it fails, detach is called or the device
// is closed; detach waits until it is no longer used.
func (d *Device) Attach(conn PacketConn) (detach func(), err error) {
	a, err := d.bind.attach(conn)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("attach: %w", err), conn.Close())
	}
	return a.detach, nil
}

// AttachPeer attaches conn and sends what is for the peer there, until the
// peer turns up somewhere else. Errors wrap mesh.ErrNotFound for an unknown peer.
func (d *Device) AttachPeer(key mesh.WireGuardKey, conn PacketConn) (detach func(), err error) {
	a, err := d.bind.attach(conn)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("attach to peer %v: %w", key, err), conn.Close())
	}
	if err := d.pointPeer(key, a); err != nil {
		a.detach()
		return nil, fmt.Errorf("attach to peer %v: %w", key, err)
	}
	return a.detach, nil
}

// Handshake forgets the session with a peer and asks it for a new one: for a
// caller that knows better than WireGuard's timers, which take 15 s to notice,
// that the peer has started anew. A peer that was asked in the last 250 ms, and has not
// answered, is not asked again; one that has just answered is 25 ms later. An unknown
// key is no error.
func (d *Device) Handshake(key mesh.WireGuardKey) {
	var at *path
	if c := d.roster.find(key); c != nil {
		if at = c.leads.Load(); at != nil && at.ended.Load() {
			at = nil
		}
	}
	if d.bind.calls.another(key, at) {
		d.call(key)
	}
}

// Stats returns the state of the interface and of all configured peers, sorted
// by key. It waits while a Set puts changes in force.
func (d *Device) Stats() (mesh.InterfaceStats, error) {
	if d.closed.Load() {
		return mesh.InterfaceStats{}, fmt.Errorf("read interface state: %w", net.ErrClosed)
	}
	s, err := d.wholeState()
	if err != nil {
		return mesh.InterfaceStats{}, err
	}
	return mesh.InterfaceStats{
		Name: d.name, Type: d.mode.String(), ListenPort: s.listenPort,
		PublicKey: s.privateKey.Public(), Addresses: slices.Clone(d.filter.load().prefixes), Peers: s.sortedPeers(),
	}, nil
}

// shown returns the endpoint of a peer as Stats tells it: where a path leads, and
// nothing when that is nowhere.
func shown(ep conn.Endpoint, text string, configured peerEndpoint) string {
	p, isPath := ep.(*path)
	switch {
	case isPath && p.hop.Load() != nil:
		return p.where().To.String()
	case isPath:
		return ""
	case strings.HasPrefix(text, pathPrefix):
		return configured.literal() // where what is left of the path leads
	}
	return text
}

// wholeState is the library's state with what it does not know: idle peers, and
// the traffic of peers before they came back.
func (d *Device) wholeState() (*uapiState, error) {
	d.changing.Lock()
	defer d.changing.Unlock()
	s, err := d.state()
	if err != nil {
		return nil, err
	}
	for key, p := range d.applied.peers {
		c, is := p.contact, s.peers[key]
		if is == nil && c.resident() {
			continue // a Set failed after it had removed the peer
		}
		if is == nil {
			is = &mesh.PeerStats{PublicKey: key, Endpoint: c.endpoint, Keepalive: p.keepalive, AllowedIPs: slices.Clone(p.allowed)}
			s.peers[key] = is
		}
		if ep, ours := d.bind.own(is.Endpoint); ours {
			is.Endpoint = shown(ep, is.Endpoint, p.endpoint)
		}
		sum := c.before.plus(trafficOf(is))
		is.ReceiveBytes, is.TransmitBytes, is.LastHandshake = sum.rx, sum.tx, sum.handshake
	}
	d.showVeils(s)
	return s, nil
}
