"""The judges of generated pictures: a classifier and a caption-picture retrieval model on one shared trunk.

Owns the networks, their labels, and how they are stored. They learn from the corpus alone (`judge_training`) and never
see the generator. The classifier tells category, frequent concepts and style of a picture; its features serve the
Fréchet distance. The retrieval model follows CLIP (arXiv:2103.00020): a picture and its caption get nearby unit
vectors. Its caption side is a weighted bag of words: it judges what is named, not who is left of whom.
"""

import dataclasses
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from pydantic import TypeAdapter
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from training.pictures import Pixels, to_tensor

SIDE = 64
"""Pixels a side of what the judges look at; larger pictures are averaged down to it."""
SHIPPED = Path(__file__).parent / "judges"
WEIGHTS, DESCRIPTION = "judges.safetensors", "judges.json"
_PADDING, _UNKNOWN, _FIRST_WORD = 0, 1, 2
_MOST_WORDS = 24
_AT_ONCE = 128

Array = NDArray[np.float64]


@dataclass(frozen=True)
class JudgeSettings:
    """Widths of the networks. `channels` and `blocks` are for 16 x 16, 8 x 8 and 4 x 4 positions."""

    channels: tuple[int, int, int] = (48, 112, 192)
    blocks: tuple[int, int, int] = (2, 2, 2)
    features: int = 128
    word_width: int = 128
    embedding: int = 128


@dataclass(frozen=True)
class Labels:
    """What the outputs mean. A word, concept or style that is not listed is unknown to the judges."""

    words: tuple[str, ...]
    categories: tuple[str, ...]
    concepts: tuple[str, ...]
    styles: tuple[str, ...]


class Block(nn.Module):
    """A residual bottleneck: 1x1 to half the width, 3x3, 1x1 back; it starts as the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.norm = nn.GroupNorm(8, channels)
        self.narrow = nn.Conv2d(channels, half, 1)
        self.middle = nn.Conv2d(half, half, 3, padding=1)
        self.widen = nn.Conv2d(half, channels, 1)
        nn.init.zeros_(self.widen.weight)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.silu(self.narrow(self.norm(x)))
        return x + self.widen(F.silu(self.middle(hidden)))


class PictureTower(nn.Module):
    """Pictures float [n, 3, 64, 64] in -1..1 to features [n, features]; about 15 million multiplications a picture."""

    def __init__(self, settings: JudgeSettings) -> None:
        super().__init__()
        first, second, third = settings.channels
        self.conv_in = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.fold = nn.Conv2d(16, first, 3, stride=2, padding=1)
        self.fine = nn.Sequential(*(Block(first) for _ in range(settings.blocks[0])))
        self.to_middle = nn.Conv2d(first, second, 1)
        self.middle = nn.Sequential(*(Block(second) for _ in range(settings.blocks[1])))
        self.to_coarse = nn.Conv2d(second, third, 1)
        self.coarse = nn.Sequential(*(Block(third) for _ in range(settings.blocks[2])))
        self.norm = nn.GroupNorm(8, third)
        self.pooled_norm = nn.LayerNorm(third)
        self.features = nn.Linear(third, settings.features)

    def forward(self, pictures: Tensor) -> Tensor:
        x = pictures.contiguous(memory_format=torch.channels_last)
        x = self.fine(self.fold(F.silu(self.conv_in(x))))  # [n, first, 16, 16]
        x = self.middle(self.to_middle(F.avg_pool2d(x, 2)))
        x = self.coarse(self.to_coarse(F.avg_pool2d(x, 2)))  # [n, third, 4, 4]
        return self.features(self.pooled_norm(F.silu(self.norm(x)).mean((2, 3))))


class CaptionTower(nn.Module):
    """Word numbers int64 [n, words], 0 for padding, to unit vectors [n, embedding]."""

    def __init__(self, words: int, settings: JudgeSettings) -> None:
        super().__init__()
        width = settings.word_width
        self.words = nn.Embedding(words + _FIRST_WORD, width)
        self.weights = nn.Embedding(words + _FIRST_WORD, 1)
        nn.init.normal_(self.words.weight, std=0.1)
        nn.init.zeros_(self.weights.weight)
        self.mix = nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))
        self.embedding = nn.Linear(width, settings.embedding)

    def forward(self, words: Tensor) -> Tensor:
        importance = self.weights(words).squeeze(2).masked_fill(words == _PADDING, -torch.inf).softmax(1)
        mean = (self.words(words) * importance[..., None]).sum(1)
        return F.normalize(self.embedding(mean + self.mix(mean)), dim=1)


@dataclass(frozen=True)
class Impression:
    """What the judges make of n pictures, as tensors: features [n, f], unit embeddings [n, e], logits [n, labels]."""

    features: Tensor
    embeddings: Tensor
    categories: Tensor
    concepts: Tensor
    styles: Tensor


class JudgeNetwork(nn.Module):
    """Both judges. `temperature` is the logarithm of CLIP's logit scale."""

    def __init__(self, labels: Labels, settings: JudgeSettings) -> None:
        super().__init__()
        self.pictures = PictureTower(settings)
        self.captions = CaptionTower(len(labels.words), settings)
        self.categories = nn.Linear(settings.features, len(labels.categories))
        self.concepts = nn.Linear(settings.features, len(labels.concepts))
        self.styles = nn.Linear(settings.features, len(labels.styles))
        self.embedding = nn.Linear(settings.features, settings.embedding)
        self.temperature = nn.Parameter(torch.tensor(np.log(1 / 0.07), dtype=torch.float32))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, pictures: Tensor) -> Impression:
        features = self.pictures(pictures)
        embeddings = F.normalize(self.embedding(F.silu(features)), dim=1)
        heads = (self.categories(features), self.concepts(features), self.styles(features))
        return Impression(features, embeddings, *heads)


@dataclass(frozen=True)
class Judges:
    """Trained judges on the CPU in float32, with what each output means."""

    network: JudgeNetwork
    labels: Labels
    settings: JudgeSettings

    @torch.inference_mode()
    def look(self, pictures: Sequence[Pixels] | Pixels) -> Impression:
        """Impression of pictures uint8 [h, w, 3] of any square size, one or more."""
        self.network.eval()
        small = np.stack([_to_side(picture) for picture in pictures])
        seen = [self.network(to_tensor(small[i : i + _AT_ONCE])) for i in range(0, len(small), _AT_ONCE)]
        names = [field.name for field in dataclasses.fields(Impression)]
        return Impression(*(torch.cat([getattr(one, name) for one in seen]) for name in names))

    @torch.inference_mode()
    def read(self, captions: Sequence[str]) -> Tensor:
        """Unit embeddings [n, e] of captions."""
        self.network.eval()
        embeddings: Tensor = self.network.captions(encode(captions, word_numbers(self.labels.words)))
        return embeddings

    def similarity(self, impression: Impression, captions: Sequence[str]) -> Array:
        """Cosine of every picture with every caption: float64 [pictures, captions]."""
        cosines: Array = (impression.embeddings @ self.read(captions).T).double().numpy()
        return cosines

    def save(self, folder: Path) -> None:
        """Write float16 weights and the labels to `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: tensor.half().contiguous() for name, tensor in self.network.state_dict().items()}
        description = {"settings": dataclasses.asdict(self.settings), "labels": dataclasses.asdict(self.labels)}
        (folder / DESCRIPTION).write_text(json.dumps(description, ensure_ascii=False, separators=(",", ":")) + "\n")
        save_file(weights, folder / WEIGHTS)

    @classmethod
    def load(cls, folder: Path) -> "Judges":
        """The judges in `folder`. Raises FileNotFoundError that says how to train some."""
        if not (folder / WEIGHTS).is_file():
            raise FileNotFoundError(
                f"No judges in {folder}; train some with `python -m training.evaluate judges` and give their folder."
            )
        description = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        labels = TypeAdapter(Labels).validate_python(description["labels"])
        settings = TypeAdapter(JudgeSettings).validate_python(description["settings"])
        network = JudgeNetwork(labels, settings)
        network.load_state_dict({name: tensor.float() for name, tensor in load_file(folder / WEIGHTS).items()})
        return cls(network.requires_grad_(False).eval(), labels, settings)


def words_of(text: str) -> list[str]:
    """Lower-case runs of letters and digits."""
    return re.findall(r"[^\W_]+", text.lower())


def word_numbers(words: Sequence[str]) -> dict[str, int]:
    return {word: number for number, word in enumerate(words, _FIRST_WORD)}


def encode(captions: Sequence[str], numbers: dict[str, int]) -> Tensor:
    """Word numbers int64 [n, longest], 0 for padding; a caption without a word is one unknown word."""
    rows = [[numbers.get(word, _UNKNOWN) for word in words_of(caption)][:_MOST_WORDS] for caption in captions]
    encoded = torch.full((len(rows), max(1, *map(len, rows))), _PADDING)
    for place, row in enumerate(rows):
        row = row or [_UNKNOWN]
        encoded[place, : len(row)] = torch.tensor(row)
    return encoded


def _to_side(picture: Pixels) -> Pixels:
    if picture.shape[:2] == (SIDE, SIDE):
        return picture
    resized = Image.fromarray(picture).resize((SIDE, SIDE), Image.Resampling.BOX)
    return np.asarray(resized)
