/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */

/* Checksums of the Internet (RFC 1071), of 16-bit words as they are in memory. */

/* More than that the program does not add up. */
#define MAX_SUMMED 4096

INLINE u16 fold(u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return sum;
}

INLINE u64 sum_address(const struct address *a)
{
	return (u64)a->word[0] + a->word[1] + a->word[2] + a->word[3];
}

/* pseudo is the sum of the pseudo header of UDP. The prefix of a mapped address adds
 * nothing to it: 0xffff is zero to such sums. */
INLINE u64 pseudo(const struct address *src, const struct address *dst, u32 length)
{
	return sum_address(src) + sum_address(dst) + swap16(length) + swap16(UDP);
}

/* sum adds length bytes of a packet from offset on as 16-bit words. It is
 * negative if they are not there, or more than the program cares to add. */
__attribute__((noinline)) int sum(struct xdp_md *ctx, u32 offset, u32 length)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	u32 acc = 0;
	u64 tail;
	u8 *at;
	int i;

	if (offset > 128 || length > MAX_SUMMED)
		return -1;
	at = data + offset;
	for (i = 0; i < MAX_SUMMED / 512; i++) {
		if ((i + 1) * 512 > length)
			break;
		if ((void *)(at + i * 512 + 512) > end)
			return -1;
		acc = bpf_csum_diff(0, 0, at + i * 512, 512, acc);
	}
	/* Offsets are masked once more so that the verifier forgets how it got here. */
	at = data + offset + (length & 0x1e00);
	for (i = 0; i < 8; i++) {
		if ((i + 1) * 64 > (length & 511))
			break;
		if ((void *)(at + i * 64 + 64) > end)
			return -1;
		acc = bpf_csum_diff(0, 0, at + i * 64, 64, acc);
	}
	at = data + offset + (length & 0x1fc0);
	tail = acc;
	for (i = 0; i < 16; i++) {
		if ((i + 1) * 4 > (length & 63))
			break;
		if ((void *)(at + i * 4 + 4) > end)
			return -1;
		tail += *(u32 *)(at + i * 4);
	}
	at = data + offset + (length & 0x1ffc);
	if (length & 2) {
		if ((void *)(at + 2) > end)
			return -1;
		tail += *(u16 *)at;
		at += 2;
	}
	if (length & 1) {
		if ((void *)(at + 1) > end)
			return -1;
		tail += *at;
	}
	return fold(tail);
}
