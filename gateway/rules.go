// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"fmt"
	"maps"
	"slices"

	"connectrpc.com/grpchealth"
	"connectrpc.com/grpcreflect"

	"github.com/meshgate/meshgate/gateway/api"
	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/policy"
	meshgatev1 "github.com/meshgate/meshgate/proto/meshgate/v1"
	"github.com/meshgate/meshgate/proto/meshgate/v1/meshgatev1connect"
	v1 "github.com/meshgate/meshgate/proto/v1"
	"github.com/meshgate/meshgate/proto/v1/v1connect"
)

// access is who a caller must be, before roles are looked at.
type access uint8

const (
	nobody     access = iota // the zero rule denies
	anyone                   // strangers too
	identified               // a user with credentials, or a member over the mesh
	gateways                 // a member over the mesh that is a gateway
)

// rule says who may call a procedure.
type rule struct {
	access access
	// needs names the actions that the caller's roles must allow, read from
	// the call's first message, or denies at once. Nil: none.
	needs func(c api.Caller, msg any) ([]mesh.Action, error)
	// blind marks needs that do not look at the message, so that the gate asks
	// before one is read: who is refused costs no message. For a call that needs
	// a fresh state it costs the leader one question all the same, since what
	// this gateway knows may lack a role that was granted a moment ago.
	blind bool
	// channel counts the call against Limits.ChannelRate.
	channel bool
	// writes marks a call that changes the mesh: it is counted against writeRate,
	// and told to the audit log.
	writes bool
	// weight is what a call that changes the mesh counts against writeRate beside
	// itself; nil: nothing.
	weight func(msg any) int
	// written marks a call whose handler keeps to api.WithPermit: it is allowed once
	// more by each state upon which its change is about to be written, and then asked
	// of what its caller makes of that. Nil: it is not.
	written func(before, after *mesh.Snapshot, caller string) error
	// volume is what a call that writes without changing the mesh counts against
	// publishRate, in bytes; nil: nothing.
	volume func(msg any) int
	// seated lets a member in without needs whose roles allow it a seat among the
	// gateways: such a one could have a copy of the state of its own.
	seated bool
	// fresh says by which state the call is decided and answered.
	fresh freshness
	// guarded marks a call whose handler keeps to api.Guard: what this gateway
	// knows is enough to allow it, since its change is refused when that is no
	// longer so. Only what is not allowed, or not changed, asks for the rest.
	guarded bool
	// pair names the node that the caller, a node, has to be allowed to signal
	// paths to, in place of needs; false for a first message that is about
	// something else. Nil: no message is about that.
	pair func(msg any) (to mesh.NodeID, ok bool, err error)
	// lasts reports whether a call that begins with msg goes on until its client
	// ends it, so that draining does not wait for it. Nil: it does not, unless
	// only the server streams.
	lasts func(msg any) bool
	// early marks a read that a gateway answers which has not entered the mesh
	// since its start. Caller, rights and answer are then of one moment of the
	// past: nobody is shown more than they might see at that moment. What opens
	// a way, or goes on afterwards, is never early.
	early bool
	// relays marks a unary call whose answer has TURN credentials for its caller:
	// a user gets them by a right that outlives the call.
	relays bool
	// local lets the operator of this node's host in, without roles: the call is
	// about this node, and does what the operator could have the node do anyway.
	local bool
}

// freshness is how much of what was acknowledged before a call counts for it.
type freshness uint8

const (
	known       freshness = iota // what this gateway knows
	unlessStale                  // all of it, unless the caller asks for less
	always                       // all of it
)

// newRules is THE authorisation table: every procedure that is served, and what
// it takes. A procedure that is not in it is denied. Those of services that are
// not implemented are added by Gateway.services.
func newRules(openReflection bool) map[string]rule {
	freshReader := rule{access: identified, needs: readMesh, blind: true, fresh: unlessStale, early: true}
	rules := map[string]rule{
		v1connect.NodeGetStatusProcedure:            {access: identified, needs: readMesh, blind: true, local: true},
		v1connect.NodeNegotiateDataChannelProcedure: {access: gateways},
		v1connect.NodeReceiveSignalChannelProcedure: {access: gateways, lasts: isPath},

		v1connect.MeshGetNodeProcedure:      freshReader,
		v1connect.MeshListNodesProcedure:    freshReader,
		v1connect.MeshGetMeshGraphProcedure: freshReader,

		v1connect.StorageQueryServiceQueryProcedure:     {access: identified, needs: of(api.QueryActions), fresh: unlessStale, early: true},
		v1connect.StorageQueryServiceSubscribeProcedure: {access: identified, needs: of(subscribe), fresh: unlessStale},
		v1connect.StorageQueryServicePublishProcedure:   {access: identified, needs: of(publish), volume: published, fresh: always, guarded: true},

		meshgatev1connect.WatchWatchMeshProcedure:        {access: identified, needs: readMesh, blind: true, early: true, local: true},
		meshgatev1connect.EnrolmentGetChallengeProcedure: {access: identified, needs: of(challenge)},
		meshgatev1connect.EnrolmentAdoptProcedure:        {access: identified, writes: true, needs: of(adopt), fresh: always},

		meshgatev1connect.PairsFollowProcedure: {access: identified, needs: of(followPairs), lasts: ever},

		meshgatev1connect.PresenceListPresenceProcedure: {access: identified, needs: readMesh, blind: true, local: true},
		meshgatev1connect.PresenceStopProcedure:         {access: identified}, // the handler denies it to all but members

		meshgatev1connect.PathsListPathsProcedure:   {access: identified, needs: of(listPaths), local: true},
		meshgatev1connect.PathsPingProcedure:        {access: identified, needs: of(pingFrom), local: true},
		meshgatev1connect.PathsListServersProcedure: {access: identified, needs: readMesh, blind: true, relays: true, local: true},
		meshgatev1connect.PathsUseExitProcedure:     {access: identified, needs: of(useExit), local: true},

		v1connect.WebRTCStartDataChannelProcedure:   {access: identified, channel: true, needs: of(startDataChannel)},
		v1connect.WebRTCStartSignalChannelProcedure: {access: identified, channel: true, needs: of(startSignalChannel), pair: pathTo, lasts: isPath},

		v1connect.MembershipJoinProcedure:           {access: identified, fresh: always, writes: true, needs: of(join)},
		v1connect.MembershipUpdateProcedure:         {access: identified, fresh: always, writes: true, needs: of(update)},
		v1connect.MembershipLeaveProcedure:          {access: identified, fresh: always, writes: true, needs: of(leave)},
		v1connect.MembershipSubscribePeersProcedure: {access: identified, needs: of(subscribePeers)},
		// The handler denies Apply to all but voters.
		v1connect.MembershipApplyProcedure:                   {access: identified, fresh: always, writes: true},
		v1connect.MembershipGetStorageConfigurationProcedure: freshReader,

		"/" + grpchealth.HealthV1ServiceName + "/Check": {access: anyone},
		"/" + grpchealth.HealthV1ServiceName + "/Watch": {access: anyone},
	}
	admin := adminRules()
	maps.Copy(rules, admin)
	maps.Copy(rules, objectsRules(admin))
	maps.Copy(rules, clusterRules())
	maps.Copy(rules, storeRules())
	maps.Copy(rules, tokenRules())
	maps.Copy(rules, turnRules())
	reflection := rule{access: identified, needs: everything, blind: true}
	if openReflection {
		reflection = rule{access: anyone}
	}
	for _, service := range []string{grpcreflect.ReflectV1ServiceName, grpcreflect.ReflectV1AlphaServiceName} {
		rules["/"+service+"/ServerReflectionInfo"] = reflection
	}
	return rules
}

// actions are what the roles of c must allow for a call that begins with msg.
func (r rule) actions(c api.Caller, msg any) ([]mesh.Action, error) {
	if r.needs == nil {
		return nil, nil
	}
	return r.needs(c, msg)
}

// pairWith is pair; nothing is about that where it is nil.
func (r rule) pairWith(msg any) (to mesh.NodeID, ok bool, err error) {
	if r.pair == nil {
		return "", false, nil
	}
	return r.pair(msg)
}

// authorize checks the roles that r needs for a call of c that begins with msg. To
// offer networks takes none where routes give exactly these to the node.
func (r rule) authorize(s *mesh.Snapshot, c api.Caller, msg any) error {
	actions, err := r.actions(c, msg)
	if err != nil {
		return err
	}
	if j, ok := msg.(*v1.JoinRequest); ok && s != nil && j.GetId() != c.ID && policy.Bound(s, j.GetId()) {
		// Ids of nodes and names of users are one namespace: who joins a node
		// under a name that has roles hands out those roles.
		actions = append(actions, everyAction())
	}
	if o, ok := offering(msg); ok {
		actions = slices.DeleteFunc(actions, func(a mesh.Action) bool { return a == offerAction() })
		if err := r.granted(s, c, []mesh.Action{offerAction()}); err != nil && !given(s, o) {
			return ungiven(err, o)
		}
	}
	return r.granted(s, c, actions)
}

// granted is nil when the roles of c allow all of actions, or stand for them.
func (r rule) granted(s *mesh.Snapshot, c api.Caller, actions []mesh.Action) error {
	if r.local && c.Local {
		return nil
	}
	if r.seated && c.Node != nil && granted(s, c, []mesh.Action{put(v1.RuleResource_RESOURCE_VOTES, "")}) == nil {
		return nil
	}
	return granted(s, c, actions)
}

func describe(a mesh.Action) string {
	if a.Name == "" {
		return fmt.Sprintf("%s on %s", a.Verb, a.Resource)
	}
	return fmt.Sprintf("%s on %s %q", a.Verb, a.Resource, a.Name)
}

// of adapts needs of messages of type M. A message of another type is denied.
func of[M any](needs func(c api.Caller, msg M) ([]mesh.Action, error)) func(api.Caller, any) ([]mesh.Action, error) {
	return func(c api.Caller, msg any) ([]mesh.Action, error) {
		m, ok := msg.(M)
		if !ok {
			return nil, fmt.Errorf("%w: unexpected message %T", mesh.ErrDenied, msg)
		}
		return needs(c, m)
	}
}

func put(r v1.RuleResource, name string) mesh.Action {
	return mesh.Action{Resource: r, Name: name, Verb: v1.RuleVerb_VERB_PUT}
}

// readMesh: members read the mesh; others need GET on RESOURCE_EDGES.
func readMesh(c api.Caller, _ any) ([]mesh.Action, error) {
	if c.Node != nil {
		return nil, nil
	}
	return []mesh.Action{{Resource: v1.RuleResource_RESOURCE_EDGES, Verb: v1.RuleVerb_VERB_GET}}, nil
}

// listPaths: as readMesh, and a member for itself only, unless it is a gateway that
// somebody has asked.
func listPaths(c api.Caller, m *meshgatev1.ListPathsRequest) ([]mesh.Action, error) {
	return pathsOf(c, m.GetNodeId())
}

// pingFrom: likewise. From where is what others might mind.
func pingFrom(c api.Caller, m *meshgatev1.PingRequest) ([]mesh.Action, error) {
	return pathsOf(c, m.GetFromId())
}

// useExit: nobody but the operator of the node's host, whatever roles others have.
func useExit(c api.Caller, _ *meshgatev1.UseExitRequest) ([]mesh.Action, error) {
	if c.Local {
		return nil, nil
	}
	return nil, fmt.Errorf("%w: a node's exit is for the operator of its host to choose (meshgate exit there)", mesh.ErrDenied)
}

func pathsOf(c api.Caller, id string) ([]mesh.Action, error) {
	if c.Node != nil && !c.Node.Negotiates() && id != c.ID {
		return nil, fmt.Errorf("%w: node %q may ask for its own paths only", mesh.ErrDenied, c.ID)
	}
	return readMesh(c, nil)
}

// everything: a role that grants all.
func everything(api.Caller, any) ([]mesh.Action, error) { return []mesh.Action{everyAction()}, nil }

// everyAction is what only a role that grants all allows.
func everyAction() mesh.Action {
	return mesh.Action{Resource: v1.RuleResource_RESOURCE_ALL, Verb: v1.RuleVerb_VERB_ALL}
}

// subscribe: what it takes to read the keys.
func subscribe(c api.Caller, m *v1.SubscribeRequest) ([]mesh.Action, error) {
	return api.PrefixActions(c, m.GetPrefix())
}

// publish: PUT on the key. It counts as no change of the mesh.
func publish(_ api.Caller, m *v1.PublishRequest) ([]mesh.Action, error) {
	return []mesh.Action{put(v1.RuleResource_RESOURCE_PUBSUB, m.GetKey())}, nil
}

// published: what a key takes of the log, in bytes, of which each has some.
func published(msg any) int {
	m, ok := msg.(*v1.PublishRequest)
	if !ok {
		return 0
	}
	return max(len(m.GetKey())+len(m.GetValue()), minPublished)
}

// claims: other nodes believe one that says it serves something for the mesh, as
// a gateway, a TURN server or a DNS server, so that saying it takes a seat's
// grant: also of what is not known here. The rest is what a plain node says of
// itself, v1 nodes with LEADER_PROXY: nobody is sent to it for that.
func claims(list []*v1.FeaturePort) []mesh.Action {
	for _, f := range list {
		switch f.GetFeature() {
		case v1.Feature_NODES, v1.Feature_METRICS, v1.Feature_LEADER_PROXY:
		default:
			return []mesh.Action{put(v1.RuleResource_RESOURCE_VOTES, "")}
		}
	}
	return nil
}

// errNoNode is the answer to who wants a channel to nobody.
var errNoNode = fmt.Errorf("%w: node_id is empty; name the node in the first message", mesh.ErrInvalid)

func startDataChannel(_ api.Caller, m *v1.StartDataChannelRequest) ([]mesh.Action, error) {
	return dataChannelTo(m.GetNodeId())
}

func startSignalChannel(_ api.Caller, m *v1.WebRTCSignal) ([]mesh.Action, error) {
	return dataChannelTo(m.GetNodeId())
}

// pathTo: a signal with a path is between nodes, whatever roles they have. One
// that says something else is not.
func pathTo(msg any) (to mesh.NodeID, ok bool, err error) {
	if !isPath(msg) {
		return "", false, nil
	}
	name := msg.(*v1.WebRTCSignal).GetNodeId()
	if name == "" {
		return "", true, errNoNode
	}
	to, err = mesh.ParseNodeID(name)
	return to, true, err
}

// isPath reports whether msg is a signal with a path.
func isPath(msg any) bool {
	m, ok := msg.(*v1.WebRTCSignal)
	return ok && m.GetPath() != nil
}

// ever: whatever the message.
func ever(any) bool { return true }

// followPairs: the node itself, by its key. What may be sent between two nodes is
// for these two to know, and a token that bears a node's name is not the node.
func followPairs(c api.Caller, m *meshgatev1.FollowPairsRequest) ([]mesh.Action, error) {
	switch id := m.GetNodeId(); {
	case id == "" && c.IsNode(c.ID):
		return nil, fmt.Errorf("%w: node_id is empty; a node names itself in the first message", mesh.ErrInvalid)
	case !c.IsNode(id):
		return nil, fmt.Errorf("%w: only node %q itself, by its key, may ask for its pairs, not %q", mesh.ErrDenied, id, c.ID)
	}
	return nil, nil
}

// dataChannelTo: rules are about single nodes, so that the node has to be named
// before roles are asked.
func dataChannelTo(node string) ([]mesh.Action, error) {
	if node == "" {
		return nil, errNoNode
	}
	return []mesh.Action{put(v1.RuleResource_RESOURCE_DATA_CHANNELS, node)}, nil
}

// join: under the caller's own id, or under one that it may PUT edges of.
// Routes, an exit, direct peers and a seat among the voters need their own grants;
// routes that the node has already do not: see authorize.
func join(c api.Caller, m *v1.JoinRequest) ([]mesh.Action, error) {
	var actions []mesh.Action
	if m.GetId() != c.ID {
		actions = append(actions, put(v1.RuleResource_RESOURCE_EDGES, m.GetId()))
	}
	if len(m.GetRoutes()) > 0 || m.GetExit() {
		actions = append(actions, offerAction())
	}
	for peer := range m.GetDirectPeers() {
		actions = append(actions, put(v1.RuleResource_RESOURCE_EDGES, peer))
	}
	if m.GetAsVoter() {
		actions = append(actions, put(v1.RuleResource_RESOURCE_VOTES, ""))
	}
	if m.GetAsObserver() {
		actions = append(actions, put(v1.RuleResource_RESOURCE_OBSERVERS, ""))
	}
	return append(actions, claims(m.GetFeatures())...), nil
}

// challenge: whoever may join the node.
func challenge(c api.Caller, m *meshgatev1.GetChallengeRequest) ([]mesh.Action, error) {
	if m.GetId() == c.ID {
		return nil, nil
	}
	return []mesh.Action{put(v1.RuleResource_RESOURCE_EDGES, m.GetId())}, nil
}

// adopt: the node itself, by its key, or one that the caller may PUT edges of.
func adopt(c api.Caller, m *meshgatev1.AdoptRequest) ([]mesh.Action, error) {
	if err := onlySelf(c, m.GetId()); err != nil || c.IsNode(m.GetId()) {
		return nil, err
	}
	return []mesh.Action{put(v1.RuleResource_RESOURCE_EDGES, m.GetId())}, nil
}

// update: as join. Over the mesh a node has shown its key and may change it;
// a token shows no key, so that it takes a role to change one.
func update(c api.Caller, m *v1.UpdateRequest) ([]mesh.Action, error) {
	if err := onlySelf(c, m.GetId()); err != nil {
		return nil, err
	}
	var actions []mesh.Action
	if m.GetId() != c.ID || m.GetPublicKey() != "" && !c.IsNode(c.ID) {
		actions = append(actions, put(v1.RuleResource_RESOURCE_EDGES, m.GetId()))
	}
	if len(m.GetRoutes()) > 0 {
		actions = append(actions, offerAction())
	}
	if m.GetAsVoter() {
		actions = append(actions, put(v1.RuleResource_RESOURCE_VOTES, ""))
	}
	return append(actions, claims(m.GetFeatures())...), nil
}

// leave: oneself, or a node that the caller may DELETE edges of.
func leave(c api.Caller, m *v1.LeaveRequest) ([]mesh.Action, error) {
	if err := onlySelf(c, m.GetId()); err != nil || m.GetId() == c.ID {
		return nil, err
	}
	return []mesh.Action{{Resource: v1.RuleResource_RESOURCE_EDGES, Name: m.GetId(), Verb: v1.RuleVerb_VERB_DELETE}}, nil
}

// subscribePeers: one's own peers, or those of a node that the caller may PUT
// edges of.
func subscribePeers(c api.Caller, m *v1.SubscribePeersRequest) ([]mesh.Action, error) {
	if err := onlySelf(c, m.GetId()); err != nil || m.GetId() == c.ID {
		return nil, err
	}
	return []mesh.Action{put(v1.RuleResource_RESOURCE_EDGES, m.GetId())}, nil
}

// onlySelf denies a member that speaks for another node over the mesh.
func onlySelf(c api.Caller, id string) error {
	if c.Node != nil && id != c.ID {
		return fmt.Errorf("%w: node %q may do that for itself only, not for %q", mesh.ErrDenied, c.ID, id)
	}
	return nil
}
