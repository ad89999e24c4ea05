// Asks the service: keeps up with what changes, and drops what has been overtaken.
import { jsonOf } from "./state.js";

const INTERVAL_MS = 80;
const MOST_IN_FLIGHT = 3;

const api = (path) => new URL(path, document.baseURI).href;

export const GRADIENT_URL = api("v1/cross-entropy/gradient");
export const LOSS_URL = api("v1/cross-entropy");
export const SOFTMAX_URL = api("v1/softmax");

/** Return an answer with "Infinity", "-Infinity" and "NaN" as numbers. */
const numbers = (value) => {
  if (Array.isArray(value)) return value.map(numbers);
  return typeof value === "string" ? Number(value) : value;
};

/** Post a body; return { answer } or { problem }, where a problem has `detail` at least. */
async function post(url, body, key, signal) {
  const headers = { "Content-Type": "application/json" };
  if (key) headers.Authorization = `Bearer ${key}`;
  let response;
  try {
    response = await fetch(url, { method: "POST", headers, body: jsonOf(body), signal });
    const content = await response.json();
    if (response.ok) {
      return { answer: Object.fromEntries(Object.entries(content).map(([name, value]) => [name, numbers(value)])) };
    }
    return { problem: { ...content, seconds: Number(response.headers.get("Retry-After")) || 0 } };
  } catch (error) {
    if (error.name === "AbortError") throw error;
    const detail = response
      ? `The answer (status ${response.status}) cannot be read.`
      : "The service cannot be reached; the page tries again.";
    return { problem: { status: response?.status ?? 0, detail, seconds: response ? 0 : 3 } };
  }
}

/**
 * Sends rounds of requests, at most one in 80 ms, the newest state always last. An answer that comes after a newer one
 * is never shown: what is older than what is shown is cancelled.
 */
export class Live {
  #questions;
  #onround;
  #key = null;
  #isWaitingForKey;
  #timer = null;
  #sentAt = -Infinity;
  #number = 0;
  #shown = 0;
  #inFlight = new Map();
  #hasChanged = false;
  #onbusy;

  /**
   * `questions()` names what to ask, { name: [url, body] }; `onround` gets { name: { answer } or { problem } };
   * `onbusy` is told whether what is shown is older than what was changed last.
   */
  constructor(questions, onround, { onbusy, isWaitingForKey }) {
    this.#questions = questions;
    this.#onround = onround;
    this.#onbusy = onbusy;
    this.#isWaitingForKey = isWaitingForKey;
  }

  /** Whether requests carry a key, or must. */
  get hasKey() {
    return this.#isWaitingForKey || this.#key !== null;
  }

  useKey(key) {
    this.#key = key;
    this.#isWaitingForKey = false;
    this.changed();
  }

  changed() {
    if (this.#isWaitingForKey) return;
    this.#hasChanged = true;
    this.#onbusy(true);
    this.#schedule(Math.max(0, this.#sentAt + INTERVAL_MS - performance.now()));
  }

  /** Drop what is on its way: it answers a question of another shape. */
  forget() {
    this.#cancelUpTo(this.#number);
  }

  #schedule(milliseconds) {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#send(), milliseconds);
  }

  async #send() {
    const number = ++this.#number;
    this.#hasChanged = false;
    this.#sentAt = performance.now();
    if (this.#inFlight.size >= MOST_IN_FLIGHT) this.#cancelUpTo(Math.min(...this.#inFlight.keys()));
    const controller = new AbortController();
    this.#inFlight.set(number, controller);
    const questions = Object.entries(this.#questions());
    try {
      const replies = await Promise.all(
        questions.map(([, [url, body]]) => post(url, body, this.#key, controller.signal)),
      );
      if (number > this.#shown) this.#show(number, Object.fromEntries(questions.map(([name], i) => [name, replies[i]])));
    } catch (error) {
      if (error.name !== "AbortError") throw error;
    } finally {
      this.#inFlight.delete(number);
    }
  }

  #show(number, round) {
    this.#shown = number;
    this.#cancelUpTo(number - 1);
    const problems = Object.values(round).flatMap(({ problem }) => problem ?? []);
    if (problems.some(({ status }) => status === 401)) this.#isWaitingForKey = true;
    const seconds = Math.max(0, ...problems.map((problem) => problem.seconds));
    if (seconds && number === this.#number) this.#schedule(seconds * 1000);
    this.#onround(round);
    this.#onbusy(this.#hasChanged || this.#shown < this.#number);
  }

  #cancelUpTo(last) {
    for (const [number, controller] of this.#inFlight) if (number <= last) controller.abort();
  }
}
