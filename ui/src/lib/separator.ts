// What a bar between two panes does with pointer and keys; where the panes are and how large is its owner's.
export type PaneDirection = "row" | "column";

/** Follows the pointer from here until it lets go: each move to `moved`, the end to `over`. */
export function dragSeparator(event: PointerEvent, moved: (event: PointerEvent) => void, over?: () => void): void {
  const bar = event.currentTarget as HTMLElement;
  bar.setPointerCapture(event.pointerId);
  bar.addEventListener("pointermove", moved);
  const end = () => {
    bar.removeEventListener("pointermove", moved);
    over?.();
  };
  bar.addEventListener("lostpointercapture", end, { once: true });
}

/** 1 when an arrow key moves a bar on, -1 when it moves it back, 0 for every other key; its own keys go nowhere else. */
export function separatorStep(event: KeyboardEvent, direction: PaneDirection): -1 | 0 | 1 {
  const [less, more] = direction === "row" ? ["ArrowLeft", "ArrowRight"] : ["ArrowUp", "ArrowDown"];
  if (event.key !== less && event.key !== more) return 0;
  event.preventDefault();
  return event.key === more ? 1 : -1;
}
