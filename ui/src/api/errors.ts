// What can go wrong between the page and the API. The page switches on `code`, never on the text.

/** The code of an error that never reached the server, or whose answer never came. */
export const UNREACHABLE = "UNREACHABLE";

export interface ErrorFacts {
  /** 0 when no answer came. */
  status: number;
  code: string;
  message: string;
  /** The name of the field that is wrong. */
  field?: string | undefined;
  /** Under which the server's log has more. */
  requestId?: string | undefined;
  retryAfterMs?: number | undefined;
  details?: Record<string, unknown> | undefined;
}

/** What the API refused, with the contract's stable code. */
export class ApiError extends Error {
  readonly status: number;
  readonly code: string;
  readonly field: string | undefined;
  readonly requestId: string | undefined;
  readonly retryAfterMs: number | undefined;
  readonly details: Record<string, unknown>;

  constructor(facts: ErrorFacts) {
    super(facts.message);
    this.name = "ApiError";
    this.status = facts.status;
    this.code = facts.code;
    this.field = facts.field;
    this.requestId = facts.requestId;
    this.retryAfterMs = facts.retryAfterMs;
    this.details = facts.details ?? {};
  }

  /** For people: the message, and under which id the server's log has more. */
  get said(): string {
    return this.requestId === undefined ? this.message : `${this.message} (request ${this.requestId})`;
  }

  /** The server did not answer at all. */
  get unreachable(): boolean {
    return this.code === UNREACHABLE;
  }
}

/** True for a call that its own caller cancelled: no failure, nothing to show. */
export function isAbort(error: unknown): boolean {
  return error instanceof DOMException && error.name === "AbortError";
}

/** Whatever was thrown, as an ApiError. */
export function asApiError(error: unknown): ApiError {
  if (error instanceof ApiError) return error;
  const message = error instanceof Error ? error.message : String(error);
  return new ApiError({ status: 0, code: "UNKNOWN", message });
}

/** The error in an answer's body, if there is one: a long call is answered before its outcome is known, so an error can
 * come with a good status too. */
export function errorIn(answer: unknown, status: number, requestId: string | null): ApiError | null {
  if (!isRecord(answer) || !isRecord(answer.error)) return null;
  const { code, message, details, request_id, retry_after_ms } = answer.error;
  const facts = isRecord(details) ? details : {};
  return new ApiError({
    status,
    code: typeof code === "string" ? code : "UNKNOWN",
    message: typeof message === "string" ? message : `HTTP ${status}`,
    field: typeof facts.field === "string" ? facts.field : undefined,
    requestId: requestId ?? (typeof request_id === "string" ? request_id : undefined),
    retryAfterMs: typeof retry_after_ms === "number" ? retry_after_ms : undefined,
    details: facts,
  });
}

export function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
