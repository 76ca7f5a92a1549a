/**
 * The picture to start from: chosen, dropped, pasted or drawn here before.
 *
 * Either a file with its pixels, or (from a recipe) only the digest of an upload that the server may still have.
 */

import { byId } from "./dom.js";

const KEPT_AS = "current";

/** onChange(source): after each change; source is {blob, name, width, height, bitmap}, {reference, mask, margins} or null. */
export function createSource(database, onChange) {
  const picture = byId("source-picture");
  const input = byId("image");
  let source = null;

  function become(next) {
    if (source?.bitmap) source.bitmap.close();
    source = next;
    show();
    onChange(source);
  }

  function show() {
    if (picture.src) URL.revokeObjectURL(picture.src);
    picture.hidden = !source?.blob;
    if (source?.blob) picture.src = URL.createObjectURL(source.blob);
    else picture.removeAttribute("src");
    byId("source").classList.toggle("has-picture", Boolean(source?.blob));
    byId("source-name").textContent = describe(source);
    byId("source-remove").hidden = !source;
    input.value = "";
  }

  /** Takes a file. Raises DOMException when the browser cannot read it as a picture. */
  async function use(blob, name) {
    const bitmap = await createImageBitmap(blob);
    become({ blob, name, bitmap, width: bitmap.width, height: bitmap.height });
    database.sources.put({ id: KEPT_AS, image: blob, name }).catch(() => {});
  }

  byId("source-remove").addEventListener("click", () => {
    become(null);
    database.sources.delete(KEPT_AS).catch(() => {});
    input.focus();
  });

  return {
    get current() {
      return source;
    },
    use,
    /** An upload of the server, by its digest. */
    refer: (reference, mask, margins) => become({ reference, mask, margins }),
    /** What was there before the reload. */
    async restore() {
      const kept = await database.sources.get(KEPT_AS).catch(() => null);
      if (kept && !source) await use(kept.image, kept.name).catch(() => {});
    },
  };
}

function describe(source) {
  if (!source) return "Drop one here, paste it, or";
  if (source.reference) return "The recipe's own picture, while the server has it";
  return `${source.name}, ${source.width} × ${source.height}`;
}
