#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Installs the programs that the tests run, by Debian package, if they are not
# there yet. Needs root only when something is missing.
set -euo pipefail

# program and the package that has it
needs="
certutil libnss3-tools
chromium chromium
curl curl
dig dnsutils
gcc gcc
git git
ip iproute2
mkfs.ext4 e2fsprogs
mount mount
nft nftables
nsenter util-linux
openssl openssl
turnutils_uclient coturn
wg wireguard-tools
"

# Debian keeps some of them where only root looks.
PATH=$PATH:/usr/sbin:/sbin

missing=()
while read -r program package; do
	if [[ -n $program ]] && ! command -v "$program" >/dev/null; then
		missing+=("$package")
	fi
done <<<"$needs"
# The race detector needs the C library's headers, which come without a program.
[[ -e /usr/include/stdlib.h ]] || missing+=(libc6-dev)

if ((${#missing[@]} == 0)); then
	exit 0
fi
if ! command -v apt-get >/dev/null || ((EUID != 0)); then
	echo "tests need these Debian packages or their like: ${missing[*]}" >&2
	echo "run as root on Debian, or install them and try again" >&2
	exit 1
fi

export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null

# Tests want coturn's tools; its server would take the TURN port.
if [[ " ${missing[*]} " == *" coturn "* ]] && [[ -d /run/systemd/system ]]; then
	systemctl disable --now --quiet coturn
fi
