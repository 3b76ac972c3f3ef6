// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"syscall"
	"time"
)

// fault is one kind of what can go wrong.
type fault struct {
	name string
	// local is true for what happens to the process or the disk of one replica.
	local bool
	// do makes it happen to a victim for about so long, and mends it again.
	do func(ctx context.Context, w *world, victim *replica, length time.Duration, random *rand.Rand) error
}

// faults are all kinds.
func faults() []fault {
	return []fault{
		{"kill -9", true, killed},
		{"power cut", true, powerCut},
		{"pause", true, paused},
		{"disk stall", true, diskStall},
		{"full disk", true, fullDisk},
		{"lost disk", true, lostDisk},
		{"partition, two way", false, partition},
		{"partition, one way", false, oneWay},
		{"packet loss", false, loss},
		{"leader transfer", false, transfer},
	}
}

// kinds are the faults that happen.
func (s *settings) kinds() []fault {
	return slices.DeleteFunc(faults(), func(f fault) bool { return len(s.Only) > 0 && !slices.Contains(s.Only, f.name) })
}

// names are those of faults.
func names(list []fault) (names []string) {
	for _, f := range list {
		names = append(names, f.name)
	}
	return names
}

// killed ends the process and starts it again.
func killed(ctx context.Context, _ *world, victim *replica, length time.Duration, random *rand.Rand) error {
	victim.kill()
	if random.IntN(2) == 0 { // else it is back before anybody missed it
		pause(ctx, length)
	}
	return victim.start()
}

// powerCut also loses what was not synced to the disk.
func powerCut(ctx context.Context, _ *world, victim *replica, length time.Duration, _ *rand.Rand) error {
	err := victim.disk.cut()
	victim.kill()
	if err != nil {
		return err
	}
	pause(ctx, length/2)
	if err := victim.disk.powerOn(context.WithoutCancel(ctx)); err != nil {
		return err
	}
	return victim.start()
}

// paused stops the process, which does not notice.
func paused(ctx context.Context, _ *world, victim *replica, length time.Duration, _ *rand.Rand) error {
	victim.signal(syscall.SIGSTOP)
	pause(ctx, length)
	victim.signal(syscall.SIGCONT)
	return nil
}

// diskStall lets writes hang; now and then for longer than a replica bears.
func diskStall(ctx context.Context, w *world, victim *replica, length time.Duration, random *rand.Rand) error {
	if w.cfg.LongStalls && random.IntN(4) == 0 {
		length = 6*time.Second + length/2
	}
	return victim.disk.stall(ctx, length)
}

// fullDisk leaves less room than is kept in reserve, or none at all.
func fullDisk(ctx context.Context, _ *world, victim *replica, length time.Duration, random *rand.Rand) error {
	leave := uint64(8 << 20)
	if random.IntN(2) == 0 {
		leave = 0
	}
	if err := victim.disk.fill(leave); err != nil {
		return err
	}
	pause(ctx, length)
	return victim.disk.empty()
}

// lostDisk has the victim come back with an empty disk and be added anew. A
// second disk must not be lost meanwhile: nobody could have what was on both.
func lostDisk(ctx context.Context, w *world, victim *replica, length time.Duration, _ *rand.Rand) error {
	w.losing.Lock()
	defer w.losing.Unlock()
	victim.kill()
	if err := victim.disk.renew(context.WithoutCancel(ctx)); err != nil {
		return err
	}
	pause(ctx, length/2)
	victim.config.Join = true
	if err := victim.start(); err != nil {
		return err
	}
	return w.add(ctx, victim)
}

// add makes a replica that belongs to no cluster a voter, as soon as the others
// can do it.
func (w *world) add(ctx context.Context, r *replica) error {
	err := errors.New("not tried")
	until := time.Now().Add(comeBack)
	for n := 0; err != nil && time.Now().Before(until) && ctx.Err() == nil; n++ {
		if at := w.replicas[n%len(w.replicas)]; at != r {
			_, err = at.ask(request{Verb: verbAdd, Key: r.id, Value: r.config.Address, Within: 5 * time.Second})
			pause(ctx, retryPause)
		}
	}
	if err != nil {
		return fmt.Errorf("add %s: %w\n%s", r.id, errors.Join(err, ctx.Err()), r.tail(lastLines))
	}
	return nil
}

// partition cuts the victim off from one or both of the others.
func partition(ctx context.Context, w *world, victim *replica, length time.Duration, random *rand.Rand) error {
	others := w.others(victim)
	if random.IntN(3) == 0 {
		others = others[:1]
	}
	return w.disturbed(ctx, length,
		&netFault{[]string{victim.id}, others, 100}, &netFault{others, []string{victim.id}, 100})
}

// oneWay loses what the victim sends, or what it is sent.
func oneWay(ctx context.Context, w *world, victim *replica, length time.Duration, random *rand.Rand) error {
	f := &netFault{[]string{victim.id}, w.others(victim), 100}
	if random.IntN(2) == 0 {
		f.from, f.to = f.to, f.from
	}
	return w.disturbed(ctx, length, f)
}

// loss loses some packets between the victim and the others, or all of them.
func loss(ctx context.Context, w *world, victim *replica, length time.Duration, random *rand.Rand) error {
	percent := 5 + random.IntN(40)
	if random.IntN(2) == 0 {
		all := append(w.others(victim), victim.id)
		return w.disturbed(ctx, length, &netFault{all, all, percent})
	}
	return w.disturbed(ctx, length, &netFault{[]string{victim.id}, w.others(victim), percent})
}

// transfer makes another replica lead, or tries to.
func transfer(_ context.Context, w *world, victim *replica, _ time.Duration, random *rand.Rand) error {
	at := w.replicas[random.IntN(len(w.replicas))]
	_, _ = at.ask(request{Verb: verbTransfer, Key: victim.id, Within: 2 * time.Second}) // as far as that is possible now
	return nil
}

// disturbed keeps faults of the network up for a time.
func (w *world) disturbed(ctx context.Context, length time.Duration, faults ...*netFault) (err error) {
	for _, f := range faults {
		if err := w.network.begin(ctx, f); err != nil {
			return err
		}
		defer func() {
			if e := w.network.end(context.WithoutCancel(ctx), f); err == nil {
				err = e
			}
		}()
	}
	pause(ctx, length)
	return nil
}

// disturb makes faults happen until enough of them and of operations did, and
// says how many there were of each kind.
func (w *world) disturb(ctx context.Context) (map[string]int, error) {
	random := rand.New(rand.NewPCG(w.cfg.Seed, 0))
	counts := map[string]int{}
	var bag []fault // each kind as often as any other, in no order
	draw := func() fault {
		if len(bag) == 0 {
			bag = w.cfg.kinds()
			random.Shuffle(len(bag), func(i, j int) { bag[i], bag[j] = bag[j], bag[i] })
		}
		next := bag[0]
		bag = bag[1:]
		return next
	}
	sum := 0
	for sum < w.cfg.Faults || w.history.recorded() < w.cfg.Operations {
		if ctx.Err() != nil {
			return counts, fmt.Errorf("after %d faults and %d operations: %w", sum, w.history.recorded(), ctx.Err())
		}
		n := 1
		if random.IntN(3) == 0 {
			n = 2 // at the same time
		}
		var wg sync.WaitGroup
		errs := make(chan error, n)
		for range n {
			f, seed := draw(), random.Uint64()
			counts[f.name]++
			sum++
			wg.Go(func() { errs <- w.one(ctx, f, rand.New(rand.NewPCG(seed, 0))) })
		}
		wg.Wait()
		for range n {
			if err := <-errs; err != nil {
				return counts, err
			}
		}
		pause(ctx, span(random, w.cfg.Calm))
	}
	return counts, nil
}

// one makes one fault happen.
func (w *world) one(ctx context.Context, f fault, random *rand.Rand) error {
	victim := w.replicas[random.IntN(len(w.replicas))]
	if leader := w.leader(); leader != nil && random.IntN(2) == 0 {
		victim = leader
	}
	if f.local {
		for !victim.inUse.TryLock() { // something else happens to it
			victim = w.replicas[random.IntN(len(w.replicas))]
		}
		defer victim.inUse.Unlock()
	}
	length := span(random, w.cfg.Length)
	w.logf("%s of %s for about %s", f.name, victim.id, length.Round(10*time.Millisecond))
	if err := f.do(ctx, w, victim, length, random); err != nil {
		return fmt.Errorf("%s of %s: %w", f.name, victim.id, err)
	}
	return nil
}

// span is a random time up to most, seldom much less than a tenth of it.
func span(random *rand.Rand, most time.Duration) time.Duration {
	return most/10 + time.Duration(random.Int64N(int64(most)))*9/10
}

// leader is the replica that most others follow; nil when nobody knows one.
func (w *world) leader() *replica {
	for _, asked := range w.replicas {
		answer, err := asked.ask(request{Verb: verbLeader, Within: 200 * time.Millisecond})
		if err != nil {
			continue
		}
		i := slices.IndexFunc(w.replicas, func(r *replica) bool { return r.id == answer.Value })
		if i >= 0 {
			return w.replicas[i]
		}
	}
	return nil
}

// others are the ids of all replicas but one.
func (w *world) others(but *replica) []string {
	var ids []string
	for _, r := range w.replicas {
		if r != but {
			ids = append(ids, r.id)
		}
	}
	return ids
}
