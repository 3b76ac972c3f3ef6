/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */

/* How packets look, and which of them the program takes. */

struct ethernet {
	u8 dst[6], src[6];
	u16 type;
} __attribute__((packed));

struct ipv4 {
	u8 version_length, tos;
	u16 length, id, fragment;
	u8 ttl, protocol;
	u16 check;
	u32 src, dst;
} __attribute__((packed));

struct ipv6 {
	u32 version_class_flow;
	u16 length;
	u8 next, hops;
	struct address src, dst;
} __attribute__((packed));

struct udp {
	u16 src, dst, length, check;
} __attribute__((packed));

#define DONT_FRAGMENT 0x4000
#define CHANNEL_HEADER 4

/* packet is what is known of a whole UDP datagram that came in. */
struct packet {
	struct address src, dst;
	u16 src_port, dst_port;
	u16 check;
	u16 whole;  /* IPv4's DF bit: not 0 if nobody may fragment the packet */
	u32 head;   /* bytes before the payload of UDP */
	u32 length; /* of that payload */
};

INLINE void map_ipv4(struct address *a, u32 ip)
{
	a->word[0] = a->word[1] = 0;
	a->word[2] = swap32(0xffff);
	a->word[3] = ip;
}

INLINE int is_mapped(const struct address *a)
{
	return a->word[0] == 0 && a->word[1] == 0 && a->word[2] == swap32(0xffff);
}

/* parse_ipv4 and parse_ipv6 take a packet that is one whole UDP datagram with
 * nothing unusual about it; all others are user space's. They return the header
 * of UDP, or null, and how many bytes IP says that UDP has. */
INLINE struct udp *parse_ipv4(struct packet *p, void *at, void *end, u32 *length)
{
	struct ipv4 *ip = at;
	u64 check = 0;
	int i;

	if ((void *)(ip + 1) > end || ip->version_length != 0x45 || ip->protocol != UDP ||
	    (ip->fragment & swap16(0xbfff)))
		return 0;
#pragma unroll
	for (i = 0; i < 10; i++)
		check += ((u16 *)ip)[i];
	*length = swap16(ip->length);
	if (fold(check) != 0xffff || *length < sizeof(*ip) + sizeof(struct udp))
		return 0;
	*length -= sizeof(*ip);
	map_ipv4(&p->src, ip->src);
	map_ipv4(&p->dst, ip->dst);
	p->whole = ip->fragment;
	p->head = sizeof(struct ethernet) + sizeof(*ip) + sizeof(struct udp);
	return (void *)(ip + 1);
}

INLINE struct udp *parse_ipv6(struct packet *p, void *at, void *end, u32 *length)
{
	struct ipv6 *ip = at;

	if ((void *)(ip + 1) > end || (ip->version_class_flow & 0xf0) != 0x60 || ip->next != UDP)
		return 0;
	p->src = ip->src;
	p->dst = ip->dst;
	if (is_mapped(&p->src) || is_mapped(&p->dst))
		return 0; /* such addresses are not on the wire */
	*length = swap16(ip->length);
	p->whole = 0;
	p->head = sizeof(struct ethernet) + sizeof(*ip) + sizeof(struct udp);
	return (void *)(ip + 1);
}

INLINE int parse(struct xdp_md *ctx, struct packet *p)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct ethernet *eth = data;
	struct udp *udp;
	u32 length = 0;

	if ((void *)(eth + 1) > end || (eth->dst[0] & 1))
		return 0;
	if (eth->type == swap16(ETHERTYPE_IPV4))
		udp = parse_ipv4(p, eth + 1, end, &length);
	else if (eth->type == swap16(ETHERTYPE_IPV6))
		udp = parse_ipv6(p, eth + 1, end, &length);
	else
		return 0;
	if (!udp || (void *)(udp + 1) > end)
		return 0;
	if (swap16(udp->length) != length || length < sizeof(*udp))
		return 0;
	p->length = length - sizeof(*udp);
	if (data + p->head + p->length > end)
		return 0;
	p->src_port = udp->src;
	p->dst_port = udp->dst;
	p->check = udp->check;
	/* Zero is no checksum, which IPv6 does not allow. */
	return p->check || p->head == sizeof(*eth) + sizeof(struct ipv4) + sizeof(*udp);
}
