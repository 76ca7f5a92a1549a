/** From the form to a job: the request with its pictures, sent once however often the line breaks. */

import { NetworkLost, requestName } from "./api.js";
import { takesPicture } from "./catalogue.js";
import { byId } from "./dom.js";
import { SIDES } from "./margins.js";

/** Everything that a drawing is made of; draw() resolves to the job, or null when it was refused. */
export function createDrawing({ api, form, source, editor, jobs, database, errors }) {
  const button = byId("draw");

  async function draw() {
    errors.clear();
    button.disabled = true;
    try {
      const body = form.body();
      const beginning = await addPictures(body, form.task, source.current, editor);
      const document = await api.submit(body, requestName(), () => errors.show(new NetworkLost(TRYING)));
      errors.clear();
      if (beginning) await database.sources.put({ id: document.id, ...beginning }).catch(() => {});
      return jobs.add(document);
    } catch (error) {
      errors.show(error instanceof NetworkLost ? new NetworkLost(LOST) : error);
      return null;
    } finally {
      button.disabled = false;
    }
  }
  return draw;
}

const TRYING = "The server cannot be reached. Trying again; it will be drawn once only.";
const LOST = "The server cannot be reached. Nothing here is lost: draw again when it is back.";

/** Adds what the task begins with; resolves to what of it is to be remembered, or null. */
async function addPictures(body, task, source, editor) {
  if (!takesPicture(task) || !source) return null;
  if (source.blob) body.append("image", source.blob, "image");
  else body.append("image", source.reference);
  if (task !== "inpainting") return source.blob ? { image: source.blob } : null;
  const margins = source.blob ? editor.margins : source.margins;
  for (const side of SIDES) if (margins[side]) body.append(`outpaint_${side}`, String(margins[side]));
  const mask = source.blob ? await editor.file() : source.mask;
  if (mask instanceof Blob) body.append("mask_image", mask, "mask");
  else if (mask) body.append("mask_image", mask);
  if (mask) body.append("mask_convention", "white");
  return source.blob ? { image: source.blob, mask, margins } : null;
}
