// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"context"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"sync"
)

// network is a bridge with a network namespace for each replica. The clients
// are at the bridge; faults are between the replicas only.
type network struct {
	ids []string

	mu     sync.Mutex // guards the fields below, and is held while rules are set
	faults map[*netFault]bool
}

// netFault is something wrong with the network.
type netFault struct {
	// from and to are whose packets get lost on their way to whom.
	from, to []string
	// percent of them are lost; 100 is a partition.
	percent int
}

// newNetwork makes it, in the network namespace of the process.
func newNetwork(ctx context.Context, ids []string) (*network, error) {
	n := &network{ids: ids, faults: map[*netFault]bool{}}
	for _, line := range []string{
		"mkdir -p /run/netns",
		"mount -t tmpfs netns /run/netns",
		"ip link set lo up",
		"ip link add chaos type bridge",
		"ip address add 10.99.0.254/24 dev chaos",
		"ip link set chaos up",
	} {
		if err := commandLine(ctx, line); err != nil {
			return nil, err
		}
	}
	for i, id := range ids {
		for _, line := range []string{
			"ip netns add " + id,
			"ip link add to-" + id + " type veth peer name eth0 netns " + id,
			"ip link set to-" + id + " master chaos up",
			"ip -n " + id + " link set lo up",
			"ip -n " + id + " link set eth0 up",
			fmt.Sprintf("ip -n %s address add %s/24 dev eth0", id, addressOf(i)),
		} {
			if err := commandLine(ctx, line); err != nil {
				return nil, err
			}
		}
	}
	return n, n.apply(ctx)
}

// addressOf is the address of the replica with an index.
func addressOf(i int) string { return fmt.Sprintf("10.99.0.%d", i+1) }

// begin makes a fault happen.
func (n *network) begin(ctx context.Context, f *netFault) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.faults[f] = true
	return n.apply(ctx)
}

// end mends a fault.
func (n *network) end(ctx context.Context, f *netFault) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.faults, f)
	return n.apply(ctx)
}

// apply sets the rules of all namespaces.
func (n *network) apply(ctx context.Context) error {
	for _, id := range n.ids {
		// Not "ip netns exec": that copies the mounts, and a disk could not be let go of.
		cmd := exec.CommandContext(ctx, "nsenter", "--net=/run/netns/"+id, "nft", "-f", "-")
		cmd.Stdin = strings.NewReader(n.rules(id))
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("nft in %s: %w: %s", id, err, out)
		}
	}
	return nil
}

// rules drop, where a replica receives, what is lost on the way.
func (n *network) rules(to string) string {
	var b strings.Builder
	b.WriteString("table ip chaos\ndelete table ip chaos\ntable ip chaos {\nchain in {\ntype filter hook input priority 0;\n")
	for f := range n.faults {
		for i, from := range n.ids {
			if from == to || !slices.Contains(f.from, from) || !slices.Contains(f.to, to) {
				continue
			}
			fmt.Fprintf(&b, "ip saddr %s ", addressOf(i))
			if f.percent < 100 {
				fmt.Fprintf(&b, "numgen random mod 100 < %d ", f.percent)
			}
			b.WriteString("drop\n")
		}
	}
	b.WriteString("}\n}\n")
	return b.String()
}

// commandLine runs a program whose arguments have no spaces.
func commandLine(ctx context.Context, line string) error {
	words := strings.Fields(line)
	return command(ctx, words[0], words[1:]...)
}
