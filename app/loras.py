"""The LoRA files that a request asks for, in its field and in its prompt.

Owns `<lora:NAME:WEIGHT>`, which the AUTOMATIC1111 web UI takes out of a prompt. Knows nothing of files.
"""

from __future__ import annotations

import re

from app.errors import field_problem
from app.schemas import MAX_LORAS, PictureBody, UpscaleBody
from models.request import LoraChoice
from workers.contract import ModelEntry

_TAG = re.compile(r"<lora:([^:<>]{1,200})(?::([^:<>]{0,40}))?(?::[^<>]{0,200})?>")
_NUMBER = re.compile(r"[+-]?([0-9]{1,20}(\.[0-9]{0,20})?|\.[0-9]{1,20})")


def read_loras(body: PictureBody, entry: ModelEntry) -> tuple[str, tuple[LoraChoice, ...]]:
    """The prompt without its tags, and every LoRA asked for, each once. Raises Problem for one that is not there."""
    asked = [(lora.name, lora.weight, f"loras/{number}") for number, lora in enumerate(body.loras)]
    prompt = body.prompt
    if body.prompt_syntax == "a1111" and "<lora:" in prompt:
        asked += [(match[1].strip(), _weight_of(match), "prompt") for match in _TAG.finditer(prompt)]
        prompt = " ".join(part.strip() for part in _TAG.split(prompt)[:: _TAG.groups + 1]).strip()
    seen: set[str] = set()
    for name, _, where in asked:
        if name not in entry.loras:
            there = ", ".join(entry.loras[:20]) or "none"
            raise field_problem("lora_unknown", where, f"There is no LoRA {name[:80]!r}; there is {there}.")
        if name in seen:
            raise field_problem("field_invalid", where, f"The LoRA {name[:80]!r} is asked for twice.")
        seen.add(name)
    if len(asked) > MAX_LORAS:
        raise field_problem("field_invalid", "prompt", f"{len(asked)} LoRAs, of at most {MAX_LORAS}.")
    if body.prompt_syntax == "a1111" and _TAG.search(prompt):
        raise field_problem("field_invalid", "prompt", "A `<lora:...>` stands inside another.")
    if body.prompt.strip() and not prompt.strip() and not isinstance(body, UpscaleBody):
        raise field_problem("prompt_empty", "prompt", "`prompt` has no word beside its LoRAs.")
    return prompt, tuple(LoraChoice(name=name, weight=weight) for name, weight, _ in asked)


def _weight_of(match: re.Match[str]) -> float:
    """1 without a weight, as in the web UI."""
    given = (match[2] or "").strip()
    if not given:
        return 1.0
    if not _NUMBER.fullmatch(given) or not -10 <= float(given) <= 10:
        what = f"The weight of {match[0][:80]!r} is no number from -10 to 10."
        raise field_problem("field_invalid", "prompt", what)
    return float(given)
