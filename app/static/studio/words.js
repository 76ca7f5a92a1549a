/** Figures as people say them. */

/** Seconds: "0.7 s", "42 s", "3 min 20 s". */
export function duration(seconds) {
  if (seconds < 9.95) return `${Math.max(0, seconds).toFixed(1)} s`;
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  const minutes = Math.floor(whole / 60);
  if (minutes < 60) return `${minutes} min ${whole % 60} s`;
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

export function plural(count, one, many) {
  return `${count.toLocaleString("en")} ${count === 1 ? one : many}`;
}

/** A moment of an ISO date: the time of today, else day and time. */
export function moment(text) {
  const date = new Date(text);
  const isToday = date.toDateString() === new Date().toDateString();
  const day = isToday ? {} : { day: "numeric", month: "short" };
  return date.toLocaleString(undefined, { ...day, hour: "2-digit", minute: "2-digit" });
}

const TASK_TITLES = {
  "text-to-image": "From text",
  "image-to-image": "From a picture",
  inpainting: "Inpainting",
  upscale: "Enlarged",
};

export function taskTitle(task) {
  return TASK_TITLES[task] ?? task;
}

/** What a job shows, in a few words: its prompt, or its task when it has none. */
export function jobTitle(job) {
  return job.document.request.prompt || taskTitle(job.document.task);
}

/** The first part of a text, for names. */
export function shortened(text, characters = 80) {
  return text.length > characters ? `${text.slice(0, characters - 1).trimEnd()}…` : text;
}
