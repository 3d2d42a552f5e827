// Short messages at the edge of the window. A failure always carries the API's message and the request id.
import { toast } from "svelte-sonner";
import { asApiError, isAbort } from "../api/client";

export interface ToastAction {
  label: string;
  run: () => void;
}

const FAILURE_MS = 12_000;

export const toasts = {
  success: (text: string, action?: ToastAction, description?: string) =>
    toast.success(text, { ...actionOf(action), ...(description === undefined ? {} : { description }) }),
  info: (text: string, action?: ToastAction, more: { description?: string; duration?: number; id?: string } = {}) =>
    toast.info(text, { ...actionOf(action), ...more }),
  /** `what` says what did not work, such as "Cannot pause demo". A call that its caller cancelled shows nothing. */
  failure: (what: string, error: unknown) => {
    if (isAbort(error)) return;
    toast.error(what, { description: asApiError(error).said, duration: FAILURE_MS, closeButton: true });
  },
  dismiss: (id?: string | number) => toast.dismiss(id),
};

export type Toasts = typeof toasts;

function actionOf(action?: ToastAction) {
  return action === undefined ? {} : { action: { label: action.label, onClick: action.run } };
}
