"""`denoised generate` and `denoised models`: the command line as a client of the API.

Owns how a request is put together from options, how it is followed on a terminal, and where pictures are saved. When
no server answers at the default address, starts one for this command and ends it afterwards.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

from app.cli import complain
from app.cli.exit_status import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_SETTINGS, EXIT_UNREACHABLE
from app.cli.progress import Progress
from app.client import DEFAULT_SERVER, Client, ClientError, Job, JobFailed, Model, Refused, Request, Unreachable

_START_TIMEOUT_S = 300.0
"""Seconds that a server may take from its start to its first picture; loading a large model from a slow disk fits."""
_FORMATS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}
_ENDINGS = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}
_FIELDS = {
    "negative": "negative_prompt",
    "steps": "num_inference_steps",
    "seed": "seed",
    "guidance": "guidance_scale",
    "guidance_rescale": "guidance_rescale",
    "sampler": "sampler",
    "noise_schedule": "noise_schedule",
    "strength": "strength",
    "syntax": "prompt_syntax",
    "reproducibility": "reproducibility",
    "clip_skip": "clip_skip",
    "mask_blur": "mask_blur",
    "crop": "padding_mask_crop",
    "model": "model",
    "priority": "priority",
    "deadline": "deadline_s",
}


class NotSaved(Exception):
    """A picture or an upload could not be written or read; the message is a sentence."""


def generate(options: argparse.Namespace) -> int:
    """Draws and saves; returns the exit status."""
    progress = Progress(sys.stderr)
    try:
        body = request_body(options)
        with _server(options, progress.say) as server, patient_client(server, options, progress) as client:
            return _draw(client, body, options, progress)
    except NotSaved as error:
        return complain(str(error), EXIT_SETTINGS)
    except ClientError as error:
        return explain(error)


def patient_client(server: str, options: argparse.Namespace, progress: Progress) -> Client:
    """Waits with a server that starts, and says so."""
    return Client(
        server, options.key, patience_s=_START_TIMEOUT_S, on_retry=lambda error, _: progress.say(f"waiting: {error}")
    )


def models(options: argparse.Namespace) -> int:
    """Prints what each model can do, or where one is in memory after a change; returns the exit status."""
    try:
        with Client(options.server or DEFAULT_SERVER, options.key, patience_s=0.0) as client:
            if options.load or options.unload:
                state = client.load_model(options.load) if options.load else client.unload_model(options.unload)
                return _print_state(state, options)
            known, faults = client.models(), client.model_faults()
    except ClientError as error:
        return explain(error)
    if options.json:
        print(json.dumps([model.document for model in known], indent=2))
        return 0
    for model in known:
        print("\n".join(_describe(model)))
    for fault in faults:
        complain(f"{fault.worker} cannot load {fault.model}: {fault.error.detail}", EXIT_FAILED)
    return 0


def _print_state(state: dict[str, Any], options: argparse.Namespace) -> int:
    if options.json:
        print(json.dumps(state, indent=2))
        return 0
    for worker in state["workers"]:
        told = "loaded" if worker["loaded"] else "not loaded"
        print(f"{state['name']}  on {worker['worker']}: {told}{'' if worker['done'] else ', not done yet'}")
    return 0


def request_body(options: argparse.Namespace) -> Request:
    """The body of POST /generate: what was given, and nothing else."""
    body: dict[str, Any] = {"prompt": options.prompt}
    for option, name in _FIELDS.items():
        value = getattr(options, option)
        if value is not None:
            body[name] = value
    if options.size is not None:
        body["width"], body["height"] = options.size
    if options.count != 1:
        body["num_images"] = options.count
    body["output_format"] = output_format(options)
    if options.webhook is not None:
        body["webhook"] = {"url": options.webhook}
    if options.image is not None:
        body |= {"task": "image-to-image", "image": _file(options.image, "--image")}
    if options.loras:
        body["loras"] = options.loras
    if options.controls:
        body["controls"] = [each | {"image": _file(each["image"], "--control")} for each in options.controls]
    if options.mask is not None:
        body |= {"task": "inpainting", "mask_image": _file(options.mask, "--mask")}
    if options.outpaint is not None:
        sides = ("left", "top", "right", "bottom")
        body |= {"task": "inpainting"} | {f"outpaint_{s}": n for s, n in zip(sides, options.outpaint, strict=True)}
    if options.upscale:
        # Whether the picture itself is to be enlarged, or what is drawn from it.
        is_all = options.image is not None and body["task"] == "image-to-image" and options.strength is None
        body |= {"task": "upscale"} if is_all else {"upscale": True}
    return cast(Request, body)


def _file(path: Path, option: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise NotSaved(f"{option} {path} cannot be read: {error.strerror}.") from error


def output_format(options: argparse.Namespace) -> str:
    """What --format says, else what the name of the output says, else png."""
    if options.format:
        return str(options.format)
    ending = options.output.suffix.lower() if options.output and not options.output.is_dir() else ""
    if ending and ending not in _FORMATS:
        raise NotSaved(f"Pictures are png, jpeg or webp, not {ending}: name the output so, or give --format.")
    return _FORMATS.get(ending, "png")


def output_paths(options: argparse.Namespace, count: int) -> list[Path]:
    """One file per picture: the name itself for one, NAME-0, NAME-1, ... for several. In a directory, and where nothing
    was said, the prompt is the name."""
    output = options.output or Path()
    if output.is_dir():
        words = re.sub(r"[^\w]+", "-", options.prompt.lower()).strip("-")
        output /= (words[:60].rstrip("-") or "picture") + _ENDINGS[output_format(options)]
    elif not output.suffix:
        output = output.with_name(output.name + _ENDINGS[output_format(options)])
    if count == 1:
        return [output]
    return [output.with_name(f"{output.stem}-{index}{output.suffix}") for index in range(count)]


def _draw(client: Client, body: Request, options: argparse.Namespace, progress: Progress) -> int:
    check_directory(output_paths(options, options.count)[0])
    once = str(uuid.uuid4())
    job = follow(client, lambda each: each.submit(body, idempotency_key=once), options.key, progress)
    for warning in job.warnings:
        progress.say(f"note: {warning}")
    if job.status != "succeeded":
        failed = JobFailed(job)
        return complain(f"{failed} ({failed.code})", EXIT_FAILED)
    _save(client, job, options)
    return 0


def check_directory(path: Path) -> None:
    """Raises NotSaved when there is none for this file, before anything is drawn for it."""
    if not path.parent.is_dir():
        raise NotSaved(f"There is no directory {path.parent} to write to. Make it first.")


def follow(client: Client, submit: Callable[[Client], Job], key: str | None, progress: Progress) -> Job:
    """The job when it has ended. Ctrl-C cancels it. `submit` is called again then, if its answer had not come yet, and
    has to lead to the same job."""
    job = None
    try:
        job = submit(client)
        return client.wait(job, progress=progress.show)
    except KeyboardInterrupt:
        progress.end()
        with contextlib.suppress(ClientError), Client(client.server, key, patience_s=0.0) as other:
            other.cancel(job or submit(other))
        complain("canceled", EXIT_INTERRUPTED)
        raise
    finally:
        progress.end()


def _save(client: Client, job: Job, options: argparse.Namespace) -> None:
    for image, path in zip(job.images, output_paths(options, len(job.images)), strict=True):
        try:
            client.save(image, path)
        except OSError as error:
            raise NotSaved(
                f"{path} cannot be written: {error.strerror}. The picture waits at {client.server}{image.url}."
            ) from error
        print(f"{path}  {image.width}x{image.height}  seed {image.seed}", flush=True)


def explain(error: ClientError) -> int:
    """Says on stderr why the server did not do it; gives the exit status back."""
    if isinstance(error, Refused):
        return complain(f"{error} ({error.code})", EXIT_FAILED)
    if isinstance(error, Unreachable):
        return complain(
            f"{error} Start a server with `denoised serve`, or name yours with --server or $DENOISED_SERVER.",
            EXIT_UNREACHABLE,
        )
    return complain(str(error), EXIT_FAILED)


def _describe(model: Model) -> Iterator[str]:
    defaults, limits = model.defaults, model.limits
    state = "loaded" if model.loaded else "not loaded"
    yield f"{model.name}  ({', '.join(model.tasks)}; {model.device}, {model.dtype}; {state})"
    yield f"  size      {defaults['width']}x{defaults['height']}; sides {limits['min_size']} to {limits['max_size']}"
    yield f"  steps     {defaults['num_inference_steps']}    guidance {defaults['guidance_scale']:g}"
    yield f"  sampler   {defaults['sampler']}, noise schedule {defaults['noise_schedule']}"
    for kind in ("loras", "controlnets"):
        if limits[kind]:
            yield f"  {kind:<11} " + ", ".join(limits[kind])
    yield "  samplers  " + ", ".join(
        f"{sampler.name} ({'/'.join(sampler.noise_schedules)}; {sampler.min_steps}-{sampler.max_steps})"
        for sampler in model.samplers
    )


# --- a server for this command alone ---------------------------------------------------------------------------------


@contextlib.contextmanager
def _server(options: argparse.Namespace, say: Callable[[str], None]) -> Iterator[str]:
    """URL of the server to use. One that was named must be there; at the default address, a missing one is started."""
    server = options.server or DEFAULT_SERVER
    with Client(server, options.key) as client:
        try:
            client.is_ready()
        except Refused:
            pass  # there, and not content with the request: the next one will tell
        except Unreachable:
            if options.server:
                raise
            with own_server(say) as url:
                yield url
            return
    yield server


@contextlib.contextmanager
def own_server(say: Callable[[str], None]) -> Iterator[str]:
    """URL of a server on a free port, with the usual data directory, that lives as long as the context."""
    from app.listener import bind, url_of
    from app.serve import ServeOptions, child_environment, python_module
    from app.supervisor import end_with_parent

    listener = bind("127.0.0.1", 0)
    url = url_of(listener)
    say("no server runs here: starting one for this command (`denoised serve` keeps one)")
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            python_module("app.cli", "serve", "--host", "127.0.0.1", "--listen-fd", str(listener.fileno())),
            env=child_environment(ServeOptions(), os.environ),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=(listener.fileno(),),
            start_new_session=True,  # Ctrl-C cancels the job first; then the server is ended in order
            preexec_fn=end_with_parent(signal.SIGTERM),
        )
        listener.close()
        try:
            _await_ready(process, url, log)
            yield url
        finally:
            _end(process)


def _await_ready(process: subprocess.Popen[bytes], url: str, log: Any) -> None:
    from app.serve import ask_ready

    end = time.monotonic() + _START_TIMEOUT_S
    while not ask_ready(url)[0]:
        if process.poll() is not None or time.monotonic() > end:
            log.seek(0)
            words = log.read().decode(errors="replace").strip().splitlines()[-12:]
            raise Unreachable("The server for this command did not start. It said:\n  " + "\n  ".join(words) + "\n")
        time.sleep(0.2)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(30)
        return
    process.send_signal(signal.SIGTERM)  # the second one ends at once
    process.wait()
