/** What the server's models can do. Pure: documents of GET /models in, answers out. */

export const TASKS = ["text-to-image", "image-to-image", "inpainting", "upscale"];

export function takesPicture(task) {
  return task !== "text-to-image";
}

export function readsPrompt(model) {
  return model.limits.window_tokens > 0;
}

export function modelsFor(models, task) {
  return models.filter((model) => model.tasks.includes(task));
}

/** The wanted model if it serves the task, else the first that does, else null. */
export function chosenModel(models, task, wanted) {
  const serving = modelsFor(models, task);
  return serving.find((model) => model.name === wanted) ?? serving[0] ?? null;
}

export function samplerOf(model, name) {
  return model.samplers.find((sampler) => sampler.name === name) ?? null;
}

/** {sampler, noise_schedule} for a name or an alias of the model; null for one that it has not. */
export function meantSampler(model, name) {
  if (samplerOf(model, name)) return { sampler: name };
  return model.sampler_aliases[name] ?? null;
}

/** Width and height of this aspect with about the area that the model was made for. */
export function sizeFor(model, [across, down]) {
  const { width, height } = model.defaults;
  const { size_multiple: multiple, min_size: least, max_size: most } = model.limits;
  const unit = Math.sqrt((width * height) / (across * down));
  const side = (parts) => Math.min(most, Math.max(least, Math.round((parts * unit) / multiple) * multiple));
  return { width: side(across), height: side(down) };
}
