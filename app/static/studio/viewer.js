/** One job in full: its way there, its pictures, its recipe, and what can be done with it. */

import { comparison } from "./compare.js";
import { byId, element } from "./dom.js";
import { hasEnded } from "./follow.js";
import { paintNoise } from "./noise.js";
import { showProgress } from "./progress.js";
import { facts, pictureRecipe } from "./recipe.js";
import { duration, jobTitle, shortened, taskTitle } from "./words.js";

const COMPARED = new Set(["upscale", "image-to-image", "inpainting"]);

export class Viewer {
  #root = byId("viewer");
  #frame = byId("viewer-pictures");
  #pictures;
  #beginnings;
  #actions;
  #job = null;
  #index = null;
  #isComparing = false;
  #beforeUrl = null;
  #shown = 0;

  /** beginnings(id): what a job began with ({image, mask, margins}), or nothing. actions: see the names below. */
  constructor(pictures, beginnings, actions) {
    this.#pictures = pictures;
    this.#beginnings = beginnings;
    this.#actions = actions;
    for (const button of this.#root.querySelectorAll("[data-action]")) {
      button.addEventListener("click", () => this.#act(button.dataset.action));
    }
    byId("cancel").addEventListener("click", () => actions.cancel(this.#job));
    byId("recipe-use").addEventListener("click", () => actions.use(this.#job, this.#recipe()));
    byId("recipe-copy").addEventListener("click", () => actions.copy(this.#recipe()));
    setInterval(() => this.#tick(), 500);
  }

  get job() {
    return this.#job;
  }

  /** Number of the picture that is looked at; null when it is all of several. */
  get index() {
    return this.#index;
  }

  /** Seed of the picture that is looked at, or null. */
  get seed() {
    return this.#job?.document.images[this.#index ?? 0]?.seed ?? null;
  }

  open(job) {
    this.#job = job;
    this.#root.dataset.job = job.id;
    this.#index = job.document.request.num_images === 1 ? 0 : null;
    this.#isComparing = job.document.task === "upscale";
    byId("recipe").hidden = true;
    this.#show();
  }

  close() {
    this.#job = null;
  }

  /** For who pressed a button that is gone by now. */
  focusActions() {
    this.#button("again").focus();
  }

  /** Something about a job has changed; only the one that is open matters. */
  note(job, what) {
    if (job.id !== this.#job?.id) return;
    if (what === "state") this.#show();
    else if (!hasEnded(job.document)) this.#showWay();
  }

  #act(action) {
    if (action === "compare") this.#toggleCompare();
    else if (action === "recipe") this.#toggleRecipe();
    else if (action !== "download") this.#actions[action](this.#job, this.#index ?? 0);
  }

  #toggleCompare() {
    this.#isComparing = !this.#isComparing;
    this.#showPictures();
  }

  #toggleRecipe() {
    byId("recipe").hidden = !byId("recipe").hidden;
    this.#button("recipe").setAttribute("aria-expanded", String(!byId("recipe").hidden));
    byId("recipe").scrollIntoView({ block: "nearest" });
  }

  #recipe() {
    return this.#index === null ? this.#job.document.request : pictureRecipe(this.#job.document, this.#index);
  }

  #button(action) {
    return this.#root.querySelector(`[data-action="${action}"]`);
  }

  #tick() {
    if (this.#job && !hasEnded(this.#job.document) && !this.#job.gone) showProgress(this.#job);
  }

  // --- what is seen ------------------------------------------------------------------------------------------------

  #show() {
    const { document: told, gone } = this.#job;
    const isOpen = !hasEnded(told) && !gone;
    byId("viewer-progress").hidden = !isOpen;
    this.#showCaption(told);
    this.#showMessage(told, gone);
    this.#showActions(told, gone);
    if (isOpen) this.#showWay();
    else if (gone || !told.images.length) this.#frame.replaceChildren();
    else this.#showPictures();
    this.#showStrip(told, gone);
  }

  #showWay() {
    showProgress(this.#job);
    const { preview } = this.#job;
    const there = this.#frame.firstElementChild;
    if (preview && there?.matches("img.preview")) {
      there.src = preview;
      return;
    }
    if (there?.matches("canvas.preview") && !preview && there.dataset.job === this.#job.id) return;
    this.#frame.replaceChildren(preview ? this.#previewImage(preview) : this.#noise());
  }

  #previewImage(preview) {
    return this.#sized(element("img", { class: "preview", src: preview, alt: "The picture as it is now" }));
  }

  #noise() {
    const { width, height } = this.#size();
    const canvas = element("canvas", { class: "preview", width: Math.min(width, 128), "data-job": this.#job.id });
    canvas.height = Math.max(1, Math.round((canvas.width * height) / width));
    paintNoise(canvas);
    return this.#sized(canvas);
  }

  /** Width and height of the answer as far as it is known. */
  #size() {
    const { images, request } = this.#job.document;
    return images[this.#index ?? 0] ?? request;
  }

  /** As large as there is room, whatever its own size. */
  #sized(node) {
    const { width, height } = this.#size();
    node.style.setProperty("--aspect", width / height);
    node.classList.add("picture");
    return node;
  }

  async #showPictures() {
    const ticket = (this.#shown += 1);
    const job = this.#job;
    const { images } = job.document;
    try {
      const wanted = this.#index === null ? images : [images[this.#index]];
      const urls = await Promise.all(wanted.map(async ({ url }) => (await this.#pictures.fetched(url)).url));
      const before = await this.#beforeOf(job);
      if (ticket !== this.#shown) return; // something else is shown by now
      this.#place(urls, before);
    } catch (error) {
      if (ticket === this.#shown) this.#actions.missing(job, error);
    }
  }

  #place(urls, before) {
    const title = shortened(jobTitle(this.#job));
    const compare = this.#button("compare");
    compare.hidden = !before;
    compare.setAttribute("aria-pressed", String(Boolean(before) && this.#isComparing));
    this.#frame.classList.toggle("several", urls.length > 1);
    this.#spread(urls.length);
    if (this.#index === null) {
      this.#frame.replaceChildren(...urls.map((url, index) => this.#cell(url, title, index)));
      return;
    }
    const after = element("img", { src: urls[0], alt: title });
    const isCompared = before && this.#isComparing;
    const picture = isCompared
      ? comparison(element("img", { src: before, alt: "The picture before" }), after)
      : element("button", { type: "button", class: "enlarge", "aria-label": `${title}: show in full`,
        onclick: () => this.#actions.enlarge(urls[0], title) }, after);
    this.#frame.replaceChildren(this.#sized(picture));
    this.#showDownload(urls[0]);
  }

  #cell(url, title, index) {
    const image = element("img", { src: url, alt: `${title}, picture ${index + 1}` });
    return this.#sized(element("button", { type: "button", class: "cell", onclick: () => this.#choose(index) }, image));
  }

  /** Rows and columns for several pictures. */
  #spread(count) {
    const columns = Math.ceil(Math.sqrt(count));
    this.#frame.style.setProperty("--columns", columns);
    this.#frame.style.setProperty("--rows", Math.ceil(count / columns));
  }

  /** Address of the picture it began with, when the two can be laid over each other. */
  async #beforeOf({ id, document: told }) {
    if (!COMPARED.has(told.task) || this.#index === null) return null;
    const { image, margins } = (await this.#beginnings(id)) ?? {};
    const isExtended = Object.values(margins ?? {}).some((pixels) => pixels > 0);
    if (this.#beforeUrl) URL.revokeObjectURL(this.#beforeUrl);
    this.#beforeUrl = image && !isExtended ? URL.createObjectURL(image) : null;
    return this.#beforeUrl;
  }

  #choose(index) {
    this.#index = index;
    this.#show();
    byId("viewer-strip").querySelector('[aria-pressed="true"]')?.focus(); // what was pressed is drawn anew
  }

  #showStrip(told, gone) {
    const strip = byId("viewer-strip");
    strip.hidden = told.images.length < 2 || Boolean(gone);
    if (strip.hidden) return strip.replaceChildren();
    const button = (index, title) =>
      element("button", { type: "button", class: "quiet small", "aria-pressed": String(index === this.#index),
        onclick: () => this.#choose(index) }, title);
    return strip.replaceChildren(button(null, "All"), ...told.images.map((image, index) => button(index, String(index + 1))));
  }

  #showCaption(told) {
    byId("viewer-title").textContent = shortened(jobTitle(this.#job), 240);
    const { width, height } = this.#size();
    const seconds = told.timings.total_s == null ? null : duration(told.timings.total_s);
    const { num_inference_steps: steps, sampler, model } = told.request;
    const seed = this.#index === null && told.request.num_images > 1 ? null : (this.seed ?? told.request.seed);
    const title = jobTitle(this.#job) === taskTitle(told.task) ? null : taskTitle(told.task);
    const parts = [title, model, `${width} × ${height}`, `${steps} × ${sampler}`, seed != null && `seed ${seed}`, seconds];
    byId("viewer-facts").replaceChildren(...parts.filter(Boolean).map((part) => element("span", {}, part)));
    byId("viewer-warnings").hidden = told.warnings.length === 0;
    byId("viewer-warnings").replaceChildren(...told.warnings.map((warning) => element("li", {}, warning)));
    const rows = facts(this.#recipe()).flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, String(value))]);
    byId("recipe-facts").replaceChildren(...rows);
  }

  #showMessage(told, gone) {
    const message = byId("viewer-message");
    const [title, words] = messageOf(told, gone);
    message.hidden = !title;
    message.replaceChildren(element("h3", {}, title), element("p", {}, words));
  }

  #showActions(told, gone) {
    const hasPictures = told.images.length > 0 && !gone;
    const isSingle = hasPictures && this.#index !== null;
    const hasEndedSomehow = hasEnded(told) || Boolean(gone);
    for (const action of ["again", "vary", "erase"]) this.#button(action).hidden = !hasEndedSomehow;
    for (const action of ["image-to-image", "inpainting", "upscale", "download"]) {
      this.#button(action).hidden = !isSingle || !this.#actions.canGoOn(action);
    }
    this.#button("compare").hidden = true;
    this.#button("recipe").setAttribute("aria-expanded", String(!byId("recipe").hidden));
    for (const group of this.#root.querySelectorAll(".actions .tool-group")) {
      group.hidden = [...group.children].every((child) => child.hidden);
    }
  }

  #showDownload(url) {
    const { id, document: told } = this.#job;
    const extension = told.request.output_format === "jpeg" ? "jpg" : told.request.output_format;
    byId("download").href = url;
    byId("download").download = `denoised-${id.slice(0, 12)}-${id.slice(12, 20)}-${this.#index}.${extension}`;
  }
}

function messageOf(told, gone) {
  if (gone) return ["No longer there", `${gone} The recipe is still here.`];
  if (told.status === "failed") return ["It failed", told.error?.detail ?? "The server did not say why."];
  if (told.status === "canceled") return ["Canceled", "Nothing was kept. The recipe is still here."];
  return ["", ""];
}
