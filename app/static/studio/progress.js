/** How far a job is, as a bar and in words. */

import { byId } from "./dom.js";
import { duration, plural } from "./words.js";

/** The words of a job that has not ended. */
export function progressWords(job) {
  if (job.isLost) return "No connection. It goes on without us; looking for it …";
  const { step, steps, queue_position: position, eta_s: eta } = news(job);
  const left = eta == null ? "" : ` · ${duration(Math.max(0, eta - age(job)))} left`;
  if (job.document.status === "queued") {
    if (position == null) return "Waiting for a worker";
    return position === 0 ? `Next in the queue${left}` : `${plural(position, "job", "jobs")} before it${left}`;
  }
  return steps ? `Step ${step} of ${steps}${left}` : `Starting${left}`;
}

function news(job) {
  const { progress, eta_s, queue_position } = job.document;
  return job.progress ?? { ...(progress ?? { step: 0, steps: 0 }), eta_s, queue_position };
}

/** Seconds since the news came, which the estimate does not know of. */
function age(job) {
  return job.progress ? (performance.now() - job.progress.at) / 1000 : 0;
}

/** 0 to 1. */
export function progressShare(job) {
  const { step, steps } = news(job);
  return steps ? step / steps : 0;
}

export function showProgress(job) {
  const words = progressWords(job);
  const bar = byId("progress");
  const { step, steps } = news(job);
  bar.setAttribute("aria-valuemax", String(steps || 1));
  bar.setAttribute("aria-valuenow", String(step));
  bar.setAttribute("aria-valuetext", words);
  bar.classList.toggle("waiting", !steps);
  byId("progress-bar").style.width = `${100 * progressShare(job)}%`;
  byId("progress-words").textContent = words;
}
