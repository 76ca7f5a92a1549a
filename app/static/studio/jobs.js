/**
 * The jobs of this browser: begun, followed, remembered.
 *
 * A job is {id, document, gone, progress, preview, isLost}: the first three are remembered, the others are news.
 */

import { NetworkLost } from "./api.js";
import { Follower, hasEnded, isGone } from "./follow.js";

const MOST_REMEMBERED = 300;
const LOOKS_AT_ONCE = 2;

export class Jobs {
  #api;
  #database;
  #onChange;
  #follower;
  #jobs = new Map();
  #followed = new Map();

  /** onChange(job, what): what is "added", "progress", "state" or "removed". */
  constructor(api, database, onChange) {
    this.#api = api;
    this.#database = database;
    this.#onChange = onChange;
    this.#follower = new Follower(api);
  }

  get(id) {
    return this.#jobs.get(id);
  }

  get newest() {
    return newestFirst([...this.#jobs.values()])[0];
  }

  /** The job that is on show is followed most closely. */
  show(id) {
    this.#follower.show(id);
  }

  /** A job that was just begun. */
  add(document) {
    const job = this.#begin(document);
    this.#remember(job);
    return job;
  }

  /** What was remembered; jobs that were not done are followed again. */
  async load() {
    const known = newestFirst(await this.#database.jobs.all());
    known.slice(MOST_REMEMBERED).forEach(({ id }) => this.#forget(id));
    const kept = known.slice(0, MOST_REMEMBERED).reverse();
    const ended = kept.map(({ document, gone }) => this.#begin(document, gone)).filter(isKept);
    Array.from({ length: LOOKS_AT_ONCE }, () => this.#lookAgain(ended));
  }

  async cancel(job) {
    this.#note(job, "end", await this.#api.cancel(job.id));
  }

  /** On the server and here. */
  async erase(job) {
    try {
      if (!job.gone) await this.#api.erase(job.id);
    } catch (error) {
      if (!isGone(error)) throw error;
    }
    this.#forget(job.id);
  }

  markGone(job, detail) {
    this.#note(job, "gone", { detail });
  }

  #begin(document, gone = null) {
    const job = { id: document.id, document, gone, progress: null, preview: null, isLost: false };
    this.#jobs.set(job.id, job);
    this.#onChange(job, "added");
    if (!hasEnded(document) && !gone) this.#follow(job);
    return job;
  }

  #follow(job) {
    const controller = new AbortController();
    this.#followed.set(job.id, controller);
    this.#follower
      .follow(job.id, (event, data) => this.#note(job, event, data), controller.signal)
      .catch(() => this.#note(job, "lost"))
      .finally(() => this.#followed.delete(job.id));
  }

  #note(job, event, data) {
    const wasLost = job.isLost;
    job.isLost = event === "lost";
    if (event === "progress") job.progress = { ...data, at: performance.now() };
    if (event === "preview") job.preview = data.image;
    if (event === "status" || event === "end") job.document = data;
    if (event === "end") job.preview = null;
    if (event === "gone") job.gone = data.detail;
    if (event === "end" || event === "gone") this.#remember(job);
    const isState = ["status", "end", "gone"].includes(event) || wasLost !== job.isLost;
    this.#onChange(job, isState ? "state" : "progress");
  }

  #remember({ id, document, gone }) {
    this.#database.jobs.put({ id, document, gone }).catch(() => {}); // a full disk costs the memory, not the picture
  }

  #forget(id) {
    const job = this.#jobs.get(id);
    this.#followed.get(id)?.abort();
    this.#jobs.delete(id);
    this.#database.jobs.delete(id).catch(() => {});
    this.#database.sources.delete(id).catch(() => {});
    if (job) this.#onChange(job, "removed");
  }

  /** Looks whether the server still has what ended earlier; says so where it has not. */
  async #lookAgain(ended) {
    for (let job = ended.shift(); job; job = ended.shift()) {
      try {
        this.#note(job, "end", await this.#api.job(job.id));
      } catch (error) {
        if (isGone(error)) this.markGone(job, error.message);
        else if (error instanceof NetworkLost) return;
      }
    }
  }
}

/** Ids begin with their time. */
function newestFirst(jobs) {
  return jobs.sort((one, other) => (one.id < other.id ? 1 : -1));
}

function isKept(job) {
  return hasEnded(job.document) && !job.gone;
}
