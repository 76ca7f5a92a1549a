"""`denoised replay`: a picture drawn again, and the verdict in words.

Owns how a file becomes the body of POST /replay and how a verdict reads. Whom to ask and how to follow is the client's.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import uuid

from app.cli import complain
from app.cli_generate import explain
from app.cli_progress import Progress
from app.client import Client, ClientError, Job, JobFailed, Replay, Verdict
from app.exit_status import EXIT_FAILED, EXIT_SETTINGS


def replay(options: argparse.Namespace) -> int:
    """Draws the picture again and prints the verdict; returns 0 where it agrees."""
    try:
        body = replay_body(options)
        with Client(options.server, options.key) as client:
            job = _draw(client, body, options.key)
            if job.replay is None:
                failed = JobFailed(job)
                return complain(f"{failed} ({failed.code})", EXIT_FAILED)
            if options.output is not None:
                client.save(job.images[0], options.output)
    except ClientError as error:
        return explain(error)
    except OSError as error:
        return complain(f"{error.filename} cannot be used: {error.strerror}.", EXIT_SETTINGS)
    verdict = job.replay
    print(json.dumps(job.document["replay"], indent=2) if options.json else _told(options.file.name, verdict))
    return 0 if verdict.agrees else EXIT_FAILED


def replay_body(options: argparse.Namespace) -> Replay:
    """The body of POST /replay: a picture's file, or a recipe as JSON. Raises OSError."""
    data = options.file.read_bytes()
    body: Replay = {"recipe": data.decode("utf-8", "replace")} if data.lstrip()[:1] == b"{" else {"image": data}
    if options.recipe is not None:
        body["recipe"] = options.recipe.read_bytes().decode("utf-8", "replace")
    if options.image is not None:
        body["init_image"] = options.image
    if options.mask is not None:
        body["mask_image"] = options.mask
    if options.controls:
        body["control_images"] = options.controls
    return body


def _told(name: str, verdict: Verdict) -> str:
    return "\n".join(verdict_lines(name, verdict))


def verdict_lines(name: str, verdict: Verdict) -> list[str]:
    """What was found, then a line for each reason."""
    if verdict.agrees is None:
        found = "it cannot be told whether the pixels agree"
    elif not verdict.agrees:
        found = "other pixels"
    else:
        found = "the same pixels, to the last bit" if verdict.exact else "the same picture"
        found += f", as {verdict.contract} promises" if verdict.contract else ", though nothing promised it"
    if verdict.max_difference:
        count, levels = verdict.differing_pixels, verdict.max_difference
        pixels = "pixel differs" if count == 1 else "pixels differ"
        found += f" ({count} {pixels}, by up to {levels} of 255)"
    return [f"{name}: {found}", *(f"  {reason.code}: {reason.detail}" for reason in verdict.reasons)]


def _draw(client: Client, body: Replay, key: str | None) -> Job:
    progress, once = Progress(sys.stderr), str(uuid.uuid4())
    job = None
    try:
        job = client.submit_replay(body, idempotency_key=once)
        return client.wait(job, progress=progress.show)
    except KeyboardInterrupt:
        progress.end()
        with contextlib.suppress(ClientError), Client(client.server, key, patience_s=0.0) as other:
            # Without a job the answer had not come yet: the same key leads to the one that may be queued.
            other.cancel(job or other.submit_replay(body, idempotency_key=once))
        raise
    finally:
        progress.end()
