// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/pflag"
	"google.golang.org/protobuf/proto"

	"github.com/meshgate/meshgate/gateway"
	"github.com/meshgate/meshgate/node"
	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/peer"
	"github.com/meshgate/meshgate/node/store/raftstore"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

const (
	roleVoter    = "voter"
	roleObserver = "observer"

	// minDeadAfter is the least time after which a gateway counts as dead.
	minDeadAfter = time.Minute
	// joinPatience is how long a gateway tries to get a seat in a cluster.
	joinPatience = 2 * time.Minute
	// attemptTimeout bounds one of its attempts: the other side may be gone.
	attemptTimeout = 10 * time.Second
	// joinPause is the pause before the second attempt; each further one is
	// twice as long, up to maxJoinPause.
	joinPause    = 300 * time.Millisecond
	maxJoinPause = 5 * time.Second
	// remindJoin is how long after it was told that it has no success it is told
	// again; each further time after twice as long.
	remindJoin = 15 * time.Second
	// purgeContact is how recently a gateway that watches its members was heard.
	purgeContact = time.Minute
	// handOverTimeout bounds what a leader that ends waits for another one.
	handOverTimeout = 3 * time.Second
	// rememberPause is the least time between two looks at who the gateways are.
	rememberPause = 50 * time.Millisecond
)

// clusterConfig is what the flags of up say of the other gateways.
type clusterConfig struct {
	address string
	role    string
	// deadAfter is how long a gateway may be out of reach; 0: for ever.
	deadAfter time.Duration
	// gateway is where to join; without a URL the gateway joins none.
	gateway access
}

func (c *clusterConfig) register(f *pflag.FlagSet) {
	c.gateway.prefix = "cluster."
	f.StringVar(&c.address, "cluster.address", "", "HOST:PORT at which other gateways reach --listen of this one, to keep the state together; any gateway of a mesh of several has one (default with --cluster.join: the domain or public address, with the port of --listen)")
	f.DurationVar(&c.deadAfter, "cluster.dead-after", 0, "how long another gateway may be out of reach before it is removed from the cluster, where that is safe, such as 24h; 0 keeps it; the same on all gateways")
	f.StringVar(&c.gateway.URL, "cluster.join", "", "URL of a gateway whose mesh this one joins as another gateway; without effect once it has")
	f.StringVar(&c.role, "cluster.role", roleVoter, "voter: the state is safe while a majority of the voters is; observer: a copy that does not count. Used with --cluster.join")
	f.StringVar(&c.gateway.tokenFile, "cluster.token-file", "", "file with a token of the mesh that --cluster.join names, which may make gateways; needed once")
	f.StringVar(&c.gateway.Pin, "cluster.pin", "", "sha256:HEX of the key of the gateway that --cluster.join names, instead of a certificate authority")
	f.StringVar(&c.gateway.caFile, "cluster.ca-file", "", "certificate authorities (PEM) to believe for --cluster.join instead of the system's")
}

// validate refuses combinations that cannot work.
func (c *upConfig) validateCluster() error {
	l := &c.cluster
	switch {
	case l.role != roleVoter && l.role != roleObserver:
		return usagef("--cluster.role %q: want voter or observer", l.role)
	case l.deadAfter != 0 && l.deadAfter < minDeadAfter:
		return usagef("--cluster.dead-after %s: give at least %s, in which a gateway can be started anew", l.deadAfter, minDeadAfter)
	case l.address == "" && l.gateway.URL == "":
		return nil
	case c.dev:
		return usagef("--cluster.address and --cluster.join: a gateway for development (--dev) is always alone")
	case c.dataDir == "":
		return usagef("--cluster.address and --cluster.join need a --data-dir: the other gateways count on what this one keeps")
	}
	if l.address != "" {
		host, _, err := net.SplitHostPort(l.address)
		if err != nil || host == "" || portOf(l.address, 0) == 0 {
			return usagef("--cluster.address %q: write it as HOST:PORT, such as gw1.example.org:8443", l.address)
		}
	}
	return nil
}

// cluster is what ties a gateway to the others that keep the same state.
type cluster struct {
	dir      string
	log      *slog.Logger
	address  string // where the others reach this one
	keys     *gatewayKeys
	replicas *peer.Replicas
	front    *gateway.Front
	// lacks is what a gateway without a seat waits for; nil once it has one.
	lacks atomic.Pointer[string]

	keeping sync.Mutex // guards the fields below, and is held while they are written
	record  clusterRecord
	kept    *clusterRecord // what the file holds; nil: there is none
}

// openCluster opens the port for other gateways, before the state is: they have
// to be heard for there to be one. It is nil for a gateway that is alone.
func (p *gatewayProcess) openCluster(ctx context.Context, id mesh.NodeID, key mesh.PrivateKey) (*cluster, error) {
	c := p.cfg
	record, known, err := readClusterRecord(c.dataDir)
	if err != nil {
		return nil, err
	}
	if !known && c.cluster.address == "" && c.cluster.gateway.URL == "" {
		return nil, nil
	}
	if c.dev {
		return nil, usagef("%s belongs to a gateway of a cluster; start it without --dev", c.dataDir)
	}
	l := &cluster{dir: c.dataDir, log: p.log.With("component", "cluster"), record: record}
	if known {
		l.kept = &record
	}
	port := p.public.Addr().(*net.TCPAddr).AddrPort().Port()
	l.address = cmp.Or(c.cluster.address, record.Address, hostPortURL(cmp.Or(c.domain, p.address.String()), port))
	l.record.Address = l.address
	if err := l.place(c, known); err != nil {
		return nil, err
	}
	if l.keys, err = newGatewayKeys(record.Gateways); err != nil {
		return nil, fmt.Errorf("read %s: %w", filepath.Join(l.dir, clusterFile), err)
	}
	l.replicas, err = peer.NewReplicas(peer.ReplicasConfig{Key: key, KeyOf: l.keyOf, NodeOf: l.nodeOf, Logger: p.log})
	if err != nil {
		return nil, err
	}
	l.front = gateway.NewFront(ctx, p.public, p.log, p.share, map[string]func(context.Context, net.Conn){peer.ReplicaProtocol: l.replicas.Serve})
	if err := l.begin(); err != nil {
		return nil, errors.Join(err, l.close())
	}
	p.log.Info("gateways reach each other", "node", string(id), "addr", l.address)
	return l, nil
}

// place finds out whether this gateway has to join, from what it is told and
// what its directory holds.
func (l *cluster) place(c *upConfig, known bool) error {
	found, err := os.ReadDir(filepath.Join(c.dataDir, stateDir))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("look for the state: %w", err)
	}
	switch empty := len(found) == 0; {
	case empty && c.cluster.gateway.URL != "":
		l.record.Joined, l.record.Admitted = true, false
	case empty && l.record.Joined:
		return fmt.Errorf("the state of this gateway is not in %s: is its volume mounted? To get it from the other gateways, start it with --cluster.join and --cluster.token-file", c.dataDir)
	case l.record.Joined && !l.record.Admitted && c.cluster.gateway.URL == "":
		return errors.New("this gateway has not got its seat in the cluster yet: start it with --cluster.join and --cluster.token-file once more")
	case !empty && !known && c.cluster.gateway.URL != "":
		return fmt.Errorf("--cluster.join: %s holds the state of a mesh already: give this gateway another --data-dir, or leave --cluster.join out", c.dataDir)
	}
	return nil
}

// seatless reports whether the gateway has to ask for its seat.
func (l *cluster) seatless() bool { return l != nil && l.record.Joined && !l.record.Admitted }

// joined reports whether another gateway made the mesh.
func (l *cluster) joined() bool { return l != nil && l.record.Joined }

// listener is what the gateway serves on.
func (p *gatewayProcess) listener() net.Listener {
	if p.cluster == nil {
		return p.public
	}
	return p.cluster.front.Listener()
}

// close ends what openCluster opened. The state is closed before.
func (l *cluster) close() error {
	return errors.Join(l.replicas.Close(), l.front.Close())
}

// purge says which members are removed because they are gone, and which of
// several gateways does it.
func (p *gatewayProcess) purge() node.Purge {
	purge := node.Purge{After: p.cfg.purgeAfter}
	if p.cluster == nil {
		return purge
	}
	purge.Leads = func() bool { _, leads := p.store.Leader(); return leads }
	purge.Alive = func(ctx context.Context) map[mesh.NodeID]bool {
		alive := map[mesh.NodeID]bool{}
		for _, r := range p.store.Members(ctx) {
			alive[mesh.NodeID(r.ID)] = r.Leader || r.Known && r.LastContact < purgeContact
		}
		return alive
	}
	return purge
}

// handOver makes another gateway lead, if this one does and ends, so that nobody
// has to notice its absence first. Calls under way go to the new leader.
func (p *gatewayProcess) handOver(ctx context.Context) {
	if _, leads := p.store.Leader(); !leads || p.cluster == nil || p.store.Err() != nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, handOverTimeout)
	defer cancel()
	switch err := p.store.Transfer(ctx, ""); {
	case err == nil:
		p.log.Info("another gateway leads now, because this one ends")
	case !errors.Is(err, raftstore.ErrUnsafe): // there is another one
		p.log.Warn("no other gateway leads yet, though this one ends: changes wait for an election", "err", err)
	}
}

// joiner asks a gateway for membership and a seat.
type joiner struct {
	public  *peer.Public
	member  *peer.Member
	request *v1.JoinRequest
	key     mesh.PrivateKey
}

// newJoiner makes the request of a gateway that joins. It names no services:
// they are declared once the gateway can serve them.
func (p *gatewayProcess) newJoiner(ctx context.Context, id mesh.NodeID, key mesh.PrivateKey, features []mesh.Feature) (*joiner, error) {
	public, err := p.cfg.cluster.gateway.connect(ctx)
	if err != nil {
		return nil, fmt.Errorf("--cluster.join: %w", err)
	}
	var keeps []mesh.Feature
	for _, f := range features {
		if f.Kind == v1.Feature_NODES || f.Kind == v1.Feature_STORAGE_PROVIDER {
			keeps = append(keeps, f)
		}
	}
	return &joiner{
		public: public, member: public.Member(), key: key,
		request: &v1.JoinRequest{
			Id: string(id), PublicKey: key.Public().Encode(), AssignIpv4: true,
			PrimaryEndpoint: p.address.String(), Features: mesh.FeaturesToProto(keeps),
		},
	}, nil
}

// join makes the node a member, as which it learns the keys of the gateways.
// Where there are none to join, it is no member afterwards.
func (j *joiner) join(ctx context.Context, keys *gatewayKeys) error {
	answer, err := j.member.Join(ctx, proto.CloneOf(j.request), j.key)
	if err != nil {
		return err
	}
	nodes := slices.Clone(answer.GetGateways()) // whatever ACLs say of the packets between them
	for _, peer := range answer.GetPeers() {
		nodes = append(nodes, peer.GetNode())
	}
	found := map[mesh.NodeID]mesh.PublicKey{}
	for _, n := range nodes {
		keeps := slices.ContainsFunc(n.GetFeatures(), func(f *v1.FeaturePort) bool { return f.GetFeature() == v1.Feature_STORAGE_PROVIDER })
		id, idErr := mesh.ParseNodeID(n.GetId())
		key, keyErr := mesh.ParsePublicKey(n.GetPublicKey())
		if keeps && idErr == nil && keyErr == nil {
			found[id] = key
		}
	}
	if len(found) == 0 {
		err := fmt.Errorf("%w: that gateway is alone: start it with --cluster.address first", mesh.ErrPrecondition)
		return j.leave(ctx, err)
	}
	keys.pin(found)
	return nil
}

// leave takes the node out again after a join that is of no use, because of err:
// a node that does not run is in the way of the right attempt. The error is err,
// with what to do about a node that stays.
func (j *joiner) leave(ctx context.Context, err error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), attemptTimeout)
	defer cancel()
	id := j.request.GetId()
	if failed := j.member.Leave(ctx, id); failed != nil {
		return fmt.Errorf("%w (node %q stays in that mesh; try again with the same --data-dir, or remove it with meshgate delete nodes %s: %v)", err, id, id, failed)
	}
	return err
}

// seat asks for the seat. The storage of this gateway is asked back meanwhile.
func (j *joiner) seat(ctx context.Context, role string) error {
	r := proto.CloneOf(j.request)
	r.AsVoter, r.AsObserver = role == roleVoter, role == roleObserver
	_, err := j.member.Join(ctx, r, j.key)
	return err
}

// takeSeat joins the mesh of another gateway and waits until the state is kept
// here, too, unless that is so already. It is part of run, so that who asks
// hears meanwhile what the gateway waits for.
func (p *gatewayProcess) takeSeat(ctx context.Context) error {
	l, j, at := p.cluster, p.joiner, &p.cfg.cluster.gateway
	if j == nil {
		return nil
	}
	outer := ctx
	ctx, cancel := context.WithTimeout(ctx, joinPatience)
	defer cancel()
	err := l.insist(ctx, at, "join", func(ctx context.Context) error { return j.join(ctx, l.keys) })
	if err == nil {
		err = l.insist(ctx, at, "take a seat in the cluster", func(ctx context.Context) error { return j.seat(ctx, p.cfg.cluster.role) })
	}
	if err != nil {
		if outer.Err() != nil {
			return context.Cause(outer) // it was told to end
		}
		return err
	}
	p.log.Info("joined the cluster", "node", string(p.node.Self()), "gateway", at.URL)
	logVoters(ctx, p.log, p.store.Members(ctx))
	l.lacks.Store(nil)
	return l.change(func(r *clusterRecord) { r.Admitted = true })
}

// logVoters says how many of the voters may fail, as a warning where one of them
// adds nothing.
func logVoters(ctx context.Context, log *slog.Logger, replicas []raftstore.Replica) {
	voters := 0
	for _, r := range replicas {
		if r.Voter {
			voters++
		}
	}
	level := slog.LevelInfo
	if voters%2 == 0 {
		level = slog.LevelWarn
	}
	log.Log(ctx, level, votersText(voters))
}

// insist tries what a gateway is asked for until it succeeds, is refused for
// good, or ctx ends. A gateway that is not the one to believe is no gateway: it
// is not asked again.
func (l *cluster) insist(ctx context.Context, at *access, what string, try func(context.Context) error) error {
	l.lack(at, what, nil)
	var told time.Time
	remind := remindJoin
	for wait := joinPause; ; wait = min(2*wait, maxJoinPause) {
		attempt, cancel := context.WithTimeout(ctx, attemptTimeout)
		err := try(attempt)
		cancel()
		if err == nil {
			return nil
		}
		err = at.advise(err)
		final := peer.Refused(err) || peer.Distrusted(err) || errors.Is(err, mesh.ErrPrecondition) || connect.CodeOf(err) == connect.CodeFailedPrecondition
		if !final {
			l.lack(at, what, err)
			switch quiet := time.Since(told); {
			case told.IsZero():
				told = time.Now()
				l.log.Warn("not in the cluster yet, trying again and again", "gateway", at.URL, "err", explain(err))
			case quiet >= remind:
				told, remind = time.Now(), 2*remind
				l.log.Warn("still not in the cluster", "gateway", at.URL, "err", explain(err))
			}
		}
		if final || pause(ctx, wait) != nil {
			return fmt.Errorf("--cluster.join %s: %s: %w", at.URL, what, err)
		}
	}
}

// lack notes what the gateway wants of another one, and why it has not got it.
func (l *cluster) lack(at *access, what string, err error) {
	text := fmt.Sprintf("waits for gateway %s, to %s", at.URL, what)
	if err != nil {
		text += ": " + explain(err)
	}
	l.lacks.Store(&text)
}

// remember keeps the keys of the gateways for a start at which the state cannot
// be read yet, until ctx ends.
func (l *cluster) remember(ctx context.Context, wait func(context.Context, uint64) (*mesh.Snapshot, error)) error {
	var after uint64
	for {
		s, err := wait(ctx, after)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		after = s.Version
		l.keep()
		if pause(ctx, rememberPause) != nil {
			return nil
		}
	}
}

// keyOf is the key of a gateway. Whoever is let into the storage is known on
// disk before: its part in a quorum may be all that there is at the next start.
func (l *cluster) keyOf(id mesh.NodeID) (mesh.PublicKey, bool) {
	key, ok := l.keys.keyOf(id)
	if ok {
		l.keep()
	}
	return key, ok
}

// nodeOf is the gateway that has a key; see keyOf.
func (l *cluster) nodeOf(key mesh.PublicKey) (mesh.NodeID, bool) {
	id, ok := l.keys.nodeOf(key)
	if ok {
		l.keep()
	}
	return id, ok
}

// keep writes the keys of the gateways, if they are others than those that are
// kept.
func (l *cluster) keep() {
	now := l.keys.pinned()
	l.keeping.Lock()
	same := len(now) == 0 || maps.Equal(now, l.record.Gateways)
	l.keeping.Unlock()
	if same {
		return
	}
	if err := l.change(func(*clusterRecord) {}); err != nil {
		l.log.Warn("keys of the gateways not kept; if all gateways start anew, this one may not know the others", "err", err)
	}
}

// begin keeps the record of this start. A gateway that has one starts without
// this, such as with a full disk: what the file says is enough to find the
// others, who carry on what this one cannot write.
func (l *cluster) begin() error {
	err := l.change(func(*clusterRecord) {})
	if err == nil || l.kept == nil {
		return err
	}
	l.log.Warn("this start is not kept: at the next one, name --cluster.address again; free space on the disk of --data-dir if it is full", "err", err)
	return nil
}

// change changes the record and writes it, with the keys of the moment, if the
// file says anything else.
func (l *cluster) change(how func(*clusterRecord)) error {
	l.keeping.Lock()
	defer l.keeping.Unlock()
	next := l.record
	how(&next)
	if now := l.keys.pinned(); len(now) > 0 {
		next.Gateways = now
	}
	if l.kept == nil || !l.kept.equal(next) {
		if err := writeClusterRecord(l.dir, next); err != nil {
			return err
		}
		l.kept = &next
	}
	l.record = next
	return nil
}
