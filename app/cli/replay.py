"""`denoised replay`: a picture drawn again, and the verdict in words.

Owns how a file becomes the body of POST /replay and how a verdict reads. Whom to ask and how to follow is the client's.
"""

from __future__ import annotations

import argparse
import json
import sys
import uuid

from app.cli import complain
from app.cli.exit_status import EXIT_FAILED, EXIT_SETTINGS
from app.cli.generate import NotSaved, check_directory, explain, follow, patient_client
from app.cli.progress import Progress
from app.client import DEFAULT_SERVER, ClientError, JobFailed, Replay, Verdict


def replay(options: argparse.Namespace) -> int:
    """Draws the picture again and prints the verdict; returns 0 where it agrees."""
    progress, once = Progress(sys.stderr), str(uuid.uuid4())
    try:
        if options.output is not None:
            check_directory(options.output)
        body = replay_body(options)
        with patient_client(options.server or DEFAULT_SERVER, options, progress) as client:
            client.is_ready()  # asks once: a server that is not there is not waited for
            job = follow(client, lambda each: each.submit_replay(body, idempotency_key=once), options.key, progress)
            if job.replay is None:
                failed = JobFailed(job)
                return complain(f"{failed} ({failed.code})", EXIT_FAILED)
            if options.output is not None:
                client.save(job.images[0], options.output)
    except NotSaved as error:
        return complain(str(error), EXIT_SETTINGS)
    except ClientError as error:
        return explain(error)
    except OSError as error:
        return complain(f"{error.filename} cannot be used: {error.strerror}.", EXIT_SETTINGS)
    verdict = job.replay
    if options.json:
        print(json.dumps(job.document["replay"], indent=2))
    else:
        print("\n".join(verdict_lines(options.file.name, verdict)))
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


def verdict_lines(name: str, verdict: Verdict) -> list[str]:
    """What was found, then a line for each reason."""
    if verdict.agrees is None:
        found = "it cannot be told whether the pixels agree"
    elif not verdict.agrees:
        found = "other pixels"
    else:
        found = "the same pixels, to the last bit" if verdict.exact else "the same picture"
        than = "more than" if verdict.exact and verdict.contract == "standard" else "as"
        found += f", {than} {verdict.contract} promises" if verdict.contract else ", though nothing promised it"
    if verdict.max_difference:
        count, levels = verdict.differing_pixels, verdict.max_difference
        pixels = "pixel differs" if count == 1 else "pixels differ"
        found += f" ({count} {pixels}, by up to {levels} of 255)"
    return [f"{name}: {found}", *(f"  {reason.code}: {reason.detail}" for reason in verdict.reasons)]
