/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */

/* What user space and the program share. All that is compared with packets is kept as
 * it is on the wire. An address has 16 bytes; that of IPv4 is mapped (::ffff:a.b.c.d). */

#define BINDINGS 65536
#define ALLOCATIONS 65536
#define PORTS 64

struct address {
	u32 word[4];
};

/* from_client finds what goes to a peer, from_peer what goes to a client. */
struct from_client {
	struct address client, server;
	u16 client_port, server_port;
	u16 channel, zero;
};

struct from_peer {
	struct address peer, relay;
	u16 peer_port, relay_port;
};

/* way is where a packet leaves to. slot and meter are indices. */
struct way {
	struct address src, dst;
	u16 src_port, dst_port;
	u16 channel;
	u16 ipv6;
	u32 slot, meter;
};

/* hop is the next hop of a way, as far as it was looked up: good until fresh for
 * IP packets of up to size bytes that came in at one interface and leave at
 * another or the same. A packet that is sent while another processor writes a new
 * one may get a mix of both, and lost. */
struct hop {
	u64 fresh;
	u32 in, out;
	u16 size;
	u8 dst[6], src[6];
	u16 spare;
};

/* side is one direction of a binding: a cache line. until and touch are times of
 * the monotonic clock. User space writes until, and reads and writes all when no
 * packet finds it. */
struct side {
	u64 until, touch;
	u64 packets, bytes;
	struct hop hop;
};

enum { TO_PEER, TO_CLIENT };

struct slot {
	struct side side[2];
};

/* meter bounds what an allocation relays in both directions together: full is
 * when its bucket will be full again, and it never lies more than burst
 * nanoseconds ahead; share is when peers have paid for what they took of its last
 * quarter. Meter 0 is that of allocations without a bound. */
struct meter {
	u64 full, rate, burst, share;
};

/* port is what is known about an interface that a program is attached to: whether
 * its driver takes packets from another one. */
enum { PORT_TAKES = 1 };

/* The ends of a packet that has a binding, in the order of Outcomes of package xdp. */
enum outcome {
	SENT, LIMITED, PADDED, EXPIRED, TOUCHED, UNREACHED, OVERSIZE, UNSUMMED, ROOMLESS, BROKEN, OUTCOMES
};

/* count is of packets with such an end; bytes are those of their data. */
struct count {
	u64 packets, bytes;
};

struct {
	INT(type, BPF_MAP_TYPE_HASH);
	INT(map_flags, BPF_F_NO_PREALLOC);
	INT(max_entries, BINDINGS);
	TYPE(key, struct from_client);
	TYPE(value, struct way);
} from_clients SEC(".maps");

struct {
	INT(type, BPF_MAP_TYPE_HASH);
	INT(map_flags, BPF_F_NO_PREALLOC);
	INT(max_entries, BINDINGS);
	TYPE(key, struct from_peer);
	TYPE(value, struct way);
} from_peers SEC(".maps");

struct {
	INT(type, BPF_MAP_TYPE_ARRAY);
	INT(map_flags, BPF_F_MMAPABLE);
	INT(max_entries, BINDINGS);
	TYPE(key, u32);
	TYPE(value, struct slot);
} slots SEC(".maps");

struct {
	INT(type, BPF_MAP_TYPE_ARRAY);
	INT(map_flags, BPF_F_MMAPABLE);
	INT(max_entries, ALLOCATIONS);
	TYPE(key, u32);
	TYPE(value, struct meter);
} meters SEC(".maps");

struct {
	INT(type, BPF_MAP_TYPE_HASH);
	INT(max_entries, PORTS);
	TYPE(key, u32);
	TYPE(value, u32);
} ports SEC(".maps");

struct {
	INT(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	INT(max_entries, OUTCOMES);
	TYPE(key, u32);
	TYPE(value, struct count);
} outcomes SEC(".maps");

/* asker is the interface in whose name routes are looked up; 0 is the one at
 * which the packet came in. The kernel tells no routes to interfaces that do not
 * forward. */
volatile const u32 asker;

/* The sum of all files here, by which a test sees that the object is theirs. */
const char sources[] __attribute__((used)) = SOURCES;

/* Several licences are possible; the kernel knows this one, and lets only such
 * programs look up routes. */
const char licence[] SEC("license") = "GPL";
