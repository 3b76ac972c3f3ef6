// SPDX-License-Identifier: Apache-2.0

package stock

import (
	"strings"
	"testing"
)

const goodConfig = `# phone
[Interface]
PrivateKey = OJTupJxYCu+BaTV2K+BJVZ1tFEDe3hLmoSXxhB//jm8=
Address = 172.16.0.2/32, fd9f:86d0:8188:ff73:2ac4:40f5:1a35:0/128
DNS = 172.16.0.1, webmesh.internal

[Peer]
PublicKey = RwHQhIhFH1RaQJ+1iuPlhYHKQKw/fxFGmM1x3qxzygE=
Endpoint = 127.0.0.1:51820
AllowedIPs = 172.16.0.0/12, fd9f:86d0::/32
PersistentKeepalive = 25
`

func TestParse_TurnsWGQuickIntoUAPI(t *testing.T) {
	c, err := parse(goodConfig)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"private_key=3894eea49c580aef816935762be049559d6d1440dede12e6a125f1841fff8e6f",
		"public_key=4701d08488451f545a409fb58ae3e58581ca40ac3f7f114698cd71deac73ca01",
		"endpoint=127.0.0.1:51820",
		"allowed_ip=172.16.0.0/12",
		"allowed_ip=fd9f:86d0::/32",
		"persistent_keepalive_interval=25",
	}
	if got := strings.TrimSpace(c.uapi.String()); got != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", got, strings.Join(want, "\n"))
	}
	if len(c.addrs) != 2 || c.addrs[0].String() != "172.16.0.2" || c.mtu != defaultMTU {
		t.Errorf("addresses %v, mtu %d", c.addrs, c.mtu)
	}
}

func TestParse_NamesTheBadLine(t *testing.T) {
	for _, tc := range []struct{ name, config, want string }{
		{"no equals sign", "[Interface]\nPrivateKey", "line 2"},
		{"unknown key", "[Interface]\nPostUp = reboot", "unknown key PostUp"},
		{"short key", "[Interface]\nPrivateKey = AAAA", "private_key is not a WireGuard key"},
		{"bad address", "[Interface]\nAddress = 172.16.0.2", "line 2"},
		{"bad endpoint", "[Peer]\nEndpoint = 127.0.0.1", "line 2"},
		{"no address", "[Interface]\nMTU = 1280", "no Address"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := parse(tc.config)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want an error with %q", err, tc.want)
			}
		})
	}
}
