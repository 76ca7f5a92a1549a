/** The mask editor: shows picture, mask and margins, and turns pointers and keys into strokes and views. */

import { byId, within } from "./dom.js";
import { Margins } from "./margins.js";
import { Mask } from "./mask.js";
import { Pointers } from "./pointers.js";
import { fitted, moved, toPicture, toScreen, zoomed } from "./viewport.js";

const RIM = 36;
const ZOOM_STEP = 1.4;
const VEIL = 0.62;
const ARROWS = { ArrowLeft: [-1, 0], ArrowUp: [0, -1], ArrowRight: [1, 0], ArrowDown: [0, 1] };

export class Editor {
  #canvas = byId("mask-canvas");
  #context = this.#canvas.getContext("2d");
  #area = byId("editor-area");
  #size = byId("brush-size");
  #source = null;
  #mask = null;
  #view = { scale: 1, x: 0, y: 0 };
  #cursor = null;
  #tool = "brush";
  #isDrawing = false;
  #margins = new Margins(
    () => this.#view.scale,
    (isDone) => (isDone ? this.fit() : this.#draw()),
  );

  constructor() {
    new ResizeObserver(() => this.fit()).observe(this.#area);
    document.addEventListener("themechange", () => this.#draw());
    new Pointers(this.#canvas, {
      tool: () => this.#tool,
      begin: (point, pressure, isErasing) => this.#mask?.beginStroke(this.#dab(point, pressure), isErasing),
      stroke: (point, pressure) => this.#mask?.continueStroke(this.#dab(point, pressure)),
      abandon: () => this.#mask?.abandonStroke(),
      move: (by) => (this.#view = moved(this.#view, by)),
      zoom: (factor, point) => (this.#view = zoomed(this.#view, factor, point)),
      hover: (point) => (this.#cursor = point && toPicture(this.#view, point)),
      done: () => this.#draw(),
    });
    this.#listen();
  }

  /** Begins anew with another picture ({bitmap, width, height}), or none. */
  open(source) {
    this.#source = source?.bitmap ? source : null;
    this.#mask = this.#source ? new Mask(source.width, source.height) : null;
    this.#cursor = null;
    this.#margins.clear();
    this.fit();
  }

  /** What was painted and added before: a bitmap of the mask, or null, and the pixels of each side. */
  resume(bitmap, margins) {
    if (bitmap) this.#mask?.begin(bitmap);
    this.#margins.fill(margins ?? {});
    this.fit();
  }

  get margins() {
    return this.#margins.pixels;
  }

  /** The mask as a PNG, null when nothing is painted. */
  async file() {
    return this.#mask && !this.#mask.isEmpty ? this.#mask.file() : null;
  }

  /** Shows everything, as large as there is room. */
  fit() {
    if (this.#source) this.#view = fitted(this.#box(), this.#area.getBoundingClientRect(), RIM);
    this.#draw();
  }

  /** The picture with its margins, in pixels of the picture. */
  #box() {
    const { left, top, right, bottom } = this.#margins.pixels;
    const { width, height } = this.#source;
    return { x: -left, y: -top, width: width + left + right, height: height + top + bottom };
  }

  get #radius() {
    const shorter = Math.min(this.#source.width, this.#source.height);
    return (this.#size.value / 100) * 0.3 * shorter;
  }

  #dab(point, pressure) {
    return { ...toPicture(this.#view, point), radius: this.#radius * (0.4 + 0.6 * pressure) };
  }

  // --- what is done ------------------------------------------------------------------------------------------------

  #listen() {
    for (const button of document.querySelectorAll("[data-tool]")) {
      button.addEventListener("click", () => this.#choose(button.dataset.tool));
    }
    for (const button of document.querySelectorAll("[data-edit]")) {
      button.addEventListener("click", () => this.#edit(button.dataset.edit));
    }
    this.#size.addEventListener("input", () => this.#draw());
    this.#canvas.addEventListener("keydown", (event) => this.#press(event));
  }

  #choose(tool) {
    this.#tool = tool;
    for (const button of document.querySelectorAll("[data-tool]")) {
      button.setAttribute("aria-pressed", String(button.dataset.tool === tool));
    }
    this.#canvas.dataset.tool = tool;
  }

  #edit(action) {
    const middle = { x: this.#area.clientWidth / 2, y: this.#area.clientHeight / 2 };
    const actions = {
      undo: () => this.#mask?.undo(),
      redo: () => this.#mask?.redo(),
      invert: () => this.#mask?.invert(),
      clear: () => this.#mask?.clear(),
      fit: () => this.fit(),
      "zoom-in": () => (this.#view = zoomed(this.#view, ZOOM_STEP, middle)),
      "zoom-out": () => (this.#view = zoomed(this.#view, 1 / ZOOM_STEP, middle)),
    };
    actions[action]();
    this.#draw();
  }

  #press(event) {
    const work = event.ctrlKey || event.metaKey ? this.#withControl(event) : this.#withoutControl(event);
    if (!work || !this.#source) return;
    event.preventDefault();
    work();
    this.#draw();
  }

  #withControl(event) {
    const key = event.key.toLowerCase();
    if (key === "z") return () => this.#edit(event.shiftKey ? "redo" : "undo");
    return key === "y" ? () => this.#edit("redo") : null;
  }

  #withoutControl(event) {
    if (event.key in ARROWS) return () => this.#step(ARROWS[event.key], event.shiftKey);
    const works = {
      b: () => this.#choose("brush"),
      e: () => this.#choose("erase"),
      h: () => this.#choose("move"),
      i: () => this.#edit("invert"),
      0: () => this.#edit("fit"),
      "+": () => this.#edit("zoom-in"),
      "-": () => this.#edit("zoom-out"),
      "[": () => (this.#size.value = Number(this.#size.value) - 5),
      "]": () => (this.#size.value = Number(this.#size.value) + 5),
      Enter: () => this.#mask.beginStroke(this.#atCursor(), this.#tool === "erase"),
    };
    if (event.key !== " ") return works[event.key];
    return this.#canvas.matches(":hover") ? () => {} : works.Enter; // under the mouse the space bar moves the picture
  }

  #atCursor() {
    this.#cursor ??= { x: this.#source.width / 2, y: this.#source.height / 2 };
    return { ...this.#cursor, radius: this.#radius };
  }

  /** Moves the brush by half its width; with shift it paints on the way. */
  #step([across, down], isPainting) {
    const from = this.#atCursor();
    const by = Math.max(1, this.#radius);
    this.#cursor = {
      x: Math.min(this.#source.width, Math.max(0, from.x + by * across)),
      y: Math.min(this.#source.height, Math.max(0, from.y + by * down)),
    };
    if (!isPainting) return;
    this.#mask.beginStroke(from, this.#tool === "erase");
    this.#mask.continueStroke(this.#atCursor());
  }

  // --- what is seen ------------------------------------------------------------------------------------------------

  /** Once before the next frame, however often it is asked for. */
  #draw() {
    if (this.#isDrawing) return;
    this.#isDrawing = true;
    requestAnimationFrame(() => {
      this.#isDrawing = false;
      this.#paint();
    });
  }

  #paint() {
    const { width, height } = this.#area.getBoundingClientRect();
    const density = devicePixelRatio;
    this.#canvas.width = Math.round(width * density);
    this.#canvas.height = Math.round(height * density);
    if (!this.#source || !width || !height) return;
    const context = this.#context;
    context.setTransform(density, 0, 0, density, 0, 0);
    this.#paintMargins(context);
    const { scale, x, y } = this.#view;
    context.setTransform(density * scale, 0, 0, density * scale, density * x, density * y);
    context.imageSmoothingQuality = "high";
    context.drawImage(this.#source.bitmap, 0, 0);
    this.#paintMask(context);
    context.setTransform(density, 0, 0, density, 0, 0);
    this.#paintCursor(context);
    this.#tell();
  }

  #screenBox(box) {
    const start = toScreen(this.#view, box);
    const end = toScreen(this.#view, { x: box.x + box.width, y: box.y + box.height });
    return { left: start.x, top: start.y, right: end.x, bottom: end.y };
  }

  #paintMargins(context) {
    const box = this.#screenBox(this.#box());
    const [width, height] = [box.right - box.left, box.bottom - box.top];
    if (this.#margins.isAny) {
      const { color } = getComputedStyle(this.#area);
      context.fillStyle = stripes(context, color);
      context.fillRect(box.left, box.top, width, height);
      context.strokeStyle = color;
      context.setLineDash([6, 4]);
      context.strokeRect(box.left + 0.5, box.top + 0.5, width - 1, height - 1);
      context.setLineDash([]);
    }
    this.#margins.place(box);
  }

  /** In its colour with light lines over it, so that it is seen on a picture of that colour, too. */
  #paintMask(context) {
    const { width, height } = context.canvas;
    const veil = new OffscreenCanvas(width, height).getContext("2d");
    veil.setTransform(context.getTransform());
    veil.drawImage(this.#mask.canvas, 0, 0);
    veil.resetTransform();
    veil.globalCompositeOperation = "source-atop";
    veil.fillStyle = stripes(veil, "#fff", 0.9);
    veil.fillRect(0, 0, width, height);
    context.save();
    context.resetTransform();
    context.globalAlpha = VEIL;
    context.drawImage(veil.canvas, 0, 0);
    context.restore();
  }

  #paintCursor(context) {
    if (!this.#cursor || this.#tool === "move") return;
    const { x, y } = toScreen(this.#view, this.#cursor);
    for (const [colour, width] of [["#000", 3], ["#fff", 1.5]]) {
      context.beginPath();
      context.arc(x, y, this.#radius * this.#view.scale, 0, 2 * Math.PI);
      context.strokeStyle = colour;
      context.lineWidth = width;
      context.stroke();
    }
  }

  #tell() {
    const { width, height } = this.#source;
    const box = this.#box();
    this.#size.style.setProperty("--share", this.#size.value / 100);
    byId("zoom").textContent = `${Math.round(100 * this.#view.scale)}%`;
    byId("editor-words").textContent = this.#margins.isAny
      ? `${width} × ${height} becomes ${box.width} × ${box.height}. What is added is drawn, and what is painted.`
      : "Paint over what is to be drawn anew. Pull an edge to extend the picture.";
    within(document, '[data-edit="undo"]').disabled = !this.#mask.canUndo;
    within(document, '[data-edit="redo"]').disabled = !this.#mask.canRedo;
  }
}

/** A fill of slanting lines. */
function stripes(context, colour, opacity = 0.35) {
  const tile = new OffscreenCanvas(10, 10);
  const pen = tile.getContext("2d");
  pen.strokeStyle = colour;
  pen.globalAlpha = opacity;
  pen.lineWidth = 1.5;
  pen.beginPath();
  for (const shift of [-10, 0, 10]) {
    pen.moveTo(shift - 1, 11);
    pen.lineTo(shift + 11, -1);
  }
  pen.stroke();
  return context.createPattern(tile, "repeat");
}
