/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */

/* Serves TURN channels over UDP where packets come in, before the kernel's own
 * stack sees them (package xdp says who fills the maps). A packet that belongs to
 * a binding leaves at once, with or without the header of ChannelData; each
 * other one, and each that would need thought, goes on to user space untouched.
 */

#include "kernel.h"
#include "maps.h"
#include "sums.h"
#include "packet.h"

/* A packet in so many nanoseconds goes through user space all the same, so that
 * the kernel knows that the next hop is in use and whether it still answers. */
#define TOUCH (20 * 1000000000ULL)

/* For so many nanoseconds a next hop is not looked up again. */
#define FRESH (250 * 1000000ULL)

#define TTL 64

/* job is what becomes of a packet. */
struct job {
	const struct way *way;
	u32 skip; /* bytes of the payload of UDP that are not relayed: the header, */
	u32 data; /* then so many that are, */
	u32 pad;  /* then so many that are not */
	u32 add;  /* bytes of a header that are put before the data */
	u32 size; /* of the IP packet that leaves */
	u16 check;
};

/* end_with counts a packet with so many bytes of data. */
INLINE int end_with(enum outcome why, u32 bytes, int action)
{
	u32 key = why;
	struct count *count = bpf_map_lookup_elem(&outcomes, &key);

	if (count) {
		count->packets += 1;
		count->bytes += bytes;
	}
	return action;
}

/* find_client finds the binding of ChannelData. Its length may be up to three
 * bytes less than the datagram's: padding. */
INLINE int find_client(struct xdp_md *ctx, const struct packet *p, struct job *job)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	u16 *header = data + p->head;
	struct from_client key;
	u32 size;

	if (p->length < CHANNEL_HEADER || (void *)(header + 2) > end || (*(u8 *)header & 0xf0) != 0x40)
		return 0;
	key.client = p->src;
	key.server = p->dst;
	key.client_port = p->src_port;
	key.server_port = p->dst_port;
	key.channel = header[0];
	key.zero = 0;
	job->way = bpf_map_lookup_elem(&from_clients, &key);
	if (!job->way)
		return 0;
	size = swap16(header[1]) + CHANNEL_HEADER;
	job->skip = CHANNEL_HEADER;
	job->data = size - CHANNEL_HEADER;
	job->pad = p->length - size; /* very much, if size is more than there is */
	job->add = 0;
	return 1;
}

INLINE int find_peer(const struct packet *p, struct job *job)
{
	struct from_peer key;

	key.peer = p->src;
	key.relay = p->dst;
	key.peer_port = p->src_port;
	key.relay_port = p->dst_port;
	job->way = bpf_map_lookup_elem(&from_peers, &key);
	job->skip = 0;
	job->data = p->length;
	job->pad = 0;
	job->add = CHANNEL_HEADER;
	return job->way != 0;
}

/* checksum works out the checksum of UDP for the packet that leaves. It is taken
 * on from the one that came, so that it still says what the sender meant: what
 * got broken on the way stays so. On links between virtual interfaces there may
 * be only a part of it, the sum of the pseudo header.
 *
 * What the generic mode sees may be several datagrams that were put together
 * (GRO), or have not been taken apart yet (GSO). None of these has a checksum of
 * the whole; and the kernel would complete a part of one at the wrong place. So it
 * serves only datagrams whose checksum is there and right, or that have none,
 * which are never put together.
 *
 * It returns 0 if user space must see the packet. */
INLINE int checksum(struct xdp_md *ctx, const struct packet *p, struct job *job, int generic)
{
	const struct way *way = job->way;
	u32 came = sizeof(struct udp) + p->length;
	u32 leaves = sizeof(struct udp) + job->add + job->data;
	u64 old = pseudo(&p->src, &p->dst, came);
	u64 new = pseudo(&way->src, &way->dst, leaves);
	void *data, *end;
	u16 *header;
	u8 *pad;
	int partial = p->check && fold(old) == p->check;
	int s, i;

	old += (u64)p->src_port + p->dst_port + swap16(came);
	new += (u64)way->src_port + way->dst_port + swap16(leaves);
	if (job->add)
		new += (u64)way->channel + swap16(job->data);
	if (generic && p->check) {
		if (partial)
			return 0;
		s = sum(ctx, p->head, p->length);
		if (s < 0 || fold(old + p->check + s) != 0xffff)
			return 0;
	}
	if (!p->check || partial) {
		job->check = 0;
		if (!way->ipv6)
			return 1;
		s = sum(ctx, p->head + job->skip, job->data);
		if (s < 0)
			return 0;
		job->check = ~fold(new + s);
	} else {
		data = (void *)(long)ctx->data;
		end = (void *)(long)ctx->data_end;
		if (job->skip) {
			header = data + p->head;
			if ((void *)(header + 2) > end)
				return 0;
			old += (u64)header[0] + header[1];
			if (job->pad && job->data > MAX_SUMMED)
				return 0;
			pad = data + p->head + CHANNEL_HEADER + (job->data & (2 * MAX_SUMMED - 1));
			for (i = 0; i < job->pad && i < 3; i++) {
				opaque(pad);
				if ((void *)(pad + 1) > end)
					return 0;
				old += (job->data + i) & 1 ? *pad << 8 : *pad;
				pad++;
			}
		}
		job->check = ~fold((u64)(u16)~p->check + (u16)~fold(old) + new);
	}
	if (!job->check)
		job->check = 0xffff;
	return 1;
}

/* shared says whether something from a peer may have its part of the last quarter
 * of a bucket: at half the rate. Who comes when another processor takes some has
 * seen another packet pass. */
INLINE int shared(struct meter *m, u64 now, u64 cost)
{
	u64 share = *(volatile u64 *)&m->share;
	u64 begin = share > now ? share : now;

	if (begin - now > m->burst / 8)
		return 0;
	return __sync_val_compare_and_swap(&m->share, share, begin + 2 * cost) == share;
}

/* within says whether the allocation's bucket has the bytes of a job, and takes
 * them. As in the core, the last quarter is for what the client sends, and but for
 * half the rate not for what peers do. */
INLINE int within(const struct job *job, u64 now)
{
	u32 index = job->way->meter;
	struct meter *m;
	u64 full, next, cost;
	int i, paid = !job->add;

	if (!index)
		return 1;
	m = bpf_map_lookup_elem(&meters, &index);
	if (!m || !m->rate)
		return 1;
	for (i = 0; i < 4; i++) {
		/* In this order: user space writes full after the rate, so that
		 * it is of this rate, or the exchange fails. */
		full = *(volatile u64 *)&m->full;
		cost = (u64)job->data * 1000000000 / *(volatile u64 *)&m->rate;
		next = (full > now ? full : now) + cost;
		if (next - now > m->burst)
			return 0;
		if (!paid && next - now > m->burst - m->burst / 4) {
			if (!shared(m, now, cost))
				return 0;
			paid = 1;
		}
		if (__sync_val_compare_and_swap(&m->full, full, next) == full)
			return 1;
	}
	return 0; /* others take all the time */
}

/* look finds the next hop, and says how a packet gets there: XDP_PASS if not
 * from here. */
INLINE int look(struct xdp_md *ctx, const struct job *job, u64 now, struct hop *hop, int generic)
{
	const struct way *way = job->way;
	struct bpf_fib_lookup fib = {};
	u32 in = ctx->ingress_ifindex;
	u32 *port;
	long rc;

	fib.family = way->ipv6 ? AF_INET6 : AF_INET;
	fib.l4_protocol = UDP;
	fib.sport = way->src_port;
	fib.dport = way->dst_port;
	fib.tot_len = job->size;
	fib.ifindex = asker ? asker : in;
	if (way->ipv6) {
		__builtin_memcpy(fib.src, &way->src, sizeof(fib.src));
		__builtin_memcpy(fib.dst, &way->dst, sizeof(fib.dst));
	} else {
		fib.src[0] = way->src.word[3];
		fib.dst[0] = way->dst.word[3];
	}
	rc = bpf_fib_lookup(ctx, &fib, sizeof(fib), 0);
	if (rc == BPF_FIB_LKUP_RET_FRAG_NEEDED)
		return end_with(OVERSIZE, job->data, XDP_PASS);
	if (rc != BPF_FIB_LKUP_RET_SUCCESS)
		return end_with(UNREACHED, job->data, XDP_PASS);
	if (fib.ifindex != in) {
		port = bpf_map_lookup_elem(&ports, &fib.ifindex);
		if (!port || (!generic && !(*port & PORT_TAKES)))
			return end_with(UNREACHED, job->data, XDP_PASS);
	}
	hop->fresh = 0;
	hop->in = in;
	hop->out = fib.ifindex;
	hop->size = job->size;
	__builtin_memcpy(hop->dst, fib.dmac, sizeof(hop->dst));
	__builtin_memcpy(hop->src, fib.smac, sizeof(hop->src));
	hop->fresh = now + FRESH;
	return fib.ifindex == in ? XDP_TX : XDP_REDIRECT;
}

/* reach is look for a hop that may be known already. */
INLINE int reach(struct xdp_md *ctx, const struct packet *p, const struct job *job, u64 now, struct hop *hop, int generic)
{
	const struct address *to = &job->way->dst;
	u32 in = ctx->ingress_ifindex;
	int ipv6 = job->way->ipv6;

	if (in == LOOPBACK && ipv6 == !is_mapped(&p->src) &&
	    (ipv6 ? !to->word[0] && !to->word[1] && !to->word[2] && to->word[3] == swap32(1) : (to->word[3] & 0xff) == 127))
		/* There is no next hop. The kernel keeps its route with such
		 * packets: their family must stay. */
		return XDP_TX;
	if (now < hop->fresh && job->size <= hop->size && hop->in == in)
		return hop->out == in ? XDP_TX : XDP_REDIRECT;
	return look(ctx, job, now, hop, generic);
}

INLINE u16 *write_ipv4(void *data, void *end, const struct packet *p, const struct job *job)
{
	struct ipv4 *ip = data + sizeof(struct ethernet);
	const struct way *way = job->way;
	struct udp *udp = (void *)(ip + 1);
	u64 check = 0;
	int whole, i;

	if ((void *)(udp + 1) > end)
		return 0;
	/* DF stays as it was (RFC 8656 section 14). No router fragments IPv6, so that
	 * who sends more than its least MTU carries has measured (RFC 7915 section 5.1). */
	whole = is_mapped(&p->src) ? p->whole : job->size > 1260;
	ip->version_length = 0x45;
	ip->tos = 0;
	ip->length = swap16(job->size);
	ip->id = whole ? 0 : bpf_get_prandom_u32();
	ip->fragment = whole ? swap16(DONT_FRAGMENT) : 0;
	ip->ttl = TTL;
	ip->protocol = UDP;
	ip->check = 0;
	ip->src = way->src.word[3];
	ip->dst = way->dst.word[3];
#pragma unroll
	for (i = 0; i < 10; i++)
		check += ((u16 *)ip)[i];
	ip->check = ~fold(check);
	udp->src = way->src_port;
	udp->dst = way->dst_port;
	udp->length = swap16(job->size - sizeof(*ip));
	udp->check = job->check;
	return (void *)(udp + 1);
}

INLINE u16 *write_ipv6(void *data, void *end, const struct job *job)
{
	struct ipv6 *ip = data + sizeof(struct ethernet);
	const struct way *way = job->way;
	struct udp *udp = (void *)(ip + 1);

	if ((void *)(udp + 1) > end)
		return 0;
	ip->version_class_flow = 0x60;
	ip->length = swap16(job->size - sizeof(*ip));
	ip->next = UDP;
	ip->hops = TTL;
	ip->src = way->src;
	ip->dst = way->dst;
	udp->src = way->src_port;
	udp->dst = way->dst_port;
	udp->length = swap16(job->size - sizeof(*ip));
	udp->check = job->check;
	return (void *)(udp + 1);
}

/* rewrite puts the headers of the packet that leaves before the data. It is 0
 * while the packet is as it was, and negative when it no longer is and nobody
 * could use it. */
INLINE int rewrite(struct xdp_md *ctx, const struct packet *p, const struct job *job, const struct hop *hop)
{
	u32 came = p->head + job->skip;
	u32 leaves = sizeof(struct ethernet) + job->size - job->data;
	long surplus = (long)ctx->data_end - (long)ctx->data;
	void *data, *end;
	struct ethernet *eth;
	u16 *header;

	opaque(surplus);
	surplus -= came + job->data;
	if (bpf_xdp_adjust_head(ctx, (int)came - (int)leaves))
		return 0;
	/* Padding of ChannelData, and of Ethernet. */
	if (surplus > 0 && bpf_xdp_adjust_tail(ctx, -surplus))
		return -1;
	data = (void *)(long)ctx->data;
	end = (void *)(long)ctx->data_end;
	eth = data;
	if ((void *)(eth + 1) > end)
		return -1;
	__builtin_memcpy(eth->dst, hop->dst, sizeof(eth->dst));
	__builtin_memcpy(eth->src, hop->src, sizeof(eth->src));
	if (job->way->ipv6) {
		eth->type = swap16(ETHERTYPE_IPV6);
		header = write_ipv6(data, end, job);
	} else {
		eth->type = swap16(ETHERTYPE_IPV4);
		header = write_ipv4(data, end, p, job);
	}
	if (!header)
		return -1;
	if (job->add) {
		if ((void *)(header + 2) > end)
			return -1;
		header[0] = job->way->channel;
		header[1] = swap16(job->data);
	}
	return 1;
}

INLINE int serve(struct xdp_md *ctx, int generic)
{
	struct packet p;
	struct job job;
	struct slot *slot;
	struct side *side;
	u32 index;
	u64 now;
	int action, done;

	if (!parse(ctx, &p))
		return XDP_PASS;
	if (!find_client(ctx, &p, &job) && !find_peer(&p, &job))
		return XDP_PASS;
	if (job.pad > 3)
		return end_with(PADDED, p.length, XDP_PASS);
	index = job.way->slot;
	slot = bpf_map_lookup_elem(&slots, &index);
	if (!slot)
		return XDP_PASS;
	side = job.add ? &slot->side[TO_CLIENT] : &slot->side[TO_PEER];
	now = bpf_ktime_get_coarse_ns();
	if (now >= side->until)
		return end_with(EXPIRED, job.data, XDP_PASS);
	if (now >= side->touch) {
		side->touch = now + TOUCH;
		return end_with(TOUCHED, job.data, XDP_PASS);
	}
	job.size = (job.way->ipv6 ? sizeof(struct ipv6) : sizeof(struct ipv4)) + sizeof(struct udp) + job.add + job.data;
	if (job.size > 0xffff)
		return end_with(OVERSIZE, job.data, XDP_PASS);
	action = reach(ctx, &p, &job, now, &side->hop, generic);
	if (action == XDP_PASS)
		return XDP_PASS;
	if (!checksum(ctx, &p, &job, generic))
		return end_with(UNSUMMED, job.data, XDP_PASS);
	if (!within(&job, now))
		return end_with(LIMITED, job.data, XDP_DROP);
	done = rewrite(ctx, &p, &job, &side->hop);
	if (!done)
		return end_with(ROOMLESS, job.data, XDP_PASS);
	if (done < 0)
		return end_with(BROKEN, job.data, XDP_DROP);
	__sync_fetch_and_add(&side->packets, 1);
	__sync_fetch_and_add(&side->bytes, job.data);
	if (action == XDP_REDIRECT)
		action = bpf_redirect(side->hop.out, 0);
	return end_with(SENT, job.data, action);
}

SEC("xdp") int serve_native(struct xdp_md *ctx)
{
	return serve(ctx, 0);
}

SEC("xdp") int serve_generic(struct xdp_md *ctx)
{
	return serve(ctx, 1);
}
