// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"sync"

	raftboltdb "github.com/hashicorp/raft-boltdb/v2"

	"github.com/meshgate/meshgate/node/store"
	pb "github.com/meshgate/meshgate/proto/meshgate/v1"
)

// The keys of this package in the votes file, beside raft's own.
var (
	keyReplica = []byte("MeshgateReplica")
	keyCluster = []byte("MeshgateCluster")
)

const (
	clusterIDSize = 16
	nonceSize     = 16
)

// How a replica came to its cluster: the last byte of what keyCluster holds.
const (
	originFounded = 'F'
	originJoined  = 'J'
)

// identity is which replica of which cluster a directory belongs to. A replica
// that belongs to none has no votes and no log: it takes no part in raft until
// a leader, who has made sure that nobody counts on an earlier life of it,
// admits it.
type identity struct {
	disk  *disk
	nonce []byte // another one at each start

	mu sync.Mutex // guards the field below, and the writes
	id []byte     // of the cluster; nil: none
}

// openIdentity checks that the disk belongs to a replica and reads of which
// cluster it is. With found it makes a disk that belongs to none that of a
// new cluster.
func openIdentity(d *disk, replica string, found bool) (*identity, error) {
	owner, err := d.note(keyReplica)
	if err != nil {
		return nil, err
	}
	if owner != nil && string(owner) != replica {
		return nil, fmt.Errorf("%w: it is that of %q, not %q", ErrOtherNode, owner, replica)
	}
	record, err := d.note(keyCluster)
	if err != nil {
		return nil, err
	}
	if record != nil && len(record) != clusterIDSize+1 {
		return nil, fmt.Errorf("%w: %s", ErrDamaged, keyCluster)
	}
	i := &identity{disk: d, nonce: random(nonceSize)}
	if owner == nil {
		if err := d.stable.Set(keyReplica, []byte(replica)); err != nil {
			return nil, err
		}
	}
	switch {
	case record != nil:
		i.id = record[:clusterIDSize:clusterIDSize]
	case found:
		i.id = random(clusterIDSize)
		return i, d.stable.Set(keyCluster, append(slices.Clone(i.id), originFounded))
	}
	return i, nil
}

// founded says whether this replica is to make a cluster of its own if its
// disk is new.
func (i *identity) founded() bool {
	record, err := i.disk.note(keyCluster)
	return err == nil && len(record) > 0 && record[len(record)-1] == originFounded
}

// cluster returns the id of the cluster; nil while there is none.
func (i *identity) cluster() []byte {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.id
}

// probe returns the id of the cluster and the nonce.
func (i *identity) probe() (cluster, nonce []byte) { return i.cluster(), i.nonce }

// join makes the replica one of a cluster.
func (i *identity) join(cluster, nonce []byte) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	switch {
	case len(cluster) != clusterIDSize:
		return fmt.Errorf("%w: the id of a cluster has %d bytes, not %d", store.ErrInvalid, len(cluster), clusterIDSize)
	case !bytes.Equal(nonce, i.nonce):
		return fmt.Errorf("%w: the replica was started again since it was probed", store.ErrInvalid)
	case bytes.Equal(cluster, i.id):
		return nil
	case i.id != nil:
		return ErrOtherCluster
	}
	if err := i.disk.stable.Set(keyCluster, append(slices.Clone(cluster), originJoined)); err != nil {
		return err
	}
	i.id = slices.Clone(cluster)
	return nil
}

// admit answers a leader who lets this replica in.
func (s *Store) admit(a *pb.ReplicaAdmit) error {
	err := s.identity.join(a.GetCluster(), a.GetNonce())
	if err == nil {
		s.logger.Info("admitted to a cluster", "node", s.id)
	}
	return err
}

// note returns a value of the votes file; nil when there is none.
func (d *disk) note(key []byte) ([]byte, error) {
	value, err := d.stable.Get(key)
	if errors.Is(err, raftboltdb.ErrKeyNotFound) || err != nil && d.dir == "" {
		return nil, nil
	}
	return value, err
}

func random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b) // it cannot fail
	return b
}
