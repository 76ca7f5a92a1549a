"""Where the pictures come from: packages, their versions, licences and credits.

Owns which package holds which drawing style. Knows nothing of downloading (fetch.py) or reading (extract.py).
"""

from dataclasses import dataclass
from typing import Literal

Client = Literal["npm", "apt", "pip"]
Reader = Literal["icons", "avatars", "files"]

LICENCE_CLASSES = ("pd", "permissive", "by")
"""What may be trained on: public domain, MIT and Apache, Creative Commons Attribution. No share-alike, no copyleft."""


@dataclass(frozen=True)
class Package:
    """One package of a registry, and which of its files are needed (shell patterns, relative to its root)."""

    name: str
    version: str
    client: Client
    files: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


@dataclass(frozen=True)
class Source:
    """One drawing style: `name` is the `src` of its records, `licence` in words, `credit` who drew it and where."""

    name: str
    packages: tuple[Package, ...]
    reader: Reader
    licence: str
    credit: str


def source_of(name: str) -> Source:
    """The source of that name; ValueError with the names that exist."""
    for source in SOURCES:
        if source.name == name:
            return source
    raise ValueError(f"There is no source {name!r}. Sources: {', '.join(source.name for source in SOURCES)}.")


def _icons(name: str, version: str, licence: str, credit: str) -> Source:
    package = Package(f"@iconify-json/{name}", version, "npm", ("icons.json",))
    return Source(name, (package,), "icons", licence, credit)


def _avatars(style: str, licence: str, credit: str) -> Source:
    package = Package(f"@dicebear/{style}", "9.4.3", "npm", ("package.json", "lib/*"))
    return Source(f"avatar-{style}", (package, DICEBEAR), "avatars", licence, credit)


DICEBEAR = Package("@dicebear/core", "9.4.3", "npm", ("package.json", "lib/*"))

# The large package, for one set that is not published alone.
ICONIFY = Package("@iconify/json", "2.2.535", "npm", ("json/glyphs-poly.json",))

FLUENT_3D = Package("@lobehub/fluent-emoji-3d", "1.1.0", "npm", ("assets/*.webp",))
OPENCLIPART = Package("openclipart-svg", "1:0.18+dfsg-19", "apt", ("usr/share/openclipart/*.svg",))
PYSIOGAME = Package("pysiogame", "4.20.01-1", "apt", ("usr/share/games/pysiogame/res/images/fr/*.png",))
TANGO = Package("tango-icon-theme", "0.8.90-11", "apt", ("usr/share/icons/Tango/scalable/*.svg",))
GCOMPRIS = Package(
    "gcompris-qt-data",
    "3.1-2",
    "apt",
    tuple(f"usr/share/gcompris-qt/rcc/{name}.rcc" for name in ("babymatch", "categorization", "explore_world_animals")),
)
WALLPAPERS = Package("lomiri-wallpapers-16.04", "20.04.0-2", "apt", ("usr/share/backgrounds/*.jpg",))
ARCADE = Package("arcade", "3.3.3", "pip", ("arcade/resources/assets/images/*",))
SCIKIT_IMAGE = Package("scikit-image", "0.26.0", "pip", ("skimage/data/*.png", "skimage/data/*.jpg"))
SCIKIT_LEARN = Package("scikit-learn", "1.9.1", "pip", ("sklearn/datasets/images/*.jpg",))

_STREAMLINE = "Streamline, https://github.com/webalys-hq/streamline-vectors"
_FLUENT_EMOJI = "Microsoft, https://github.com/microsoft/fluentui-emoji"

SOURCES = (
    _icons("noto", "1.2.9", "Apache-2.0", "Noto Emoji: Google, https://github.com/googlefonts/noto-emoji"),
    _icons("noto-v1", "1.2.5", "Apache-2.0", "Noto Emoji v1: Google, https://github.com/googlefonts/noto-emoji"),
    _icons("twemoji", "1.2.5", "CC BY 4.0", "Twemoji: Twitter and contributors, https://github.com/jdecked/twemoji"),
    _icons("fluent-emoji", "1.2.7", "MIT", f"Fluent Emoji: {_FLUENT_EMOJI}"),
    _icons("fluent-emoji-flat", "1.2.6", "MIT", f"Fluent Emoji Flat: {_FLUENT_EMOJI}"),
    _icons("emojione", "1.2.3", "CC BY 4.0", "EmojiOne 2: EmojiOne, https://github.com/EmojiTwo/emojitwo"),
    _icons(
        "fxemoji", "1.2.2", "Apache-2.0, CC BY 4.0", "Firefox OS Emoji: Mozilla, https://github.com/mozilla/fxemoji"
    ),
    _icons("streamline-emojis", "1.2.4", "CC BY 4.0", f"Streamline Emojis: {_STREAMLINE}"),
    Source("fluent-emoji-3d", (FLUENT_3D,), "files", "MIT", f"Fluent Emoji 3D: {_FLUENT_EMOJI}"),
    Source(
        "glyphs-poly", (ICONIFY,), "icons", "MIT", "Glyphs Poly: Goran Spasojevic, https://github.com/gorango/glyphs"
    ),
    _icons("streamline-kameleon-color", "1.2.2", "CC BY 4.0", f"Kameleon Color: {_STREAMLINE}"),
    _icons("streamline-stickies-color", "1.2.2", "CC BY 4.0", f"Stickies Color: {_STREAMLINE}"),
    _icons("fluent-color", "1.2.21", "MIT", "Fluent UI: Microsoft, https://github.com/microsoft/fluentui-system-icons"),
    _icons("flat-color-icons", "1.2.3", "MIT", "Flat Color Icons: Icons8, https://github.com/icons8/flat-Color-icons"),
    _icons("flat-ui", "1.2.3", "MIT", "Flat UI: Designmodo, https://github.com/designmodo/Flat-UI"),
    _icons("meteocons", "1.2.4", "MIT", "Meteocons: Bas Milius, https://github.com/basmilius/weather-icons"),
    _icons("streamline-ultimate-color", "1.2.2", "CC BY 4.0", f"Ultimate Color: {_STREAMLINE}"),
    _icons("streamline-freehand-color", "1.2.2", "CC BY 4.0", f"Freehand Color: {_STREAMLINE}"),
    _icons("streamline-color", "1.2.2", "CC BY 4.0", f"Streamline Color: {_STREAMLINE}"),
    _icons("streamline-plump-color", "1.2.2", "CC BY 4.0", f"Plump Color: {_STREAMLINE}"),
    _icons("streamline-flex-color", "1.2.2", "CC BY 4.0", f"Flex Color: {_STREAMLINE}"),
    _icons("icon-park", "1.2.4", "Apache-2.0", "IconPark: ByteDance, https://github.com/bytedance/IconPark"),
    _icons("game-icons", "1.2.4", "CC BY 3.0", "Game-icons: Lorc, Delapouite and contributors, https://game-icons.net"),
    _icons("circle-flags", "1.2.11", "MIT", "Circle Flags: HatScripts, https://github.com/HatScripts/circle-flags"),
    _avatars("adventurer", "CC BY 4.0", "Adventurer: Lisa Wischofsky, through DiceBear"),
    _avatars("big-ears", "CC BY 4.0", "Big Ears: The Visual Team, through DiceBear"),
    _avatars("big-smile", "CC BY 4.0", "Custom Avatar (Big Smile): Ashley Seo, through DiceBear"),
    _avatars("micah", "CC BY 4.0", "Avatar Illustration System (Micah): Micah Lanier, through DiceBear"),
    _avatars("personas", "CC BY 4.0", "Personas: Draftbit, through DiceBear"),
    _avatars("toon-head", "CC BY 4.0", "ToonHead: Johan Melin, through DiceBear"),
    _avatars("dylan", "CC BY 4.0", "Dylan: Natalia Spivak, through DiceBear"),
    _avatars("miniavs", "CC BY 4.0", "Miniavs: Webpixels, through DiceBear"),
    _avatars("open-peeps", "CC0 1.0", "Open Peeps: Pablo Stanley, through DiceBear"),
    _avatars("pixel-art", "CC0 1.0", "Pixel Art: DiceBear"),
    _avatars("thumbs", "CC0 1.0", "Thumbs: DiceBear"),
    Source("openclipart", (OPENCLIPART,), "files", "public domain", "Open Clip Art Library 0.18, its contributors"),
    Source("pysiogame-fruit", (PYSIOGAME,), "files", "public domain", "Fruit clip art in pysiogame"),
    Source("gcompris", (GCOMPRIS,), "files", "by picture", "Pictures in GCompris, named below"),
    Source("tango", (TANGO,), "files", "public domain", "Tango icon theme: the Tango Desktop Project"),
    Source("kenney", (ARCADE,), "files", "CC0 1.0", "Game art by Kenney, https://kenney.nl, in the package arcade"),
    Source("photo", (WALLPAPERS, SCIKIT_IMAGE, SCIKIT_LEARN), "files", "by picture", "Photographs, named below"),
)
