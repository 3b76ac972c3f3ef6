#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Compiles the XDP program of turn/xdp into the object that the binary embeds. The
# object is committed: only who changes the program needs the compiler. It is
# clang 14, that of Debian 12, and no other one, so that one source gives one
# object; nothing of the machine goes into it.
set -euo pipefail
cd "$(dirname "$0")/../turn/xdp/program"

for tool in clang-14 llvm-strip-14; do
	if ! command -v "$tool" >/dev/null; then
		echo "turn/xdp/program/turn.o stays as it is: $tool is missing (apt-get install clang-14 llvm-14)" >&2
		exit 0
	fi
done

sources=$(LC_ALL=C; cat *.h *.c | sha256sum | cut -d ' ' -f 1)
trap 'rm -f turn.o.new' EXIT
clang-14 -target bpfel -mcpu=v3 -O2 -g -Wall -Werror -nostdinc -fno-ident \
	-fdebug-compilation-dir=. -DSOURCES="\"sha256:$sources\"" -c turn.c -o turn.o.new
# BTF, which the kernel wants, stays; DWARF, which it does not, goes.
llvm-strip-14 --strip-debug turn.o.new
if ! cmp -s turn.o.new turn.o; then
	mv turn.o.new turn.o
fi
