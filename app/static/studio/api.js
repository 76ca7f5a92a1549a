/** The native API over HTTP. Owns requests, refusals and the key; knows nothing of the page. */

import { readExact } from "./exact_json.js";

const ATTEMPTS = 5;
const FIRST_WAIT_MS = 500;

/** The server refused, and says why. */
export class Problem extends Error {
  constructor(document, retryAfterS = null) {
    super(document.detail);
    this.code = document.code;
    this.status = document.status;
    this.title = document.title;
    this.errors = document.errors ?? [];
    this.retryAfterS = retryAfterS;
  }
}

/** No answer came: the server is down, or the network is. */
export class NetworkLost extends Error {}

export function pause(milliseconds, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, milliseconds);
    signal?.addEventListener("abort", () => resolve(clearTimeout(timer)), { once: true });
  });
}

/** A name for a request that may be sent again. Not crypto.randomUUID: plain HTTP on a network has none. */
export function requestName() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/**
 * keyring: `key` and `ask(problem)`, which resolves to whether there is a new key.
 * onReach: told after each request whether the server was reached.
 */
export function createApi(keyring, onReach) {
  async function fetchOnce(path, options) {
    const headers = { ...options.headers };
    if (keyring.key) headers.Authorization = `Bearer ${keyring.key}`;
    try {
      const answer = await fetch(path, { ...options, headers, credentials: "omit" });
      onReach(true);
      return answer;
    } catch (error) {
      if (error.name === "AbortError") throw error;
      onReach(false);
      throw new NetworkLost("The server cannot be reached.");
    }
  }

  /** The answer of a request that was not refused. Asks for a key where one is wanted. */
  async function request(path, options = {}) {
    for (;;) {
      const answer = await fetchOnce(path, options);
      if (answer.ok) return answer;
      const problem = await problemOf(answer);
      if (problem.status !== 401 || !(await keyring.ask(problem))) throw problem;
    }
  }

  /** Repeats what is safe to repeat until the server is reached again. */
  async function patiently(path, options, onWait) {
    for (let attempt = 1; ; attempt += 1) {
      try {
        return await request(path, options);
      } catch (error) {
        if (!(error instanceof NetworkLost) || attempt === ATTEMPTS) throw error;
        onWait(attempt);
        await pause(FIRST_WAIT_MS * 2 ** attempt);
      }
    }
  }

  const document = async (answer) => readExact(await answer.text());

  return {
    models: async () => document(await request("/models")),
    job: async (id) => document(await request(`/jobs/${id}`)),
    picture: async (path) => (await request(path)).blob(),
    events: (id, signal) => request(`/jobs/${id}/events`, { signal }),
    /** A form; the same name gives the same job, however often it is sent. */
    submit: async (form, name, onWait) =>
      document(await patiently("/generate", { method: "POST", body: form, headers: named(name) }, onWait)),
    /** The job's document when it was canceled, null when it was erased. */
    remove: async (id) => {
      const answer = await request(`/jobs/${id}`, { method: "DELETE" });
      return answer.status === 204 ? null : document(answer);
    },
  };
}

function named(name) {
  return { "Idempotency-Key": name };
}

async function problemOf(answer) {
  const retryAfterS = Number(answer.headers.get("Retry-After")) || null;
  try {
    return new Problem(await answer.json(), retryAfterS);
  } catch {
    const detail = `The answer ${answer.status} came from something between here and the server.`;
    return new Problem({ code: "unreadable", status: answer.status, title: "No readable answer", detail }, retryAfterS);
  }
}
