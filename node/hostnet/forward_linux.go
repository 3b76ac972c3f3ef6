// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
)

// settingsDir is where the kernel shows its network settings.
const settingsDir = "/proc/sys/net/"

const on = "1"

// setting is a kernel setting that we switched on.
type setting struct {
	// path is below settingsDir.
	path string
	// before is its value until then.
	before string
}

// global returns the recorded settings that belong to no interface.
func (r *record) global() []setting {
	return slices.DeleteFunc(slices.Clone(r.settings), func(s setting) bool { return s.path != allForwarding6 })
}

// allForwarding6 makes an IPv6 router of the whole host.
const allForwarding6 = "ipv6/conf/all/forwarding"

// setForwarding switches forwarding on or back.
func (h *Host) setForwarding(_ *netlink.Handle, link netlink.Link, c *Config) error {
	if !c.Forward {
		return h.restore(nil)
	}
	name := link.Attrs().Name
	// The kernel asks the interface that a packet came in on; for IPv6, older
	// kernels have one switch for all.
	wanted := []string{"ipv4/conf/" + name + "/forwarding", "ipv6/conf/" + name + "/force_forwarding"}
	if _, err := os.Stat(settingsDir + wanted[1]); errors.Is(err, fs.ErrNotExist) {
		wanted[1] = allForwarding6
	}
	for _, path := range wanted {
		if err := h.switchOn(path); err != nil {
			return err
		}
	}
	return h.restore(wanted)
}

// switchOn switches a setting on if it is off, and records that.
func (h *Host) switchOn(path string) error {
	before, err := os.ReadFile(settingsDir + path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // a kernel without that family
	}
	if err != nil {
		return fmt.Errorf("read setting: %w", err)
	}
	value := strings.TrimSpace(string(before))
	if value == on {
		return nil
	}
	if err := os.WriteFile(settingsDir+path, []byte(on), 0); err != nil {
		return fmt.Errorf("switch on forwarding: %w", err)
	}
	if !slices.ContainsFunc(h.done.settings, func(s setting) bool { return s.path == path }) {
		h.done.settings = append(h.done.settings, setting{path: path, before: value})
	}
	return nil
}

// restore gives the recorded settings that are not in keep their old values,
// unless somebody else changed them since.
func (h *Host) restore(keep []string) error {
	var errs []error
	h.done.settings = slices.DeleteFunc(h.done.settings, func(s setting) bool {
		if slices.Contains(keep, s.path) {
			return false
		}
		now, err := os.ReadFile(settingsDir + s.path)
		if err == nil && strings.TrimSpace(string(now)) == on {
			err = os.WriteFile(settingsDir+s.path, []byte(s.before), 0)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("restore setting: %w", err))
			return false
		}
		return true
	})
	return errors.Join(errs...)
}
