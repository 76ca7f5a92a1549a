/** A recipe: what draws a picture again. Out of a file, out of a job, and as words. */

import { readExact } from "./exact_json.js";
import { readInfotext } from "./infotext.js";
import { textsOf } from "./picture_file.js";

/** The request that a file tells of, or null: ours if it has one, else what other tools wrote. */
export async function recipeOf(file) {
  const { denoised, parameters } = await textsOf(file);
  return ownRecipe(denoised) ?? (parameters ? readInfotext(parameters) : null);
}

function ownRecipe(text) {
  try {
    const recipe = text ? readExact(text) : null;
    return recipe && typeof recipe === "object" && "contract_version" in recipe ? recipe : null;
  } catch {
    return null;
  }
}

/** The recipe of one picture of a job, alone. */
export function pictureRecipe(document, index) {
  const picture = document.images[index];
  return picture ? { ...document.request, seed: picture.seed, num_images: 1 } : document.request;
}

/** [name, value] of what is worth reading, in order. */
export function facts(request) {
  const size = request.width && request.height ? `${request.width} × ${request.height}` : null;
  const schedule = request.noise_schedule && request.noise_schedule !== "default" ? `, ${request.noise_schedule}` : "";
  return [
    ["Model", request.model],
    ["Size", size],
    ["Steps", request.num_inference_steps],
    ["Sampler", request.sampler && `${request.sampler}${schedule}`],
    ["Guidance", request.guidance_scale],
    ["Seed", request.seed],
    ["Strength", request.strength],
    ["Noise level", request.noise_level],
    ["Negative prompt", request.negative_prompt],
    ["LoRAs", named(request.loras)],
    ["ControlNets", named(request.controls)],
    ["Enlarged with", request.upscaler],
    ["Contract", request.reproducibility === "strict" ? "strict" : null],
  ].filter(([, value]) => value != null && value !== "");
}

function named(choices) {
  return (choices ?? []).map(({ name, weight }) => `${name} (${weight})`).join(", ");
}
