/** The studio: makes its parts and lets them know of each other. Owns what follows from what, and nothing else. */

import { Api, NetworkLost, pause, Problem } from "./api.js";
import { takesPicture } from "./catalogue.js";
import { createConnection } from "./connection.js";
import { openDatabase } from "./database.js";
import { confirmed, startLightbox } from "./dialogs.js";
import { byId, element } from "./dom.js";
import { createDrawing } from "./drawing.js";
import { startDropping } from "./drop.js";
import { Editor } from "./editor.js";
import { writeExact } from "./exact_json.js";
import { hasEnded, isGone } from "./follow.js";
import { Form } from "./form.js";
import { createFormErrors } from "./form_errors.js";
import { Gallery } from "./gallery.js";
import { Jobs } from "./jobs.js";
import { Keyring } from "./key.js";
import { SIDES } from "./margins.js";
import { paintNoise } from "./noise.js";
import { createNotices } from "./notices.js";
import { createPictures } from "./pictures.js";
import { pictureRecipe, recipeOf } from "./recipe.js";
import { createSettings } from "./settings.js";
import { createSource } from "./source.js";
import { Stage } from "./stage.js";
import { startTheme } from "./theme.js";
import { Viewer } from "./viewer.js";
import { jobTitle, shortened } from "./words.js";

const EXAMPLES = ["a red heart", "a black cat", "a green apple", "a blue car"];
const LOOK_FOR_MODELS_MS = 3000;
const LOOK_FOR_CHANGES_MS = 60_000;

class Studio {
  #database;
  #notices = createNotices();
  #errors = createFormErrors();
  #stage = new Stage();
  #editor = new Editor();
  #keyring = new Keyring();
  #connection = createConnection(() => this.#return());
  #api = new Api(this.#keyring, (isReached) => this.#connection.note(isReached));
  #pictures = createPictures(this.#api);
  #gallery = new Gallery(this.#pictures, (id) => this.#open(this.#jobs.get(id)));
  #jobs;
  #viewer;
  #source;
  #form;
  #draw;
  #models = "";

  constructor(database) {
    this.#database = database;
    this.#jobs = new Jobs(this.#api, database, (job, what) => this.#note(job, what));
    this.#viewer = new Viewer(this.#pictures, (id) => database.sources.get(id), this.#actions());
    this.#source = createSource(database, () => this.#noteSource());
    this.#form = new Form(createSettings(), () => this.#noteForm());
    this.#draw = createDrawing({
      api: this.#api,
      form: this.#form,
      source: this.#source,
      editor: this.#editor,
      jobs: this.#jobs,
      database,
      errors: this.#errors,
    });
    this.#listen();
  }

  async start() {
    paintNoise(byId("empty-noise"));
    if (matchMedia("(max-width: 719px)").matches) byId("settings").open = false;
    await this.#source.restore();
    await this.#jobs.load();
    const { newest } = this.#jobs;
    if (newest && this.#stage.view === "empty") this.#open(newest);
    await this.#loadModels();
    setInterval(() => document.hidden || this.#loadModels(), LOOK_FOR_CHANGES_MS);
  }

  // --- what happens on the page --------------------------------------------------------------------------------------

  #listen() {
    byId("form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#drawAndOpen();
    });
    document.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) byId("form").requestSubmit();
    });
    byId("draw-keys").textContent = navigator.platform.startsWith("Mac") ? "⌘ ↵" : "Ctrl ↵";
    byId("key-button").addEventListener("click", async () => (await this.#keyring.ask()) && location.reload());
    byId("image").addEventListener("change", (event) => this.#begin(event.target.files[0]));
    byId("recipe-file").addEventListener("change", (event) => this.#readRecipe(event.target));
    byId("seed-keep").addEventListener("click", () => this.#form.setMany({ seed: String(this.#viewer.seed) }));
    startDropping((file, place) => (place === "source" ? this.#begin(file) : this.#take(file)));
    byId("examples").append(...EXAMPLES.map((prompt) =>
      element("button", { type: "button", class: "button", onclick: () => this.#drawExample(prompt) }, prompt)));
  }

  #actions() {
    const goOn = (task) => (job, index) => this.#goOn(task, job, index);
    return {
      cancel: (job) => this.#attempt(async () => {
        await this.#jobs.cancel(job);
        this.#viewer.focusActions();
      }),
      again: (job, index) => this.#drawAgain(job, pictureRecipe(job.document, index)),
      vary: (job, index) => this.#drawAgain(job, { ...pictureRecipe(job.document, index), num_images: job.document.request.num_images, seed: null }),
      "image-to-image": goOn("image-to-image"),
      inpainting: goOn("inpainting"),
      upscale: goOn("upscale"),
      use: (job, recipe) => this.#fill(recipe, job),
      copy: (recipe) => this.#copy(recipe),
      erase: (job) => this.#erase(job),
      enlarge: startLightbox(),
      missing: (job, error) => this.#miss(job, error),
      canGoOn: (action) => action === "download" || this.#form.serves(action),
    };
  }

  /** Tells failures of what the user asked for, where there is no field to tell them at. */
  async #attempt(work) {
    try {
      await work();
    } catch (error) {
      if (!(error instanceof Problem || error instanceof NetworkLost)) throw error;
      this.#notices.warn(error.message);
    }
  }

  /** The server is back. */
  #return() {
    this.#gallery.retry();
    this.#loadModels();
  }

  // --- models ------------------------------------------------------------------------------------------------------

  async #loadModels() {
    try {
      const { models } = await this.#api.models();
      if (JSON.stringify(models) !== this.#models) {
        this.#models = JSON.stringify(models);
        this.#form.offer(models);
        if (this.#viewer.job) this.#viewer.note(this.#viewer.job, "state");
      }
      if (models.length) return;
      byId("connection").textContent = "No worker has told its models yet. Looking again …";
    } catch (error) {
      if (error instanceof NetworkLost) return; // the connection asks again
      this.#errors.show(error);
      byId("key-button").hidden = error.status !== 401;
      if (error.status !== 503) return;
    }
    await pause(LOOK_FOR_MODELS_MS);
    await this.#loadModels();
    if (this.#models.length > 2) byId("connection").textContent = "";
  }

  // --- drawing -----------------------------------------------------------------------------------------------------

  async #drawAndOpen() {
    const job = await this.#draw();
    if (!job) return;
    this.#open(job);
    this.#stage.comeIntoSight();
    this.#notices.tell(`Drawing: ${shortened(jobTitle(job), 60)}`);
  }

  #drawExample(prompt) {
    this.#form.chooseTask("text-to-image");
    this.#form.setMany({ prompt });
    this.#drawAndOpen();
  }

  async #drawAgain(job, recipe) {
    await this.#fill(recipe, job);
    await this.#drawAndOpen();
  }

  /** Fills the form with a recipe, and takes what it began with from the job that has it. */
  async #fill(recipe, job = null) {
    this.#errors.clear();
    const hasModel = this.#form.fill(recipe);
    if (!hasModel) {
      this.#notices.warn(`The model ${recipe.model} is not here: ${this.#form.model?.name ?? "another"} will draw instead.`);
    }
    if (!takesPicture(this.#form.task)) return;
    const beginning = job && (await this.#database.sources.get(job.id).catch(() => null));
    if (beginning) {
      await this.#source.use(beginning.image, shortened(jobTitle(job), 40));
      const mask = beginning.mask ? await createImageBitmap(beginning.mask) : null;
      this.#editor.resume(mask, beginning.margins);
    } else if (typeof recipe.image === "string") {
      const margins = Object.fromEntries(SIDES.map((side) => [side, recipe[`outpaint_${side}`] ?? 0]));
      this.#source.refer(recipe.image, recipe.mask_image ?? null, margins);
    }
  }

  // --- pictures that come in ---------------------------------------------------------------------------------------

  /** A file to start from. */
  async #begin(file) {
    if (!file) return;
    try {
      await this.#source.use(file, file.name || "Pasted picture");
    } catch {
      this.#notices.warn(`${file.name || "This"} is no picture that can be read: choose a PNG, a JPEG or a WebP.`);
      return;
    }
    if (!takesPicture(this.#form.task)) this.#form.chooseTask("image-to-image");
  }

  /** A file that may carry a recipe. */
  async #take(file) {
    const recipe = await recipeOf(file);
    if (!recipe) return this.#begin(file);
    await this.#fill(recipe);
    const instead = { title: "Start from the picture", run: () => this.#begin(file) };
    return this.#notices.say(`The form holds the recipe of ${file.name || "the picture"}.`, instead);
  }

  async #readRecipe(input) {
    const [file] = input.files;
    input.value = "";
    if (!file) return;
    if (await recipeOf(file)) await this.#take(file);
    else this.#notices.warn(`There is no recipe in ${file.name}.`, { title: "Start from it", run: () => this.#begin(file) });
  }

  /** A picture that was drawn here becomes the one to start from. */
  async #goOn(task, job, index) {
    await this.#attempt(async () => {
      const { blob } = await this.#pictures.fetched(job.document.images[index].url);
      const hasPrompt = byId("prompt").value.trim() !== "";
      this.#form.chooseTask(task);
      if (!hasPrompt) this.#form.setMany({ prompt: job.document.request.prompt });
      await this.#source.use(blob, shortened(jobTitle(job), 40));
      const next = { inpainting: "mask-canvas", upscale: "draw" }[task] ?? "prompt";
      byId(next).focus({ preventScroll: true });
      byId(task === "inpainting" ? "stage" : "form").scrollIntoView({ block: "start" });
      this.#notices.tell("The picture is the one to start from.");
    });
  }

  // --- jobs --------------------------------------------------------------------------------------------------------

  #open(job) {
    this.#viewer.open(job);
    this.#jobs.show(job.id);
    this.#gallery.choose(job.id);
    this.#stage.showJob(true);
    this.#showSeed();
  }

  #note(job, what) {
    this.#gallery.note(job, what);
    if (what === "added") return;
    if (what === "removed") this.#closeIfOpen(job);
    this.#viewer.note(job, what);
    if (what === "state") this.#tellEnd(job);
    this.#showSeed();
  }

  #closeIfOpen(job) {
    this.#pictures.forget(job.document);
    if (this.#viewer.job?.id !== job.id) return;
    this.#viewer.close();
    const { newest } = this.#jobs;
    if (newest) this.#open(newest);
    else this.#stage.showJob(false);
    byId(newest ? "viewer-title" : "prompt").focus();
  }

  /** Says once how a job ended that was begun or followed in this page. */
  #tellEnd(job) {
    if (!job.progress || !hasEnded(job.document)) return;
    job.progress = null;
    const title = shortened(jobTitle(job), 60);
    const words = { succeeded: "Finished", failed: "Failed", canceled: "Canceled" }[job.document.status];
    this.#notices.tell(`${words}: ${title}`);
    if (job.document.status === "failed" && job.id !== this.#viewer.job?.id) {
      this.#notices.warn(`${title}: ${job.document.error?.detail}`, { title: "Show", run: () => this.#open(job) });
    }
  }

  async #erase(job) {
    const hasPictures = job.document.images.length > 0 && !job.gone;
    const question = "The pictures and the recipe of this job will be gone from the server and from here.";
    if (hasPictures && !(await confirmed(question, "Erase"))) return;
    await this.#attempt(() => this.#jobs.erase(job));
  }

  #miss(job, error) {
    if (isGone(error)) this.#jobs.markGone(job, error.message);
    else this.#notices.warn(error.message);
  }

  async #copy(recipe) {
    try {
      await navigator.clipboard.writeText(writeExact(recipe, 2));
      this.#notices.say("Copied: send it to POST /generate.");
    } catch {
      this.#notices.warn("This browser gives no access to the clipboard here.");
    }
  }

  // --- what follows from what --------------------------------------------------------------------------------------

  #noteSource() {
    this.#editor.open(this.#source.current);
    this.#offerEditor();
    this.#stage.showEditor();
  }

  #noteForm() {
    byId("draw").firstElementChild.textContent = this.#form.task === "upscale" ? "Enlarge" : "Draw";
    this.#offerEditor();
  }

  #offerEditor() {
    this.#stage.offerEditor(this.#form?.task === "inpainting" && Boolean(this.#source?.current?.bitmap));
  }

  #showSeed() {
    byId("seed-keep").hidden = this.#viewer.seed === null;
  }
}

startTheme(byId("theme-button"));
openDatabase().then((database) => new Studio(database).start());
