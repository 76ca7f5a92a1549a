/**
 * The fields of a request as the form knows them: when each is offered, what is left alone, what its slider spans.
 *
 * A field that nobody touched is not sent: the server fills in the model's default, which the form shows meanwhile.
 * What was touched is remembered for everything (shared), for a model, or for a task.
 */

import { readsPrompt, samplerOf, takesPicture } from "./catalogue.js";

const isUpscale = (task) => task === "upscale";
const isInpainting = (task) => task === "inpainting";
const draws = (model, task) => !isUpscale(task);
const reads = (model) => readsPrompt(model);
const none = () => "";

/** One field. isShown(model, task); untouched(model, task): what is shown while nobody has touched it. */
function field(name, scope, isShown, untouched = none) {
  return { name, scope, isShown, untouched };
}

function sideOf(side) {
  return (model, task) => (task === "text-to-image" ? model.defaults[side] : "");
}

function ofModel(name) {
  return (model) => model.defaults[name] ?? "";
}

export const FIELDS = [
  field("prompt", "shared", reads),
  field("negative_prompt", "shared", reads),
  field("width", "task", draws, sideOf("width")),
  field("height", "task", draws, sideOf("height")),
  field("strength", "task", (model, task) => takesPicture(task) && !isUpscale(task), strength),
  field("noise_level", "model", (model, task) => isUpscale(task) && model.limits.max_noise_level !== null, noiseLevel),
  field("num_inference_steps", "model", () => true, ofModel("num_inference_steps")),
  field("guidance_scale", "model", reads, ofModel("guidance_scale")),
  field("seed", "shared", () => true),
  field("sampler", "model", () => true, ofModel("sampler")),
  field("noise_schedule", "model", () => true, ofModel("noise_schedule")),
  field("mask_blur", "shared", (model, task) => isInpainting(task), () => 4),
  field("padding_mask_crop", "shared", (model, task) => isInpainting(task)),
  field("guidance_rescale", "model", reads, ofModel("guidance_rescale")),
  field("clip_skip", "model", (model) => model.limits.max_clip_skip > 0, ofModel("clip_skip")),
  field("prompt_syntax", "shared", reads, () => "a1111"),
  field("output_format", "shared", () => true, () => "png"),
  field("priority", "shared", () => true, () => "normal"),
  field("reproducibility", "shared", () => true, () => "standard"),
  field("num_images", "task", () => true, () => 1),
];

function strength(model, task) {
  return isInpainting(task) ? 1 : model.defaults.strength;
}

function noiseLevel(model) {
  return model.defaults.noise_level ?? "";
}

/** {min, max} of a field's input and slider, where the model says so. */
export function spanOf(name, model, samplerName) {
  const { limits } = model;
  const sampler = samplerOf(model, samplerName);
  const spans = {
    width: { min: limits.min_size, max: limits.max_size, step: limits.size_multiple },
    height: { min: limits.min_size, max: limits.max_size, step: limits.size_multiple },
    noise_level: { max: limits.max_noise_level },
    clip_skip: { max: limits.max_clip_skip },
    num_images: { max: limits.max_images },
    num_inference_steps: { min: sampler?.min_steps, max: sampler?.max_steps },
  };
  return spans[name] ?? {};
}

/** Sliders end where values are still usual; the number beside them takes the rest. */
export const USUAL_MOST = { num_inference_steps: 60, guidance_scale: 15, noise_level: 200 };
