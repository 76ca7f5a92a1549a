/**
 * The jobs of this browser: begun, followed, remembered.
 *
 * A job is {id, document, gone, progress, preview, isLost}: the first three are remembered, the others are news.
 */

import { NetworkLost } from "./api.js";
import { createFollower, hasEnded, isGone } from "./follow.js";

const MOST_REMEMBERED = 300;
const LOOKS_AT_ONCE = 2;

/** onChange(job, what): what is "added", "progress", "state" or "removed". */
export function createJobs(api, database, onChange) {
  const jobs = new Map();
  const follow = createFollower(api);
  const followed = new Map();

  function remember(job) {
    const { id, document, gone } = job;
    database.jobs.put({ id, document, gone }).catch(() => {}); // a full disk costs the memory, not the picture
  }

  function begin(document, gone = null) {
    const job = { id: document.id, document, gone, progress: null, preview: null, isLost: false };
    jobs.set(job.id, job);
    onChange(job, "added");
    if (!hasEnded(document) && !gone) keepFollowing(job);
    return job;
  }

  function keepFollowing(job) {
    const controller = new AbortController();
    followed.set(job.id, controller);
    follow(job.id, (event, data) => note(job, event, data), controller.signal)
      .catch((error) => note(job, "lost", { detail: error.message }))
      .finally(() => followed.delete(job.id));
  }

  function note(job, event, data) {
    const wasLost = job.isLost;
    job.isLost = event === "lost";
    if (event === "progress") job.progress = { ...data, at: performance.now() };
    if (event === "preview") job.preview = data.image;
    if (event === "status" || event === "end") job.document = data;
    if (event === "end") job.preview = null;
    if (event === "gone") job.gone = data.detail;
    if (event === "end" || event === "gone") remember(job);
    const isState = ["status", "end", "gone"].includes(event) || wasLost !== job.isLost;
    onChange(job, isState ? "state" : "progress");
  }

  function forget(id) {
    const job = jobs.get(id);
    followed.get(id)?.abort();
    jobs.delete(id);
    database.jobs.delete(id).catch(() => {});
    database.sources.delete(id).catch(() => {});
    if (job) onChange(job, "removed");
  }

  /** Looks whether the server still has what ended earlier; says so where it has not. */
  async function lookAgain(ended) {
    for (let job = ended.shift(); job; job = ended.shift()) {
      try {
        note(job, "end", await api.job(job.id));
      } catch (error) {
        if (isGone(error)) note(job, "gone", { detail: error.message });
        else if (error instanceof NetworkLost) return;
      }
    }
  }

  return {
    get: (id) => jobs.get(id),
    all: () => newestFirst([...jobs.values()]),
    add(document) {
      const job = begin(document);
      remember(job);
      return job;
    },
    forget,
    markGone: (job, detail) => note(job, "gone", { detail }),
    /** What was remembered; jobs that were not done are followed again. */
    async load() {
      const known = newestFirst(await database.jobs.all());
      known.slice(MOST_REMEMBERED).forEach(({ id }) => forget(id));
      const kept = known.slice(0, MOST_REMEMBERED).reverse();
      const ended = kept.map(({ document, gone }) => begin(document, gone)).filter(isKept);
      Array.from({ length: LOOKS_AT_ONCE }, () => lookAgain(ended));
    },
    async cancel(job) {
      const document = await api.remove(job.id);
      if (document) note(job, "end", document);
    },
    /** On the server and here. */
    async erase(job) {
      try {
        if (!job.gone) await api.remove(job.id);
      } catch (error) {
        if (!isGone(error)) throw error;
      }
      forget(job.id);
    },
  };
}

/** Ids begin with their time. */
function newestFirst(jobs) {
  return jobs.sort((one, other) => (one.id < other.id ? 1 : -1));
}

function isKept(job) {
  return hasEnded(job.document) && !job.gone;
}
