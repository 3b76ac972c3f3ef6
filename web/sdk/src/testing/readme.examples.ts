// SPDX-License-Identifier: Apache-2.0

// The examples of the README, for the compiler; a test compares them.

import { createMeshClient, MeshgateError } from "@meshgate/client";

const mesh = createMeshClient({
  baseUrl: "https://gate.example.org",
  credentials: () => localStorage.getItem("token") ?? "",
});

for (const { id, services } of await mesh.nodes()) {
  console.log(id, services.map(({ kind, port }) => `${kind}:${port}`));
}

// HTTP/1.1 over the mesh: bodies stream both ways, redirects and keep-alive work.
const response = await mesh.fetch("http://web-1:8080/report", { method: "POST", body: "all" });
console.log(response.status, await response.text());

// TCP as WHATWG streams with back-pressure and half-close.
const conn = await mesh.connect({ node: "web-1", port: 22, signal: AbortSignal.timeout(10_000) });
console.log((await conn.path()).kind); // "direct" or "relayed"
await new Blob(["SSH-2.0-demo\r\n"]).stream().pipeTo(conn.writable); // also closes our direction
console.log(await new Response(conn.readable).text());
await conn.closed.catch((error) => console.error(MeshgateError.from(error).code));

// UDP: a write is a datagram, a read is a datagram.
const udp = await mesh.connectUdp({ node: "dns-1", port: 53 });

// State of every path, for a status line; and the mesh itself, live.
mesh.addEventListener("state", ({ detail }) => console.log(detail.node, detail.state, detail.step));
for await (const { nodes, links } of mesh.watch({ signal: AbortSignal.timeout(60_000) })) {
  console.log(nodes.length, links.filter(({ online }) => online).length);
}
await Promise.all([udp.close(), mesh.close()]);
