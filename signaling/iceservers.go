// SPDX-License-Identifier: Apache-2.0

package signaling

import (
	v1 "github.com/meshgate/meshgate/proto/v1"
	"github.com/meshgate/meshgate/signaling/rtc"
)

// rtcServers are servers that this node was configured with.
func rtcServers(servers []*v1.ICEServer) []rtc.ICEServer {
	out := make([]rtc.ICEServer, 0, len(servers))
	for _, s := range servers {
		out = append(out, rtc.ICEServer{URLs: s.GetUrls(), Username: s.GetUsername(), Credential: s.GetCredential()})
	}
	return out
}

// theirServers are the servers of this mesh among those that another node
// named. A hostile server could feed packets to ICE, and any address at all
// could be made to receive ours, so the others are not asked.
func (s *Service) theirServers(servers []*v1.ICEServer, stun []string) []rtc.ICEServer {
	if len(servers) == 0 && len(stun) > 0 { // a v1 node, which has no credentials to give
		servers = []*v1.ICEServer{{Urls: stun}}
	}
	var out []rtc.ICEServer
	for _, one := range servers {
		var urls []string
		for _, u := range one.GetUrls() {
			if host := rtc.ServerHost(u); host != "" && s.cfg.OurICEHost(host) {
				urls = append(urls, u)
			}
		}
		if len(urls) > 0 {
			out = append(out, rtc.ICEServer{URLs: urls, Username: one.GetUsername(), Credential: one.GetCredential()})
		}
	}
	return out
}

// serverURLs is the list for clients that know no credentials.
func serverURLs(servers []*v1.ICEServer) []string {
	var out []string
	for _, s := range servers {
		out = append(out, s.GetUrls()...)
	}
	return out
}
