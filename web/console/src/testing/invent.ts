// SPDX-License-Identifier: Apache-2.0

import type { Feature, Link, LinkPath, MeshEdge, MeshNode, Service, Snapshot } from "../mesh.ts";

/** The moment that invented times are counted back from. */
const epoch = Date.UTC(2026, 10, 22, 12, 0, 0);

const names = [
  "nas",
  "phone",
  "laptop",
  "web-1",
  "web-2",
  "hotel-pc",
  "printer",
  "db-1",
  "db-2",
  "build-1",
  "build-2",
  "camera-front",
  "camera-back",
  "tablet",
  "router-home",
  "backup",
  "media",
  "desk",
  "lab-pi",
  "lab-scope",
  "office-door",
  "ci-runner",
  "mail",
  "wiki",
  "grafana",
  "dns-1",
  "very-long-node-name-that-nobody-should-choose-but-somebody-will.branch-office.example",
];

/** Names and labels that would do harm if any of them were taken as markup. */
export const hostileNames = [
  "<script>document.title='pwned'</script>",
  "<img src=x onerror=alert(1)>",
  '"><svg onload=alert(2)>',
  "javascript:alert(3)",
  "{{constructor.constructor('alert(4)')()}}",
  // biome-ignore lint/suspicious/noTemplateCurlyInString: it must not become a template anywhere.
  "${alert(5)}",
  "<iframe srcdoc='<script>parent.alert(6)</script>'></iframe>",
  "</title><script>alert(7)</script>",
  "' onmouseover='alert(8)",
  "admin\u202Etxt.exe",
  "zero\u200Bwidth",
  "<a href=javascript:alert(9)>click</a>",
  "%3Cscript%3Ealert(10)%3C/script%3E",
  "&lt;script&gt;alert(11)&lt;/script&gt;",
  "../../#/nodes/nas?x=<b>",
  "名前-ü-🦊",
];

const gatewayFeatures: Feature[] = [
  { name: "NODES", port: 8443 },
  { name: "MESH_API", port: 8443 },
  { name: "MEMBERSHIP", port: 8443 },
  { name: "ICE_NEGOTIATION", port: 8443 },
  { name: "TURN_SERVER", port: 3478 },
  { name: "STORAGE_PROVIDER", port: 9000 },
];

const servicesByName: Record<string, Service[]> = {
  nas: [
    { protocol: "tcp", port: 80, kind: "http" },
    { protocol: "tcp", port: 7, kind: "tcp-echo" },
    { protocol: "tcp", port: 22, kind: "ssh" },
    { protocol: "udp", port: 7, kind: "udp-echo" },
  ],
  "web-1": [{ protocol: "tcp", port: 80, kind: "http" }],
  "web-2": [{ protocol: "tcp", port: 80, kind: "http" }],
  "hotel-pc": [
    { protocol: "tcp", port: 80, kind: "http" },
    { protocol: "tcp", port: 7, kind: "tcp-echo" },
  ],
  "db-1": [{ protocol: "tcp", port: 5432, kind: "" }],
};

const behindSecond = new Set([
  "office-door",
  "ci-runner",
  "mail",
  "wiki",
  "grafana",
  "dns-1",
  "db-2",
  "build-2",
]);
const inDataChannel = new Set(["hotel-pc", "tablet"]);
/** Created, but their WireGuard was never started. */
const neverSeen = new Set(["printer"]);
const switchedOff = new Set(["camera-back", "lab-scope"]);
const stockPeers = new Set(["phone", "tablet", "printer", "camera-front", "camera-back", "nas"]);

interface Invented {
  readonly id: string;
  readonly home: string;
  readonly features: readonly Feature[];
  readonly services: readonly Service[];
}

function inventNode(wish: Invented, index: number): MeshNode {
  const high = 1 + Math.floor(index / 250);
  const low = (index % 250) + 1;
  return {
    id: wish.id,
    publicKey: `CAUSI${btoa(`key of node ${index}`.padEnd(32, "."))}`,
    zone: wish.home === "gateway-2" ? "office" : "home",
    addresses: [`172.16.${high}.${low}`, `fd9f:86d0:8188:${(0x1000 + index).toString(16)}:2ac4:40f5:1a35:0`],
    primaryEndpoint: wish.home === "" ? `gate-${index + 1}.example.org` : "",
    endpoints: wish.home === "" ? [`203.0.113.${index + 7}:51820`] : [],
    features: wish.features,
    services: wish.services,
    joinedAt: new Date(epoch - (index + 1) * 7_300_000),
  };
}

/** Some nodes get no UDP to their gateway, for which TURN is there. */
function inventPath(id: string, online: boolean, endpoint: string): LinkPath {
  const path = { via: "", transport: "", address: "", rttMs: undefined, since: undefined, reason: "" };
  if (!online) {
    return { ...path, kind: "none", reason: "its last handshake is 72h0m0s old" };
  }
  if (inDataChannel.has(id)) {
    return { ...path, kind: "relayed", via: "gateway-1", reason: "no UDP of the node gets here by itself" };
  }
  return { ...path, kind: "direct", address: endpoint };
}

function inventLink(id: string, index: number): Link {
  const isNew = neverSeen.has(id);
  const online = !switchedOff.has(id) && !isNew;
  const endpoint = isNew
    ? ""
    : inDataChannel.has(id)
      ? "data-channel"
      : `198.51.100.${(index % 250) + 1}:${51820 + (index % 40)}`;
  return {
    nodeId: id,
    online,
    endpoint,
    path: inventPath(id, online, endpoint),
    lastHandshake: isNew
      ? undefined
      : new Date(Date.now() - (online ? (index % 110) * 1000 : 86_400_000 * 3)),
    receiveBytes: isNew ? 0 : (index + 3) ** 4 * 977,
    transmitBytes: isNew ? 0 : (index + 1) ** 4 * 1409,
  };
}

/** A mesh of gateways with nodes around them, as gateway-1 sees it. The same for the same arguments. */
export function inventMesh(size: number, extraNames: readonly string[] = []): Snapshot {
  const gateways =
    size <= 1 ? ["gateway-1"] : size < 100 ? ["gateway-1", "gateway-2", "gateway-3"] : manyGateways(size);
  const wishes: Invented[] = gateways.map((id) => ({
    id,
    home: "",
    features: gatewayFeatures,
    services: [],
  }));
  const others = [...extraNames, ...names];
  for (let i = 0; wishes.length < size; i++) {
    const id = others[i] ?? `node-${String(i + 1).padStart(3, "0")}`;
    wishes.push({
      id,
      home:
        i < others.length
          ? behindSecond.has(id)
            ? "gateway-2"
            : "gateway-1"
          : (gateways[i % gateways.length] ?? "gateway-1"),
      features: stockPeers.has(id)
        ? []
        : [
            { name: "NODES", port: 8443 },
            { name: "ICE_NEGOTIATION", port: 8443 },
          ],
      services: servicesByName[id] ?? extraServices(extraNames, id),
    });
  }
  const nodes = wishes.map(inventNode);
  const edges: MeshEdge[] = [];
  for (const [i, a] of gateways.entries()) {
    for (const b of gateways.slice(i + 1)) {
      edges.push({ source: a, target: b, weight: 99, transport: "native" });
    }
  }
  for (const wish of wishes.slice(gateways.length)) {
    edges.push({
      source: wish.home,
      target: wish.id,
      weight: 1,
      transport: inDataChannel.has(wish.id) ? "ice" : "wireguard",
    });
  }
  if (wishes.some(({ id }) => id === "web-2")) {
    edges.push({ source: "web-1", target: "web-2", weight: 1, transport: "native" });
  }
  const links = wishes
    .map((wish, index) => ({ wish, link: inventLink(wish.id, index) }))
    .filter(({ wish }) => wish.id !== "gateway-1" && (wish.home === "" || wish.home === "gateway-1"))
    .map(({ link }) => link);
  return {
    version: "1",
    gatewayId: "gateway-1",
    domain: "mesh.internal",
    nodes,
    edges,
    links,
    leaderless: false,
  };
}

/** A hostile node also exposes a service of a hostile kind. */
function extraServices(extraNames: readonly string[], id: string): Service[] {
  return extraNames.includes(id)
    ? [{ protocol: "tcp", port: 80, kind: "<img src=x onerror=alert(12)>" }]
    : [];
}

function manyGateways(size: number): string[] {
  return Array.from({ length: Math.min(12, Math.floor(size / 40)) }, (_, i) => `gateway-${i + 1}`);
}
