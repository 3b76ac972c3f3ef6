// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import "fmt"

// cell is one kind of traffic that is measured.
type cell struct {
	// Down is from peers to clients, else it is from clients to peers.
	Down bool `json:"down"`
	// Size is that of the payload, in bytes.
	Size int `json:"size"`
	// Allocations take turns, each with a burst of datagrams at once.
	Allocations int `json:"allocations"`
	Burst       int `json:"burst"`
}

// String names the cell.
func (c cell) String() string {
	direction := "up"
	if c.Down {
		direction = "down"
	}
	return fmt.Sprintf("%s, %d B, %d allocations, bursts of %d", direction, c.Size, c.Allocations, c.Burst)
}

// small and large are the sizes of payloads, many is the largest number of
// allocations that relay at a time, and bursty that of datagrams at once.
const (
	small, large = 100, 1200
	many         = 1000
	bursty       = 8
)

// relayCells are those of the user-space servers.
func relayCells() (list []cell) {
	for _, burst := range []int{bursty, 1} {
		for _, size := range []int{small, large} {
			for _, allocations := range []int{1, 100, many} {
				for _, down := range []bool{false, true} {
					list = append(list, cell{Down: down, Size: size, Allocations: allocations, Burst: burst})
				}
			}
		}
	}
	return list
}

// kernelCells are those in which the kernel path is held against coturn, by
// whom they are measured anyway.
func kernelCells() (list []cell) {
	for _, c := range relayCells() {
		if c.Burst == bursty && c.Allocations == 100 {
			list = append(list, c)
		}
	}
	return list
}

// lightCells are those of light load, at lightRate.
func lightCells() []cell {
	up := cell{Size: 200, Allocations: many, Burst: 1}
	down := up
	down.Down = true
	return []cell{up, down}
}

// lightRate is that of light load, in packets per second.
const lightRate = 20_000

// overloadCell is what servers are flooded with by clients that may. Bursts are so
// long that the load can send three times what a server can relay.
func overloadCell() cell { return cell{Size: small, Allocations: 100, Burst: 32} }

// packets is how many packets of a cell are on their way at a time, so that a
// server is busy and no queue of a socket overflows.
func (c cell) packets() int {
	if c.Size > small {
		return 128
	}
	return 256
}
