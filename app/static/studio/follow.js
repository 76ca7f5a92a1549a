/**
 * Following a job to its end, whatever the network does.
 *
 * A browser opens six connections to a server at once, all tabs together. So a page holds a few event streams, and
 * looks at the other jobs every now and then; a hidden page only looks.
 */

import { NetworkLost, pause, Problem } from "./api.js";
import { serverSentEvents } from "./events.js";
import { readExact } from "./exact_json.js";

const MAX_STREAMS = 2;
const LOOK_EVERY_MS = 1500;
const SHORTEST_WAIT_MS = 500;
const LONGEST_WAIT_MS = 8000;
const ENDED = new Set(["succeeded", "failed", "canceled"]);

export function hasEnded(document) {
  return ENDED.has(document.status);
}

export class Follower {
  #api;
  #openStreams = 0;

  constructor(api) {
    this.#api = api;
  }

  /** Resolves when the job has ended or is gone; report(event, data) hears of everything on the way. */
  async follow(id, report, signal) {
    let waitMs = SHORTEST_WAIT_MS;
    while (!signal.aborted) {
      const canListen = this.#openStreams < MAX_STREAMS && !document.hidden;
      try {
        if (await (canListen ? this.#listen(id, report, signal) : this.#look(id, report, signal))) return;
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
    this.#openStreams += 1;
    try {
      const answer = await this.#api.events(id, signal);
      for await (const { event, data } of serverSentEvents(answer.body)) {
        report(event, readExact(data));
        if (event === "end" || event === "gone") return true;
        if (document.hidden) return false;
      }
      return false;
    } finally {
      this.#openStreams -= 1;
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
