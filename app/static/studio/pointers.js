/**
 * Mouse, pen and fingers on a canvas, told apart: one paints, two move and zoom, a wheel zooms.
 *
 * The middle button, or the space bar held down, moves whatever the tool is; a pen's other end erases.
 */

const WHEEL_RATE = 0.0015;
const MIDDLE = 1;
const ERASER = 32;

export class Pointers {
  #canvas;
  #do;
  #down = new Map();
  #mode = null;
  #isSpaceHeld = false;

  /** actions: tool, begin, stroke, abandon, move, zoom, hover, done (see Editor). */
  constructor(canvas, actions) {
    this.#canvas = canvas;
    this.#do = actions;
    canvas.addEventListener("pointerdown", (event) => this.#press(event));
    canvas.addEventListener("pointermove", (event) => this.#move(event));
    for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, (event) => this.#lift(event));
    canvas.addEventListener("pointerleave", () => this.#hover(null));
    canvas.addEventListener("wheel", (event) => this.#wheel(event), { passive: false });
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    document.addEventListener("keydown", (event) => this.#hold(event, true));
    document.addEventListener("keyup", (event) => this.#hold(event, false));
  }

  #hold(event, isHeld) {
    if (event.key === " " && this.#canvas.matches(":hover")) this.#isSpaceHeld = isHeld;
  }

  #press(event) {
    this.#canvas.setPointerCapture(event.pointerId);
    this.#down.set(event.pointerId, this.#place(event));
    if (this.#down.size > 1) {
      if (this.#mode === "stroke") this.#do.abandon();
      this.#mode = "pinch";
    } else if (event.button === MIDDLE || this.#isSpaceHeld || this.#do.tool() === "move") {
      this.#mode = "move";
    } else if (event.button === 0 || event.buttons & ERASER) {
      this.#mode = "stroke";
      const isErasing = this.#do.tool() === "erase" || Boolean(event.buttons & ERASER);
      this.#do.begin(this.#place(event), pressureOf(event), isErasing);
    }
    this.#do.done();
  }

  #move(event) {
    if (!this.#down.has(event.pointerId)) {
      this.#hover(this.#place(event));
      return;
    }
    const before = this.#gesture();
    const from = this.#down.get(event.pointerId);
    const to = this.#place(event);
    this.#down.set(event.pointerId, to);
    if (this.#mode === "stroke") this.#strokeAlong(event);
    if (this.#mode === "move") this.#do.move({ x: to.x - from.x, y: to.y - from.y });
    if (this.#mode === "pinch") this.#pinch(before, this.#gesture());
    this.#hover(this.#mode === "stroke" ? to : null);
  }

  /** Also the places between two frames, so that fast strokes stay round. */
  #strokeAlong(event) {
    const events = event.getCoalescedEvents?.() ?? [];
    for (const one of events.length ? events : [event]) this.#do.stroke(this.#place(one), pressureOf(one));
  }

  #pinch(before, after) {
    this.#do.move({ x: after.x - before.x, y: after.y - before.y });
    if (before.spread && after.spread) this.#do.zoom(after.spread / before.spread, after);
  }

  /** Middle and spread of all pointers that are down. */
  #gesture() {
    const places = [...this.#down.values()];
    const middle = (axis) => places.reduce((sum, place) => sum + place[axis], 0) / places.length;
    const [x, y] = [middle("x"), middle("y")];
    return { x, y, spread: Math.max(...places.map((place) => Math.hypot(place.x - x, place.y - y))) };
  }

  #lift(event) {
    this.#down.delete(event.pointerId);
    if (this.#mode === "stroke" && event.type === "pointercancel") this.#do.abandon();
    if (this.#down.size === 0 || this.#mode === "stroke") this.#mode = null;
    this.#do.done();
  }

  #hover(point) {
    this.#do.hover(point);
    this.#do.done();
  }

  #wheel(event) {
    event.preventDefault();
    this.#do.zoom(Math.exp(-WHEEL_RATE * event.deltaY), this.#place(event));
    this.#do.done();
  }

  #place(event) {
    const { left, top } = this.#canvas.getBoundingClientRect();
    return { x: event.clientX - left, y: event.clientY - top };
  }
}

/** 0 to 1; only pens tell one. */
function pressureOf(event) {
  return event.pointerType === "pen" ? event.pressure : 1;
}
