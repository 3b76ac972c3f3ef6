// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net/netip"
)

// proxySignature is what each PROXY header of version 2 begins with.
const proxySignature = "\r\n\r\n\x00\r\nQUIT\n"

// Sizes of a PROXY header: the fixed part, and the most of the rest that is taken.
const (
	proxyFixed = 16
	proxyRest  = 2048
)

// errNoProxy says that a connection does not begin with a PROXY header of version 2.
var errNoProxy = errors.New("not a PROXY header of version 2")

// proxyLength returns how many bytes follow the first 16 of a PROXY header.
func proxyLength(fixed []byte) (int, error) {
	switch n := int(binary.BigEndian.Uint16(fixed[14:])); {
	case string(fixed[:12]) != proxySignature, fixed[12]>>4 != 2:
		return 0, errNoProxy
	case n > proxyRest:
		return 0, fmt.Errorf("PROXY header of %d bytes: at most %d are taken", proxyFixed+n, proxyFixed+proxyRest)
	default:
		return n, nil
	}
}

// parseProxy returns the client that a whole PROXY header of version 2 names. It
// is invalid when the header names none: the proxy itself has connected.
func parseProxy(header []byte) (client netip.AddrPort, err error) {
	if len(header) < proxyFixed {
		return client, errNoProxy
	}
	n, err := proxyLength(header)
	if err != nil {
		return client, err
	}
	rest := header[proxyFixed:]
	if n != len(rest) {
		return client, fmt.Errorf("PROXY header of %d bytes, not of %d", proxyFixed+n, len(header))
	}
	size := 0 // of the addresses
	switch command, kind := header[12]&0xF, header[13]; {
	case command == 0: // LOCAL: whatever addresses there are mean nothing
		return client, nil
	case command != 1:
		return client, fmt.Errorf("command %d of a PROXY header is not known", command)
	case kind == 0: // UNSPEC: the proxy does not know
		return client, nil
	case kind == 0x11 && n >= 12: // TCP over IPv4: two addresses, two ports
		size = 12
		client = netip.AddrPortFrom(netip.AddrFrom4([4]byte(rest)), binary.BigEndian.Uint16(rest[8:]))
	case kind == 0x21 && n >= 36: // TCP over IPv6
		size = 36
		client = netip.AddrPortFrom(netip.AddrFrom16([16]byte(rest)).Unmap(), binary.BigEndian.Uint16(rest[32:]))
	default:
		return client, fmt.Errorf("PROXY header for protocol %#02x with %d bytes: TCP over IPv4 or IPv6 is taken", kind, n)
	}
	if a := client.Addr(); a.IsUnspecified() || a.IsMulticast() || client.Port() == 0 {
		return netip.AddrPort{}, fmt.Errorf("PROXY header for %v, which can be no client", client)
	}
	return client, checkProxyFields(header, proxyFixed+size)
}

// checkProxyFields checks that the fields behind the addresses, from at on, are
// whole, and the checksum if it is one of them.
func checkProxyFields(header []byte, at int) error {
	const checksum = 0x03
	for at < len(header) {
		if len(header)-at < 3 {
			return errors.New("PROXY header ends within a field")
		}
		kind, n := header[at], int(binary.BigEndian.Uint16(header[at+1:]))
		value := header[at+3:]
		if n > len(value) {
			return errors.New("PROXY header ends within a field")
		}
		if kind == checksum {
			if n != 4 {
				return fmt.Errorf("checksum of %d bytes in a PROXY header", n)
			}
			want := binary.BigEndian.Uint32(value)
			blank := bytes.Clone(header)
			clear(blank[at+3 : at+7])
			if crc32.Checksum(blank, crc32.MakeTable(crc32.Castagnoli)) != want {
				return errors.New("PROXY header with a wrong checksum")
			}
		}
		at += 3 + n
	}
	return nil
}

// readProxy reads a PROXY header of version 2 and no byte behind it.
func readProxy(r io.Reader) (client netip.AddrPort, err error) {
	header := make([]byte, proxyFixed, proxyFixed+64)
	if _, err := io.ReadFull(r, header); err != nil {
		return client, fmt.Errorf("read PROXY header: %w", err)
	}
	n, err := proxyLength(header)
	if err != nil {
		return client, err
	}
	header = append(header, make([]byte, n)...)
	if _, err := io.ReadFull(r, header[proxyFixed:]); err != nil {
		return client, fmt.Errorf("read PROXY header: %w", err)
	}
	return parseProxy(header)
}
