/**
 * A mask as the list of what was done: strokes, inversions, clearings. Undoing forgets the last and does the rest again,
 * so that a long history costs points and not copies of the canvas.
 *
 * On the canvas the mask is what is opaque.
 */

const PAINT = "#ff4f1f";
/** Seen over any picture; only where it is opaque counts. */
const DRAWN_FROM = 128;

export class Mask {
  #operations = [];
  #undone = [];
  #canvas;
  #context;

  constructor(width, height) {
    this.#canvas = document.createElement("canvas");
    this.#canvas.width = width;
    this.#canvas.height = height;
    this.#context = this.#canvas.getContext("2d", { willReadFrequently: true });
  }

  get canvas() {
    return this.#canvas;
  }

  get canUndo() {
    return this.#operations.length > 0;
  }

  get canRedo() {
    return this.#undone.length > 0;
  }

  /** Begins with a mask that was painted before: white is drawn. */
  begin(bitmap) {
    this.#do({ kind: "picture", pixels: opaqueWhere(bitmap, this.#canvas) });
  }

  /** point: {x, y, radius} in pixels of the picture. */
  beginStroke(point, isErasing) {
    this.#do({ kind: "stroke", isErasing, points: [point] });
  }

  continueStroke(point) {
    const stroke = this.#operations.at(-1);
    this.#line(stroke, stroke.points.at(-1), point);
    stroke.points.push(point);
  }

  /** Takes the stroke back as if it had never been. */
  abandonStroke() {
    this.#operations.pop();
    this.#repeat();
  }

  clear() {
    this.#do({ kind: "clear" });
  }

  invert() {
    this.#do({ kind: "invert" });
  }

  undo() {
    if (!this.canUndo) return;
    this.#undone.push(this.#operations.pop());
    this.#repeat();
  }

  redo() {
    const operation = this.#undone.pop();
    if (!operation) return;
    this.#operations.push(operation);
    this.#apply(operation);
  }

  get isEmpty() {
    const { data } = this.#context.getImageData(0, 0, this.#canvas.width, this.#canvas.height);
    for (let index = 3; index < data.length; index += 4) if (data[index] >= DRAWN_FROM) return false;
    return true;
  }

  /** A PNG: white where it is drawn anew, else black. */
  async file() {
    const { width, height } = this.#canvas;
    const copy = new OffscreenCanvas(width, height);
    const context = copy.getContext("2d");
    context.drawImage(this.#canvas, 0, 0);
    context.globalCompositeOperation = "source-in";
    fill(context, "#fff");
    context.globalCompositeOperation = "destination-over";
    fill(context, "#000");
    return copy.convertToBlob({ type: "image/png" });
  }

  #do(operation) {
    this.#undone = [];
    this.#operations.push(operation);
    this.#apply(operation);
  }

  #repeat() {
    this.#context.clearRect(0, 0, this.#canvas.width, this.#canvas.height);
    this.#operations.forEach((operation) => this.#apply(operation));
  }

  #apply(operation) {
    const { width, height } = this.#canvas;
    if (operation.kind === "clear") this.#context.clearRect(0, 0, width, height);
    if (operation.kind === "picture") this.#context.drawImage(operation.pixels, 0, 0);
    if (operation.kind === "stroke") {
      const { points } = operation;
      points.forEach((point, index) => this.#line(operation, points[Math.max(0, index - 1)], point));
    }
    if (operation.kind === "invert") {
      this.#context.globalCompositeOperation = "source-out";
      fill(this.#context, PAINT);
      this.#context.globalCompositeOperation = "source-over";
    }
  }

  /** One piece of a stroke, round at both ends. */
  #line({ isErasing }, from, to) {
    const context = this.#context;
    context.globalCompositeOperation = isErasing ? "destination-out" : "source-over";
    context.strokeStyle = context.fillStyle = PAINT;
    context.lineWidth = 2 * to.radius;
    context.lineCap = "round";
    context.beginPath();
    context.moveTo(from.x, from.y);
    context.lineTo(to.x, to.y + (from === to ? 0.001 : 0)); // a dot is a line too short to see
    context.stroke();
    context.globalCompositeOperation = "source-over";
  }
}

function fill(context, colour) {
  context.fillStyle = colour;
  context.fillRect(0, 0, context.canvas.width, context.canvas.height);
}

function opaqueWhere(bitmap, { width, height }) {
  const copy = new OffscreenCanvas(width, height);
  const context = copy.getContext("2d");
  context.drawImage(bitmap, 0, 0, width, height);
  const pixels = context.getImageData(0, 0, width, height);
  for (let index = 0; index < pixels.data.length; index += 4) {
    pixels.data[index + 3] = pixels.data[index] >= DRAWN_FROM ? 255 : 0;
  }
  context.putImageData(pixels, 0, 0);
  context.globalCompositeOperation = "source-in";
  fill(context, PAINT);
  return copy;
}
