/** Noise to look at while there is no picture yet: it is what every picture begins as. */

/** Fills a canvas with grey noise. */
export function paintNoise(canvas) {
  const context = canvas.getContext("2d");
  const { width, height } = canvas;
  const pixels = context.createImageData(width, height);
  for (let index = 0; index < pixels.data.length; index += 4) {
    const level = 128 + 60 * (Math.random() + Math.random() + Math.random() - 1.5);
    pixels.data.set([level * 1.04, level, level * 0.95, 255], index);
  }
  context.putImageData(pixels, 0, 0);
}
