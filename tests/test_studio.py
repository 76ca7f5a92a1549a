"""The studio in a real browser, on a real server with the bundled model; and how its files are sent."""

from __future__ import annotations

import io
import json
import re
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import uvicorn
from PIL import Image, PngImagePlugin
from playwright.sync_api import Browser, expect

from app.main import create_app
from app.routes.studio import STATIC
from tests.http_kit import ALICE, KEYS, FakeWorker, encoded, serving, settings_for
from tests.studio_kit import PHONE, StudioPage, a_browser, static_files
from workers.store import LocalStore

STEPS = 4
LONG = 400
"""Steps of a job that a test means to cancel."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with a_browser() as browser:
        yield browser


@pytest.fixture
def studio(browser: Browser, live_server: str) -> Iterator[StudioPage]:
    """The page at a desk. No test leaves a complaint in its console."""
    with StudioPage(browser, live_server) as page:
        yield page


@pytest.fixture(scope="module")
def source() -> bytes:
    """A picture in which every pixel is told from its neighbours."""
    across, down = np.meshgrid(np.arange(128), np.arange(128))
    pixels = np.stack([across * 2, down * 2, (across * 7 + down * 5) % 256], axis=-1).astype(np.uint8)
    return encoded(Image.fromarray(pixels))


# --- the files -------------------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_the_page_forbids_itself_everything_from_elsewhere(redis_url: str, store: LocalStore) -> None:
    async with serving(redis_url, store, api_keys=KEYS) as client:
        answer = await client.get("/")
        again = await client.get("/", headers={"If-None-Match": answer.headers["etag"]})
        for path in ("/studio/nothing.js", "/studio/..%2F..%2Fmain.py", "/studio/%00.js", "/studio/main.py", "/studio"):
            assert (await client.get(path)).json()["code"] == "route_unknown", path
        foreign = await client.get("/", headers={"Host": "elsewhere.test", "Origin": "http://evil.test"})
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == "'none'"
    assert answer.headers["cache-control"] == "no-cache"
    assert (again.status_code, again.content) == (304, b"")
    assert foreign.json()["code"] == "origin_refused"


@pytest.mark.asyncio
async def test_every_file_that_the_page_names_is_sent_and_none_is_left_over(redis_url: str, store: LocalStore) -> None:
    texts = {path.name: path.read_text("utf-8") for path in static_files(STATIC)}
    named = {"index.html", *re.findall(r'(?:href|src)="/studio/([^"]+)"', texts["index.html"])}
    named |= {name for text in texts.values() for name in re.findall(r'from "\./([\w.]+)"', text)}
    assert named == set(texts)
    async with serving(redis_url, store) as client:
        for name in named - {"index.html"}:
            answer = await client.get(f"/studio/{name}")
            assert answer.text == texts[name]
            assert answer.headers["content-type"].partition(";")[0] in ("text/javascript", "text/css", "image/svg+xml")


def test_nothing_in_the_files_leads_elsewhere() -> None:
    for path in static_files(STATIC):
        addresses = set(re.findall(r"(?:https?:)?//[a-z0-9.-]+\.[a-z]{2,}[^\s\"']*", path.read_text("utf-8")))
        assert addresses <= {"http://www.w3.org/2000/svg"}, path.name


# --- drawing ---------------------------------------------------------------------------------------------------------


def test_a_picture_is_drawn_with_the_keyboard_alone(studio: StudioPage) -> None:
    keys = studio.page.keyboard
    keys.press("Tab")
    expect(studio.find(".skip")).to_be_focused()
    keys.press("Enter")
    expect(studio.find("#prompt")).to_be_focused()
    keys.type("a red heart")
    with studio.page.expect_response(lambda answer: answer.url.endswith("/generate")) as accepted:
        keys.press("Control+Enter")
    studio.wait_until_drawn()
    expect(studio.find("#viewer-title")).to_have_text("a red heart")
    document = studio.job(accepted.value.json()["id"])
    assert document["status"] == "succeeded"
    expect(studio.find("#viewer-facts")).to_contain_text(f"seed {document['images'][0]['seed']}")
    studio.find(".enlarge").focus()
    keys.press("Enter")
    expect(studio.find("#lightbox")).to_be_visible()
    keys.press("Escape")
    expect(studio.find("#lightbox")).to_be_hidden()
    expect(studio.find(".enlarge")).to_be_focused()


def test_the_way_there_is_watched_and_can_be_cut_short(studio: StudioPage) -> None:
    studio.set(prompt="a green apple", num_inference_steps=LONG)
    job = studio.draw()
    assert job["request"]["previews"] is True
    expect(studio.find("#progress-words")).to_have_text(re.compile(rf"Step \d+ of {LONG} · .+ left"))
    expect(studio.find("img.preview")).to_have_attribute("src", re.compile("^data:image/webp;base64,"))
    expect(studio.find("#gallery-list .ring")).to_be_visible()
    step = int(studio.find("#progress").get_attribute("aria-valuenow") or 0)
    expect(studio.find("#progress")).not_to_have_attribute("aria-valuenow", str(step))
    studio.page.click("#cancel")
    expect(studio.find("#viewer-message")).to_contain_text("Canceled")
    expect(studio.find("#gallery-list")).to_contain_text("Canceled")
    assert studio.job(job["id"])["status"] == "canceled"


def test_several_jobs_run_at_once_and_each_shows_its_own_pictures(studio: StudioPage) -> None:
    studio.set(prompt="a yellow star", num_inference_steps=STEPS, num_images=3, seed=11)
    first = studio.draw()
    studio.set(prompt="a black cat", num_images=1)
    second = studio.draw()
    studio.wait_until_drawn()
    expect(studio.find("#viewer-pictures img")).to_have_count(1)
    expect(studio.find("#gallery-list img")).to_have_count(2)
    studio.page.click("#gallery-list li:last-child button")
    expect(studio.find(".cell img")).to_have_count(3)
    studio.page.click(".cell >> nth=1")
    expect(studio.find("#viewer-facts")).to_contain_text("seed 12")
    assert studio.job(first["id"])["request"]["num_images"] == 3
    assert studio.job(second["id"])["request"]["prompt"] == "a black cat"


def test_of_many_jobs_the_one_on_show_is_followed_most_closely(studio: StudioPage) -> None:
    studio.set(prompt="a red heart", num_inference_steps=LONG)
    jobs = [studio.draw() for _ in range(5)]
    expect(studio.find("#gallery-list .ring")).to_have_count(5)
    studio.page.click("#gallery-list li:last-child button")  # the oldest: it runs, however few fit beside it
    expect(studio.find("img.preview")).to_be_visible()
    for job in jobs[1:]:
        studio.page.request.post(f"{studio.url}/jobs/{job['id']}/cancel")
    expect(studio.find("#gallery-list .ring")).to_have_count(1)
    studio.page.click("#cancel")


def test_same_again_is_the_same_picture_and_vary_another(studio: StudioPage) -> None:
    studio.set(prompt="a red heart", num_inference_steps=STEPS)
    drawn = studio.draw_to_the_end()
    again = studio.draw_to_the_end('[data-action="again"]')
    varied = studio.draw_to_the_end('[data-action="vary"]')
    assert again["images"][0]["sha256"] == drawn["images"][0]["sha256"]
    assert varied["images"][0]["seed"] != drawn["images"][0]["seed"]
    assert varied["request"]["num_inference_steps"] == STEPS
    expect(studio.find("#seed")).to_have_value("")
    studio.page.click("#seed-keep")
    expect(studio.find("#seed")).to_have_value(str(varied["images"][0]["seed"]))


# --- pictures to start from ------------------------------------------------------------------------------------------


def test_a_painted_mask_is_drawn_anew_and_nothing_else(studio: StudioPage, source: bytes) -> None:
    studio.choose_task("inpainting")
    studio.set(prompt="a red heart", num_inference_steps=STEPS)
    studio.begin_with(source)
    studio.stroke((0.4, 0.5), (0.6, 0.5))
    studio.stroke((0.1, 0.1), (0.9, 0.1))
    studio.page.click('[data-edit="undo"]')
    job = studio.draw_to_the_end()
    mask = studio.mask_of(job["id"])
    assert mask[64, 64]
    assert not mask[13, 64], "it was undone"
    assert 200 < mask.sum() < 128 * 128 / 4
    before, after = np.asarray(Image.open(io.BytesIO(source))), np.asarray(studio.picture(job["id"]))
    assert (after[~mask] == before[~mask]).all()
    assert (after[mask] != before[mask]).any()
    studio.page.click("#show-editor")
    expect(studio.find("#mask-canvas")).to_be_visible()


def test_a_mask_is_painted_erased_and_turned_round_by_keys(studio: StudioPage, source: bytes) -> None:
    studio.choose_task("inpainting")
    studio.set(prompt="a red heart", num_inference_steps=STEPS)
    studio.begin_with(source)
    canvas, keys = studio.find("#mask-canvas"), studio.page.keyboard
    canvas.focus()
    for key in ("Enter", "Shift+ArrowRight", "Shift+ArrowRight", "e", "Enter", "i", "Control+z", "Control+Shift+z"):
        keys.press(key)
    mask = studio.mask_of(studio.draw_to_the_end()["id"])
    assert mask[4, 4], "turned round, all but the stroke is drawn"
    assert not mask[64, 64]
    assert mask[64, 80], "erased at the end of the stroke"


def test_a_picture_is_extended_by_pulling_its_edge(studio: StudioPage, source: bytes) -> None:
    studio.choose_task("inpainting")
    studio.set(prompt="a red heart", num_inference_steps=STEPS)
    studio.begin_with(source)
    edge = studio.find('[data-edge="right"]')
    box = edge.bounding_box()
    assert box is not None
    studio.page.mouse.move(box["x"] + 10, box["y"] + box["height"] / 2)
    studio.page.mouse.down()
    studio.page.mouse.move(box["x"] + 10 + box["height"] / 4, box["y"] + box["height"] / 2, steps=5)
    studio.page.mouse.up()
    expect(studio.find("#outpaint_right")).to_have_value("32")
    studio.find('[data-edge="top"]').focus()
    studio.page.keyboard.press("ArrowUp")
    expect(studio.find("#outpaint_top")).to_have_value("8")
    expect(studio.find("#editor-words")).to_contain_text("128 × 128 becomes 160 × 136")
    job = studio.draw_to_the_end()
    after = np.asarray(studio.picture(job["id"]))
    assert after.shape == (136, 160, 3)
    assert (after[8:, :128] == np.asarray(Image.open(io.BytesIO(source)))).all()


def test_a_drawn_picture_goes_on_to_be_enlarged_and_compared(studio: StudioPage) -> None:
    studio.set(prompt="a blue car", num_inference_steps=STEPS)
    studio.draw_to_the_end()
    studio.page.click('[data-action="upscale"]')
    expect(studio.find("#draw")).to_be_focused()
    expect(studio.find("#source-picture")).to_be_visible()
    job = studio.draw()
    assert job["task"] == "upscale"
    slider = studio.find(".compare-slider")
    slider.focus()
    studio.page.keyboard.press("End")
    expect(slider).to_have_attribute("aria-valuetext", "100 percent before")
    assert studio.picture(job["id"]).size == (512, 512)
    studio.page.click('[data-action="compare"]')
    expect(studio.find(".compare")).to_have_count(0)
    with studio.page.expect_download() as download:
        studio.page.click("#download")
    sent = studio.page.request.get(f"{studio.url}/jobs/{job['id']}/images/0").body()
    assert download.value.path().read_bytes() == sent


def test_a_picture_is_reworked_as_far_as_the_strength_says(studio: StudioPage, source: bytes) -> None:
    studio.drop(source, "gradient.png")
    expect(studio.find('[value="image-to-image"]')).to_be_checked()
    studio.set(prompt="a red heart", num_inference_steps=8, strength=0.5)
    job = studio.draw()
    assert (job["request"]["strength"], job["request"]["width"]) == (0.5, 128)
    studio.wait_until_drawn()
    studio.page.click('[data-action="compare"]')
    expect(studio.find(".compare-before")).to_be_visible()


# --- what is remembered ----------------------------------------------------------------------------------------------


def test_a_reload_keeps_the_gallery_and_follows_what_runs(studio: StudioPage) -> None:
    studio.set(prompt="a red heart", num_inference_steps=STEPS)
    drawn = studio.draw_to_the_end()
    studio.set(prompt="a green apple", num_inference_steps=LONG)
    running = studio.draw()
    expect(studio.find("#progress-words")).to_contain_text("Step")
    studio.page.reload()
    expect(studio.find("#prompt")).to_have_value("a green apple")
    expect(studio.find("#viewer-title")).to_have_text("a green apple")
    expect(studio.find("#progress-words")).to_contain_text("Step")
    studio.page.click("#cancel")
    expect(studio.find("#viewer-message")).to_contain_text("Canceled")
    studio.page.request.delete(f"{studio.url}/jobs/{drawn['id']}")
    studio.forgiven = ["410"]
    studio.page.reload()
    expect(studio.find("#gallery-list li:last-child")).to_contain_text("Gone")
    studio.page.click("#gallery-list li:last-child button")
    expect(studio.find("#viewer-message")).to_contain_text("No longer there")
    again = studio.draw_to_the_end('[data-action="again"]')
    assert again["images"][0]["seed"] == drawn["request"]["seed"]
    assert running["id"] != again["id"]


def test_an_erased_job_is_gone_from_the_server_too(studio: StudioPage) -> None:
    studio.set(prompt="a red heart", num_inference_steps=STEPS)
    job = studio.draw_to_the_end()
    studio.page.click('[data-action="erase"]')
    studio.page.keyboard.press("Escape")
    expect(studio.find("#gallery-list li")).to_have_count(1)
    studio.page.click('[data-action="erase"]')
    studio.page.click("#confirm-yes")
    expect(studio.find("#gallery-list li")).to_have_count(0)
    expect(studio.find("#empty")).to_be_visible()
    assert studio.job(job["id"])["code"] == "job_gone"


# --- recipes ---------------------------------------------------------------------------------------------------------

REQUEST: dict[str, Any] = {
    "prompt": "ein rotes Herz, 心",
    "negative_prompt": "a blue heart",
    "width": 160,
    "height": 96,
    "num_inference_steps": 5,
    "guidance_scale": 4.5,
    "sampler": "euler",
    "noise_schedule": "karras",
    "clip_skip": 1,
    "seed": 2**60 + 1,
}


@pytest.mark.parametrize("file_format", ["png", "webp", "jpeg"])
def test_a_dropped_recipe_fills_the_form(studio: StudioPage, file_format: str) -> None:
    body = {**REQUEST, "output_format": file_format}
    answer = studio.page.request.post(f"{studio.url}/generate", data=body, headers={"Prefer": "wait=60"})
    path = answer.json()["images"][0]["url"]
    data = studio.page.request.get(studio.url + path).body()
    studio.drop(data, f"heart.{file_format}", f"image/{file_format}")
    expect(studio.find(".notice")).to_contain_text(f"The form holds the recipe of heart.{file_format}")
    for name, value in REQUEST.items():
        expect(studio.find(f"#{name}")).to_have_value(str(value))
    job = studio.draw()
    assert {name: job["request"][name] for name in REQUEST} == REQUEST
    studio.wait_until_drawn()


def test_a_recipe_of_another_tool_is_read_too(studio: StudioPage) -> None:
    lines = (
        "a castle, (stone:1.2)\nNegative prompt: people\nSteps: 12, Sampler: DPM++ 2M Karras, CFG scale: 5.5, Seed: 77,"
        ' Size: 128x96, Model: elsewhere, Lora hashes: "a: 1, b: 2", Clip skip: 2'
    )
    texts = PngImagePlugin.PngInfo()
    texts.add_itxt("parameters", lines, zip=True)
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, "PNG", pnginfo=texts)
    studio.page.set_input_files(
        "#recipe-file", files=[{"name": "castle.png", "mimeType": "image/png", "buffer": stream.getvalue()}]
    )
    expect(studio.find(".notice-warning")).to_contain_text("The model elsewhere is not here")
    wanted = {"prompt": "a castle, (stone:1.2)", "negative_prompt": "people", "num_inference_steps": 12, "seed": 77}
    wanted |= {"sampler": "dpmpp_2m", "noise_schedule": "karras", "guidance_scale": 5.5, "clip_skip": 1, "height": 96}
    for name, value in wanted.items():
        expect(studio.find(f"#{name}")).to_have_value(str(value))


# --- what goes wrong -------------------------------------------------------------------------------------------------


def test_an_error_lands_at_its_field(studio: StudioPage) -> None:
    studio.forgiven = ["422"]
    studio.set(prompt="a red heart", width=100)
    studio.page.click("#draw")
    expect(studio.find("#width-error")).to_have_text("width 100 is no multiple of 8 from 64 to 4096.")
    expect(studio.find("#width")).to_be_focused()
    expect(studio.find("#width")).to_have_attribute("aria-invalid", "true")
    expect(studio.find("#width")).to_have_attribute("aria-describedby", re.compile("width-error"))
    studio.page.click("#advanced summary")
    studio.set(width=64, clip_skip=9)
    studio.page.click("#advanced summary")
    studio.page.click("#draw")
    expect(studio.find("#clip_skip-error")).to_contain_text("pictogram can leave out 0 to 2 layers")
    expect(studio.find("#width-error")).to_be_hidden()
    expect(studio.find("#advanced")).to_have_attribute("open", "")
    studio.set(clip_skip="", prompt="")
    studio.page.click("#draw")
    expect(studio.find("#prompt-error")).to_be_visible()
    studio.choose_task("inpainting")
    studio.set(prompt="a red heart")
    studio.page.click("#draw")
    expect(studio.find("#image-error")).to_be_visible()
    studio.begin_with(encoded(Image.new("RGB", (128, 128))))
    studio.page.click("#draw")
    expect(studio.find("#mask-error")).to_be_visible()
    expect(studio.find("#gallery-list li")).to_have_count(0)


def test_a_full_queue_is_told_with_the_time_to_wait(studio: StudioPage) -> None:
    studio.forgiven = ["429"]
    problem = {"code": "queue_full", "status": 429, "title": "Your queue is full", "detail": "Wait a little."}
    studio.page.route(
        "**/generate",
        lambda route: route.fulfill(
            status=429, headers={"Retry-After": "12"}, content_type="application/problem+json", body=json.dumps(problem)
        ),
    )
    studio.set(prompt="a red heart")
    studio.page.click("#draw")
    expect(studio.find("#form-error")).to_have_text("Your queue is full. Wait a little. It may work in 12 s.")
    expect(studio.find("#draw")).to_be_enabled()


def test_a_lost_connection_is_told_and_the_picture_drawn_once_when_it_is_back(studio: StudioPage) -> None:
    studio.forgiven = ["ERR_INTERNET_DISCONNECTED"]
    studio.set(prompt="a red heart", num_inference_steps=STEPS)
    studio.context.set_offline(True)
    studio.page.click("#draw")
    expect(studio.find("#form-error")).to_contain_text("cannot be reached")
    expect(studio.find("#connection")).to_contain_text("No connection")
    studio.context.set_offline(False)
    studio.wait_until_drawn()
    expect(studio.find("#connection")).to_be_empty()
    expect(studio.find("#form-error")).to_be_hidden()
    expect(studio.find("#gallery-list li")).to_have_count(1)


@pytest.fixture
def keyed_server(redis_url: str, worker: FakeWorker, store: LocalStore) -> Iterator[str]:
    """Address of an API with keys, with the stand-in for a worker behind it."""
    app = create_app(settings_for(redis_url, store, api_keys=KEYS))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started and thread.is_alive():
            thread.join(0.02)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


def test_a_server_with_keys_is_asked_with_one(browser: Browser, keyed_server: str, worker: FakeWorker) -> None:
    key = ALICE["Authorization"].removeprefix("Bearer ")
    context = browser.new_context()
    page = context.new_page()
    page.goto(keyed_server)
    page.fill("#key", "a wrong one")
    page.click("#key-form .primary")
    expect(page.locator("#key-error")).to_contain_text("opens nothing")
    page.fill("#key", key)
    page.keyboard.press("Enter")
    expect(page.locator("#key-dialog")).to_be_hidden()
    page.fill("#prompt", "a pear")
    page.click("#advanced summary")
    page.click("#lora-add")
    page.fill('[aria-label="Weight of LoRA 1"]', "0.5")
    with page.expect_response(lambda answer: answer.url.endswith("/generate")) as accepted:
        page.click("#draw")
    job = accepted.value.json()
    assert job["request"]["loras"] == [{"name": "gold", "weight": 0.5}]
    expect(page.locator("#progress-words")).to_contain_text("Next in the queue")
    worker.claim(job["id"])
    worker.progress(job["id"], 3, 20)
    expect(page.locator("#progress-words")).to_contain_text("Step 3 of 20 · ")
    worker.draw(job["id"])
    expect(page.locator("#viewer-pictures img")).to_have_attribute("src", re.compile("^blob:"))
    page.reload()
    expect(page.locator("#gallery-list img")).to_be_visible()
    assert page.evaluate("[localStorage.length > 0, Object.values(localStorage).join()]")[1].count(key) == 0
    context.close()


# --- everybody -------------------------------------------------------------------------------------------------------


def test_a_phone_shows_everything_without_scrolling_sideways(browser: Browser, live_server: str, source: bytes) -> None:
    with StudioPage(browser, live_server, PHONE, has_touch=True, is_mobile=True) as studio:
        assert studio.overflow() == 0
        studio.page.click("#settings summary")
        studio.set(prompt="a red heart", num_inference_steps=STEPS, num_images=2)
        studio.draw_to_the_end()
        assert studio.overflow() == 0
        studio.page.click('[data-action="recipe"]')
        studio.page.click("#advanced summary")
        assert studio.overflow() == 0
        studio.choose_task("inpainting")
        studio.begin_with(source)
        studio.find("#mask-canvas").scroll_into_view_if_needed()
        studio.page.tap("#mask-canvas")
        expect(studio.find('[data-edit="undo"]')).to_be_enabled()
        assert studio.overflow() == 0
        studio.choose_task("upscale")
        assert studio.overflow() == 0


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_axe_finds_no_violation_in_any_state(browser: Browser, live_server: str, source: bytes, scheme: Any) -> None:
    found: dict[str, list[str]] = {}
    with StudioPage(browser, live_server, color_scheme=scheme, reduced_motion="reduce") as studio:
        studio.forgiven = ["422"]
        studio.page.click("#advanced summary")
        found["empty"] = studio.violations()
        studio.set(prompt="a red heart", num_inference_steps=LONG)
        studio.draw()
        expect(studio.find("img.preview")).to_be_visible()
        found["drawing"] = studio.violations()
        studio.page.click("#cancel")
        studio.set(num_inference_steps=STEPS, num_images=2)
        studio.draw_to_the_end()
        found["several"] = studio.violations()
        studio.page.click(".cell >> nth=0")
        studio.page.click('[data-action="recipe"]')
        found["recipe"] = studio.violations()
        studio.page.click('[data-action="inpainting"]')
        studio.stroke((0.4, 0.5), (0.6, 0.5))
        found["editor"] = studio.violations()
        studio.choose_task("upscale")
        studio.draw()
        expect(studio.find(".compare")).to_be_visible()
        found["compare"] = studio.violations()
        studio.choose_task("text-to-image")
        studio.set(width=100)
        studio.page.click("#draw")
        expect(studio.find("#width-error")).to_be_visible()
        found["error"] = studio.violations()
        studio.page.click('[data-action="erase"]')
        found["question"] = studio.violations()
        studio.page.keyboard.press("Escape")
        studio.page.evaluate("document.getElementById('key-dialog').showModal()")
        found["key"] = studio.violations()
    assert {state: wrong for state, wrong in found.items() if wrong} == {}


def test_dark_and_light_follow_the_system_until_somebody_chooses(browser: Browser, live_server: str) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    with StudioPage(browser, live_server, color_scheme="dark") as studio:
        dark = studio.page.evaluate(ground)
        studio.page.emulate_media(color_scheme="light")
        light = studio.page.evaluate(ground)
        assert dark != light
        studio.page.click("#theme-button")
        assert studio.page.evaluate(ground) == dark
        studio.page.reload()
        assert studio.page.evaluate(ground) == dark
