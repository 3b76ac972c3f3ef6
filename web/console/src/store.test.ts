// SPDX-License-Identifier: Apache-2.0

import assert from "node:assert/strict";
import { test } from "node:test";
import { get } from "svelte/store";
import type { Backend } from "./backend.ts";
import { createStore, type Store } from "./store.ts";
import { createFake, type FakeControl } from "./testing/fake.ts";
import { FakeError } from "./testing/fakeerror.ts";
import { inventMesh } from "./testing/invent.ts";
import { until } from "./testing/until.ts";

type Fake = Backend & FakeControl;

/** A store whose fakes can be got at; now is a clock that stands still. */
function setUp(change: (fake: Fake) => Fake = (fake) => fake): {
  store: Store;
  fakes: Fake[];
  tokens: string[];
} {
  const fakes: Fake[] = [];
  const tokens: string[] = [];
  const store = createStore(
    (token) => {
      const fake = change(createFake(token, { snapshot: inventMesh(30) }));
      tokens.push(token);
      fakes.push(fake);
      return fake;
    },
    () => 1000,
  );
  return { store, fakes, tokens };
}

async function signedIn(change?: (fake: Fake) => Fake): Promise<{ store: Store; fake: Fake }> {
  const { store, fakes } = setUp(change);
  store.signIn("good");
  await until(store, "it is signed in", ({ phase }) => phase === "signed-in");
  const fake = fakes[0];
  assert.ok(fake);
  return { store, fake };
}

test("a good token shows the mesh", async () => {
  const { store, tokens } = setUp();
  store.signIn("  good\n");
  assert.equal(get(store).phase, "signing-in");
  const state = await until(store, "it is signed in", ({ phase }) => phase === "signed-in");
  assert.equal(state.mesh?.nodes.length, 30);
  assert.deepEqual(state.live, { kind: "live" });
  assert.deepEqual(tokens, ["good"]);
});

test("what is relayed is asked for, once at a time, and errors say what to do", async () => {
  let answers = 0;
  const { store } = await signedIn((fake) => ({
    ...fake,
    async relays(signal) {
      if (++answers > 1) {
        throw new FakeError("permission_denied", "the role of bob does not allow it");
      }
      return fake.relays(signal);
    },
  }));
  store.loadRelays();
  store.loadRelays();
  const { relays } = await until(store, "they are told", ({ relays }) => !relays.loading);
  assert.ok((relays.list?.relays.length ?? 0) > 3);
  assert.equal(answers, 1);
  store.loadRelays();
  const refused = await until(store, "they are refused", ({ relays }) => relays.problem !== undefined);
  assert.equal(refused.relays.list, undefined);
  assert.match(refused.relays.problem?.text ?? "", /^You may not see/);
  store.signOut();
  assert.equal(get(store).relays.problem, undefined);
});

test("a mesh that nobody leads is not live until somebody does", async () => {
  const { store, fake } = await signedIn();
  const mesh = fake.snapshot();
  fake.show({ ...mesh, leaderless: true });
  const state = await until(store, "it is told", ({ live }) => live.kind !== "live");
  assert.equal(state.live.kind, "leaderless");
  assert.match(state.live.kind === "leaderless" ? state.live.problem.text : "", /^No gateway leads/);
  fake.show(mesh);
  await until(store, "it is live again", ({ live }) => live.kind === "live");
});

test("the token is nowhere in the state", async () => {
  const { store } = setUp();
  store.signIn("canary-5417");
  const state = await until(store, "it is signed in", ({ phase }) => phase === "signed-in");
  const seen = JSON.stringify(state, (_key, value: unknown) => (value instanceof Map ? [...value] : value));
  assert.ok(!seen.includes("canary-5417"));
});

test("a wrong token says what to do", async () => {
  const { store } = setUp();
  store.signIn("wrong");
  const state = await until(store, "it is refused", ({ signInProblem }) => signInProblem !== undefined);
  assert.equal(state.phase, "signed-out");
  assert.equal(state.signInProblem?.code, "unauthenticated");
});

test("a gateway that does not answer ends the attempt to sign in", async () => {
  const { store } = setUp();
  store.signIn("offline");
  const state = await until(store, "it gives up", ({ signInProblem }) => signInProblem !== undefined);
  assert.equal(state.signInProblem?.text, "The gateway does not answer.");
});

test("a second attempt replaces the first", async () => {
  const { store } = setUp();
  store.signIn("wrong");
  store.signIn("good");
  const state = await until(store, "it is signed in", ({ phase }) => phase === "signed-in");
  assert.equal(state.signInProblem, undefined);
});

test("changes of the mesh come through", async () => {
  const { store, fake } = await signedIn();
  const snapshot = fake.snapshot();
  fake.show({ ...snapshot, version: "2", links: snapshot.links.map((link) => ({ ...link, online: false })) });
  const state = await until(store, "the change is shown", ({ mesh }) => mesh?.version === "2");
  assert.equal(state.mesh?.byId.get("nas")?.reach, "down");
});

test("a lost gateway leaves the mesh on the screen and says when it is tried again", async () => {
  const { store, fake } = await signedIn();
  fake.lose();
  const state = get(store);
  assert.equal(state.live.kind, "waiting");
  assert.equal(state.live.kind === "waiting" && state.live.retryAt, 5000);
  assert.equal(state.mesh?.nodes.length, 30);
  store.retry();
  await until(store, "it is live again", ({ live }) => live.kind === "live");
});

test("an expired token signs out and says so", async () => {
  const { store, fake } = await signedIn();
  fake.expire();
  const state = await until(store, "it is signed out", ({ phase }) => phase === "signed-out");
  assert.equal(state.signInProblem?.text, "Your sign-in has ended, because the token is no longer accepted.");
  assert.equal(state.mesh, undefined);
});

test("an error that waiting does not mend stops the live view, until somebody tries again", async () => {
  let broken = true;
  const { store, fake } = await signedIn((made) => ({
    ...made,
    async *watch(signal) {
      for await (const snapshot of made.watch(signal)) {
        if (snapshot.version === "2" && broken) {
          throw new FakeError("permission_denied", "no longer");
        }
        yield snapshot;
      }
    },
  }));
  fake.show({ ...fake.snapshot(), version: "2" });
  const state = await until(store, "it has stopped", ({ live }) => live.kind === "stopped");
  assert.equal(state.phase, "signed-in");
  broken = false;
  store.retry();
  await until(store, "it is live", ({ live }) => live.kind === "live");
});

test("signing out closes every connection and forgets everything", async () => {
  const { store } = await signedIn();
  store.openTcp({ node: "nas", host: "", port: 7 });
  const session = get(store).tcp.get("nas");
  assert.ok(session);
  await until(session, "it is open", ({ phase }) => phase === "open");
  store.signOut();
  await until(session, "it is closed", ({ phase }) => phase === "closed");
  const state = get(store);
  assert.equal(state.phase, "signed-out");
  assert.equal(state.mesh, undefined);
  assert.equal(state.tcp.size + state.http.size + state.ways.size + state.reports.size, 0);
});

test("a node is asked for its status once at a time", async () => {
  let asked = 0;
  const { store } = await signedIn((made) => ({
    ...made,
    status: (node, signal) => {
      asked++;
      return made.status(node, signal);
    },
  }));
  store.loadStatus("gateway-1");
  store.loadStatus("gateway-1");
  const state = await until(
    store,
    "it is here",
    ({ reports }) => reports.get("gateway-1")?.loading === false,
  );
  assert.equal(asked, 1);
  assert.equal(state.reports.get("gateway-1")?.status?.role, "leader");
});

test("a node that does not answer keeps its reason while it is asked again", async () => {
  const { store } = await signedIn();
  store.loadStatus("lab-scope");
  const failed = await until(
    store,
    "it failed",
    ({ reports }) => reports.get("lab-scope")?.problem !== undefined,
  );
  assert.equal(failed.reports.get("lab-scope")?.problem?.text, "lab-scope does not answer.");
  store.loadStatus("lab-scope");
  assert.ok(get(store).reports.get("lab-scope")?.loading);
  assert.ok(get(store).reports.get("lab-scope")?.problem);
});

test("the way to a node is followed and measured again", async () => {
  const { store } = await signedIn();
  const steps: string[] = [];
  const stop = store.subscribe(({ ways }) => {
    const way = ways.get("nas");
    const now = way?.step ?? way?.state;
    if (now !== undefined && steps.at(-1) !== now) {
      steps.push(now);
    }
  });
  store.openTcp({ node: "nas", host: "", port: 7 });
  await until(store, "the way is there", ({ ways }) => ways.get("nas")?.state === "connected");
  stop();
  assert.deepEqual(steps, ["signaling", "checking", "securing", "connected"]);
  const session = get(store).tcp.get("nas");
  assert.ok(session);
  await until(session, "it is open", ({ phase }) => phase === "open");
  const before = get(store).ways;
  await store.measure("nas");
  assert.notEqual(get(store).ways, before);
  await store.measure("laptop");
});

test("a new connection to a node closes the one before", async () => {
  const { store } = await signedIn();
  store.openTcp({ node: "nas", host: "", port: 7 });
  const first = get(store).tcp.get("nas");
  assert.ok(first);
  store.openTcp({ node: "nas", host: "", port: 22 });
  await until(first, "it is closed", ({ phase }) => phase === "closed");
  assert.equal(get(store).tcp.get("nas")?.target.port, 22);
});

test("the words of the search are kept", async () => {
  const { store } = await signedIn();
  store.search("web");
  assert.equal(get(store).query, "web");
});
