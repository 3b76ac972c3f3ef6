// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package client

import "net"

// batchConn is for platforms whose sockets take several datagrams at once.
type batchConn struct{}

func newBatchConn(net.Conn) *batchConn { return nil }

func (*batchConn) read([]*packet) (n, oversize int, err error) { return 0, 0, net.ErrClosed }

func (*batchConn) write(*burst) error { return net.ErrClosed }

type burstSystem struct{}
