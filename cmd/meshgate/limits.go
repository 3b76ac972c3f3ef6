// SPDX-License-Identifier: Apache-2.0

package main

import (
	"log/slog"

	"github.com/meshgate/meshgate/gateway"
)

// enoughFiles is how many open files a gateway needs to serve as many connections
// as it would.
const enoughFiles = 65536

// shareOf is what the public port gets of files, 0 for any number, and says when
// that is little.
func shareOf(files uint64, log *slog.Logger) gateway.Share {
	share := gateway.ShareOf(files)
	if files != 0 && files < enoughFiles {
		log.Info("few files may be open: the public port takes fewer connections, so that the rest goes on; raise the limit (LimitNOFILE, ulimit -n)",
			"files", files, "enough", enoughFiles, "connections", share.Connections)
	}
	return share
}

const (
	// intakeShare is the part of the memory limit that messages may take while
	// they are decoded, and leastIntake what they may in any case, in bytes.
	intakeShare = 8
	leastIntake = 16 << 20
	// mostIntake is enough: decoding more at a time is no faster.
	mostIntake = 64 << 20
)

// intakeOf is what messages that are being decoded may take of a memory limit in
// bytes, such as that of GOMEMLIMIT.
func intakeOf(limit int64) int64 { return min(max(limit/intakeShare, leastIntake), mostIntake) }
