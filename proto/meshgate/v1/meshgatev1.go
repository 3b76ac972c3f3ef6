// SPDX-License-Identifier: Apache-2.0

// Package meshgatev1 holds the services that Meshgate adds beside the v1 API.
package meshgatev1
