/** The `parameters` text, in the form begun by the AUTOMATIC1111 web UI: prompt, negative prompt, a line of pairs. */

const PAIR = /\s*([A-Za-z][\w \-/]*):\s*("(?:\\.|[^"\\])*"|[^,]*)(?:,|$)/g;
const SCHEDULES = { automatic: "default", karras: "karras", exponential: "exponential", sgm_uniform: "trailing" };

/** What of a request the text says; null when it is no such text. */
export function readInfotext(text) {
  const lines = text.trim().split("\n");
  const facts = pairsOf(lines.at(-1));
  if (!("Steps" in facts)) return null;
  const [prompt, negative] = lines.slice(0, -1).join("\n").split(/\n?Negative prompt: /);
  const [width, height] = (facts.Size ?? "").split("x");
  const request = {
    prompt,
    negative_prompt: negative,
    num_inference_steps: facts.Steps,
    sampler: facts.Sampler && folded(facts.Sampler),
    noise_schedule: SCHEDULES[folded(facts["Schedule type"] ?? "")],
    guidance_scale: facts["CFG scale"],
    seed: facts.Seed,
    width,
    height,
    clip_skip: facts["Clip skip"] && String(Number(facts["Clip skip"]) - 1),
    model: facts.Model,
    strength: facts["Denoising strength"],
    mask_blur: facts["Mask blur"],
  };
  return Object.fromEntries(Object.entries(request).filter(([, value]) => value));
}

function pairsOf(line) {
  return Object.fromEntries(
    Array.from(line.matchAll(PAIR), ([, name, value]) => [name.trim(), value.startsWith('"') ? unquoted(value) : value]),
  );
}

function unquoted(value) {
  try {
    return JSON.parse(value);
  } catch {
    return value;
  }
}

/** A sampler's name as catalogues write it: "DPM++ 2M" is "dpmpp_2m". */
function folded(name) {
  return name.trim().toLowerCase().replaceAll("++", "pp").replace(/[ -]/g, "_");
}
