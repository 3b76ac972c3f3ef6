// SPDX-License-Identifier: Apache-2.0

// What is measured inside the page, with the built SDK and without it. It
// mirrors the clients in Go: see ../mesh.go and ../raw.go.

import * as sdk from "@meshgate/client";

/** How a page reaches the gateway. */
interface Access {
  url: string;
  token: string;
}

/** What of a transfer is counted, in milliseconds. */
interface Window {
  warm: number;
  count: number;
}

const blockBytes = 65_536;
const rawMessageBytes = 16_384;
const rawHighBytes = 1_048_576;

/** Counts the bytes that arrive in a window. */
class Meter {
  readonly #window: Window;
  #first = 0;
  #from = 0;
  #last = 0;
  #bytes = 0;

  constructor(window: Window) {
    this.#window = window;
  }

  /** Counts bytes that arrived now, and tells whether the window is over. */
  add(bytes: number): boolean {
    const now = performance.now();
    if (this.#first === 0) {
      this.#first = now;
    } else if (this.#from !== 0) {
      this.#bytes += bytes;
      this.#last = now;
    } else if (now - this.#first >= this.#window.warm) {
      this.#from = now;
    }
    return this.#bytes > 0 && this.#last - this.#from >= this.#window.count;
  }

  /** Bytes per second. */
  rate(): number {
    if (this.#bytes === 0 || this.#last <= this.#from) {
      throw new Error("too little arrived to tell a rate");
    }
    return (this.#bytes / (this.#last - this.#from)) * 1000;
  }
}

/** What a sink answers. */
function answer(text: string): number {
  const { rate, error } = JSON.parse(text) as { rate: number; error?: string };
  if (error !== undefined) {
    throw new Error(error);
  }
  return rate;
}

async function withClient<T>(
  { url, token }: Access,
  action: (client: sdk.MeshClient) => Promise<T>,
): Promise<T> {
  const client = sdk.createMeshClient({ baseUrl: url, token });
  try {
    return await action(client);
  } finally {
    await client.close();
  }
}

/** The rate from a source on a node. */
export function download(access: Access, node: string, port: number, window: Window): Promise<number> {
  return withClient(access, async (client) => {
    const connection = await client.connect({ node, host: "localhost", port });
    const meter = new Meter(window);
    for (const reader = connection.readable.getReader(); ; ) {
      const { value, done } = await reader.read();
      if (done) {
        throw new Error("the source ended");
      }
      if (meter.add(value.byteLength)) {
        return meter.rate();
      }
    }
  });
}

/** The rate to a sink on a node, as the sink saw it. */
export function upload(access: Access, node: string, port: number, window: Window): Promise<number> {
  return withClient(access, async (client) => {
    const connection = await client.connect({ node, host: "localhost", port });
    const writer = connection.writable.getWriter();
    const block = new Uint8Array(blockBytes);
    for (const end = performance.now() + window.warm + window.count; performance.now() < end; ) {
      await writer.write(block);
    }
    await writer.close();
    return answer(await new Response(connection.readable).text());
  });
}

/** How long, in milliseconds, peer connections took until a connection stood, and until a byte came back. */
export async function opens(
  access: Access,
  node: string,
  port: number,
  count: number,
): Promise<{ open: number; firstByte: number }[]> {
  const results: { open: number; firstByte: number }[] = [];
  for (let i = 0; i < count; i++) {
    results.push(
      await withClient(access, async (client) => {
        const began = performance.now();
        let open = 0;
        client.addEventListener("state", ({ detail }) => {
          if (detail.scope === "node" && detail.state === "connected") {
            open = performance.now() - began;
          }
        });
        const connection = await client.connect({ node, host: "localhost", port });
        await connection.writable.getWriter().write(new Uint8Array(1));
        await connection.readable.getReader().read();
        return { open, firstByte: performance.now() - began };
      }),
    );
  }
  return results;
}

/** Opens a channel with plain WebRTC at a peer that answers offers at a URL. */
async function openRaw(peer: RTCPeerConnection, url: string, label: string): Promise<RTCDataChannel> {
  const channel = peer.createDataChannel(label);
  channel.binaryType = "arraybuffer";
  const opened = new Promise((resolve, reject) => {
    channel.onopen = resolve;
    channel.onerror = ({ error }) => reject(error);
  });
  await peer.setLocalDescription();
  while (peer.iceGatheringState !== "complete") {
    await new Promise((resolve) => peer.addEventListener("icegatheringstatechange", resolve, { once: true }));
  }
  const response = await fetch(url, { method: "POST", body: JSON.stringify(peer.localDescription) });
  await peer.setRemoteDescription(await response.json());
  await opened;
  return channel;
}

/** The rate from a source behind a raw channel. */
export async function rawDownload(url: string, label: string, window: Window): Promise<number> {
  const peer = new RTCPeerConnection();
  try {
    const channel = await openRaw(peer, url, label);
    const meter = new Meter(window);
    await new Promise<void>((resolve) => {
      channel.onmessage = ({ data }) => {
        if (meter.add((data as ArrayBuffer).byteLength)) {
          channel.onmessage = null;
          resolve();
        }
      };
    });
    return meter.rate();
  } finally {
    peer.close();
  }
}

/** The rate to a sink behind a raw channel, as the sink saw it. */
export async function rawUpload(url: string, label: string, end: string, window: Window): Promise<number> {
  const peer = new RTCPeerConnection();
  try {
    const channel = await openRaw(peer, url, label);
    channel.bufferedAmountLowThreshold = rawHighBytes / 2;
    const block = new Uint8Array(rawMessageBytes);
    const told = new Promise<string>((resolve) => {
      channel.onmessage = ({ data }) => resolve(String(data));
    });
    for (const stop = performance.now() + window.warm + window.count; performance.now() < stop; ) {
      if (channel.bufferedAmount > rawHighBytes) {
        await new Promise((resolve) =>
          channel.addEventListener("bufferedamountlow", resolve, { once: true }),
        );
      }
      channel.send(block);
    }
    channel.send(end);
    return answer(await told);
  } finally {
    peer.close();
  }
}
