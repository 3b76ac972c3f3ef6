// SPDX-License-Identifier: Apache-2.0

package xdp

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// capability is a right of a process; more is another one that holds it as well, or 0.
type capability struct {
	name         string
	number, more uint
}

// needed are the capabilities that a kernel path takes. Without CAP_PERFMON the
// verifier lets nobody compute with pointers.
func needed() []capability {
	return []capability{
		{"CAP_NET_ADMIN", unix.CAP_NET_ADMIN, 0},
		{"CAP_BPF", unix.CAP_BPF, unix.CAP_SYS_ADMIN},
		{"CAP_PERFMON", unix.CAP_PERFMON, unix.CAP_SYS_ADMIN},
	}
}

// missing are those of needed that a set of capabilities does not hold.
func missing(held uint64) (names []string) {
	for _, c := range needed() {
		if held>>c.number&1 == 0 && (c.more == 0 || held>>c.more&1 == 0) {
			names = append(names, c.name)
		}
	}
	return names
}

// explain adds to a refusal of the kernel which capabilities the process lacks: then
// the error is a refusal.
func explain(err error) error {
	if !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EACCES) {
		return err
	}
	var sets [2]unix.CapUserData
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	if unix.Capget(&header, &sets[0]) != nil {
		return err
	}
	return lacking(err, uint64(sets[1].Effective)<<32|uint64(sets[0].Effective))
}

func lacking(err error, held uint64) error {
	names := missing(held)
	if len(names) == 0 {
		return err
	}
	return refusal{fmt.Errorf("%w; the process lacks %s: give it these capabilities, or leave channels to user space (mode %s)",
		err, strings.Join(names, ", "), Off)}
}

// refusal is an error for which capabilities are lacking.
type refusal struct{ error }

func (r refusal) Unwrap() error { return r.error }
