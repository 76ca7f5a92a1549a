"""What the studio's tests share: a real browser, the page as somebody uses it, and what must never be heard from it."""

from __future__ import annotations

import base64
import io
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import httpx2
import numpy as np
import pytest
from axe_playwright_python.base import AXE_SCRIPT
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

_PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_OPTIONS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PATIENCE_MS = 60_000
DESKTOP = (1440, 900)
PHONE = (360, 740)


@contextmanager
def a_browser() -> Iterator[Browser]:
    """Chromium without a window. Skips the test where there is none."""
    program = next(filter(None, map(shutil.which, _PROGRAMS)), None)
    if program is None:
        pytest.skip(f"no Chromium here (looked for {', '.join(_PROGRAMS)})")
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=list(_OPTIONS))
        yield browser
        browser.close()


class StudioPage:
    """The studio in a fresh profile: what a user does, and what the page complained about meanwhile."""

    def __init__(self, browser: Browser, url: str, size: tuple[int, int] = DESKTOP, **options: Any) -> None:
        viewport = {"width": size[0], "height": size[1]}
        self.url = url
        self.context = browser.new_context(viewport=viewport, accept_downloads=True, **options)
        self.context.set_default_timeout(PATIENCE_MS)
        self.page: Page = self.context.new_page()
        self.complaints: list[str] = []
        self.forgiven: list[str] = []
        """Patterns of console lines that a test provokes: a browser tells every refused request there."""
        self.page.on("console", lambda line: line.type in ("error", "warning") and self.complaints.append(line.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(url)
        self.page.wait_for_selector(".aspect", state="attached")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        foreign = [line for line in self.complaints if not any(re.search(each, line) for each in self.forgiven)]
        self.context.close()
        self._leave_no_jobs()
        if kind is None:
            assert foreign == []

    def _leave_no_jobs(self) -> None:
        """What still runs when a test ends, or fails, would be before the next one's jobs."""
        with httpx2.Client(base_url=self.url, trust_env=False) as client:
            for status in ("queued", "running"):
                for job in client.get("/jobs", params={"status": status, "limit": 100}).json().get("jobs", ()):
                    client.post(f"{job['links']['self']}/cancel")

    def find(self, selector: str) -> Locator:
        return self.page.locator(selector)

    def choose_task(self, task: str) -> None:
        self.page.check(f'input[name="task"][value="{task}"]', force=True)

    def set(self, **values: object) -> None:
        """Fields of the form by their ids."""
        for name, value in values.items():
            self.page.fill(f"#{name}", str(value))

    def begin_with(self, picture: bytes, name: str = "source.png") -> None:
        self.page.set_input_files("#image", files=[{"name": name, "mimeType": "image/png", "buffer": picture}])
        expect(self.find("#source-name")).to_contain_text(name)

    def draw(self, button: str = "#draw") -> dict[str, Any]:
        """Presses a button that draws; the document that the server accepted, when the page shows its job."""
        with self.page.expect_response(lambda answer: answer.url.endswith("/generate")) as coming:
            self.page.click(button)
        accepted: dict[str, Any] = coming.value.json()
        expect(self.find(f"#viewer[data-job='{accepted['id']}']")).to_be_visible()
        return accepted

    def wait_until_drawn(self) -> None:
        expect(self.find("#viewer-progress")).to_be_hidden(timeout=PATIENCE_MS)
        expect(self.find("#viewer-pictures img:not(.preview)").first).to_be_visible()

    def draw_to_the_end(self, button: str = "#draw") -> dict[str, Any]:
        job = self.draw(button)
        self.wait_until_drawn()
        return self.job(job["id"])

    def job(self, job_id: str) -> dict[str, Any]:
        document: dict[str, Any] = self.page.request.get(f"{self.url}/jobs/{job_id}").json()
        return document

    def picture(self, job_id: str, index: int = 0) -> Image.Image:
        data = self.page.request.get(f"{self.url}/jobs/{job_id}/images/{index}").body()
        return Image.open(io.BytesIO(data)).convert("RGB")

    def mask_of(self, job_id: str) -> np.ndarray:
        """The mask as it was sent, true where it is drawn anew: the page keeps it to resume from."""
        script = """(id) => new Promise((resolve) => {
            indexedDB.open("denoised-studio").onsuccess = ({ target: { result } }) => {
                const kept = result.transaction("sources").objectStore("sources").get(id);
                kept.onsuccess = () => {
                    const reader = new FileReader();
                    reader.onload = () => resolve(reader.result.split(",")[1]);
                    reader.readAsDataURL(kept.result.mask);
                };
            };
        })"""
        mask: np.ndarray = np.asarray(Image.open(io.BytesIO(base64.b64decode(self.page.evaluate(script, job_id)))))
        return mask[..., 0] >= 128

    def drop(self, data: bytes, name: str, media_type: str = "image/png") -> None:
        """Lets a file fall on the page."""
        script = """([text, name, type]) => {
            const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
            const transfer = new DataTransfer();
            transfer.items.add(new File([bytes], name, { type }));
            const options = { dataTransfer: transfer, bubbles: true, cancelable: true };
            for (const kind of ["dragenter", "dragover", "drop"]) {
                document.body.dispatchEvent(new DragEvent(kind, options));
            }
        }"""
        self.page.evaluate(script, [base64.b64encode(data).decode(), name, media_type])

    def stroke(self, *points: tuple[float, float]) -> None:
        """Paints along points of the picture, each 0 to 1 across and down; the picture fills the editor's middle."""
        left, top, side = self._shown_square()
        places = [(left + side * across, top + side * down) for across, down in points]
        self.page.mouse.move(*places[0])
        self.page.mouse.down()
        for place in places[1:]:
            self.page.mouse.move(*place, steps=6)
        self.page.mouse.up()

    def _shown_square(self) -> tuple[float, float, float]:
        """Where the square picture lies: its edges' handles say so."""
        self.find('[data-edge="left"]').wait_for()
        left, top = (self.find(f'[data-edge="{edge}"]').bounding_box() for edge in ("left", "top"))
        assert left is not None
        assert top is not None
        return left["x"] + left["width"], top["y"] + top["height"], left["height"]

    def violations(self) -> list[str]:
        """What axe finds wrong: rule, and the elements."""
        if not self.page.evaluate("typeof axe === 'object'"):
            self.page.evaluate(AXE_SCRIPT)
        found = self.page.evaluate("axe.run({ resultTypes: ['violations'] })")["violations"]
        return [f"{one['id']}: {node['target']} {node['failureSummary']}" for one in found for node in one["nodes"]]

    def overflow(self) -> int:
        """Pixels by which the page is wider than the window."""
        wider: int = self.page.evaluate("document.documentElement.scrollWidth - innerWidth")
        return wider


def static_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file())
