"""The credits that licences of the pictures ask for, as a text to lie beside the arrays and the trained model."""

from collections.abc import Iterable
from typing import Any

from training.corpus.sources import SOURCES, Source

_OPENING = """\
# Credits for the pictures

Whose pictures these are, under which licence they were published, and how many of them are used. All were rasterised,
cut out, centred and scaled; those of IconPark, Game-icons and Streamline Color, Plump and Flex were recoloured as well.
Share-alike and copyleft licences are not among them.

Licence texts: [CC BY 4.0](https://creativecommons.org/licenses/by/4.0/),
[CC BY 3.0](https://creativecommons.org/licenses/by/3.0/), [CC BY 2.0](https://creativecommons.org/licenses/by/2.0/),
[CC BY 1.0](https://creativecommons.org/licenses/by/1.0/),
[CC0 1.0](https://creativecommons.org/publicdomain/zero/1.0/),
[Apache-2.0](https://www.apache.org/licenses/LICENSE-2.0), [MIT](https://opensource.org/license/mit).

| pictures | from | licence | package |
| ---: | --- | --- | --- |
"""

_NAMES = """
Names and keywords of the pictures: Unicode CLDR (Unicode License v3), in part through emojibase-data (MIT); categories
with the help of WordNet (WordNet License).
"""


def attribution(records: Iterable[dict[str, Any]]) -> str:
    """Markdown: a line for each source with its number of pictures, then one for each picture credited singly."""
    by_source: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        by_source.setdefault(record["src"], []).append(record)
    used = [source for source in SOURCES if source.name in by_source]
    lines = [_line(source, len(by_source[source.name])) for source in used]
    text = _OPENING + "\n".join(lines) + "\n" + _NAMES
    singles = _singly_credited([record for source in used for record in by_source[source.name]])
    return text + (f"\n## Pictures credited singly\n\n{singles}" if singles else "")


def _line(source: Source, count: int) -> str:
    packages = ", ".join(f"{package.name} {package.version} ({package.client})" for package in source.packages)
    return f"| {count} | {source.credit} | {source.licence} | {packages} |"


def _singly_credited(records: list[dict[str, Any]]) -> str:
    """Crops of one photograph share a line."""
    lines = {}
    for record in records:
        if record["credit"]:
            title = record["id"].rpartition("/")[0] if isinstance(record["crop"], list) else record["id"]
            lines[title] = f"- {title}: {record['credit']}. {record['license']}.\n"
    return "".join(lines.values())
