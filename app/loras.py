"""The LoRA files that a request asks for, in its field and in its prompt.

Owns `<lora:NAME:WEIGHT>`, which the AUTOMATIC1111 web UI takes out of a prompt. Knows nothing of files.
"""

from __future__ import annotations

import re

from app.errors import field_problem
from app.schemas import MAX_LORAS, PictureBody
from models.request import LoraChoice
from workers.contract import ModelEntry

_TAG = re.compile(r"\s*<lora:([^:<>]{1,200})(?::([^:<>]*))?(?::[^<>]*)?>")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)")


def read_loras(body: PictureBody, entry: ModelEntry) -> tuple[str, tuple[LoraChoice, ...]]:
    """The prompt without its tags, and every LoRA asked for, each once. Raises Problem for one that is not there."""
    chosen = [(LoraChoice(name=lora.name, weight=lora.weight), f"loras/{n}") for n, lora in enumerate(body.loras)]
    prompt = body.prompt
    if body.prompt_syntax == "a1111":
        chosen += [(_of_tag(match), "prompt") for match in _TAG.finditer(prompt)]
        prompt = _TAG.sub("", prompt).strip() if chosen else prompt
    if body.prompt.strip() and not prompt:
        raise field_problem("prompt_empty", "prompt", "`prompt` has no word beside its LoRAs.")
    seen: set[str] = set()
    for lora, where in chosen:
        if lora.name not in entry.loras:
            there = ", ".join(entry.loras[:20]) or "none"
            raise field_problem("lora_unknown", where, f"There is no LoRA {lora.name[:80]!r}; there is {there}.")
        if lora.name in seen:
            raise field_problem("field_invalid", where, f"The LoRA {lora.name[:80]!r} is asked for twice.")
        seen.add(lora.name)
    if len(chosen) > MAX_LORAS:
        raise field_problem("field_invalid", "prompt", f"{len(chosen)} LoRAs, of at most {MAX_LORAS}.")
    return prompt, tuple(lora for lora, _ in chosen)


def _of_tag(match: re.Match[str]) -> LoraChoice:
    """A tag without a weight counts 1, as in the web UI."""
    name, given = match[1].strip(), (match[2] or "").strip()
    if not given:
        return LoraChoice(name=name)
    if not _NUMBER.fullmatch(given) or not -10 <= float(given) <= 10:
        what = f"The weight of {match[0].strip()[:80]!r} is no number from -10 to 10."
        raise field_problem("field_invalid", "prompt", what)
    return LoraChoice(name=name, weight=float(given))
