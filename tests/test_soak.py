"""The soak's jobs are what the server takes: a soak of refused requests would show nothing."""

from __future__ import annotations

import random

import pytest

from app.resolve import parse_body
from bench.soak import Jobs
from tests.http_kit import ENTRY


@pytest.fixture
def jobs() -> Jobs:
    return Jobs({"pictogram": ENTRY.model_dump()}, random.Random(1))


def test_bodies_are_of_every_task_and_understood(jobs: Jobs) -> None:
    bodies = [parse_body(jobs.body()) for _ in range(300)]
    assert {body.task for body in bodies} == {"text-to-image", "image-to-image", "inpainting", "upscale"}
    assert {body.sampler for body in bodies} == {None, *(sampler.name for sampler in ENTRY.samplers)}
    assert sum(body.previews for body in bodies) > 20
