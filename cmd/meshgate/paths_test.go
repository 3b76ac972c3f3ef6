// SPDX-License-Identifier: Apache-2.0

package main

import (
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	meshgatev1 "github.com/meshgate/meshgate/proto/meshgate/v1"
)

func TestPathStory(t *testing.T) {
	now := time.Now()
	since := timestamppb.New(now.Add(-90 * time.Second))
	const direct, relayed = meshgatev1.PathKind_PATH_KIND_DIRECT, meshgatev1.PathKind_PATH_KIND_RELAYED
	for want, p := range map[string]*meshgatev1.Path{
		"":       {},
		"direct": {Kind: direct},
		"direct to 203.0.113.7:51820 since 1m30s":          {Kind: direct, Address: "203.0.113.7:51820", Since: since},
		"over TURN/TLS of gw1 since 1m30s: UDP is blocked": {Kind: relayed, Via: "gw1", Transport: "TLS", Since: since, Reason: "UDP is blocked"},
		"over TURN of gw1":                                     {Kind: relayed, Via: "gw1"},
		"over TURN/UDP":                                        {Kind: relayed, Transport: "UDP"},
		"inside of another connection":                         {Kind: relayed},
		"by way of gateway gw1: nothing was sent":              {Kind: meshgatev1.PathKind_PATH_KIND_CARRIED, Via: "gw1", Reason: "nothing was sent"},
		"no path: its first handshake has not come: is it up?": {Kind: meshgatev1.PathKind_PATH_KIND_NONE, Reason: "its first handshake has not come: is it up?"},
		"direct to 203.0.113.7:51820":                          {Kind: direct, Address: "203.0.113.7:51820"},
	} {
		if got := pathStory(p, now); got != want {
			t.Errorf("%v: %q, want %q", p, got, want)
		}
	}
	if got := pathStory(nil, now); got != "" {
		t.Errorf("without a path: %q", got)
	}
}

func TestMilliseconds_HasAsManyDigitsAsItMeans(t *testing.T) {
	for want, d := range map[string]time.Duration{"0.31 ms": 312 * time.Microsecond, "12.3 ms": 12340 * time.Microsecond, "250 ms": 250 * time.Millisecond} {
		if got := milliseconds(d); got != want {
			t.Errorf("%v: %q, want %q", d, got, want)
		}
	}
}
