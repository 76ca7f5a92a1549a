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
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from models.errors import ImageUnusable, UploadMissing
from models.request import ImageToImageRequest, PictureRequest
from workers.contract import JobRecord, Picture
from workers.pictures import encode_picture, preview_bytes, recipe_of
from workers.protocols import Drawn
from workers.store import Store

Rehearsal = Callable[[PictureRequest, Any], object]
"""Work of a request on a checkpoint that can be done ahead in another thread: `models.engine.step_table_of`."""


class IOPool:
    """The pool. `wake` is set whenever an work has ended."""

    def __init__(self, store: Store, threads: int, rehearse: Rehearsal, wake: threading.Event) -> None:
        self._store = store
        self._rehearse = rehearse
        self._wake = wake
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="io")

    def read(self, record: JobRecord, checkpoint: Any) -> Future[Image.Image | None]:
        """The decoded upload, if the request has one; its step table is compiled on the way.

        Raises what the request is at fault for (GenerationError) and OSError when the store refuses.
        """
        return self._start(_read, self._store, self._rehearse, record, checkpoint)

    def save(self, record: JobRecord, execution: str, drawn: Drawn, model_digest: str) -> Future[tuple[Picture, ...]]:
        """Encodes and stores all pictures; when it is done they are durable. May be repeated."""
        return self._start(_save, self._store, record, execution, drawn, model_digest)

    def preview(self, pixels: np.ndarray) -> Future[bytes]:
        """A preview's file."""
        return self._start(preview_bytes, pixels)

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


def _read(store: Store, rehearse: Rehearsal, record: JobRecord, checkpoint: Any) -> Image.Image | None:
    request = record.submission.request
    rehearse(request, checkpoint)
    if not isinstance(request, ImageToImageRequest):
        return None
    try:
        data = store.get(record.id, f"{request.image.removeprefix('sha256:')}.png")
    except FileNotFoundError as error:
        raise UploadMissing("The uploaded picture is no longer in the store; send it again.") from error
    return _decode(data)


def _decode(data: bytes) -> Image.Image:
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            return image.convert("RGB")
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ImageUnusable("The uploaded picture cannot be read; send it as PNG, JPEG or WebP again.") from error


def _save(store: Store, record: JobRecord, execution: str, drawn: Drawn, model_digest: str) -> tuple[Picture, ...]:
    request, output_format = record.submission.request, record.submission.delivery.output_format
    pictures = []
    for index, (pixels, seed) in enumerate(zip(drawn.pictures, drawn.seeds, strict=True)):
        file = encode_picture(pixels, output_format, recipe_of(request, index, model_digest))
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
    return tuple(pictures)
