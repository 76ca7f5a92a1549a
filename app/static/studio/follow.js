/**
 * Following a job to its end, whatever the network does.
 *
 * A browser opens six connections to a server at once, all tabs together. So a page holds a few event streams, and
 * looks at the other jobs every now and then; a hidden page only looks. One stream is kept for the job that is on show.
 */

import { NetworkLost, pause, Problem } from "./api.js";
import { serverSentEvents } from "./events.js";
import { readExact } from "./exact_json.js";

const MAX_STREAMS = 3;
const LOOK_EVERY_MS = 1500;
const SHORTEST_WAIT_MS = 500;
const LONGEST_WAIT_MS = 8000;
const ENDED = new Set(["succeeded", "failed", "canceled"]);

export function hasEnded(document) {
  return ENDED.has(document.status);
}

export class Follower {
  #api;
  /** Id of a job -> what ends its stream. */
  #streams = new Map();
  #shown = null;

  constructor(api) {
    this.#api = api;
  }

  /** This job is on show now: its stream comes before those of others. */
  show(id) {
    if (this.#streams.size === MAX_STREAMS && !this.#streams.has(id)) this.#streams.get(this.#shown)?.abort();
    this.#shown = id;
  }

  #canListen(id) {
    return !document.hidden && this.#streams.size < (id === this.#shown ? MAX_STREAMS : MAX_STREAMS - 1);
  }

  /** Resolves when the job has ended or is gone; report(event, data) hears of everything on the way. */
  async follow(id, report, signal) {
    let waitMs = SHORTEST_WAIT_MS;
    while (!signal.aborted) {
      try {
        if (await (this.#canListen(id) ? this.#listen(id, report, signal) : this.#look(id, report, signal))) return;
        waitMs = SHORTEST_WAIT_MS;
      } catch (error) {
        if (signal.aborted) return;
        if (isGone(error)) return report("gone", { code: error.code, detail: error.message });
        if (!isPassing(error)) throw error;
        report("lost", { detail: error.message });
        await pause(waitMs, signal);
        waitMs = Math.min(2 * waitMs, LONGEST_WAIT_MS);
      }
    }
  }

  /** Reads the stream as long as it lasts. True when the job came to its end. */
  async #listen(id, report, signal) {
    const stop = new AbortController();
    this.#streams.set(id, stop);
    try {
      const answer = await this.#api.events(id, AbortSignal.any([signal, stop.signal]));
      for await (const { event, data } of serverSentEvents(answer.body)) {
        report(event, readExact(data));
        if (event === "end" || event === "gone") return true;
        if (document.hidden) return false;
      }
      return false;
    } catch (error) {
      if (stop.signal.aborted) return false; // somebody else's turn
      throw error;
    } finally {
      this.#streams.delete(id);
    }
  }

  /** One look. True when the job came to its end. */
  async #look(id, report, signal) {
    const found = await this.#api.job(id);
    report(hasEnded(found) ? "end" : "status", found);
    if (hasEnded(found)) return true;
    const { eta_s, queue_position, progress } = found;
    report("progress", { ...(progress ?? { step: 0, steps: 0 }), eta_s, queue_position });
    await pause(LOOK_EVERY_MS, signal);
    return false;
  }
}

export function isGone(error) {
  return error instanceof Problem && (error.status === 404 || error.status === 410);
}

/** A stream that is cut raises a TypeError in the reader. */
function isPassing(error) {
  return error instanceof NetworkLost || error instanceof TypeError || [429, 503].includes(error.status);
}
