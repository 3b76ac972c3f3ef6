/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */

/* What turn.c needs of the kernel's interface, which never changes. It is here
 * so that the object does not depend on the headers of who compiles it. */

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long s64;

#define SEC(name) __attribute__((section(name), used))
#define INLINE static inline __attribute__((always_inline))

/* opaque hides from the compiler where a value comes from. It would calculate with
 * the end of the packet otherwise, which the verifier of the kernel forbids. */
#define opaque(x) asm volatile("" : "+r"(x))

/* Integers and types of BTF-defined maps. */
#define INT(name, value) int (*name)[value]
#define TYPE(name, value) typeof(value) *name

#define BPF_MAP_TYPE_HASH 1
#define BPF_MAP_TYPE_ARRAY 2
#define BPF_MAP_TYPE_PERCPU_ARRAY 6
#define BPF_F_NO_PREALLOC 1
#define BPF_F_MMAPABLE 1024

enum { XDP_ABORTED, XDP_DROP, XDP_PASS, XDP_TX, XDP_REDIRECT };

struct xdp_md {
	u32 data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex;
};

/* The loopback interface, in every network. */
#define LOOPBACK 1

#define ETHERTYPE_IPV4 0x0800
#define ETHERTYPE_IPV6 0x86dd
#define UDP 17

#define AF_INET 2
#define AF_INET6 10

struct bpf_fib_lookup {
	u8 family;
	u8 l4_protocol;
	u16 sport, dport;
	u16 tot_len;
	u32 ifindex;
	u32 tos;
	u32 src[4], dst[4]; /* IPv4 has the first word of each */
	u32 vlan;
	u8 smac[6], dmac[6];
};

#define BPF_FIB_LKUP_RET_SUCCESS 0
#define BPF_FIB_LKUP_RET_NO_NEIGH 7
#define BPF_FIB_LKUP_RET_FRAG_NEEDED 8

static void *(*bpf_map_lookup_elem)(void *map, const void *key) = (void *)1;
static u32 (*bpf_get_prandom_u32)(void) = (void *)7;
static long (*bpf_redirect)(u32 ifindex, u64 flags) = (void *)23;
static s64 (*bpf_csum_diff)(void *from, u32 from_size, void *to, u32 to_size, u32 seed) = (void *)28;
static long (*bpf_xdp_adjust_head)(struct xdp_md *ctx, int delta) = (void *)44;
static long (*bpf_xdp_adjust_tail)(struct xdp_md *ctx, int delta) = (void *)65;
static long (*bpf_fib_lookup)(void *ctx, struct bpf_fib_lookup *params, int size, u32 flags) = (void *)69;
static u64 (*bpf_ktime_get_coarse_ns)(void) = (void *)160;

/* The object is little-endian: what is on the wire has its bytes swapped. */
#define swap16(x) ((u16)__builtin_bswap16(x))
#define swap32(x) ((u32)__builtin_bswap32(x))
