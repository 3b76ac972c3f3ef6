// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"cmp"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/peer"
	meshgatev1 "github.com/meshgate/meshgate/proto/meshgate/v1"
	"github.com/meshgate/meshgate/proto/meshgate/v1/meshgatev1connect"
)

// keyed is the test mesh whose laptop has a key.
func keyed(t testing.TB) (*mesh.Snapshot, mesh.PrivateKey) {
	t.Helper()
	key, err := mesh.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	s := testSnapshot()
	laptop := *s.Node("laptop")
	laptop.PublicKey = key.Public()
	s.Nodes = s.Nodes.With(&laptop)
	return s, key
}

func TestNodeKeys_KnowMembersByTheirKeys(t *testing.T) {
	s, key := keyed(t)
	other, err := mesh.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	node := newFakeNode(s)
	keys := NewNodeKeys(node)
	sign := func(key mesh.PrivateKey, id, gate mesh.NodeID, at time.Time) string {
		return mesh.SignCredential(key, s.IPv6.String(), id, gate, at)
	}
	now := time.Now()
	for name, tt := range map[string]struct {
		token string
		want  error // nil: it is the laptop
	}{
		"the node":         {sign(key, "laptop", "gw-1", now), nil},
		"another key":      {sign(other, "laptop", "gw-1", now), mesh.ErrRemoved},
		"another's id":     {sign(key, "web-1", "gw-1", now), mesh.ErrRemoved},
		"no member":        {sign(key, "tablet", "gw-1", now), mesh.ErrRemoved},
		"another gateway":  {sign(key, "laptop", "gw-2", now), mesh.ErrUnauthenticated},
		"old":              {sign(key, "laptop", "gw-1", now.Add(-mesh.ProofWindow-time.Minute)), mesh.ErrUnauthenticated},
		"another mesh":     {mesh.SignCredential(key, "fd00::/32", "laptop", "gw-1", now), mesh.ErrUnauthenticated},
		"none":             {"meshgate-key.x", mesh.ErrUnauthenticated},
		"a token":          {tokenOf("admin"), ErrOtherKind},
		"a stranger's try": {mesh.SignCredential(other, "fd00::/32", "tablet", "gw-1", now), mesh.ErrUnauthenticated},
	} {
		id, err := keys.Authenticate(t.Context(), Credentials{Token: tt.token})
		if tt.want == nil && (err != nil || id.ID != "laptop" || !id.Stands()) || tt.want != nil && !errors.Is(err, tt.want) {
			t.Errorf("%s: %q, %v", name, id.ID, err)
		}
	}
	id, err := keys.Authenticate(t.Context(), Credentials{Token: sign(key, "laptop", "gw-1", now)})
	if err != nil {
		t.Fatal(err)
	}
	node.set(changed(8, func(s *mesh.Snapshot) { s.Nodes = s.Nodes.Without("laptop") }))
	if id.Stands() {
		t.Error("a node that was removed is still known")
	}
}

// A gateway that lags has not seen the join yet. It looks before it says that
// there is no such node, which would end the node for good; and says nothing of
// the kind while it cannot look.
func TestNodeKeys_AskTheMeshBeforeTheySayNo(t *testing.T) {
	s, key := keyed(t)
	token := mesh.SignCredential(key, s.IPv6.String(), "laptop", "gw-1", time.Now())
	without := *s
	without.Nodes = s.Nodes.Without("laptop")
	changed := *s // the laptop had another key before
	laptop := *s.Node("laptop")
	before, err := mesh.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	laptop.PublicKey = before.Public()
	changed.Nodes = s.Nodes.With(&laptop)
	for name, tt := range map[string]struct {
		known   *mesh.Snapshot // nil: without
		behind  *mesh.Snapshot
		syncErr error
		want    error // nil: it is the laptop
	}{
		"it joined elsewhere": {behind: s},
		"its key changed":     {known: &changed, behind: s},
		"it was removed":      {want: mesh.ErrRemoved},
		"nobody leads":        {behind: s, syncErr: fmt.Errorf("%w: no leader", mesh.ErrUnavailable), want: mesh.ErrUnavailable},
	} {
		node := newFakeNode(cmp.Or(tt.known, &without))
		node.behind, node.syncErr = tt.behind, tt.syncErr
		id, err := NewNodeKeys(node).Authenticate(t.Context(), Credentials{Token: token})
		if tt.want == nil && (err != nil || id.ID != "laptop") || !errors.Is(err, tt.want) {
			t.Errorf("%s: %q, %v", name, id.ID, err)
		}
		if node.synced() != 1 {
			t.Errorf("%s: the mesh was asked %d times", name, node.synced())
		}
	}
}

// A node that a gateway has no token of calls it by its key; and is told that it
// was removed, which nothing but a right key is told.
func TestNodeKeys_LetANodeBeAdopted(t *testing.T) {
	var keys *NodeKeys
	s := serve(t, func(c *Config) {
		keys = NewNodeKeys(c.Node)
		c.Access.Authenticators = append([]Authenticator{keys}, c.Access.Authenticators...)
	})
	snap, key := keyed(t)
	s.node.set(snap)
	adopt := func(token, id string) error {
		c := withHeader(httpClient(t, true, "", nil), "Authorization", "Bearer "+token)
		_, err := meshgatev1connect.NewEnrolmentClient(c, "http://"+s.public).
			Adopt(testContext(t), connect.NewRequest(&meshgatev1.AdoptRequest{Id: id}))
		return err
	}
	token := mesh.SignCredential(key, snap.IPv6.String(), "laptop", "gw-1", time.Now())
	if err := adopt(token, "laptop"); err != nil {
		t.Errorf("by its key: %v", err)
	}
	if err := adopt(token, "web-1"); connect.CodeOf(err) != connect.CodePermissionDenied {
		t.Errorf("another node by its key: %v", err)
	}
	if err := adopt(token+"A", "laptop"); connect.CodeOf(err) != connect.CodeUnauthenticated {
		t.Errorf("a damaged credential: %v", err)
	}
	if err := adopt(tokenOf("admin"), "laptop"); err != nil {
		t.Errorf("by an admin: %v", err)
	}
	s.node.set(changed(9, func(s *mesh.Snapshot) { s.Nodes = s.Nodes.Without("laptop") }))
	if err := adopt(token, "laptop"); connect.CodeOf(err) != connect.CodeNotFound || !peer.Removed(err) {
		t.Errorf("after it was removed: %v", err)
	}
}

// Who has a key of its own and knows the mesh, and no more, learns by it neither
// which ids there are, nor may it keep the gateways busy.
func TestNodeKeys_TellStrangersNothing(t *testing.T) {
	s := serve(t, func(c *Config) {
		c.Access.Authenticators = append([]Authenticator{NewNodeKeys(c.Node)}, c.Access.Authenticators...)
	})
	snap, key := keyed(t)
	s.node.set(snap)
	fresh, err := mesh.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	adopt := func(key mesh.PrivateKey, id mesh.NodeID, from string) error {
		token := mesh.SignCredential(key, snap.IPv6.String(), id, "gw-1", time.Now())
		c := withHeader(httpClient(t, true, from, nil), "Authorization", "Bearer "+token)
		_, err := meshgatev1connect.NewEnrolmentClient(c, "http://"+s.public).
			Adopt(testContext(t), connect.NewRequest(&meshgatev1.AdoptRequest{Id: string(id)}))
		return err
	}
	there, missing := adopt(fresh, "laptop", "127.0.0.5"), adopt(fresh, "tablet", "127.0.0.5")
	if a, b := strings.ReplaceAll(there.Error(), "laptop", "ID"), strings.ReplaceAll(missing.Error(), "tablet", "ID"); a != b || peer.Removed(there) != peer.Removed(missing) {
		t.Errorf("of an id that is there: %s; of one that is not: %s", a, b)
	}
	before := s.node.synced()
	const tries = 5 * unknownBurst
	var last error
	for range tries {
		last = adopt(fresh, "laptop", "127.0.0.5")
	}
	wantCode(t, last, connect.CodeResourceExhausted, "try again in a few seconds")
	if n := s.node.synced() - before; n > tries/2 {
		t.Errorf("%d tries of a stranger asked the mesh %d times", tries, n)
	}
	if err := adopt(key, "laptop", "127.0.0.5"); err != nil {
		t.Errorf("a member beside it: %v", err)
	}
	wantCode(t, adopt(fresh, "laptop", "127.0.0.6"), connect.CodeNotFound, "")
}
