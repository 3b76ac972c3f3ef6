// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

func raftConfig(cfg Config, logger hclog.Logger) *raft.Config {
	c := raft.DefaultConfig()
	c.LocalID = raft.ServerID(cfg.ID)
	c.Logger = logger
	c.HeartbeatTimeout = cfg.ElectionTimeout
	c.ElectionTimeout = cfg.ElectionTimeout
	c.LeaderLeaseTimeout = cfg.ElectionTimeout
	c.CommitTimeout = commitTimeout
	c.TrailingLogs = cfg.TrailingLogs
	c.SnapshotThreshold = cfg.SnapshotThreshold
	c.SnapshotInterval = cfg.SnapshotInterval
	c.NoLegacyTelemetry = true
	return c
}

// start starts raft on the disk. A new disk becomes that of a cluster with
// this voter only, unless it is to join one.
func (s *Store) start(config Config) (err error) {
	logger := newRaftLogger(s.logger)
	cfg := raftConfig(config, logger)
	used, err := s.disk.used()
	if err != nil {
		return err
	}
	if s.identity, err = openIdentity(s.disk, s.id, used || !config.Join); err != nil {
		return err
	}
	s.streams = newStreams(s.id, config.Network, s.logger, s.metrics)
	s.streams.hello, s.streams.judge, s.streams.serve = s.hello, s.judge, s.serveCalls
	s.calls = newCaller(s.streams)
	s.transport = newTransport(s.streams, s.address, logger)
	logs := s.disk.cache
	if guard := s.disk.guard; guard != nil {
		guard.early, s.transport.await = s.ahead, guard.await
		logs = &leadersLog{logs, guard, s.leads}
	}
	defer func() {
		if err != nil {
			s.streams.network = nil // it stays with the caller of Open
			s.transport.stop()
			err = errors.Join(err, s.streams.close(), s.transport.Close())
		}
	}()
	if s.identity.founded() {
		if err := s.disk.bootstrap(cfg, s.transport, raft.ServerAddress(s.address)); err != nil {
			return err
		}
	}
	f := &fsm{state: s.state, failure: s.failure, members: s.members, applied: s.announce}
	if s.raft, err = raft.NewRaft(cfg, f, logs, s.disk.stable, s.disk.snapshots, s.transport); err != nil {
		return err
	}
	if err := s.Err(); err != nil { // a snapshot of the state was refused
		return errors.Join(err, s.raft.Shutdown().Error())
	}
	close(s.started)
	s.streams.run()
	var wg sync.WaitGroup
	for _, loop := range []func(){s.run, s.upkeep, s.guard, s.noteCommitted} {
		wg.Go(loop)
	}
	go func() {
		wg.Wait()
		close(s.stopped)
	}()
	return nil
}

// guard cuts a store that failed off from the others: a leader whose disk
// hangs would go on sending heartbeats.
func (s *Store) guard() {
	select {
	case <-s.stop:
	case <-s.failure.failed:
		s.transport.stop()
		if err := s.streams.close(); err != nil {
			s.logger.Debug("close the network", "err", err)
		}
	}
}

// Close stops the store and frees its directory. A leader hands its role over
// first. Proposals on their way are finished, unless the disk does not answer.
// It may be called again.
func (s *Store) Close() error {
	s.closeOnce.Do(func() {
		s.handOver()
		s.mu.Lock()
		close(s.closing)
		s.mu.Unlock()
		finished := make(chan error, 1)
		go func() { finished <- s.shutDown() }()
		timer := time.NewTimer(closeTimeout)
		defer timer.Stop()
		select {
		case s.closeErr = <-finished:
			s.state.Close()
			close(s.closed)
		case <-timer.C: // shutDown ends when the disk answers, or never
			s.closeErr = fmt.Errorf("close store: %w: a write did not finish", ErrDisk)
			s.state.Close()
			close(s.closed)
			s.transport.stop()
			if err := s.streams.close(); err != nil {
				s.logger.Debug("close the network", "err", err)
			}
		}
	})
	return s.closeErr
}

// shutDown ends everything in order.
func (s *Store) shutDown() error {
	s.proposals.Wait()
	close(s.stop)
	<-s.stopped
	s.transport.stop()
	err := s.streams.close()
	s.calls.close()
	return errors.Join(err, s.raft.Shutdown().Error(), s.disk.close())
}

// handOver gives the leadership away, so that the others need not miss this
// replica first. It is worth one election timeout, no more.
func (s *Store) handOver() {
	if !s.role.Load().ready || s.Err() != nil || len(votersOf(s.servers())) < 2 {
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := s.raft.LeadershipTransfer().Error(); err != nil {
			s.logger.Debug("hand over the leadership", "err", err)
		}
	}()
	timer := time.NewTimer(s.election)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
	}
}

// used says whether raft has written anything but a term.
func (d *disk) used() (bool, error) {
	last, err := d.logs.LastIndex()
	if err != nil || last > 0 {
		return last > 0, err
	}
	snapshots, err := d.snapshots.List()
	return len(snapshots) > 0, err
}

// standForElection makes a lone voter the leader: it has nobody to wait for.
func (s *Store) standForElection() error {
	var resp raft.TimeoutNowResponse
	return s.transport.TimeoutNow(raft.ServerID(s.id), raft.ServerAddress(s.address), &raft.TimeoutNowRequest{
		RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(s.id), Addr: []byte(s.address)},
	}, &resp)
}
