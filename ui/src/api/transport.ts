// HTTP to the API: token, JSON, and errors by code.
import type { Connection } from "./connection";

/** What the API refused, with the contract's stable code. The page switches on `code`, never on the text. */
export class ApiError extends Error {
  constructor(
    readonly status: number,
    readonly code: string,
    message: string,
  ) {
    super(message);
    this.name = "ApiError";
  }
}

export type Send = (method: string, path: string, body?: unknown) => Promise<unknown>;

/** A function that sends one request and gives the answer's `data`. */
export function transport({ base_url, token }: Connection): Send {
  return async (method, path, body) => {
    const headers: Record<string, string> = { authorization: `Bearer ${token}` };
    if (body !== undefined) headers["content-type"] = "application/json";
    const response = await fetch(base_url + path, {
      method,
      headers,
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
    });
    const answer: unknown = response.status === 204 ? {} : await response.json();
    // A long call is answered before its outcome is known, so an error can also come with a good status.
    const error = errorIn(answer);
    if (error !== null || !response.ok) {
      throw new ApiError(response.status, error?.code ?? "UNKNOWN", error?.message ?? `HTTP ${response.status}`);
    }
    return (answer as { data?: unknown }).data;
  };
}

function errorIn(answer: unknown): { code: string; message: string } | null {
  if (typeof answer !== "object" || answer === null || !("error" in answer)) return null;
  return answer.error as { code: string; message: string };
}
