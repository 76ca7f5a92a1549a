/** Extending the picture: edges that are pulled or moved by keys, and the fields that say the same. */

import { byId } from "./dom.js";

const STEP = 8;
const MOST = 4096;
const OUTWARDS = { left: [-1, 0], top: [0, -1], right: [1, 0], bottom: [0, 1] };
const KEYS = { ArrowLeft: [-1, 0], ArrowUp: [0, -1], ArrowRight: [1, 0], ArrowDown: [0, 1] };
export const SIDES = Object.keys(OUTWARDS);

export class Margins {
  #pixels = { left: 0, top: 0, right: 0, bottom: 0 };
  #handles = new Map();
  #scale;
  #onChange;

  /** scale(): screen pixels per pixel of the picture. onChange(isDone): isDone is false while an edge is pulled. */
  constructor(scale, onChange) {
    this.#scale = scale;
    this.#onChange = onChange;
    for (const side of SIDES) {
      const handle = document.querySelector(`[data-edge="${side}"]`);
      this.#handles.set(side, handle);
      this.#listen(side, handle);
      byId(`outpaint_${side}`).addEventListener("input", (event) => this.set(side, Number(event.target.value)));
    }
    this.clear();
  }

  get pixels() {
    return { ...this.#pixels };
  }

  get isAny() {
    return SIDES.some((side) => this.#pixels[side] > 0);
  }

  clear() {
    this.fill({});
  }

  fill(pixels) {
    for (const side of SIDES) this.#pixels[side] = pixels[side] ?? 0;
    this.#tell();
  }

  set(side, pixels, isDone = true) {
    const within = Math.min(MOST, Math.max(0, Math.round(pixels) || 0));
    if (within === this.#pixels[side] && !isDone) return;
    this.#pixels[side] = within;
    this.#tell();
    this.#onChange(isDone);
  }

  /** Puts the handles beside the box {left, top, right, bottom} of the screen. */
  place(box) {
    for (const [side, handle] of this.#handles) {
      const isUpright = side === "left" || side === "right";
      handle.style.left = `${isUpright ? box[side] : box.left}px`;
      handle.style.top = `${isUpright ? box.top : box[side]}px`;
      handle.style[isUpright ? "height" : "width"] = `${isUpright ? box.bottom - box.top : box.right - box.left}px`;
    }
  }

  #tell() {
    for (const [side, handle] of this.#handles) {
      handle.setAttribute("aria-valuemin", "0");
      handle.setAttribute("aria-valuemax", String(MOST));
      handle.setAttribute("aria-valuenow", String(this.#pixels[side]));
      handle.setAttribute("aria-valuetext", `${this.#pixels[side]} pixels`);
      const input = byId(`outpaint_${side}`);
      if (input !== document.activeElement) input.value = this.#pixels[side];
    }
  }

  #listen(side, handle) {
    let start = null;
    handle.addEventListener("pointerdown", (event) => {
      handle.setPointerCapture(event.pointerId);
      start = { x: event.clientX, y: event.clientY, pixels: this.#pixels[side] };
    });
    handle.addEventListener("pointermove", (event) => {
      if (!start) return;
      const by = { x: event.clientX - start.x, y: event.clientY - start.y };
      const pulled = (by.x * OUTWARDS[side][0] + by.y * OUTWARDS[side][1]) / this.#scale();
      this.set(side, STEP * Math.round((start.pixels + pulled) / STEP), false);
    });
    const end = () => {
      if (start) this.#onChange(true);
      start = null;
    };
    handle.addEventListener("pointerup", end);
    handle.addEventListener("pointercancel", end);
    handle.addEventListener("keydown", (event) => this.#press(side, event));
  }

  #press(side, event) {
    const direction = KEYS[event.key];
    if (!direction) return;
    event.preventDefault();
    const outwards = direction[0] * OUTWARDS[side][0] + direction[1] * OUTWARDS[side][1];
    const across = event.key === "ArrowRight" || event.key === "ArrowUp" ? 1 : -1; // as any slider's
    this.set(side, this.#pixels[side] + (outwards || across) * STEP);
  }
}
