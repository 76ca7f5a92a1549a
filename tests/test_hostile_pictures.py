"""Whatever file comes as a picture, the answer is a job or a documented refusal, soon, in little memory."""

from __future__ import annotations

import base64
import io
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import redis
from PIL import Image, ImageOps

from app.errors import Problem
from app.parts import MAX_PARTS, orientation_of
from app.uploads import read_mask, read_upload
from tests.hostile_pictures import (
    ACCEPTED,
    EXIF,
    FORMAT,
    MAX_BYTES,
    Hostile,
    chunk,
    corpus,
    header,
    idat,
    jpeg_with,
    noise,
    png_of,
    png_with,
    rows,
    segment,
    tiff,
)
from tests.http_kit import ENTRY, FakeWorker, encoded, is_untouched, serving
from tests.test_http_errors import assert_problem
from workers.store import LocalStore

MAX_PIXELS = 4096 * 4096
CPU_S = 1.0
MEMORY_MIB = 32
"""What reading a file of the corpus may cost, beside the file itself; none that is accepted has many pixels."""
TASKS = ("text-to-image", "image-to-image", "inpainting")


def test_no_two_files_of_the_corpus_share_a_name_and_all_are_small() -> None:
    names = [hostile.name for hostile in corpus()]
    assert len(names) == len(set(names))
    assert len(names) > 250


@pytest.mark.asyncio
async def test_every_file_is_a_job_or_a_documented_refusal_that_leaves_nothing(
    redis_url: str, redis_client: redis.Redis, store: LocalStore
) -> None:
    worker = FakeWorker(redis_client, store)
    worker.publish(entry := ENTRY.model_copy(update={"tasks": TASKS}))
    wrong: dict[str, str] = {}
    async with serving(redis_url, store) as client:
        for hostile in corpus():
            answer = await client.post("/generate", **sent(hostile.make()))
            code = answer.json().get("code", ACCEPTED)
            if code not in hostile.answers:
                wrong[hostile.name] = f"{answer.status_code} {answer.text[:200]}"
            elif answer.status_code == 202:
                redis_client.flushall()
                store.erase(answer.json()["id"])
                worker.publish(entry)
            else:
                assert_problem(answer, code)
                assert is_untouched(redis_client, store), hostile.name
        assert (await client.get("/healthz")).status_code == 200
        assert (await client.post("/generate", json={"prompt": "a pear"})).status_code == 202
    assert wrong == {}


def sent(data: bytes) -> dict[str, Any]:
    """The request, as a form or as JSON: some of each."""
    fields = {"task": "image-to-image", "prompt": "a pear"}
    if len(data) % 2 or len(data) > 100_000:
        return {"data": fields, "files": {"image": ("../../picture.exe", data, "text/html")}}
    return {"json": fields | {"image": base64.b64encode(data).decode()}}


@pytest.mark.asyncio
async def test_a_mask_and_a_map_of_a_controlnet_are_read_with_the_same_care(
    redis_url: str, redis_client: redis.Redis, store: LocalStore
) -> None:
    FakeWorker(redis_client, store).publish(ENTRY.model_copy(update={"tasks": TASKS}))
    image = base64.b64encode(encoded(noise())).decode()
    async with serving(redis_url, store) as client:
        for hostile in corpus():
            if ACCEPTED in hostile.answers or len(data := hostile.make()) > 100_000:
                continue
            text = base64.b64encode(data).decode()
            mask = {"task": "inpainting", "prompt": "a pear", "image": image, "mask_image": text}
            control = {"prompt": "a pear", "controls": [{"name": "edges", "image": text}]}
            for body in (mask, control)[hostile.name == "1 bit a pixel" :]:  # a mask may have that
                answer = await client.post("/generate", json=body)
                assert answer.status_code == 422, hostile.name
                assert answer.json()["code"].startswith(("image_", "mask_")), hostile.name
    assert is_untouched(redis_client, store)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is measured by Linux's /proc")
def test_reading_any_of_them_takes_little_time_and_memory_and_writes_no_log() -> None:
    run = subprocess.run([sys.executable, "-m", __name__], capture_output=True, text=True, check=True)
    costs = [json.loads(line) for line in run.stdout.splitlines()]
    assert run.stderr == "", "a hostile file writes nothing into the log"
    assert len(costs) == len(corpus())
    assert all(cost["bytes"] <= MAX_BYTES for cost in costs)
    assert [cost for cost in costs if cost["cpu_s"] > CPU_S] == []
    assert [cost for cost in costs if cost["mib"] > MEMORY_MIB + 2 * cost["bytes"] / 2**20] == []


def measured(hostile: Hostile) -> dict[str, Any]:
    """What reading it costs: seconds of this process, and its peak of memory above what it had, in MiB."""
    data = hostile.make()
    Path("/proc/self/clear_refs").write_text("5")
    before, started = memory_kib("VmRSS"), time.process_time()
    code = ACCEPTED
    try:
        read_upload(data, MAX_PIXELS)
    except Problem as problem:
        code = problem.code
    seconds, peak = time.process_time() - started, memory_kib("VmHWM")
    return {
        "name": hostile.name,
        "code": code,
        "bytes": len(data),
        "cpu_s": round(seconds, 3),
        "mib": round((peak - before) / 1024, 1),
    }


def memory_kib(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


# --- how files come ---------------------------------------------------------------------------------------------------

SOUND = base64.b64encode(encoded(noise())).decode()
BASE64 = {
    "lines of 76": ("\r\n".join(SOUND[at : at + 76] for at in range(0, len(SOUND), 76)), ACCEPTED),
    "spaces everywhere": (" ".join(SOUND) + "\n\t", ACCEPTED),
    "a data URL": (f"data:image/png;base64,{SOUND}", ACCEPTED),
    "a data URL of another kind": (f"DATA:text/html;charset=utf-8;BASE64,{SOUND}", ACCEPTED),
    "a data URL in a data URL": (f"data:image/png;base64,data:image/png;base64,{SOUND}", "image_not_base64"),
    "a data URL inside base64": (base64.b64encode(f"data:image/png;base64,{SOUND}".encode()).decode(), FORMAT),
    "a data URL without base64": ("data:image/png,%89PNG", "image_not_base64"),
    "a data URL with a long head": (f"data:{'x' * 10_000};base64,{SOUND}", "image_not_base64"),
    "half a data URL": ("data:image/png;base64,", "image_not_base64"),
    "the alphabet of URLs": (base64.urlsafe_b64encode(b"\xfb\xff" * 30).decode(), "image_not_base64"),
    "no padding": (SOUND.rstrip("=") + "A", "image_not_base64"),
    "padding in the middle": (f"{SOUND[:8]}=={SOUND[8:]}", "image_not_base64"),
    "a NUL": (SOUND[:40] + "\0" + SOUND[40:], "image_not_base64"),
    "letters that look like others": (SOUND.replace("A", "\u0410"), "image_not_base64"),
    "megabytes of spaces": (" " * 3_000_000, "image_not_base64"),
    "base64 of base64": (base64.b64encode(SOUND.encode()).decode(), FORMAT),
    "a path": ("/etc/passwd", "image_not_base64"),
    "a digest in capitals": (f"sha256:{'A' * 64}", "image_not_base64"),
    "a digest with more behind": (f"sha256:{'0' * 64}/../..", "image_not_base64"),
}


@pytest.mark.asyncio
@pytest.mark.parametrize(("text", "code"), BASE64.values(), ids=BASE64)
async def test_a_text_is_read_as_base64_or_not_at_all(
    redis_url: str, redis_client: redis.Redis, store: LocalStore, text: str, code: str
) -> None:
    FakeWorker(redis_client, store).publish()
    async with serving(redis_url, store) as client:
        answer = await client.post("/generate", json={"task": "image-to-image", "prompt": "a pear", "image": text})
    assert answer.json().get("code", ACCEPTED) == code, answer.text
    assert answer.status_code == (422 if code else 202)
    assert code == ACCEPTED or is_untouched(redis_client, store)


NAME = b'form-data; name="image"'
HEADS = {
    "a path as its name": (NAME + b'; filename="../../../etc/cron.d/x"', 202),
    "an empty name of the file": (NAME + b'; filename=""', 202),
    "an encoded name of the file": (NAME + b"; filename*=UTF-8''%00%ff", 400),
    "a name of the file in Latin-1": (NAME + b'; filename="\xff\xfe"', 202),
    "a name with a quotation mark": (b'form-data; name="im\\"age"; filename="x"', 422),
    "a name that is not UTF-8": (b'form-data; name="\xff"; filename="x"', 400),
    "no name": (b'form-data; filename="x"', 400),
    "no disposition at all": (b"", 400),
    "another disposition": (b'attachment; name="image"; filename="x"', 202),
    "two names, of which the last counts": (b'form-data; name="prompt"; name="image"; filename="x"', 202),
    "100,000 parameters": (NAME + b'; filename="x"' + b"; a=b" * 100_000, 400),
    "a name of a megabyte": (b'form-data; name="' + b"a" * 10**6 + b'"; filename="x"', 400),
    "the name of a text": (b'form-data; name="seed"; filename="x"', 422),
    "a line break in the name": (b'form-data; name="image\r\nX: y"; filename="x"', 400),
}


@pytest.mark.asyncio
@pytest.mark.parametrize(("head", "status"), HEADS.values(), ids=HEADS)
async def test_the_head_of_a_part_says_which_field_it_is_and_nothing_else(
    redis_url: str, redis_client: redis.Redis, store: LocalStore, head: bytes, status: int
) -> None:
    FakeWorker(redis_client, store).publish()
    body = b"".join(
        b"--x\r\nContent-Disposition: " + disposition + b"\r\nContent-Type: text/html\r\n\r\n" + data + b"\r\n"
        for disposition, data in (
            (b'form-data; name="prompt"', b"a pear"),
            (b'form-data; name="task"', b"image-to-image"),
            (head, encoded(noise())),
        )
    )
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    async with serving(redis_url, store) as client:
        answer = await client.post("/generate", content=body + b"--x--\r\n", headers=headers)
    assert answer.status_code == status, answer.text
    if status != 202:
        assert_problem(answer, answer.json()["code"])
        assert is_untouched(redis_client, store)


# --- what goes on to the decoder --------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("order", ["<", ">"])
def test_pictures_of_every_format_are_turned_as_their_exif_says(orientation: int, order: str) -> None:
    block = tiff((0x010F, 3, 1, 5), (0x0112, 3, 1, orientation), order=order)
    assert orientation_of(block) == orientation_of(EXIF + block) == orientation
    sound = encoded(noise())
    turned = sound[:33] + chunk(b"eXIf", block) + sound[33:]
    for data in (turned, jpeg_with(segment(0xE1, EXIF + block)), encoded(noise(), "WEBP", exif=EXIF + block)):
        upload = read_upload(data, MAX_PIXELS)
        assert (upload.width, upload.height) == ((48, 32) if orientation < 5 else (32, 48))
    plain = Image.open(io.BytesIO(read_upload(turned, MAX_PIXELS).png))
    assert plain.tobytes() == upright_by_pillow(turned).tobytes()


def upright_by_pillow(data: bytes) -> Image.Image:
    return ImageOps.exif_transpose(Image.open(io.BytesIO(data)))


def test_many_parts_are_read_and_too_many_are_not() -> None:
    few = png_of(header(8, 8), idat(rows(8, 8)), *[chunk(b"prVt")] * (MAX_PARTS - 4))
    assert read_upload(few, MAX_PIXELS).width == 8
    with pytest.raises(Problem, match="image_broken"):
        read_upload(png_with(*[chunk(b"prVt")] * MAX_PARTS), MAX_PIXELS)


def test_a_mask_that_stands_on_its_side_is_turned() -> None:
    grey = encoded(Image.new("L", (48, 32), 255), "JPEG", exif=EXIF + tiff((0x0112, 3, 1, 6)))
    mask = read_mask(grey, MAX_PIXELS)
    assert (mask.width, mask.height) == (32, 48)


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_AS, (4 * 2**30, 4 * 2**30))
    for each in corpus():
        print(json.dumps(measured(each)))
