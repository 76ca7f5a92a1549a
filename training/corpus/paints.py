"""Colours for icon sets that come in one colour.

Some sets are drawn in black or in one blue. The catalogue gives such a picture a colour word, which is in its caption
too, and the fills below are put into the SVG in place of the original ones.
"""

from collections.abc import Mapping
from types import MappingProxyType

_MATERIAL = {
    "red": "#e53935",
    "orange": "#fb8c00",
    "yellow": "#fdd835",
    "green": "#43a047",
    "teal": "#00897b",
    "blue": "#1e88e5",
    "purple": "#8e24aa",
    "pink": "#ec407a",
    "brown": "#795548",
    "gray": "#8a8a8a",
    "black": "#222222",
}

_LIGHT_AND_DARK = {
    "red": ("#f39696", "#c52828"),
    "orange": ("#f3c396", "#c57328"),
    "yellow": ("#f3e496", "#c5ac28"),
    "green": ("#96f3a5", "#28c541"),
    "teal": ("#96f3e8", "#28c5b2"),
    "blue": ("#96bbf3", "#2867c5"),
    "purple": ("#d096f3", "#8928c5"),
    "pink": ("#f396c8", "#c5287d"),
}

_ONE_COLOUR = {word: {"currentColor": fill} for word, fill in _MATERIAL.items()}
_TWO_BLUES = {word: {"#2F88FF": fill, "#43CCF8": fill} for word, fill in _MATERIAL.items()}
_DUOTONE = {word: {"#8fbffa": light, "#2859c5": dark} for word, (light, dark) in _LIGHT_AND_DARK.items()}

_PAINTS: Mapping[str, Mapping[str, Mapping[str, str]]] = MappingProxyType(
    {
        "game-icons": _ONE_COLOUR,
        "icon-park": _TWO_BLUES,
        "streamline-color": _DUOTONE,
        "streamline-plump-color": _DUOTONE,
        "streamline-flex-color": _DUOTONE,
    }
)


def painted(svg: str, source: str, colour: str | None) -> str:
    """`svg` of that source with its fills replaced by those of the colour word; as it is when there is no word."""
    if colour is None:
        return svg
    for original, fill in _PAINTS[source][colour].items():
        svg = svg.replace(original, fill)
    return svg
