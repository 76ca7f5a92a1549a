"""`denoised replay`: a picture drawn again, and the verdict in words.

Owns how a file becomes the body of POST /replay and how a verdict reads. Whom to ask and how to follow is the client's.
"""

from __future__ import annotations

import argparse
import base64
import json
import sys
import uuid
from pathlib import Path
from typing import Any

from app.cli import complain
from app.cli_generate import explain
from app.cli_progress import Progress
from app.client import DEFAULT_SERVER, Client, ClientError
from app.exit_status import EXIT_FAILED, EXIT_SETTINGS


class _Unusable(Exception):
    """A file could not be read or written; the message is a sentence."""


def replay(options: argparse.Namespace) -> int:
    """Draws the picture again and prints the verdict; returns 0 where it agrees."""
    try:
        body = replay_body(options)
        with Client(options.server or DEFAULT_SERVER, options.key) as client:
            document = _draw(client, body)
            if document["status"] != "succeeded":
                error = document["error"] or {"detail": f"The job was {document['status']}.", "code": "canceled"}
                return complain(f"{error['detail']} ({error['code']})", EXIT_FAILED)
            if options.output is not None:
                _write(options.output, client.image(document["images"][0]["url"]))
    except _Unusable as error:
        return complain(str(error), EXIT_SETTINGS)
    except ClientError as error:
        return explain(error)
    verdict = document["replay"]
    print(json.dumps(verdict, indent=2) if options.json else "\n".join(verdict_lines(options.file.name, verdict)))
    return 0 if verdict["agrees"] else EXIT_FAILED


def replay_body(options: argparse.Namespace) -> dict[str, Any]:
    """The body of POST /replay: a picture's file, or a recipe as JSON."""
    data = _read(options.file)
    if data.lstrip()[:1] == b"{":
        body: dict[str, Any] = {"recipe": data.decode("utf-8", "replace")}
    else:
        body = {"image": _base64(data)}
    if options.recipe is not None:
        body["recipe"] = _read(options.recipe).decode("utf-8", "replace")
    for option, name in (("image", "init_image"), ("mask", "mask_image")):
        if getattr(options, option) is not None:
            body[name] = _base64(_read(getattr(options, option)))
    if options.controls:
        body["control_images"] = [_base64(_read(path)) for path in options.controls]
    return body


def verdict_lines(name: str, verdict: dict[str, Any]) -> list[str]:
    """What was found, then a line for each reason."""
    if verdict["agrees"] is None:
        found = "it cannot be told whether the pixels agree"
    elif not verdict["agrees"]:
        found = "other pixels"
    else:
        found = "the same pixels, to the last bit" if verdict["exact"] else "the same picture"
        found += f", as {verdict['contract']} promises" if verdict["contract"] else ", though nothing promised it"
    if verdict["max_difference"]:
        count, levels = verdict["differing_pixels"], verdict["max_difference"]
        pixels = "pixel differs" if count == 1 else "pixels differ"
        found += f" ({count} {pixels}, by up to {levels} of 255)"
    return [f"{name}: {found}", *(f"  {reason['code']}: {reason['detail']}" for reason in verdict["reasons"])]


def _draw(client: Client, body: dict[str, Any]) -> dict[str, Any]:
    progress = Progress(sys.stderr)
    submitted = document = client.replay(body, str(uuid.uuid4()))
    try:
        for document in client.follow(submitted):
            progress.show(document)
    except KeyboardInterrupt:
        client.cancel(document["id"])
        raise
    finally:
        progress.end()
    return document


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _Unusable(f"{path} cannot be read: {error.strerror}.") from error


def _write(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        raise _Unusable(f"{path} cannot be written: {error.strerror}.") from error


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
