// The present, once a second, for ages and remaining times; stands still while nobody sees the page.
import { createSubscriber } from "svelte/reactivity";

const subscribe = createSubscriber((update) => {
  const timer = setInterval(() => {
    if (!document.hidden) update();
  }, 1000);
  document.addEventListener("visibilitychange", update);
  return () => {
    clearInterval(timer);
    document.removeEventListener("visibilitychange", update);
  };
});

/** The time; whatever is drawn from it is drawn anew each second. */
export function now(): Date {
  subscribe();
  return new Date();
}
