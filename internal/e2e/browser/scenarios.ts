// SPDX-License-Identifier: Apache-2.0

// What the tests do inside the page. It is bundled with the built SDK; each
// export can be called by name, with arguments and a result that JSON carries.

import * as sdk from "@meshgate/client";
import { pattern, readAll, sha256 } from "./bytes.js";

/** How a page reaches the gateway. */
export interface Access {
  url: string;
  token: string;
  iceTransportPolicy?: RTCIceTransportPolicy;
  connectTimeoutMs?: number;
}

/** A service on a node. */
export interface Service {
  node: string;
  host?: string;
  port: number;
}

/** Runs an action with a client of its own. */
async function withClient<T>(
  { url, ...options }: Access,
  action: (client: sdk.MeshClient) => Promise<T>,
): Promise<T> {
  const client = sdk.createMeshClient({ baseUrl: url, ...options });
  try {
    return await action(client);
  } finally {
    await client.close();
  }
}

/** An error as JSON. */
function describe(reason: unknown): { code: string; message: string; isMeshgateError: boolean } {
  const { code, message } = sdk.MeshgateError.from(reason);
  return { code, message, isMeshgateError: reason instanceof sdk.MeshgateError };
}

function equal(left: Uint8Array, right: Uint8Array): boolean {
  return left.byteLength === right.byteLength && left.every((byte, index) => byte === right[index]);
}

/** Unary calls. */
export function unary(
  access: Access,
): Promise<{ nodes: string[]; gateway: string; firewalled: string; error: string }> {
  return withClient(access, async (client) => ({
    nodes: (await client.nodes()).map(({ id }) => id).sort(),
    gateway: (await client.status()).id,
    firewalled: (await client.status("firewalled")).id,
    error: await client.status("nobody").then(
      () => "none",
      (error) => describe(error).code,
    ),
  }));
}

/** A server stream: what the first message of a watch has. */
export function watch(access: Access): Promise<{ gateway: string; nodes: string[]; states: string[] }> {
  return withClient(access, async (client) => {
    const states: string[] = [];
    client.addEventListener("state", ({ detail }) => states.push(`${detail.scope} ${detail.state}`));
    for await (const { gatewayId, nodes } of client.watch({ signal: AbortSignal.timeout(60_000) })) {
      return { gateway: gatewayId, nodes: nodes.map(({ id }) => id).sort(), states };
    }
    throw new Error("the watch ended");
  });
}

/** A bidi stream with the generated client, as far as the offer. */
export function bidi(access: Access): Promise<{ offer: string; servers: string[]; error: string }> {
  return withClient(access, async (client) => {
    const webrtc = client.service(sdk.WebRTC);
    const ask = async (nodeId: string) => {
      const abort = new AbortController();
      const requests = (async function* () {
        yield { nodeId, inBand: true };
        await new Promise((resolve) => abort.signal.addEventListener("abort", resolve));
      })();
      try {
        for await (const message of webrtc.startDataChannel(requests, { signal: abort.signal })) {
          return message;
        }
        throw new Error("no offer came");
      } finally {
        abort.abort();
      }
    };
    const { offer, iceServers } = await ask("phone");
    return {
      offer: JSON.parse(offer).type,
      servers: iceServers.flatMap(({ urls }) => urls),
      error: await ask("nobody").then(
        () => "none",
        (error) => describe(error).code,
      ),
    };
  });
}

/** Sends bytes to an echo in pieces, half-closes, and reads until the end. */
export function echo(
  access: Access,
  { node, port }: Service,
  bytes: number,
): Promise<{ equal: boolean; path: sdk.Path; states: string[] }> {
  return withClient(access, async (client) => {
    const states: string[] = [];
    client.addEventListener("state", ({ detail }) => states.push(detail.step ?? detail.state));
    const connection = await client.connect({ node, port });
    const sent = pattern(bytes);
    const [received] = await Promise.all([
      readAll(connection.readable),
      new Blob([sent]).stream().pipeTo(connection.writable),
    ]);
    await connection.closed;
    const other = await client.connect({ node, port });
    const path = await other.path();
    await other.close();
    return { equal: equal(sent, received), path, states };
  });
}

/** Many connections at the same time over one client. */
export function parallel(access: Access, { node, port }: Service, count: number): Promise<number> {
  return withClient(access, async (client) => {
    const sent = pattern(100_000);
    const results = await Promise.all(
      Array.from({ length: count }, async () => {
        const connection = await client.connect({ node, port });
        const [received] = await Promise.all([
          readAll(connection.readable),
          new Blob([sent]).stream().pipeTo(connection.writable),
        ]);
        await connection.closed;
        return equal(sent, received);
      }),
    );
    return results.filter(Boolean).length;
  });
}

/**
 * A reader that does not read: how much the page could write to an echo before
 * it had to wait, and whether all came back once it read.
 */
export function slowReader(
  access: Access,
  { node, port }: Service,
  bytes: number,
): Promise<{ before: number; equal: boolean }> {
  return withClient(access, async (client) => {
    const connection = await client.connect({ node, port });
    const writer = connection.writable.getWriter();
    const sent = pattern(bytes);
    let written = 0;
    const writing = (async () => {
      for (let offset = 0; offset < bytes; offset += 16_384) {
        await writer.write(sent.subarray(offset, offset + 16_384));
        written = Math.min(bytes, offset + 16_384);
      }
      await writer.close();
    })();
    // It has to wait when nothing was written for as long as a hundred frames of messages take to pass.
    let before = -1;
    while (before !== written) {
      before = written;
      const probe = await client.connect({ node, port });
      const probeWriter = probe.writable.getWriter();
      await probeWriter.write(pattern(200_000));
      await probeWriter.close();
      await readAll(probe.readable);
    }
    const received = await readAll(connection.readable);
    await writing;
    return { before, equal: equal(sent, received) };
  });
}

/** Downloads, and the digest of what came. */
export function download(
  access: Access,
  url: string,
): Promise<{ status: number; bytes: number; sha256: string; chunks: number }> {
  return withClient(access, async (client) => {
    const response = await client.fetch(url);
    const parts: Uint8Array<ArrayBuffer>[] = [];
    for await (const part of response.body ?? []) {
      parts.push(part as Uint8Array<ArrayBuffer>);
    }
    const whole = await new Blob(parts).arrayBuffer();
    return {
      status: response.status,
      bytes: whole.byteLength,
      sha256: await sha256(whole),
      chunks: parts.length,
    };
  });
}

/** Uploads a stream of bytes to an echo and compares what comes back at the same time. */
export function uploadEcho(
  access: Access,
  url: string,
  bytes: number,
): Promise<{ status: number; sent: string; received: string }> {
  return withClient(access, async (client) => {
    const sent = pattern(bytes);
    const response = await client.fetch(url, { method: "POST", body: new Blob([sent]).stream() });
    const received = new Uint8Array(await response.arrayBuffer());
    return { status: response.status, sent: await sha256(sent), received: await sha256(received) };
  });
}

/** Many requests at the same time and one after the other. */
export function requests(
  access: Access,
  url: string,
): Promise<{ texts: string[]; missing: number; head: number }> {
  return withClient(access, async (client) => {
    const text = async () => (await client.fetch(url)).text();
    const texts = await Promise.all(Array.from({ length: 30 }, text));
    texts.push(await text());
    const missing = await client.fetch(new URL("/nothing-here", url));
    await missing.text();
    const head = await client.fetch(url, { method: "HEAD" });
    return { texts, missing: missing.status, head: head.status };
  });
}

/** A redirect to a compressed page. */
export function redirect(
  access: Access,
  url: string,
): Promise<{ url: string; redirected: boolean; text: string; cookies: string[] }> {
  return withClient(access, async (client) => {
    const response = await client.fetch(url, { method: "POST", body: new URLSearchParams({ a: "b" }) });
    const { redirected, headers } = response;
    return { url: response.url, redirected, text: await response.text(), cookies: headers.getSetCookie() };
  });
}

/** Datagrams to an echo; each is repeated until it comes back. */
export function udpEcho(access: Access, { node, port }: Service): Promise<number[]> {
  return withClient(access, async (client) => {
    const datagrams = await client.connectUdp({ node, port });
    const writer = datagrams.writable.getWriter();
    const reader = datagrams.readable.getReader();
    const sizes: number[] = [];
    for (const size of [1, 100, 1200]) {
      const sent = pattern(size).fill(size & 0xff);
      await writer.write(sent);
      const timer = setInterval(() => void writer.write(sent), 200);
      for (;;) {
        const { value, done } = await reader.read();
        if (done) {
          throw new Error("the datagrams ended");
        }
        if (equal(value, sent)) {
          break;
        }
      }
      clearInterval(timer);
      sizes.push(size);
    }
    await datagrams.close();
    return sizes;
  });
}

/** Aborts at various moments; the codes that came. */
export function aborts(
  access: Access,
  { node, port }: Service,
  url: string,
): Promise<Record<string, string>> {
  return withClient(access, async (client) => {
    const code = (promise: Promise<unknown>) =>
      promise.then(
        () => "none",
        (error) => describe(error).code,
      );
    const codes: Record<string, string> = {};
    codes.before = await code(client.connect({ node, port, signal: AbortSignal.abort() }));

    const negotiating = new AbortController();
    client.addEventListener("state", ({ detail }) => {
      if (detail.step === "checking") {
        negotiating.abort();
      }
    });
    codes.negotiating = await code(client.connect({ node, port, signal: negotiating.signal }));

    const open = new AbortController();
    const connection = await client.connect({ node, port, signal: open.signal });
    const reading = connection.readable.getReader().read();
    open.abort();
    codes.reading = await code(reading);
    codes.closed = await code(connection.closed);

    const fetching = new AbortController();
    const response = await client.fetch(url, { signal: fetching.signal });
    const reader = response.body?.getReader();
    await reader?.read();
    fetching.abort();
    codes.body = await code(readToEnd(reader));

    // None of this harms the next one.
    codes.next = await code(client.connect({ node, port }));
    return codes;
  });
}

async function readToEnd(reader: ReadableStreamDefaultReader<unknown> | undefined): Promise<void> {
  for (let done = false; !done; ) {
    done = (await reader?.read())?.done ?? true;
  }
}

/** What a connection that must not come about fails with. */
export function refused(
  access: Access,
  service: Service,
): Promise<{ code: string; message: string; isMeshgateError: boolean }> {
  return withClient(access, (client) =>
    client.connect(service).then(() => ({ code: "none", message: "", isMeshgateError: false }), describe),
  );
}

/** The same for UDP. */
export function refusedUdp(
  access: Access,
  service: Service,
): Promise<{ code: string; message: string; isMeshgateError: boolean }> {
  return withClient(access, (client) =>
    client.connectUdp(service).then(() => ({ code: "none", message: "", isMeshgateError: false }), describe),
  );
}

/** What a call to the gateway fails with. */
export function denied(access: Access): Promise<{ code: string; message: string; isMeshgateError: boolean }> {
  return withClient(access, (client) =>
    client.nodes().then(() => ({ code: "none", message: "", isMeshgateError: false }), describe),
  );
}

let survivor: { client: sdk.MeshClient; connection: sdk.MeshConnection; states: string[] } | undefined;

/** Opens a connection that outlives the call; see {@link afterLoss}. */
export async function beforeLoss(access: Access, { node, port }: Service): Promise<void> {
  const { url, ...options } = access;
  const client = sdk.createMeshClient({ baseUrl: url, ...options });
  const states: string[] = [];
  client.addEventListener("state", ({ detail }) => states.push(detail.state));
  survivor = { client, connection: await client.connect({ node, port }), states };
}

/** Waits until the connection of {@link beforeLoss} has broken, and tells how. */
export async function afterLoss(): Promise<{ code: string; message: string; states: string[] }> {
  if (survivor === undefined) {
    throw new Error("there is no connection");
  }
  const { client, connection, states } = survivor;
  const error = await connection.closed.then(() => ({ code: "none", message: "" }), describe);
  await client.close();
  return { ...error, states };
}
