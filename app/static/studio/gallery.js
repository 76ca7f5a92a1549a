/** The list of this browser's jobs, newest first, a tile each. */

import { byId, element, icon } from "./dom.js";
import { hasEnded } from "./follow.js";
import { progressShare, progressWords } from "./progress.js";
import { jobTitle, moment, shortened, taskTitle } from "./words.js";

const STATES = { failed: "Failed", canceled: "Canceled" };

export class Gallery {
  #list = byId("gallery-list");
  #tiles = new Map();
  #pictures;
  #onChoose;
  #chosen = null;
  #sight;

  /** onChoose(id): a tile was clicked. */
  constructor(pictures, onChoose) {
    this.#pictures = pictures;
    this.#onChoose = onChoose;
    this.#sight = new IntersectionObserver((entries) => this.#see(entries), { rootMargin: "300px" });
  }

  /** What is to be known about a job has changed. */
  note(job, what) {
    if (what === "added") this.#add(job);
    const tile = this.#tiles.get(job.id);
    if (what === "removed") this.#remove(tile, job.id);
    else if (what === "progress") this.#showProgress(tile, job);
    else this.#show(tile, job);
    byId("gallery-empty").hidden = this.#tiles.size > 0;
  }

  /** Asks again for what could not be fetched: whoever is in sight is told so anew. */
  retry() {
    for (const { item } of this.#tiles.values()) {
      this.#sight.unobserve(item);
      this.#sight.observe(item);
    }
  }

  choose(id) {
    this.#chosen = id;
    for (const [each, { button }] of this.#tiles) button.setAttribute("aria-current", String(each === id));
  }

  #add(job) {
    const face = element("span", { class: "tile-face" });
    const words = element("span", { class: "tile-words" });
    const button = element("button", { type: "button", class: "tile", onclick: () => this.#onChoose(job.id) }, face, words);
    const item = element("li", {}, button);
    this.#tiles.set(job.id, { item, button, face, words, job, isSeen: false });
    this.#list.prepend(item);
    item.dataset.job = job.id;
    this.#sight.observe(item);
  }

  #remove(tile, id) {
    this.#sight.unobserve(tile.item);
    const neighbour = tile.item.nextElementSibling ?? tile.item.previousElementSibling;
    if (tile.item.contains(document.activeElement)) neighbour?.firstElementChild.focus();
    tile.item.remove();
    this.#tiles.delete(id);
  }

  #see(entries) {
    for (const { isIntersecting, target } of entries) {
      const tile = this.#tiles.get(target.dataset.job);
      if (!isIntersecting || !tile || tile.isSeen) continue;
      tile.isSeen = true;
      this.#show(tile, tile.job);
    }
  }

  #show(tile, job) {
    const { document: told, gone } = job;
    const state = gone ? "Gone" : STATES[told.status];
    const title = shortened(jobTitle(job));
    tile.button.setAttribute("aria-current", String(job.id === this.#chosen));
    tile.button.title = `${title} (${moment(told.created_at)})`;
    const count = told.images.length > 1 ? `, ${told.images.length} pictures` : "";
    tile.words.textContent = `${title}, ${state ?? taskTitle(told.task)}${count}`;
    if (state) tile.face.replaceChildren(icon("close"), state);
    else if (!hasEnded(told)) this.#showProgress(tile, job);
    else if (tile.isSeen) this.#showPicture(tile, told);
  }

  #showProgress(tile, job) {
    if (hasEnded(job.document)) return;
    const preview = job.preview && element("img", { src: job.preview, alt: "" });
    const ring = element("span", { class: "ring" });
    ring.style.setProperty("--share", `${100 * progressShare(job)}%`);
    tile.face.replaceChildren(...[preview, ring].filter(Boolean));
    tile.words.textContent = `${shortened(jobTitle(job))}, ${progressWords(job)}`;
  }

  async #showPicture(tile, told) {
    try {
      const { url } = await this.#pictures.fetched(told.images[0].url);
      const count = told.images.length > 1 && element("span", { class: "tile-count" }, String(told.images.length));
      tile.face.replaceChildren(...[element("img", { src: url, alt: "" }), count].filter(Boolean));
    } catch {
      tile.isSeen = false; // until it comes into sight again; the viewer says what is wrong
    }
  }
}
