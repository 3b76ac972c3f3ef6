// SPDX-License-Identifier: Apache-2.0

import assert from "node:assert/strict";
import { suite, test } from "node:test";
import { Code, ConnectError } from "@connectrpc/connect";
import { abortError, MeshgateError } from "./error.js";

suite("MeshgateError.from", () => {
  test("keeps what it is", () => {
    const error = new MeshgateError("not_found", "no such node");
    assert.equal(MeshgateError.from(error), error);
    assert.equal(MeshgateError.from(new ConnectError("x", Code.Aborted, undefined, undefined, error)), error);
  });

  test("names the codes of RPCs", () => {
    for (const [word, rpc] of Object.entries(Code)) {
      if (typeof rpc === "number") {
        const error = MeshgateError.from(new ConnectError("why", rpc));
        assert.equal(error.code, word.replace(/(?!^)[A-Z]/g, (letter) => `_${letter}`).toLowerCase());
        assert.equal(error.message, "why");
        assert.ok(error.cause instanceof ConnectError);
      }
    }
  });

  test("understands aborts, timeouts and the rest", () => {
    const timeout = new DOMException("late", "TimeoutError");
    const cases: [unknown, string, string][] = [
      [new DOMException("stop", "AbortError"), "canceled", "stop"],
      [timeout, "deadline_exceeded", "late"],
      [
        new ConnectError("x", Code.Canceled, undefined, undefined, timeout),
        "deadline_exceeded",
        "the operation took too long",
      ],
      [new RangeError("far out"), "unknown", "far out"],
      ["a string", "unknown", "a string"],
      [undefined, "unknown", "undefined"],
    ];
    for (const [reason, code, message] of cases) {
      const error = MeshgateError.from(reason);
      assert.deepEqual([error.code, error.message], [code, message]);
      assert.equal(error.name, "MeshgateError");
      assert.ok(error instanceof Error);
    }
  });

  test("tells a caller's abort from a deadline", () => {
    assert.equal(abortError(AbortSignal.abort()).code, "canceled");
    assert.equal(
      abortError(AbortSignal.abort(new DOMException("late", "TimeoutError"))).code,
      "deadline_exceeded",
    );
    const error = new MeshgateError("unavailable", "gone");
    assert.equal(abortError(AbortSignal.abort(error)), error);
  });
});
