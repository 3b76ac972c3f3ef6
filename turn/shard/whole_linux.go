// SPDX-License-Identifier: Apache-2.0

package shard

// keepsWhole: datagrams can be kept from being cut.
const keepsWhole = true

// keepWhole lets what the portable engine sends leave whole or not at all, or
// again as it is usual.
func (p *port) keepWhole(on bool) {
	raw, err := p.conn.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) { (&Socket{fd: int(fd), ipv6: p.socket.ipv6}).keepWhole(on) })
}
