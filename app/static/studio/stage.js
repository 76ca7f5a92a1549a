/** What the stage shows: an invitation, the mask editor, or a job. */

import { byId } from "./dom.js";

const VIEWS = ["empty", "editor", "viewer"];

export class Stage {
  #hasJob = false;
  #canEdit = false;
  #view = "empty";

  constructor() {
    for (const view of ["editor", "viewer"]) {
      byId(`show-${view}`).addEventListener("click", () => this.#turn(view));
    }
  }

  get view() {
    return this.#view;
  }

  /** A job is open, or none is any more. */
  showJob(hasJob) {
    this.#hasJob = hasJob;
    this.#turn(hasJob ? "viewer" : "empty");
  }

  /** There is a picture to paint a mask on, or there is none (any more). */
  offerEditor(canEdit) {
    const isNew = canEdit && !this.#canEdit;
    this.#canEdit = canEdit;
    if (isNew) this.#turn("editor");
    else if (!canEdit && this.#view === "editor") this.#turn(this.#hasJob ? "viewer" : "empty");
    else this.#showTabs();
  }

  showEditor() {
    if (this.#canEdit) this.#turn("editor");
  }

  /** On a narrow page the stage is below the form. */
  comeIntoSight() {
    byId("stage").scrollIntoView({ block: "start" });
  }

  #turn(view) {
    this.#view = view;
    for (const each of VIEWS) byId(each).hidden = each !== view;
    this.#showTabs();
  }

  #showTabs() {
    byId("stage-tabs").hidden = !(this.#canEdit && this.#hasJob);
    for (const view of ["editor", "viewer"]) {
      byId(`show-${view}`).setAttribute("aria-pressed", String(view === this.#view));
    }
  }
}
