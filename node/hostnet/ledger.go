// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"fmt"
	"strings"

	"github.com/meshgate/meshgate/node/mesh"
)

// setting is a kernel setting that we changed.
type setting struct {
	// path is below /proc/sys/net/.
	path string
	// value is ours, before the one until then.
	value, before string
}

// Words that notes in the kernel begin with.
const (
	noteInterface = "interface "
	noteState     = "state "
	noteSetting   = "setting "
)

// looseFilter has the kernel take packets that come in where their answers would
// not go out (RFC 3704 section 2.4); strictFilter does not.
const looseFilter, strictFilter = "2", "1"

// maxNote is the longest comment that the nft tool shows.
const maxNote = 128

// note is the text form of s in the ledger.
func (s setting) note() string {
	return noteSetting + s.path + " " + s.value + " " + s.before
}

// parseSetting reads what note wrote. It takes only what this package changes:
// whoever wrote the note, no other file is touched. Errors wrap mesh.ErrInvalid.
func parseSetting(note string) (setting, error) {
	fields := strings.Split(strings.TrimPrefix(note, noteSetting), " ")
	if !strings.HasPrefix(note, noteSetting) || len(fields) != 3 {
		return setting{}, fmt.Errorf("%w: note %q is not SETTING VALUE BEFORE", mesh.ErrInvalid, note)
	}
	s := setting{path: fields[0], value: fields[1], before: fields[2]}
	for _, v := range []string{s.value, s.before} {
		if len(v) != 1 || v[0] < '0' || v[0] > '9' {
			return setting{}, fmt.Errorf("%w: value %q of setting %q is no digit", mesh.ErrInvalid, v, s.path)
		}
	}
	if !ours(s.path) || strings.HasSuffix(s.path, "/rp_filter") && s.value != looseFilter {
		return setting{}, fmt.Errorf("%w: %q is no setting of ours", mesh.ErrInvalid, s.path)
	}
	return s, nil
}

// ours reports whether a path is of a setting that this package changes.
func ours(path string) bool {
	parts := strings.Split(path, "/")
	if len(parts) != 4 || parts[1] != "conf" || !interfaceName(parts[2]) {
		return false
	}
	switch parts[0] + " " + parts[3] {
	case "ipv4 forwarding", "ipv4 rp_filter", "ipv6 force_forwarding", "ipv6 accept_ra":
		return true
	case "ipv6 forwarding":
		return parts[2] == "all"
	}
	return false
}

// interfaceName reports whether the kernel allows the name for an interface
// (dev_valid_name).
func interfaceName(name string) bool {
	return name != "" && len(name) < 16 && name != "." && name != ".." && !strings.ContainsAny(name, "/: \t\n\v\f\r\x00")
}

const tablePrefix = "meshgate_"

// tableName is the name of the nftables table for an interface. Characters
// that the nft tool does not take in names are written in hexadecimal.
func tableName(name string) string {
	var b strings.Builder
	b.WriteString(tablePrefix)
	for i := range len(name) {
		switch c := name[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '_', c == '-', c == '.':
			b.WriteByte(c)
		default:
			fmt.Fprintf(&b, "/%02x", c)
		}
	}
	return b.String()
}
