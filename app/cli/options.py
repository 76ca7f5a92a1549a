"""Every option of the command line, and how to choose its value.

Owns the parser. Knows nothing of what the commands do.
"""

from __future__ import annotations

import argparse
import math
import os
import re
from collections.abc import Callable
from pathlib import Path

EXIT_HELP = """exit status:
  0    it worked
  1    the server refused the request, or the job failed
  2    an option or a setting cannot be used
  3    no server answers
  4    the address cannot be listened on (is the port in use?)
  130  ended by Ctrl-C; `generate` and `replay` have canceled their job
"""


def parser() -> argparse.ArgumentParser:
    """Every command and option."""
    top = argparse.ArgumentParser(
        prog="denoised",
        description="An image server for latent diffusion models.\n\n"
        "  denoised serve                                starts everything on this machine\n"
        '  denoised generate "a red heart" -o heart.png  draws a picture\n',
        epilog=EXIT_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"denoised {_version()}", help="print the version and end")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_serve(commands)
    _add_api(commands)
    commands.add_parser(
        "worker",
        help="one worker alone",
        description="Runs one worker: it takes jobs from Redis, draws them in one running batch, and stores the"
        " pictures. Start as many as you like on any machine that reaches the same REDIS_URL and store. Settings come"
        " from the environment: docs/settings.md.",
    )
    _add_generate(commands)
    _add_replay(commands)
    _add_models(commands)
    _add_status(commands)
    _add_keys(commands)
    return top


Commands = argparse._SubParsersAction  # the type has no public name


def _add_serve(commands: Commands[argparse.ArgumentParser]) -> None:
    serve = commands.add_parser(
        "serve",
        help="Redis, API and workers together",
        description="Starts everything on this machine: an embedded Redis-compatible server (unless REDIS_URL names"
        " one), the API and the workers. A part that dies is started again. The first Ctrl-C or SIGTERM lets the"
        " workers save what they have begun, and the next start goes on from there; the second ends at once.",
        epilog="More settings, all by environment: docs/settings.md.",
    )
    _add_address(serve)
    serve.add_argument(
        "--workers",
        type=_number(1, 64),
        default=1,
        metavar="N",
        help="worker processes (default 1). One keeps one device busy, whatever the load: take more only for more"
        " devices, or for models that shall not wait for each other; each holds its own copy of the weights",
    )
    serve.add_argument(
        "--data-dir",
        type=Path,
        metavar="DIR",
        help="where queue, pictures and keys are kept (default ~/.local/share/denoised). Choose a disk with room for a"
        " day of pictures; give each installation its own",
    )
    serve.add_argument(
        "--model",
        action="append",
        default=[],
        type=_model,
        metavar="NAME=SOURCE",
        help="a model to serve: a directory in diffusers layout, a single .safetensors file, a hub id, or the name of a"
        " bundled model; repeat it for several. Default: the bundled models, pictogram and pictogram-x4",
    )
    serve.add_argument("--listen-fd", type=int, help=argparse.SUPPRESS)


def _add_api(commands: Commands[argparse.ArgumentParser]) -> None:
    api = commands.add_parser(
        "api",
        help="the API alone",
        description="Runs the HTTP API. Workers run elsewhere, on the same REDIS_URL and store. Start several behind"
        " one load balancer if one core is not enough for your clients.",
        epilog="More settings, all by environment: docs/settings.md.",
    )
    _add_address(api)
    api.add_argument("--listen-fd", type=int, help=argparse.SUPPRESS)


def _add_address(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--host",
        help="address to listen on (default 127.0.0.1: this machine only). 0.0.0.0 is every address of the machine;"
        " any but loopback needs keys first: `denoised keys new NAME`",
    )
    command.add_argument(
        "--port", type=_number(0, 65535), help="port to listen on (default 8000); 0 takes any free one and prints it"
    )


def _add_generate(commands: Commands[argparse.ArgumentParser]) -> None:
    generate = commands.add_parser(
        "generate",
        help="draw pictures",
        description="Draws pictures through a server. When none runs at the default address, one is started\n"
        "for this command alone. What is left out is filled in by the server from the model's defaults.",
        epilog=EXIT_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = generate.add_argument
    add("prompt", type=_text, help="what to draw, in words the model knows")
    add(
        "-o", "--output", type=Path, metavar="FILE", help="file to write; its ending chooses the format. Several"
        " pictures become FILE-0.png, FILE-1.png, ... A directory (default: this one) gets a file named after the"
        " prompt",
    )  # fmt: skip
    add(
        "--negative",
        type=_text,
        metavar="TEXT",
        help="what not to draw. Leave it out unless something unwanted keeps coming up",
    )
    add("--plain", dest="syntax", action="store_const", const="plain", help="take brackets in the prompt as text. Left"
        " out, (word) and (word:1.3) count more, [word] less, and a long prompt is read to its end")  # fmt: skip
    add("--strict", dest="reproducibility", action="store_const", const="strict", help="draw what the same seed draws"
        " to the last bit, whatever else is drawn meanwhile; takes longer when much is")  # fmt: skip
    add("--clip-skip", type=_number(0, 100), metavar="N", help="layers of the text encoder to leave out: 1 for models"
        " that ask for what other tools call clip skip 2. Leave it out otherwise")  # fmt: skip
    add("--steps", type=_number(1, 1000), metavar="N", help="sampler steps: more cost more time; 20 to 50 suit most"
        " samplers, 4 to 8 suit lcm and tcd with models made for them")  # fmt: skip
    add("--size", type=_size, metavar="WxH", help="pixels, multiples of 8, such as 512x768. The model's own size"
        " draws best; `denoised models` tells it")  # fmt: skip
    add("--seed", type=_number(0, 2**63 - 1), metavar="N", help="start of all randomness: the same request with the"
        " same seed draws the same picture. Left out: drawn, and printed")  # fmt: skip
    add("--guidance", type=_finite, metavar="G", help="how strongly to follow the prompt: 1 switches it off and halves"
        " the time, 3 to 8 suit most models, more looks burnt")  # fmt: skip
    add("--guidance-rescale", type=_finite, metavar="R", help="0 to 1, against burnt colours at high guidance: 0.7 is"
        " usual. Leave it out unless colours are burnt")  # fmt: skip
    add("--sampler", type=_text, metavar="NAME", help="how the steps are taken; `denoised models` lists the names. The"
        " model's own choice is good; *_ancestral and *_sde samplers vary more")  # fmt: skip
    add("--noise-schedule", type=_text, metavar="NAME", help="how noise is spread over the steps: default, karras"
        " (often better at few steps), exponential, trailing, where the sampler has it")  # fmt: skip
    add("-n", "--num-images", dest="count", type=_number(1, 1000), default=1, metavar="N", help="pictures to draw"
        " (default 1); the next one has the next seed")  # fmt: skip
    add("--image", type=Path, metavar="FILE", help="picture to start from (PNG, JPEG, WebP), for image to image")
    add("--upscale", action="store_true", help="enlarge what is drawn with a model made for that; with --image and no"
        " --strength, --mask or --outpaint, enlarge that picture itself, and the prompt may be empty")  # fmt: skip
    add(
        "--lora",
        dest="loras",
        action="append",
        default=[],
        type=_lora,
        metavar="NAME[:WEIGHT]",
        help="a LoRA file of the server; `denoised models` lists them. Repeat it for several; lower the weight of one"
        " that is too strong",
    )
    add(
        "--control",
        dest="controls",
        action="append",
        default=[],
        type=_control,
        metavar="NAME=FILE[:WEIGHT]",
        help="a ControlNet of the server and the picture it follows (edges, a pose, a depth map); `denoised models`"
        " lists them. Repeat it for several; lower the weight of one that is followed too closely",
    )
    add("--strength", type=_finite, metavar="S", help="with --image, how far to go from it: 0.3 retouches, 0.8 keeps"
        " the composition, 1 keeps only the size")  # fmt: skip
    add("--mask", type=Path, metavar="FILE", help="with --image, what of it to draw anew: white in a picture of the"
        " same size, or transparent. The rest is kept pixel for pixel")  # fmt: skip
    add("--mask-blur", type=_number(0, 64), metavar="N", help="with --mask, pixels inside it over which the drawn"
        " picture comes in (default 4): more hides the seam, 0 takes every pixel as drawn")  # fmt: skip
    add("--crop", type=_number(0, 1024), metavar="N", help="with --mask, draw only it and N pixels around it, at the"
        " model's full size: for small masks in large pictures, 32 suits most")  # fmt: skip
    add("--outpaint", type=_sides, metavar="L,T,R,B", help="with --image, pixels to add on its left, top, right and"
        " bottom side, such as 0,0,64,0")  # fmt: skip
    add("--format", choices=("png", "jpeg", "webp"), help="png is exact and carries its recipe; webp and jpeg are"
        " smaller. Default: what the name of the output says, else png")  # fmt: skip
    add(
        "--model",
        type=_text,
        metavar="NAME",
        help="which model draws; `denoised models` lists them. Default: the server's",
    )
    add("--priority", choices=("high", "normal", "low"), help="which of your own waiting jobs goes first (default"
        " normal): low for bulk work, high for what you wait for")  # fmt: skip
    add("--deadline", type=_finite, metavar="SECONDS", help="the pictures are of no use later; the job fails then")
    add("--webhook", type=_text, metavar="URL", help="whom the server tells when the job has ended, also if this"
        " command is cut off before: docs/webhooks.md")  # fmt: skip
    _add_server_options(generate)


def _add_replay(commands: Commands[argparse.ArgumentParser]) -> None:
    replay = commands.add_parser(
        "replay",
        help="draw a picture again and compare",
        description="Draws a picture again from the recipe in its file and says whether the pixels agree, within which"
        " contract, and why not: docs/replay.md.",
        epilog="The exit status is 0 where they agree, 1 where they do not or where that cannot be told.",
    )
    add = replay.add_argument
    add("file", type=Path, metavar="FILE", help="the picture as the server gave it out, or its recipe as JSON: then"
        " only digests can be compared")  # fmt: skip
    add("--recipe", type=Path, metavar="FILE", help="the recipe as JSON, for a picture that has lost its own")
    add("--image", type=Path, metavar="FILE", help="what the picture was made from. Leave it out while a job of yours"
        " on that server still holds it")  # fmt: skip
    add("--mask", type=Path, metavar="FILE", help="the mask that it was made with, likewise")
    add("--control", dest="controls", action="append", default=[], type=Path, metavar="FILE", help="a picture of its"
        " ControlNets, likewise; repeat it for several, in any order")  # fmt: skip
    add("-o", "--output", type=Path, metavar="FILE", help="keep the new picture, to look at both; a PNG")
    _add_server_options(replay)
    add("--json", action="store_true", help="print the verdict as the server gave it, for programs")


def _add_models(commands: Commands[argparse.ArgumentParser]) -> None:
    models = commands.add_parser(
        "models",
        help="what the server can draw with",
        description="Lists the models; loads one into memory, or takes it out again, on every worker that serves it.",
    )
    _add_server_options(models)
    models.add_argument("--json", action="store_true", help="print the server's whole answer, for programs")
    changes = models.add_mutually_exclusive_group()
    changes.add_argument("--load", metavar="NAME", help="load this model now, so that no job waits for that")
    changes.add_argument(
        "--unload", metavar="NAME", help="free the memory of this model; the next job that names it loads it again"
    )


def _add_status(commands: Commands[argparse.ArgumentParser]) -> None:
    status = commands.add_parser(
        "status",
        help="what the queues and workers do",
        description="Shows operators every queue that has jobs, every worker with its models, and the jobs in their"
        " hands. Where the server has keys, the tenant of yours must be in its DENOISED_OPERATORS.",
    )
    _add_server_options(status)
    status.add_argument("--json", action="store_true", help="print the server's whole answers, for programs")


def _add_server_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--server",
        metavar="URL",
        default=os.environ.get("DENOISED_SERVER") or None,
        help="the server to use (default $DENOISED_SERVER, else http://127.0.0.1:8000)",
    )
    command.add_argument(
        "--key",
        type=_key,
        default=os.environ.get("DENOISED_API_KEY") or None,
        help="your key, where the server wants one. Prefer $DENOISED_API_KEY: other users see the options of a"
        " running program",
    )


def _add_keys(commands: Commands[argparse.ArgumentParser]) -> None:
    keys = commands.add_parser(
        "keys",
        help="who may use the server",
        description="Keeps the keys file. A server with keys answers only who sends one, and may listen beyond this"
        " machine. The file holds hashes: a key is shown once, when it is made. The server reads the file when it"
        " starts, so restart it after a change.",
    )
    actions = keys.add_subparsers(dest="action", required=True, metavar="ACTION")
    new = actions.add_parser("new", help="make a key", description="Prints a fresh key, once.")
    new.add_argument("tenant", help="who it is for: letters, digits, - and _. Keys of one tenant share their jobs; give"
                     " everybody who shall not see the others' pictures a tenant of their own")  # fmt: skip
    revoke = actions.add_parser("revoke", help="take a key back", description="Removes keys from the file.")
    revoke.add_argument("which", help="a tenant, for all of its keys, or the id of one key that `keys list` shows")
    for action in (new, actions.add_parser("list", help="show whose keys there are", description="Lists tenants and"
                   " key ids; the keys themselves are not kept."), revoke):  # fmt: skip
        action.add_argument("--data-dir", type=Path, metavar="DIR", help="data directory of the server (default"
                            " $DENOISED_DATA_DIR, else ~/.local/share/denoised)")  # fmt: skip


def _number(lowest: int, highest: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        value = int(text)
        if not lowest <= value <= highest:
            raise argparse.ArgumentTypeError(f"{value} is not between {lowest} and {highest}")
        return value

    return number


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text} is no finite number")
    return value


def _text(text: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise argparse.ArgumentTypeError(
            f"byte {text[error.start]!a} is not UTF-8; check the terminal's encoding"
        ) from error
    return text


def _key(text: str) -> str:
    text = text.strip()
    if not (text.isascii() and text.isprintable()):
        raise argparse.ArgumentTypeError("a key has plain printable characters only")
    return text


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([1-9][0-9]{0,4})[xX×]([1-9][0-9]{0,4})", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write it as 512x512")
    return int(match[1]), int(match[2])


def _lora(text: str) -> dict[str, object]:
    name, _, weight = text.partition(":")
    if not name:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME or NAME:WEIGHT")
    return {"name": name, "weight": _finite(weight)} if weight else {"name": name}


def _control(text: str) -> dict[str, object]:
    """`image` is the path; a colon counts only before a number, as paths may have some."""
    match = re.fullmatch(r"([^=]+)=(.+?)(?::([0-9.]+))?", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=FILE or NAME=FILE:WEIGHT")
    control: dict[str, object] = {"name": match[1], "image": Path(match[2])}
    return control | {"weight": _finite(match[3])} if match[3] else control


def _sides(text: str) -> tuple[int, ...]:
    if re.fullmatch(r"[0-9]{1,4}(,[0-9]{1,4}){3}", text) is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not LEFT,TOP,RIGHT,BOTTOM in pixels; write it as 0,0,64,0")
    return tuple(int(side) for side in text.split(","))


def _model(text: str) -> str:
    name, equals, source = text.partition("=")
    if not (equals and name.strip() and source.strip()) or "," in text:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=SOURCE (without commas), such as sd=./my-model")
    return text


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("denoised")
    except PackageNotFoundError:
        return "(not installed)"
