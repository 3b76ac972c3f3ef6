// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"strings"
	"time"

	meshgatev1 "github.com/meshgate/meshgate/proto/meshgate/v1"
)

// pathText says for people how packets get to a node; p may be nil.
func pathText(p *meshgatev1.Path) string {
	switch p.GetKind() {
	case meshgatev1.PathKind_PATH_KIND_DIRECT:
		if p.GetAddress() == "" {
			return "direct"
		}
		return "direct to " + p.GetAddress()
	case meshgatev1.PathKind_PATH_KIND_RELAYED:
		if p.GetVia() == "" && p.GetTransport() == "" {
			return "inside of another connection"
		}
		text := "over TURN"
		if p.GetTransport() != "" {
			text += "/" + p.GetTransport()
		}
		if p.GetVia() != "" {
			text += " of " + p.GetVia()
		}
		return text
	case meshgatev1.PathKind_PATH_KIND_CARRIED:
		return "by way of gateway " + p.GetVia()
	case meshgatev1.PathKind_PATH_KIND_NONE:
		return "no path"
	default:
		return ""
	}
}

// pathStory is pathText with since when that is so, and why it is not direct.
func pathStory(p *meshgatev1.Path, now time.Time) string {
	text := pathText(p)
	if text == "" {
		return p.GetReason()
	}
	if p.GetSince() != nil {
		text += " since " + ago(now.Sub(p.GetSince().AsTime()))
	}
	if p.GetReason() != "" {
		text += ": " + p.GetReason()
	}
	return text
}

// ago is a time that has passed as people say it, to the second.
func ago(d time.Duration) string { return max(d, 0).Round(time.Second).String() }

// milliseconds is a round trip with as many digits as it has sense.
func milliseconds(d time.Duration) string {
	ms := float64(d) / float64(time.Millisecond)
	switch {
	case ms < 10:
		return fmt.Sprintf("%.2f ms", ms)
	case ms < 100:
		return fmt.Sprintf("%.1f ms", ms)
	default:
		return fmt.Sprintf("%.0f ms", ms)
	}
}

// pathRows are the rows of a table about a path.
func pathRows(p *meshgatev1.Path, now time.Time) [][]string {
	text := pathText(p)
	if text == "" {
		return nil
	}
	rows := [][]string{{"path", text}}
	if p.GetRoundTrip() != nil {
		rows = append(rows, []string{"round trip", milliseconds(p.GetRoundTrip().AsDuration())})
	}
	if p.GetSince() != nil {
		rows = append(rows, []string{"since", ago(now.Sub(p.GetSince().AsTime())) + " ago"})
	}
	if p.GetReason() != "" {
		rows = append(rows, []string{"why not direct", strings.TrimSuffix(p.GetReason(), ".")})
	}
	return rows
}
