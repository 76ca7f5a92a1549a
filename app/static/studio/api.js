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

export class Api {
  #keyring;
  #onReach;

  /**
   * keyring: `key` and `ask(problem)`, which resolves to whether there is a new key.
   * onReach(isReached): told after each request.
   */
  constructor(keyring, onReach) {
    this.#keyring = keyring;
    this.#onReach = onReach;
  }

  async models() {
    return documentOf(await this.#request("/models"));
  }

  async job(id) {
    return documentOf(await this.#request(`/jobs/${id}`));
  }

  async picture(path) {
    return (await this.#request(path)).blob();
  }

  /** The answer whose body is the job's event stream. */
  events(id, signal) {
    return this.#request(`/jobs/${id}/events`, { signal });
  }

  /** Sends a form. The same name gives the same job, so it is repeated while the server is not reached; onWait tells. */
  async submit(form, name, onWait) {
    const options = { method: "POST", body: form, headers: { "Idempotency-Key": name } };
    for (let attempt = 1; ; attempt += 1) {
      try {
        return await documentOf(await this.#request("/generate", options));
      } catch (error) {
        if (!(error instanceof NetworkLost) || attempt === ATTEMPTS) throw error;
        onWait();
        await pause(FIRST_WAIT_MS * 2 ** attempt);
      }
    }
  }

  /** The document of the job, canceled unless it had ended. */
  async cancel(id) {
    return documentOf(await this.#request(`/jobs/${id}/cancel`, { method: "POST" }));
  }

  /** Erases a job that has ended; cancels any other. */
  async erase(id) {
    await this.#request(`/jobs/${id}`, { method: "DELETE" });
  }

  /** The answer of a request that was not refused. Asks for a key where one is wanted. */
  async #request(path, options = {}) {
    for (;;) {
      const answer = await this.#fetch(path, options);
      if (answer.ok) return answer;
      const problem = await problemOf(answer);
      if (problem.status !== 401 || !(await this.#keyring.ask(problem))) throw problem;
    }
  }

  async #fetch(path, options) {
    const key = this.#keyring.key;
    const headers = { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
    try {
      const answer = await fetch(path, { ...options, headers, credentials: "omit" });
      this.#onReach(true);
      return answer;
    } catch (error) {
      if (error.name === "AbortError") throw error;
      this.#onReach(false);
      throw new NetworkLost("The server cannot be reached.");
    }
  }
}

async function documentOf(answer) {
  return readExact(await answer.text());
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
