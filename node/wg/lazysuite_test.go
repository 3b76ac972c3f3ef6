// SPDX-License-Identifier: Apache-2.0

package wg_test

import (
	"testing"

	"github.com/meshgate/meshgate/node/wg/wgtest"
)

// Whatever a device does for its peers, it does for idle ones, too.
func TestLazy_WholeSuite(t *testing.T) {
	wgtest.Lazy(t)
	for _, story := range []struct {
		name string
		test func(*testing.T)
	}{
		{"accept decides", TestDevice_AcceptDecidesAboutItsOwnAddresses},
		{"sent is told", TestDevice_SentIsToldOfOwnPackets},
		{"attach carries", TestAttach_CarriesHandshakeAndStream},
		{"attach falls back", TestAttach_FallsBackToTheConfiguredEndpoint},
		{"attach to unknown", TestAttachPeer_UnknownPeer},
		{"attach after close", TestAttach_AfterCloseClosesTheConnection},
		{"close closes attached", TestClose_ClosesAttachedConnections},
		{"attached garbage", TestAttach_GarbageHasNoEffect},
		{"attached leaves", TestAttach_HubServesAttachedLeaves},
		{"path moves", TestPath_StreamSurvivesMoves},
		{"path loses nothing", TestPath_MovesLoseNothing},
		{"path outlives set", TestPath_OutlivesSet},
		{"path outlives the port", TestPath_OutlivesAChangeOfThePort},
		{"path leads back", TestPath_LeadsBackAPeerThatRoamed},
		{"path begins and ends", TestPath_BeginsAndEndsAtTheConfiguredEndpoint},
		{"path of a removed peer", TestPath_OfARemovedPeer},
		{"path before attached", TestPath_GoesBeforeAttachedConnections},
		{"sockets and floods", TestAddSocket_GarbageAndFloodsHurtNobody},
		{"handshake", TestHandshake_MakesANewSession},
		{"hub forwards", TestHub_ForwardsWhatIsAllowed},
		{"hub asks", TestHub_AsksForEachDirection},
		{"hub changes its mind", TestHub_AllowChangesAtOnce},
		{"stock peer", TestInterop_StockWireGuardPeer},
		{"names stand for", TestSet_RefusesWhatANameStandsFor},
		{"set keeps a stream", TestSet_KeepsARunningStream},
		{"set keeps an endpoint", TestSet_KeepsALearnedEndpoint},
		{"set follows", TestSet_FollowsTheConfiguration},
		{"set moves the port", TestSet_MovesThePort},
		{"set comes up", TestSet_ComesUpWhenThePortIsFree},
		{"set changes the key", TestSet_ChangesTheKey},
		{"set removes", TestSet_RemovedPeerLosesAccess},
		{"set refuses", TestSet_Refuses},
		{"set of addresses", TestSet_AddressesChange},
		{"set resolves", TestSet_ResolvesNames},
		{"set ends", TestSet_EndsWithItsContext},
		{"tcp", TestTCP_BothFamiliesBothWays},
		{"tcp of 100 MiB", TestTCP_100MiB},
		{"tcp deadlines", TestTCP_DeadlinesAreThoseOfTheHost},
		{"tcp to ourselves", TestTCP_ToOurselves},
		{"udp", TestUDP_BothFamilies},
		{"refused port", TestDial_RefusedPort},
		{"veils are shown", TestVeil_StatsShowWherePacketsGo},
		{"veils lose nothing", TestVeil_NothingIsLostBetweenTwoWays},
		{"no route", TestDial_WithoutRouteFailsAtOnce},
		{"sockets are closed", TestSockets_SayThatTheyAreClosed},
		{"close ends waits", TestClose_EndsEverythingThatWaits},
		{"dial ends", TestDial_ContextEnds},
	} {
		t.Run(story.name, story.test)
	}
}
