/** The form: shows what the chosen model can do, remembers what is chosen, and says it as a request. */

import { chosenModel, meantSampler, modelsFor, samplerOf, takesPicture, TASKS } from "./catalogue.js";
import { createChoices } from "./choices.js";
import { byId, element, within } from "./dom.js";
import { FIELDS, spanOf, USUAL_MOST } from "./fields.js";
import { createSize } from "./size.js";

const DELIVERY = new Set(["output_format", "priority"]);
const BY_NAME = new Map(FIELDS.map((field) => [field.name, field]));

export class Form {
  #root = byId("form");
  #settings;
  #onChange;
  #models = [];
  #size = createSize((width, height) => this.setMany({ width, height }));
  #loras = createChoices("loras", "lora-add", { title: "LoRA", takesPicture: false });
  #controls = createChoices("controls", "control-add", { title: "ControlNet", takesPicture: true });

  /** onChange(): task, model or a value has changed. */
  constructor(settings, onChange) {
    this.#settings = settings;
    this.#onChange = onChange;
    this.#root.addEventListener("input", (event) => this.#note(event.target));
    this.#root.addEventListener("focusout", () => this.model && FIELDS.forEach(({ name }) => this.#showField(name)));
    byId("seed-clear").addEventListener("click", () => this.setMany({ seed: "" }));
    for (const button of this.#root.querySelectorAll("[data-step]")) {
      button.addEventListener("click", () => this.#stepPictures(Number(button.dataset.step)));
    }
  }

  get task() {
    return this.#settings.task;
  }

  /** The document of the model that will draw; null while none serves the task. */
  get model() {
    return chosenModel(this.#models, this.task, this.#settings.modelFor(this.task));
  }

  /** Takes the models that there are. */
  offer(models) {
    this.#models = models;
    this.#show();
  }

  /** Whether some model serves the task. */
  serves(task) {
    return modelsFor(this.#models, task).length > 0;
  }

  chooseTask(task) {
    this.#settings.task = task;
    this.#show();
  }

  /** Values by field, as texts; an empty one leaves the field to the model. */
  setMany(values) {
    for (const [name, value] of Object.entries(values)) this.#set(name, value);
    this.#show();
  }

  /** The request as a form, without its pictures: what was touched and the model offers. */
  body() {
    const body = new FormData();
    body.append("task", this.task);
    if (!this.model) return body;
    body.append("model", this.model.name);
    for (const { name } of FIELDS) {
      const value = name === "prompt" ? this.#valueOf(name) : this.#touched(name);
      if (this.#isShown(name) && value !== undefined) body.append(name, value);
    }
    if (this.#canEnlarge && byId("upscale").checked) body.append("upscaler", byId("upscaler").value);
    if (this.task !== "upscale") body.append("previews", String(byId("previews").checked));
    if (this.#loras.chosen.length) body.append("loras", JSON.stringify(this.#loras.chosen));
    if (this.#controls.chosen.length) body.append("controls", JSON.stringify(this.#controls.chosen));
    return body;
  }

  /** Takes over a request; what it does not say is left to the model. True when the model it names is here. */
  fill(request) {
    this.#settings.task = TASKS.includes(request.task) ? request.task : "text-to-image";
    const isHere = modelsFor(this.#models, this.task).some(({ name }) => name === request.model);
    if (isHere) this.#settings.chooseModel(this.task, request.model);
    const told = this.model ? this.#withKnownSampler(request) : request;
    for (const { name } of FIELDS) {
      if (told[name] != null) this.#set(name, String(told[name]));
      else if (!DELIVERY.has(name)) this.#set(name, "");
    }
    this.#settings.set("shared", "upscale", request.upscaler ? "yes" : "no");
    if (request.upscaler) this.#settings.set("shared", "upscaler", request.upscaler);
    this.#show();
    this.#loras.fill(request.loras);
    this.#controls.fill(request.controls);
    return isHere || !request.model;
  }

  /** The request with its sampler as the model calls it, or without when the model has none of that name. */
  #withKnownSampler(request) {
    const { sampler, noise_schedule, ...others } = request;
    const meant = meantSampler(this.model, sampler ?? "");
    return meant ? { ...others, noise_schedule, ...meant } : others;
  }

  // --- values ------------------------------------------------------------------------------------------------------

  #scopeOf(name) {
    const scopes = { shared: "shared", task: `task:${this.task}`, model: `model:${this.model?.name}` };
    return scopes[BY_NAME.get(name).scope];
  }

  #set(name, value) {
    if (value === "") this.#settings.clear(this.#scopeOf(name), name);
    else this.#settings.set(this.#scopeOf(name), name, value);
  }

  #touched(name) {
    return this.#settings.get(this.#scopeOf(name), name);
  }

  #valueOf(name) {
    return this.#touched(name) ?? String(BY_NAME.get(name).untouched(this.model, this.task));
  }

  #isShown(name) {
    return BY_NAME.get(name).isShown(this.model, this.task);
  }

  get #canEnlarge() {
    return this.task !== "upscale" && this.model.limits.upscalers.length > 0;
  }

  #note(input) {
    if (input.name === "task") this.#settings.task = input.value;
    else if (input.dataset.rangeOf) this.#set(input.dataset.rangeOf, input.value);
    else if (input.id === "model") this.#settings.chooseModel(this.task, input.value);
    else if (input.type === "checkbox") this.#settings.set("shared", input.id, input.checked ? "yes" : "no");
    else if (input.id === "upscaler") this.#settings.set("shared", "upscaler", input.value);
    else if (BY_NAME.has(input.id)) this.#set(input.id, input.value);
    else return;
    if (input.id === "sampler") this.#set("noise_schedule", "");
    this.#show();
  }

  #stepPictures(by) {
    const most = this.model?.limits.max_images ?? 1;
    this.setMany({ num_images: String(Math.min(most, Math.max(1, Number(this.#valueOf("num_images")) + by))) });
  }

  // --- what is seen ------------------------------------------------------------------------------------------------

  #wrapper(name) {
    return within(this.#root, `[data-field="${name}"]`);
  }

  #show() {
    for (const input of this.#root.elements.task) input.checked = input.value === this.task;
    this.#wrapper("image").hidden = !takesPicture(this.task);
    const serving = modelsFor(this.#models, this.task).map(({ name }) => name);
    offer("model", serving, this.model?.name);
    this.#wrapper("model").hidden = serving.length < 2;
    if (this.model) this.#showModel();
    this.#onChange();
  }

  #showModel() {
    const { limits, samplers } = this.model;
    const sampler = samplerOf(this.model, this.#valueOf("sampler"));
    offer("sampler", samplers.map(({ name }) => name));
    offer("noise_schedule", sampler?.noise_schedules ?? []);
    byId("sampler-hint").textContent = sampler?.description.replace(/ \(arXiv.*\)/, "") ?? "";
    FIELDS.forEach(({ name }) => this.#showField(name));
    this.#showEnlarging(limits.upscalers);
    this.#loras.offer(limits.loras);
    this.#controls.offer(limits.controlnets);
    this.#wrapper("loras").hidden = limits.loras.length === 0;
    this.#wrapper("controls").hidden = limits.controlnets.length === 0;
    this.#wrapper("previews").hidden = this.task === "upscale";
    byId("previews").checked = this.#settings.get("shared", "previews") !== "no";
    byId("seed-clear").hidden = this.#touched("seed") === undefined;
    this.#size.show(this.model, this.task);
  }

  #showField(name) {
    const input = byId(name);
    input.closest("[data-field]").hidden = !this.#isShown(name);
    for (const [key, value] of Object.entries(spanOf(name, this.model, this.#valueOf("sampler")))) {
      if (value != null) input[key] = value;
    }
    const isBeingWritten = input === document.activeElement && input.type === "number";
    if (!isBeingWritten && input.value !== this.#valueOf(name)) input.value = this.#valueOf(name);
    this.#showRange(name, input);
  }

  #showRange(name, input) {
    const range = this.#root.querySelector(`[data-range-of="${name}"]`);
    if (!range) return;
    range.min = input.min;
    range.step = input.step;
    range.max = Math.min(USUAL_MOST[name] ?? Infinity, Number(input.max));
    range.value = input.value;
    range.style.setProperty("--share", (range.value - range.min) / (range.max - range.min || 1));
  }

  #showEnlarging(upscalers) {
    this.#wrapper("upscale").hidden = !this.#canEnlarge;
    byId("upscale").checked = this.#settings.get("shared", "upscale") === "yes";
    offer("upscaler", upscalers, this.#settings.get("shared", "upscaler") ?? upscalers[0]);
    byId("upscaler").hidden = upscalers.length < 2 || !byId("upscale").checked;
    const factor = this.#models.find(({ name }) => name === byId("upscaler").value)?.limits.upscale_factor;
    const [width, height] = [this.#valueOf("width"), this.#valueOf("height")].map((side) => factor * side);
    byId("enlarge-hint").textContent = width && height ? `to ${width} × ${height}` : factor ? `${factor} times a side` : "";
  }
}

/** Fills a select with names, and chooses one of them. */
function offer(id, names, chosen = byId(id).value) {
  byId(id).replaceChildren(...names.map((name) => element("option", { value: name }, name)));
  byId(id).value = names.includes(chosen) ? chosen : (names[0] ?? "");
}
