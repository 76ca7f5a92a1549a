"""What a job needs that must not stall the steps: files read before it is drawn, files written after.

Owns the pool of threads and what runs in it. An work touches the store and pixels, never Redis or the engine, and its
result is taken up by the loop. A store that refuses (a full disk, a lost network) is an OSError; whether to ask again
is the loop's decision.
"""

from __future__ import annotations

import hashlib
import io
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from models.canvas import Canvas, Mask, make_canvas
from models.errors import ImageUnusable, UploadMissing
from models.materials import Materials
from models.request import ImageToImageRequest, InpaintingRequest, PictureRequest, UpscaleRequest
from workers.contract import JobRecord, Original, Picture, Provenance, Verdict, new_job_id
from workers.enlarging import enlarging
from workers.judging import judge
from workers.pictures import digest_of_pixels, encode_picture, preview_bytes, recipe_of
from workers.protocols import Drawn
from workers.saved import Saved, read_saved
from workers.store import Store

_TRIAL_BYTES = 2**20
"""About a picture: a disk may have room for a few bytes and for nothing of use."""


@dataclass(frozen=True)
class Uploads:
    """The decoded uploads of a job: a picture, for inpainting that of its canvas with its mask, and controls'."""

    image: Image.Image | None = None
    mask: Mask | None = None
    controls: tuple[Image.Image, ...] = ()
    images: tuple[Image.Image, ...] = ()
    """What was drawn, to be enlarged."""


@dataclass(frozen=True)
class Brought:
    """What a job brings to the engine, and for inpainting where the answer is pasted."""

    inputs: Any
    canvas: Canvas | None = None
    enlarging: UpscaleRequest | None = None
    """The second half of the job, when this is for that."""
    saved: Saved = Saved()
    """What an earlier worker left of it; with a first half nothing is brought for that any more."""
    materials: Materials = Materials()
    """What was read of what the request names beside its model."""


@dataclass(frozen=True)
class Finished:
    """What a job ends with: its files, durable, and for one that draws an earlier picture again how they compare."""

    pictures: tuple[Picture, ...]
    verdict: Verdict | None = None


ReadAhead = Callable[[PictureRequest, Any, Uploads], tuple[Any, Materials]]
"""Work of a request on a checkpoint that can be done ahead in another thread: compiles its step table, reads the LoRAs
and ControlNets that it names, and answers with the engine's inputs and with the digests of what was read."""


class IOPool:
    """The pool. `wake` is set whenever an work has ended."""

    def __init__(self, store: Store, threads: int, read_ahead: ReadAhead, wake: threading.Event) -> None:
        self._store = store
        self._read_ahead = read_ahead
        self._wake = wake
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="io")

    def read(self, record: JobRecord, checkpoint: Any) -> Future[Brought]:
        """Everything that the job brings along, read and decoded.

        Raises what the request is at fault for (GenerationError) and OSError when the store refuses.
        """
        return self._start(_read, self._store, self._read_ahead, record, checkpoint)

    def enlarge(self, record: JobRecord, drawn: Drawn, canvas: Canvas | None, upscaler: Any) -> Future[Brought]:
        """What the second half of a job begins with: its drawn pictures, pasted, and the request to enlarge them."""
        return self._start(_enlarge, self._read_ahead, record, drawn, canvas, upscaler)

    def save(
        self, record: JobRecord, execution: str, drawn: Drawn, provenance: Provenance, canvas: Canvas | None = None
    ) -> Future[Finished]:
        """Pastes into the canvas, encodes and stores all pictures; then they are durable. May be repeated."""
        return self._start(_save, self._store, record, execution, drawn, provenance, canvas)

    def preview(self, pixels: np.ndarray, canvas: Canvas | None = None) -> Future[bytes]:
        """A preview's file."""
        return self._start(_preview, pixels, canvas)

    def try_store(self) -> Future[None]:
        """Writes a file and removes it. Raises OSError when the store refuses."""
        return self._start(_try_store, self._store)

    def sweep(self, older_than_s: float, is_alive: Callable[[str], bool]) -> Future[int]:
        """Erases the files of expired jobs."""
        return self._start(self._store.expire, older_than_s, is_alive)

    def close(self) -> None:
        """Waits for what runs; what has not begun never will."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _start(self, work: Callable[..., Any], *args: Any) -> Future[Any]:
        future = self._pool.submit(work, *args)
        future.add_done_callback(lambda _: self._wake.set())
        return future


def _try_store(store: Store) -> None:
    job_id = new_job_id()
    try:
        store.put(job_id, "trial", bytes(_TRIAL_BYTES))
    finally:
        store.erase(job_id)


def _read(store: Store, read_ahead: ReadAhead, record: JobRecord, checkpoint: Any) -> Brought:
    request = record.submission.request
    saved = read_saved(store, record.id, checkpoint.digest) if record.has_left_something else Saved()
    if saved.first is not None:
        return Brought(None, _canvas_of(store, record), saved=saved, materials=saved.first.materials)
    controls = tuple(_read_upload(store, record, control.image) for control in request.controls)
    image, mask, canvas = None, None, _canvas_of(store, record)
    if isinstance(request, ImageToImageRequest | UpscaleRequest):
        image = _read_upload(store, record, request.image)
    elif canvas is not None:
        image, mask = canvas.picture, canvas.canvas_mask
        controls = tuple(canvas.beside(control) for control in controls)
    # Here and not in the engine's thread, which everybody waits for.
    size = request.width, request.height
    controls = tuple(c if c.size == size else c.resize(size, Image.Resampling.LANCZOS) for c in controls)
    inputs, materials = read_ahead(request, checkpoint, Uploads(image, mask, controls))
    return Brought(inputs, canvas, saved=saved, materials=materials)


def _enlarge(read_ahead: ReadAhead, record: JobRecord, drawn: Drawn, canvas: Canvas | None, upscaler: Any) -> Brought:
    pictures = [canvas.paste(pixels) if canvas else pixels for pixels in drawn.pictures]
    request = enlarging(record.submission.request, pictures, upscaler)
    images = tuple(Image.fromarray(pixels) for pixels in pictures)
    inputs, _ = read_ahead(request, upscaler, Uploads(images=images))
    return Brought(inputs, enlarging=request)


def _canvas_of(store: Store, record: JobRecord) -> Canvas | None:
    """Of inpainting."""
    request = record.submission.request
    if not isinstance(request, InpaintingRequest):
        return None
    image = _read_upload(store, record, request.image)
    mask = _read_upload(store, record, request.mask_image) if request.mask_image else None
    try:
        return make_canvas(request, image, mask)
    except ValueError as error:
        raise ImageUnusable(f"Mask and picture do not belong together: {error}") from error


def _read_upload(store: Store, record: JobRecord, reference: str) -> Image.Image:
    try:
        data = store.get(record.id, f"{reference.removeprefix('sha256:')}.png")
    except FileNotFoundError as error:
        raise UploadMissing("The uploaded picture is no longer in the store; send it again.") from error
    return _decode(data)


def _preview(pixels: np.ndarray, canvas: Canvas | None) -> bytes:
    return preview_bytes(canvas.preview(pixels) if canvas else pixels)


def _decode(data: bytes) -> Image.Image:
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            return image.convert("RGB")
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ImageUnusable("The uploaded picture cannot be read; send it as PNG, JPEG or WebP again.") from error


def _save(
    store: Store, record: JobRecord, execution: str, drawn: Drawn, provenance: Provenance, canvas: Canvas | None
) -> Finished:
    request, output_format = record.submission.request, record.submission.delivery.output_format
    pictures, verdict = [], None
    for index, (drawn_pixels, seed) in enumerate(zip(drawn.pictures, drawn.seeds, strict=True)):
        pixels = canvas.paste(drawn_pixels) if canvas else drawn_pixels
        own = provenance.model_copy(update={"pixels_sha256": digest_of_pixels(pixels)})
        file = encode_picture(pixels, output_format, recipe_of(request, index, own))
        if record.submission.original is not None:
            verdict = _compare(store, record, record.submission.original, own, pixels)
        # The execution in the name: a worker that lost the job cannot overwrite what the next one wrote.
        name = f"{execution}-{index}.{file.extension}"
        store.put(record.id, name, file.data)
        pictures.append(
            Picture(
                file=name,
                seed=seed,
                width=pixels.shape[1],
                height=pixels.shape[0],
                sha256=hashlib.sha256(file.data).hexdigest(),
                size_bytes=len(file.data),
                media_type=file.media_type,
            )
        )
    return Finished(tuple(pictures), verdict)


def _compare(
    store: Store, record: JobRecord, original: Original, provenance: Provenance, pixels: np.ndarray
) -> Verdict:
    picture = _read_upload(store, record, original.picture) if original.picture else None
    return judge(original, provenance, pixels, None if picture is None else np.asarray(picture))
