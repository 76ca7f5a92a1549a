"""How often a picture is drawn for training.

The corpus has too many persons, avatars and single-colour silhouettes and too few things; these weights even it out,
and prefer concepts that exist in several styles, because they are what teaches style and subject apart.
"""

from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

Record = dict[str, Any]

_RARER = {
    **{"avatar": 0.25, "person": 0.4, "body part": 0.4, "symbol": 0.4, "letter": 0.3, "flag": 0.3, "clock": 0.4},
    **{"photo": 0.3, "landscape": 0.6, "sky": 0.7, "other": 0.7},
}
_THINGS = {
    *("mammal", "bird", "fish", "bug", "reptile", "creature", "plant", "flower", "fruit", "vegetable", "food", "drink"),
    *("dishware", "land vehicle", "boat", "aircraft", "furniture", "building", "instrument", "sport", "heart"),
    *("clothing", "weapon", "event"),
}


def weights(records: list[Record]) -> NDArray[np.float64]:
    """Relative weight of each record, float64 [n]; records of held-out splits get 0."""
    styles = Counter(concept for concept, _ in {(r["concept"], r["style"]) for r in records})
    return np.array([_weight(record, styles[record["concept"]]) for record in records])


def _weight(record: Record, styles_of_concept: int) -> float:
    if record["split"] != "train":
        return 0.0
    weight = _RARER.get(record["category"], 1.5 if record["category"] in _THINGS else 1.0)
    if record["style"] == "silhouette" or record["mono"]:
        weight *= 0.3
    if record["skin_tone"]:
        weight *= 0.5
    if record["caption_q"] == 1:
        weight *= 0.5
    return weight * min(4.0, 0.1 + 0.4 * styles_of_concept)
