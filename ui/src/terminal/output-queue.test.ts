import { describe, expect, it, vi } from "vitest";
import { OutputQueue } from "./output-queue";

function setUp(limit?: number) {
  const writes: { text: string; done: () => void }[] = [];
  const onOverflow = vi.fn();
  const queue = new OutputQueue({
    write: (bytes, done) => writes.push({ text: new TextDecoder().decode(bytes), done }),
    onOverflow,
    ...(limit === undefined ? {} : { limit }),
  });
  const push = (text: string) => queue.push(new TextEncoder().encode(text));
  return { writes, onOverflow, queue, push };
}

describe("OutputQueue", () => {
  it("writes what comes first at once", () => {
    const { writes, push } = setUp();
    push("a");
    expect(writes.map((write) => write.text)).toEqual(["a"]);
  });

  it("joins what comes while a write is on its way", () => {
    const { writes, push } = setUp();
    for (const text of ["a", "b", "c", "d"]) push(text);
    writes[0]?.done();
    expect(writes.map((write) => write.text)).toEqual(["a", "bcd"]);
    writes[1]?.done();
    push("e");
    expect(writes.map((write) => write.text)).toEqual(["a", "bcd", "e"]);
  });

  it("does not write nothing", () => {
    const { writes, push } = setUp();
    push("");
    expect(writes).toEqual([]);
  });

  it("bounds one write, in order", () => {
    const { writes, push } = setUp();
    const big = "x".repeat(100_000);
    for (const text of ["a", big, `${big}y`, "z"]) push(text);
    for (let at = 0; at < writes.length; at += 1) writes[at]?.done();
    expect(writes.map((write) => write.text.length)).toEqual([1, 100_000, 100_002]);
  });

  it("drops what waits when it is too much, and says so", () => {
    const { writes, push, onOverflow } = setUp(10);
    push("12345");
    push("1234567");
    push("1234567");
    expect(onOverflow).toHaveBeenCalledOnce();
    push("new");
    writes[0]?.done();
    expect(writes.map((write) => write.text)).toEqual(["12345", "new"]);
    writes[1]?.done();
    expect(writes).toHaveLength(2);
  });
});
