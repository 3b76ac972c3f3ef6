// SPDX-License-Identifier: Apache-2.0

package gateway

import "github.com/meshgate/meshgate/proto/meshgate/v1/meshgatev1connect"

// tokenRules are the rows of meshgate.v1.Tokens: whoever makes tokens can be
// anybody, and whoever sees whose they are knows whom to ask for one.
func tokenRules() map[string]rule {
	change := rule{access: identified, writes: true, fresh: always, needs: everything, blind: true}
	return map[string]rule{
		meshgatev1connect.TokensCreateTokenProcedure:  change,
		meshgatev1connect.TokensRevokeTokensProcedure: change,
		meshgatev1connect.TokensListTokensProcedure:   {access: identified, fresh: always, needs: everything, blind: true},
	}
}
