// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/pflag"
)

// again reads the settings once more: the flags as they were given, the environment,
// and the configuration file as it is now. It
// returns what they say, and the flags.
func (c *upConfig) again() (*upConfig, *pflag.FlagSet, error) {
	f := pflag.NewFlagSet("up", pflag.ContinueOnError)
	n := &upConfig{}
	n.register(f)
	n.dev = c.dev
	for name, value := range c.typed {
		if f.Lookup(name) == nil {
			continue // of every command
		}
		if list, ok := f.Lookup(name).Value.(pflag.SliceValue); ok {
			if err := list.Replace(slices.Clone(value)); err != nil {
				return nil, nil, err
			}
			f.Lookup(name).Changed = true
			continue
		}
		if err := f.Set(name, value[0]); err != nil {
			return nil, nil, err
		}
	}
	return n, f, n.load(f)
}

// typedFlags are the flags that were given on the command line, with their values.
func typedFlags(f *pflag.FlagSet) map[string][]string {
	typed := make(map[string][]string)
	f.Visit(func(f *pflag.Flag) {
		if list, ok := f.Value.(pflag.SliceValue); ok {
			typed[f.Name] = slices.Clone(list.GetSlice())
		} else {
			typed[f.Name] = []string{f.Value.String()}
		}
	})
	return typed
}

// rereadConfig takes over what has changed in the configuration file. What is wrong
// with it is told once, and what was read before goes on.
func (p *gatewayProcess) rereadConfig() {
	if p.turn == nil || p.cfg.configFile == "" {
		return
	}
	raw, err := readTURNFile(p.cfg.configFile)
	gone := err != nil
	if gone == p.configGone && (gone || bytes.Equal(raw, p.configText)) {
		return
	}
	if p.configGone = gone; !gone {
		p.configText = raw
		err = p.applyConfig()
	}
	if err != nil {
		p.log.Warn("the configuration file is not taken over; what it said before goes on", "flag", "--config", "err", err)
	}
}

// applyConfig takes over the settings of TURN, all or none, and tells of those that
// wait for a new start.
func (p *gatewayProcess) applyConfig() error {
	c, flags, err := p.cfg.again()
	if err != nil {
		return err
	}
	changed, waiting := p.compare(flags)
	if len(waiting) > 0 {
		p.log.Warn("settings in the configuration file have changed that hold from the next start on", "flags", strings.Join(waiting, " "))
	}
	if len(changed) == 0 {
		return nil
	}
	open, err := networks("--turn.allow-peers", c.turnAllowPeers)
	if err != nil {
		return err
	}
	if err := p.turn.SetNetworks(open); err != nil {
		return fmt.Errorf("--turn.allow-peers: %w", err)
	}
	if err := p.turn.SetLimits(c.turnLimits); err != nil {
		return errors.Join(fmt.Errorf("limits of TURN: %w", err), p.turn.SetNetworks(p.turnOpen))
	}
	p.turnOpen = open
	p.turnRates.set(c)
	for _, name := range changed {
		p.cfg.settings[name] = flags.Lookup(name).Value.String()
	}
	p.log.Info("settings of TURN were read again", "flags", strings.Join(changed, " "))
	return nil
}

// compare says which settings are not those that hold: changed can be taken over,
// and waiting cannot.
func (p *gatewayProcess) compare(flags *pflag.FlagSet) (changed, waiting []string) {
	flags.VisitAll(func(f *pflag.Flag) {
		switch {
		case f.Value.String() == p.cfg.settings[f.Name]:
		case slices.Contains(turnSettings(), f.Name):
			changed = append(changed, f.Name)
		default:
			waiting = append(waiting, f.Name)
		}
	})
	return changed, waiting
}
