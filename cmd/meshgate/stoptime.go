// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"time"
)

const (
	// stopAskEach is how often systemd is asked to wait for the end of the process,
	// and stopAskFor for how long from then: after the last time calls under way end.
	stopAskEach = 10 * time.Second
	stopAskFor  = 40 * time.Second
	// stopKnown is what is left to a process that is told to end as a rule: by the unit
	// that comes with Meshgate. That of systemd without a word is longer.
	stopKnown = 30 * time.Second
	// stopCalls is what calls under way may take of it.
	stopCalls = 10 * time.Second
)

// Variables that systemd sets: of all services, and of those that may talk to it.
const (
	systemdService = "INVOCATION_ID"
	systemdSocket  = "NOTIFY_SOCKET"
)

// askForTime has systemd wait for the end of the process until stop is called, and
// a little longer: it would kill it when TimeoutStopSec is over. socket is where systemd
// listens; without one nothing happens.
func askForTime(ctx context.Context, socket string, each time.Duration, log *slog.Logger) (stop func()) {
	if socket == "" {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	over := make(chan struct{})
	go func() {
		defer close(over)
		for told := false; ; {
			err := tellSystemd(socket, fmt.Sprintf("EXTEND_TIMEOUT_USEC=%d", stopAskFor.Microseconds()))
			if err != nil && !told {
				log.Warn("systemd cannot be asked to wait for relays: it ends the gateway when TimeoutStopSec of its unit is over", "err", err)
				told = true
			}
			if pause(ctx, each) != nil {
				return
			}
		}
	}()
	return func() { cancel(); <-over }
}

// tellSystemd sends a message of sd_notify(3).
func tellSystemd(socket, message string) error {
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: socket, Net: "unixgram"}) // @ is abstract to both
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.Write([]byte(message))
	return err
}

// tellStopTime warns of a wait for relays that systemd will most likely cut short.
func (c *upConfig) tellStopTime(log *slog.Logger) {
	if os.Getenv(systemdService) == "" || os.Getenv(systemdSocket) != "" || c.turnDrainFor+stopCalls <= stopKnown {
		return
	}
	log.Warn("systemd ends the gateway when TimeoutStopSec of its unit is over, with relays that it waits for: "+
		"write NotifyAccess=main into the unit, and it waits as long as the gateway asks",
		"flag", "--turn.drain-for", "dur", c.turnDrainFor)
}
