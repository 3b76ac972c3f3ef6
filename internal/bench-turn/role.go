// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"time"

	pionturn "github.com/pion/turn/v3"

	"github.com/meshgate/meshgate/turn"
	"github.com/meshgate/meshgate/turn/xdp"
)

const (
	// roleEnv makes this program one of the roles, configEnv configures it.
	roleEnv   = "MESHGATE_BENCH_TURN_ROLE"
	configEnv = "MESHGATE_BENCH_TURN_CONFIG"

	roleLoad     = "load"
	roleMeshgate = meshgate
	rolePion     = pion
)

// started is the first line of a role: of a server, what clients log in with and its
// certificate, if it has one, or what it lacks on this machine.
type started struct {
	Username, Password, Lacks string
	Certificate               []byte // DER
}

// runRole runs until its input ends.
func runRole(role string) error {
	config := []byte(os.Getenv(configEnv))
	if role == roleLoad {
		var c loadConfig
		if err := json.Unmarshal(config, &c); err != nil {
			return err
		}
		return runLoad(c)
	}
	var c serverConfig
	if err := json.Unmarshal(config, &c); err != nil {
		return err
	}
	switch role {
	case roleMeshgate:
		return runMeshgate(c)
	case rolePion:
		return runPion(c)
	}
	return fmt.Errorf("no such role: %s", role)
}

// say prints one line of JSON for the parent.
func say(v any) error { return json.NewEncoder(os.Stdout).Encode(v) }

// runMeshgate is the server of package turn.
func runMeshgate(c serverConfig) error {
	secrets, err := turn.NewSecrets(nil, nil)
	if err != nil {
		return err
	}
	config := turn.Config{
		UDP:           []netip.AddrPort{c.At},
		TCP:           []netip.AddrPort{c.At},
		Relay:         turn.Relay{Public: c.At.Addr(), Bind: c.At.Addr()},
		Secrets:       secrets,
		AllowNetworks: []netip.Prefix{c.Clients},
		Limits: turn.Limits{
			RelaysPerUser: c.Allocations, Relays: c.Allocations, AnswersPerSecond: c.Answers, Lifetime: c.Lifetime,
		},
	}
	if c.Kernel {
		config.XDP = xdp.Native
	}
	var certificate []byte
	if c.Secure {
		var l net.Listener
		if l, certificate, err = listenTLS(netip.AddrPortFrom(c.At.Addr(), turnsPort)); err != nil {
			return err
		}
		config.SecureListeners = []net.Listener{l}
	}
	s, err := turn.New(config)
	if err != nil && c.Kernel {
		return say(started{Lacks: err.Error()})
	}
	if err != nil {
		return err
	}
	login := secrets.Mint("bench", 24*time.Hour)
	err = say(started{Username: login.Username, Password: login.Password, Certificate: certificate})
	if err == nil {
		_, err = io.Copy(io.Discard, os.Stdin)
	}
	return errors.Join(err, s.Close())
}

// runPion is the server of pion/turn/v3, as its examples have it.
func runPion(c serverConfig) error {
	const user, password, realm = "bench", "bench", "bench"
	socket, err := net.ListenPacket("udp4", c.At.String())
	if err != nil {
		return err
	}
	key := pionturn.GenerateAuthKey(user, realm, password)
	s, err := pionturn.NewServer(pionturn.ServerConfig{
		Realm: realm,
		AuthHandler: func(name, _ string, _ net.Addr) ([]byte, bool) {
			return key, name == user
		},
		PacketConnConfigs: []pionturn.PacketConnConfig{{
			PacketConn: socket,
			RelayAddressGenerator: &pionturn.RelayAddressGeneratorStatic{
				RelayAddress: c.At.Addr().AsSlice(), Address: c.At.Addr().String(),
			},
		}},
	})
	if err != nil {
		return errors.Join(err, socket.Close())
	}
	err = say(started{Username: user, Password: password})
	if err == nil {
		_, err = io.Copy(io.Discard, os.Stdin)
	}
	return errors.Join(err, s.Close())
}
