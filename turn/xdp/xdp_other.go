// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package xdp

import (
	"errors"
	"fmt"
	"iter"

	"github.com/meshgate/meshgate/turn/core"
)

// Engine does not exist on this system.
type Engine struct{}

// Open returns nil, and an error if the mode asks for what only Linux has.
func Open(cfg Config) (*Engine, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	if cfg.Mode == Generic || cfg.Mode == Native {
		return nil, fmt.Errorf("XDP mode %s needs Linux; set it to off: %w", cfg.Mode, errors.ErrUnsupported)
	}
	return nil, nil
}

// Changed does nothing.
func (*Engine) Changed(core.Flow, iter.Seq[core.Binding]) {}

// Counters returns nothing.
func (*Engine) Counters(core.Flow) core.Usage { return core.Usage{} }

// Stats returns nothing.
func (*Engine) Stats() Stats { return Stats{} }

// Interfaces returns nothing.
func (*Engine) Interfaces() []Interface { return nil }

// Close does nothing.
func (*Engine) Close() error { return nil }
