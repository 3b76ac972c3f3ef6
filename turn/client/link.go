// SPDX-License-Identifier: Apache-2.0

package client

// link moves packets between an allocation and its server. send, control, lost
// and close may be called at any time, by several goroutines; receive and run
// each have one goroutine, and return after close.
type link interface {
	// send sends the packets of b. An error means that none of them left.
	send(b *burst) error
	// control sends a message of the protocol. It fails silently: the core
	// repeats what is not answered, and run or receive see a link that is broken.
	control(m message)
	// receive hands what comes from the server to a until the link is closed or
	// broken, which it tells a.
	receive(a *Allocation)
	// run does what else the link has to do; an error ends the allocation.
	run() error
	// lost is how many packets found no room.
	lost() uint64
	close()
}
