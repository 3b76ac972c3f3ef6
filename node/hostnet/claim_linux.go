// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// claim notes the settings that are about to be changed, and puts f in force.
func (h *Host) claim(f *firewall, wanted []setting) error {
	for _, s := range wanted {
		if h.changed(s.path) {
			continue
		}
		now, err := os.ReadFile(settingsDir + s.path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("read setting: %w", err)
		}
		if s.before = strings.TrimSpace(string(now)); s.before == s.value {
			// Another interface of ours may have done it. Then the last of us undoes it.
			theirs, ok := claimOf(s.path, f.mesh)
			if !ok {
				h.leave(s.path, f.mesh)
				continue
			}
			s.before = theirs.before
		}
		if !ours(s.path) || len(s.before) != 1 {
			return fmt.Errorf("setting %s has the value %q, which is unknown", s.path, s.before)
		}
		h.done.settings = append(h.done.settings, s)
	}
	return h.protect(f, len(f.serve) > 0)
}

// leave says of a setting that was on already, and that no note says is ours, that
// it stays on. Where the host as a whole forwards nothing, it may be what a node that
// was killed had switched on, whose notes somebody has flushed with the tables.
func (h *Host) leave(path, mesh string) {
	if !alone(path, settingsDir) || strings.Contains(path, "/conf/"+mesh+"/") || slices.Contains(h.done.left, path) {
		return
	}
	h.done.left = append(h.done.left, path)
	h.logger.Warn("an interface forwards already, though the host does not: nothing says that a node switched it on, so that it stays on; "+
		"unless that is wanted, write 0 there once the node has ended", "setting", settingsDir+path)
}

// alone reports whether a path is the switch of one interface, which is on while
// that of the whole host is not. dir is where settings are.
func alone(path, dir string) bool {
	parts := strings.Split(path, "/")
	if len(parts) != 4 || parts[2] == "all" || !strings.HasSuffix(parts[3], "forwarding") {
		return false
	}
	for _, name := range []string{"forwarding", parts[3]} {
		all, err := os.ReadFile(dir + parts[0] + "/conf/all/" + name)
		if err != nil && !errors.Is(err, fs.ErrNotExist) || strings.TrimSpace(string(all)) == on {
			return false
		}
	}
	return true
}

// protect puts the firewall in force, with the present ledger. A kernel without
// nftables is no reason to fail for one that only forwards within the mesh.
func (h *Host) protect(f *firewall, needed bool) error {
	f.ledger = h.done.outliving()
	f.router4, f.router6 = h.router(allForwarding4), h.router(allForwarding6)
	if f.empty() && h.done.firewall == "" {
		return nil
	}
	changed, err := f.put(h.before)
	if err != nil {
		if !needed && without(err) {
			return nil
		}
		return fmt.Errorf("%w; serving networks outside of the mesh needs nftables in the kernel", err)
	}
	if changed && h.done.firewall == f.fingerprint() {
		h.logger.Warn("put back what was taken from the mesh interface", "nftables", tableName(f.mesh))
	}
	if h.done.firewall = f.fingerprint(); f.empty() {
		h.done.firewall = ""
	}
	return nil
}

// router reports whether somebody else switched on a setting that makes the
// whole host a router. What cannot be read is not on.
func (h *Host) router(path string) bool {
	now, err := os.ReadFile(settingsDir + path)
	return err == nil && strings.TrimSpace(string(now)) == on && !h.changed(path)
}

// outliving are the settings that do not go with the interface.
func (r *record) outliving() []setting {
	return slices.DeleteFunc(slices.Clone(r.settings), func(s setting) bool { return strings.Contains(s.path, "/conf/"+r.name+"/") })
}

// claimed reports whether another interface of ours than name needs a setting.
func claimed(path, name string) bool {
	_, ok := claimOf(path, name)
	return ok
}

// claimOf finds a setting in the ledger of another interface of ours.
func claimOf(path, name string) (setting, bool) {
	c, err := nft()
	if err != nil {
		return setting{}, false
	}
	all, err := tables(c)
	if err != nil {
		return setting{}, false // no ledger can be read, so none is
	}
	for _, t := range all {
		if t.owner == "" || t.owner == name {
			continue
		}
		if i := slices.IndexFunc(t.ledger, func(s setting) bool { return s.path == path }); i >= 0 {
			return t.ledger[i], true
		}
	}
	return setting{}, false
}

// Clean takes back what processes have left that were killed: the one that had
// the interface name before, and all whose interface is not there any more.
// Call it when the interface is made, before the first Set; nobody else can have
// one of the name then.
func (h *Host) Clean(name string) error { return h.CleanFor(name, false) }

// CleanFor is Clean, but for what an earlier process has left of Config.Exit for
// the interface, if the node is to use an exit again: that stays in force, so that
// nothing leaves the host beside the tunnel from one process to the next.
func (h *Host) CleanFor(name string, exit bool) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer nl.Close()
	if err := dropRoutes(nl, name); err != nil {
		return err
	}
	if err := h.buryExits(nl, name, exit); err != nil {
		return err
	}
	c, err := nft()
	if err != nil {
		return err
	}
	all, err := tables(c)
	if without(err) {
		return nil
	}
	if err != nil {
		return err
	}
	var errs []error
	for _, t := range all {
		dead := t.Name == tableName(name)
		if !dead && t.owner != "" {
			_, err := nl.LinkByName(t.owner)
			dead = errors.As(err, new(netlink.LinkNotFoundError))
		}
		if !dead {
			continue
		}
		h.logger.Warn("took back what a node that was killed had left on this host", "nftables", t.Name, "n", len(t.ledger))
		errs = append(errs, h.bury(c, t))
	}
	return errors.Join(errs...)
}

// bury undoes what a table notes, and removes it.
func (h *Host) bury(c *nftables.Conn, t *table) error {
	var errs []error
	for _, s := range t.ledger {
		errs = append(errs, h.giveBack(s, t.owner))
	}
	if err := errors.Join(errs...); err != nil {
		return err // the notes stay for the next try
	}
	h.before("remove " + t.Name)
	c.DelTable(t.Table)
	if err := c.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove nftables table %s: %w", t.Name, err)
	}
	return nil
}

// dropRoutes removes our routes from an interface. A TUN interface that outlives
// its process keeps them.
func dropRoutes(nl *netlink.Handle, name string) error {
	link, err := nl.LinkByName(name)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil
	}
	if err != nil {
		return err
	}
	of := &netlink.Route{Table: unix.RT_TABLE_MAIN, LinkIndex: link.Attrs().Index, Protocol: routeProtocol}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		list, err := nl.RouteListFiltered(family, of, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_OIF|netlink.RT_FILTER_PROTOCOL)
		if err != nil {
			return fmt.Errorf("list routes: %w", err)
		}
		for i := range list {
			if err := gone(nl.RouteDel(&list[i])); err != nil {
				return fmt.Errorf("remove route %v: %w", list[i].Dst, err)
			}
		}
	}
	return nil
}
