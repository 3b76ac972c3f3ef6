// SPDX-License-Identifier: Apache-2.0

// Package v1 is the wire contract between the nodes of a mesh, their clients
// and their plugins: the public v1 API, and the extensions of Meshgate to it.
//
// Names and numbers never change; numbers_test.go holds them to checked-in
// tables. Extensions are fields numbered 100 and above and the messages of
// extensions.proto, all of which a v1 client ignores.
package v1
