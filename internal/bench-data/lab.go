// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
)

// side is a host of the benchmark: a network namespace at one end of a veth pair.
type side struct{ namespace, link, address string }

// The addresses of the two ends, and of the ends of plain tunnels over them.
// They do not leave the namespaces.
const (
	leftAddress, rightAddress = "10.200.0.1", "10.200.0.2"
	underlay                  = "/24"
)

// lab is two sides with a veth pair in between.
type lab struct{ left, right side }

func newLab(ctx context.Context) (_ *lab, err error) {
	prefix := "mgbd" + strconv.Itoa(os.Getpid())
	l := &lab{
		left:  side{prefix + "l", "ul", leftAddress},
		right: side{prefix + "r", "ur", rightAddress},
	}
	defer func() {
		if err != nil {
			l.close()
		}
	}()
	for _, s := range []side{l.left, l.right} {
		if err := ip(ctx, "netns", "add", s.namespace); err != nil {
			return nil, err
		}
	}
	if err := ip(ctx, "link", "add", l.left.link, "netns", l.left.namespace, "type", "veth",
		"peer", "name", l.right.link, "netns", l.right.namespace); err != nil {
		return nil, err
	}
	for _, s := range []side{l.left, l.right} {
		for _, args := range []string{
			"link set lo up", "link set " + s.link + " up", "addr add " + s.address + underlay + " dev " + s.link,
		} {
			if err := ip(ctx, append([]string{"-n", s.namespace}, strings.Fields(args)...)...); err != nil {
				return nil, err
			}
		}
	}
	return l, nil
}

// close removes the namespaces, and with them all that is in them. Nobody can
// do anything about one that stays.
func (l *lab) close() {
	for _, s := range []side{l.left, l.right} {
		_ = ip(context.Background(), "netns", "del", s.namespace)
	}
}

// command is a program that runs on the side.
func (s side) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, "ip", append([]string{"netns", "exec", s.namespace, name}, args...)...)
}

func ip(ctx context.Context, args ...string) error {
	if out, err := exec.CommandContext(ctx, "ip", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return nil
}
