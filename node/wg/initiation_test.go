// SPDX-License-Identifier: Apache-2.0

package wg

import (
	"encoding/binary"
	"testing"
	"time"

	"github.com/meshgate/meshgate/node/mesh"
	"golang.zx2c4.com/wireguard/device"
)

// testIdentity is the identity of a device, and somebody who calls it.
func testIdentity(tb testing.TB) (*identity, *Initiator) {
	tb.Helper()
	key, err := mesh.GenerateKey()
	if err != nil {
		tb.Fatal(err)
	}
	id := newIdentity(key.WireGuard())
	return id, NewInitiator(tb, key.WireGuard().Public())
}

func TestInitiation_TellsWhoCallsAndWhen(t *testing.T) {
	id, caller := testIdentity(t)
	at := time.Unix(1_800_000_000, 0)
	message := caller.Initiation(t, at)
	if !id.checker.CheckMAC1(message) {
		t.Error("MAC1 is wrong")
	}
	claimed, script, ok := id.caller(message)
	if !ok || claimed != caller.Private.Public() {
		t.Fatalf("caller = %v, %t", claimed, ok)
	}
	written, ok := id.prove(claimed, script, message)
	if !ok || binary.BigEndian.Uint64(written[:]) != 0x400000000000000a+uint64(at.Unix()) {
		t.Errorf("written = %x, %t", written, ok)
	}
}

func TestInitiation_RefusesWhatIsNotProven(t *testing.T) {
	id, caller := testIdentity(t)
	other, stranger := testIdentity(t)
	honest := caller.Initiation(t, time.Now())
	if _, _, ok := other.caller(honest); ok {
		t.Error("an initiation for another device was read")
	}
	stranger.theirs, stranger.Claims = caller.theirs, caller.Claims
	forged := stranger.Initiation(t, time.Now())
	claimed, script, ok := id.caller(forged)
	if !ok || claimed != caller.Claims {
		t.Fatalf("caller = %v, %t, want what it claims", claimed, ok)
	}
	if _, ok := id.prove(claimed, script, forged); ok {
		t.Error("a claim without the key was proven")
	}
	for i := initiationEphemeral; i < initiationMAC1; i++ {
		bad := append([]byte(nil), honest...)
		bad[i] ^= 1
		claimed, script, ok := id.caller(bad)
		if ok {
			_, ok = id.prove(claimed, script, bad)
		}
		if ok {
			t.Fatalf("an initiation with byte %d changed was proven", i)
		}
	}
}

// Nothing that comes in is proven but what a holder of a key wrote, and nothing
// breaks the doorman.
func FuzzInitiation(f *testing.F) {
	id, caller := testIdentity(f)
	honest := caller.Initiation(f, time.Unix(1_800_000_000, 0))
	f.Add(honest)
	f.Add(caller.Garbage())
	f.Add(make([]byte, device.MessageInitiationSize))
	f.Add(honest[:100])
	f.Fuzz(func(t *testing.T, b []byte) {
		claimed, script, ok := id.caller(b)
		if !ok {
			return
		}
		_, ok = id.prove(claimed, script, b)
		same := len(b) == len(honest) && string(b[initiationEphemeral:initiationMAC1]) == string(honest[initiationEphemeral:initiationMAC1])
		// The top bit of a point is not part of it, but of the transcript.
		if ok && !same {
			t.Errorf("proven: %x", b)
		}
	})
}
