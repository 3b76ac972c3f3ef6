#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Fails when `make generate` changes a file. Compares contents, not commits, so
# it works in a tree with changes.
set -euo pipefail

sums() {
	git ls-files -co --exclude-standard proto web/sdk/src/gen docs/config.md turn/xdp/program | sort |
		while read -r file; do [[ ! -f $file ]] || sha256sum "$file"; done
}

before=$(sums)
make generate
if ! changed=$(diff <(echo "$before") <(sums)); then
	echo "generated files were not up to date; commit what make generate has written:" >&2
	awk '/^[<>]/ { print "  " $3 }' <<<"$changed" | sort -u >&2
	exit 1
fi
