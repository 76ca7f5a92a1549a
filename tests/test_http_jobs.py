"""Reading, listing, fetching, canceling and erasing jobs; models, health, metrics, the reference page."""

from __future__ import annotations

import gzip
import hashlib
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from app.main import create_app
from app.routes.reference import STATIC
from app.settings import ApiSettings
from models.request import TASKS
from tests.http_kit import ALICE, BOB, ENTRY, KEYS, client_of, serving, settings_for
from workers.contract import key
from workers.store import LocalStore


@pytest.mark.asyncio
async def test_a_job_is_followed_from_the_queue_to_its_pictures(redis_url, store, worker) -> None:
    async with serving(redis_url, store) as client:
        job = (await client.post("/generate", json={"prompt": "a pear", "num_images": 2, "seed": 7})).json()
        path = job["links"]["self"]
        for index, code in ((0, "image_not_ready"), (1, "image_not_ready"), (2, "image_unknown")):
            assert (await client.get(f"{path}/images/{index}")).json()["code"] == code
        worker.claim(job["id"])
        worker.progress(job["id"], 3, 20, warnings=("The prompt was cut.",))
        running = (await client.get(path)).json()
        assert (running["status"], running["queue_position"]) == ("running", None)
        assert running["progress"] == {"step": 3, "steps": 20}
        assert running["eta_s"] == 1.5
        assert running["warnings"] == ["The prompt was cut."]
        assert running["started_at"] >= running["created_at"]
        files = worker.draw(job["id"])
        done = (await client.get(path)).json()
        assert (done["status"], done["eta_s"], done["error"]) == ("succeeded", None, None)
        assert done["timings"]["total_s"] == 0.8
        assert done["ended_at"] >= done["started_at"]
        assert [image["seed"] for image in done["images"]] == [7, 8]
        for image, data in zip(done["images"], files, strict=True):
            answer = await client.get(image["url"])
            assert answer.status_code == 200
            assert answer.content == data
            assert hashlib.sha256(answer.content).hexdigest() == image["sha256"]
            assert answer.headers["content-type"] == "image/png"
            assert answer.headers["content-length"] == str(len(data))
            assert answer.headers["etag"] == f'"{image["sha256"]}"'
            assert answer.headers["cache-control"] == "private, max-age=31536000, immutable"
            assert answer.headers["content-disposition"].startswith('inline; filename="denoised-')
            again = await client.get(image["url"], headers={"If-None-Match": answer.headers["etag"]})
            assert (again.status_code, again.content) == (304, b"")
        for index in ("2", "-1", "one", "0.0", "²", "9" * 30):
            assert (await client.get(f"{path}/images/{index}")).json()["code"] == "image_unknown", index


@pytest.mark.asyncio
async def test_a_failed_job_tells_why_and_has_no_pictures(redis_url, store, worker) -> None:
    async with serving(redis_url, store) as client:
        job = (await client.post("/generate", json={"prompt": "a pear"})).json()
        worker.fail(job["id"])
        failed = (await client.get(job["links"]["self"])).json()
        picture = await client.get(f"{job['links']['self']}/images/0")
    assert failed["status"] == "failed"
    assert failed["error"] == {"code": "not_finite", "detail": "The latents turned NaN."}
    assert picture.json()["code"] == "image_unknown"


@pytest.mark.asyncio
async def test_a_picture_whose_file_is_gone_is_gone(redis_url, store, worker) -> None:
    async with serving(redis_url, store) as client:
        job = (await client.post("/generate", json={"prompt": "a pear"})).json()
        worker.draw(job["id"])
        store.erase(job["id"])
        answer = await client.get(f"{job['links']['self']}/images/0")
    assert (answer.status_code, answer.json()["code"]) == (410, "image_gone")


@pytest.mark.asyncio
async def test_canceling_may_be_repeated_and_never_erases(redis_url, store, worker) -> None:
    async with serving(redis_url, store, api_keys=KEYS) as client:
        job = (await client.post("/generate", json={"prompt": "a cat"}, headers=ALICE)).json()
        assert (await client.post(f"{job['links']['self']}/cancel", headers=BOB)).status_code == 404
        for _ in range(2):
            answer = await client.post(f"{job['links']['self']}/cancel", headers=ALICE)
            assert (answer.status_code, answer.json()["status"]) == (200, "canceled")
        drawn = (await client.post("/generate", json={"prompt": "a cat"}, headers=ALICE)).json()
        worker.draw(drawn["id"])
        answer = await client.post(f"{drawn['links']['self']}/cancel", headers=ALICE)
        assert answer.json()["status"] == "succeeded"
        assert (await client.get(answer.json()["images"][0]["url"], headers=ALICE)).status_code == 200


@pytest.mark.asyncio
async def test_deleting_cancels_first_and_erases_then(redis_url, store, worker) -> None:
    async with serving(redis_url, store) as client:
        for is_running in (False, True):
            job = (await client.post("/generate", json={"prompt": "a pear"})).json()
            if is_running:
                worker.claim(job["id"])
            canceled = await client.delete(job["links"]["self"])
            assert (canceled.status_code, canceled.json()["status"]) == (200, "canceled")
            assert (await client.get(job["links"]["self"])).json()["status"] == "canceled"
            erased = await client.delete(job["links"]["self"])
            assert (erased.status_code, erased.content) == (204, b"")
            for method in ("GET", "DELETE"):
                answer = await client.request(method, job["links"]["self"])
                assert (answer.status_code, answer.json()["code"]) == (410, "job_gone")
        assert (await client.get("/jobs")).json()["jobs"] == []


@pytest.mark.asyncio
async def test_erasing_removes_the_pictures_from_the_store(redis_url, store, worker) -> None:
    async with serving(redis_url, store) as client:
        job = (await client.post("/generate", json={"prompt": "a pear"})).json()
        worker.draw(job["id"])
        assert [path for path in store.root.rglob("*") if path.is_file()]
        assert (await client.delete(job["links"]["self"])).status_code == 204
        picture = await client.get(f"{job['links']['self']}/images/0")
    assert not [path for path in store.root.rglob("*") if path.is_file()]
    assert picture.json()["code"] == "job_gone"


@pytest.mark.asyncio
async def test_an_id_older_than_the_retention_is_gone_and_a_young_unknown_one_never_was(
    redis_url, store, worker
) -> None:
    now_ms = int(time.time() * 1000)
    old, young = (f"{moment:012x}{'ab' * 16}" for moment in (now_ms - 200_000, now_ms - 50_000))
    async with serving(redis_url, store, retention_s=100) as client:
        assert (await client.get(f"/jobs/{old}")).json()["code"] == "job_gone"
        assert (await client.get(f"/jobs/{young}")).json()["code"] == "job_unknown"


@pytest.mark.asyncio
async def test_jobs_are_listed_in_pages_newest_first(redis_url, store, worker) -> None:
    async with serving(redis_url, store) as client:
        ids = [(await client.post("/generate", json={"prompt": f"pear {n}"})).json()["id"] for n in range(5)]
        worker.draw(ids[1])
        seen, cursor = [], ""
        while cursor is not None:
            page = (await client.get("/jobs", params={"limit": 2, **({"cursor": cursor} if cursor else {})})).json()
            assert len(page["jobs"]) <= 2
            seen += [job["id"] for job in page["jobs"]]
            cursor = page["next_cursor"]
        done = (await client.get("/jobs?status=succeeded")).json()["jobs"]
        waiting = (await client.get("/jobs?status=queued")).json()["jobs"]
    assert seen == sorted(ids, reverse=True)
    assert [job["id"] for job in done] == [ids[1]]
    assert [job["queue_position"] for job in waiting] == [3, 2, 1, 0]


@pytest.mark.asyncio
async def test_tenants_neither_see_nor_touch_each_others_jobs(redis_url, store, worker) -> None:
    async with serving(redis_url, store, api_keys=KEYS) as client:
        job = (await client.post("/generate", json={"prompt": "a pear"}, headers=ALICE)).json()
        path = job["links"]["self"]
        worker.draw(job["id"])
        unknown = (await client.get(f"/jobs/{job['id'][:-1]}z", headers=BOB)).json()
        for method, route in (
            ("GET", path),
            ("DELETE", path),
            ("GET", f"{path}/images/0"),
            ("GET", f"{path}/events"),
        ):
            answer = await client.request(method, route, headers=BOB)
            assert answer.status_code == 404
            assert {**answer.json(), "instance": "", "request_id": ""} == {**unknown, "instance": "", "request_id": ""}
        assert (await client.get("/jobs", headers=BOB)).json()["jobs"] == []
        assert [job["id"] for job in (await client.get("/jobs", headers=ALICE)).json()["jobs"]] == [job["id"]]
        assert (await client.delete(path, headers=ALICE)).status_code == 204
        assert (await client.get(path, headers=BOB)).json()["code"] == "job_unknown"
        assert (await client.get(path, headers=ALICE)).json()["code"] == "job_gone"


# --- models, health, metrics -----------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_models_tell_what_they_can_do(redis_url, store, worker) -> None:
    async with serving(redis_url, store) as client:
        cold = (await client.get("/models")).json()["models"]
        worker.beat()
        models = (await client.get("/models")).json()["models"]
    assert [model["loaded"] for model in cold + models] == [False, True]
    model = models[0]
    assert (model["name"], model["tasks"]) == ("first", ["text-to-image", "image-to-image"])
    assert model["defaults"]["sampler"] == "dpmpp_2m"
    assert model["limits"] == {
        "size_multiple": 8,
        "min_size": 64,
        "max_size": 256,
        "max_pixels": 36864,
        "max_images": 4,
        "token_limit": 600,
        "window_tokens": 75,
        "max_clip_skip": 11,
        "loras": ["gold", "ink"],
        "upscalers": [],
        "controlnets": ["edges"],
        "upscale_factor": None,
        "max_noise_level": None,
        "max_prompt_characters": 10_000,
    }
    assert [(sampler["name"], sampler["min_steps"], sampler["max_steps"]) for sampler in model["samplers"]] == [
        ("euler", 1, 999),
        ("dpmpp_2m", 1, 999),
        ("lcm", 1, 12),
    ]
    assert model["sampler_aliases"]["dpmpp_2m_karras"] == {"sampler": "dpmpp_2m", "noise_schedule": "karras"}
    assert model["digest"] == ENTRY.digest


@pytest.mark.asyncio
async def test_readiness_says_what_is_missing(redis_url, store, worker) -> None:
    async with serving(redis_url, store, api_keys=KEYS) as client:
        assert (await client.get("/healthz")).json() == {"status": "ok"}
        seen = [(await client.get("/readyz")).json()]
        for state, warmed in (("loading", False), ("draining", True), ("running", False)):
            worker.beat(state, warmed=warmed)
            seen.append((await client.get("/readyz")).json())
        worker.beat()
        ready = await client.get("/readyz")
    assert [document["code"] for document in seen] == ["no_worker", "not_ready", "not_ready", "not_ready"]
    for document, word in zip(seen, ("heart", "loading", "draining", "No model"), strict=True):
        assert word in document["detail"]
    assert (ready.status_code, ready.json()) == (200, {"status": "ready", "warnings": []})


@pytest.mark.asyncio
async def test_probes_are_answered_under_any_host(redis_url, store, worker) -> None:
    async with serving(redis_url, store) as client:
        for path in ("/healthz", "/readyz"):
            assert (await client.get(path, headers={"Host": "10.0.0.7:8000"})).status_code != 421


@pytest.mark.asyncio
async def test_metrics_count_answers_queues_and_workers(redis_url, store, worker) -> None:
    worker.beat(cost_per_s=8.0)
    async with serving(redis_url, store) as client:
        job = (await client.post("/generate", json={"prompt": "a pear"})).json()
        await client.post("/generate", json={"prompt": "a pear", "priority": "low"})
        high = (await client.post("/generate", json={"prompt": "a pear", "priority": "high"})).json()
        await client.delete(high["links"]["self"])
        await client.get(job["links"]["self"])
        await client.get("/nothing")
        answer = await client.get("/metrics")
    lines = answer.text.splitlines()
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    for line in (
        'denoised_http_requests_total{method="POST",route="/generate",status="202"} 3.0',
        'denoised_http_requests_total{method="GET",route="/jobs/{job_id}",status="200"} 1.0',
        'denoised_http_requests_total{method="GET",route="unmatched",status="404"} 1.0',
        'denoised_queued_jobs{model="first",priority="normal"} 1.0',
        'denoised_queued_jobs{model="first",priority="low"} 1.0',
        'denoised_queued_jobs{model="first",priority="high"} 0.0',
        'denoised_worker_up{state="running",worker="fake"} 1.0',
        'denoised_model_cost_per_second{model="first",worker="fake"} 8.0',
        'denoised_steps_total{model="first",worker="fake"} 12.0',
        'denoised_oom_splits_total{worker="fake"} 1.0',
        'denoised_jobs_ended_total{model="first",status="canceled"} 1.0',
        'denoised_jobs_ended_total{model="first",status="failed"} 0.0',
        "denoised_redis_up 1.0",
        "denoised_event_streams 0.0",
    ):
        assert line in lines, line
    assert any(line.startswith('denoised_oldest_wait_seconds{model="first",priority="normal"}') for line in lines)
    assert job["id"] not in answer.text


@pytest.mark.asyncio
async def test_two_applications_count_for_themselves(redis_url, store, worker) -> None:
    for _ in range(2):
        async with serving(redis_url, store) as client:
            await client.get("/healthz")
            text = (await client.get("/metrics")).text
        assert 'denoised_http_requests_total{method="GET",route="/healthz",status="200"} 1.0' in text


# --- the reference page ----------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_the_reference_page_asks_nobody_else(redis_url, store, worker) -> None:
    async with serving(redis_url, store, api_keys=KEYS) as client:
        page = await client.get("/docs")
        assert page.status_code == 200
        assert "http://" not in page.text.replace("http://localhost", "")
        assert "https://" not in page.text
        for name in ("swagger-ui-bundle.js", "swagger-ui.css"):
            assert f"/docs/{name}" in page.text
            packed = await client.get(f"/docs/{name}")
            plain = await client.get(f"/docs/{name}", headers={"Accept-Encoding": "identity"})
            assert packed.headers["content-encoding"] == "gzip"
            assert "content-encoding" not in plain.headers
            assert packed.content == plain.content
            assert len(plain.content) > 100_000


def test_the_reference_pages_files_are_those_its_readme_names() -> None:
    readme = (STATIC / "README.md").read_text("utf-8")
    for packed in STATIC.glob("*.gz"):
        assert hashlib.sha256(gzip.decompress(packed.read_bytes())).hexdigest() in readme


def _openapi() -> dict[str, Any]:
    return create_app(ApiSettings(redis_url="redis://127.0.0.1:1/0", data_dir=Path("/nonexistent"))).openapi()


def test_openapi_is_whole_and_names_every_task_with_an_example() -> None:
    document = _openapi()
    schemas = document["components"]["schemas"]
    content = document["paths"]["/generate"]["post"]["requestBody"]["content"]
    assert set(content["application/json"]["examples"]) == set(TASKS)
    assert schemas["GenerateBody"]["discriminator"]["propertyName"] == "task"
    for name in ("TextToImageBody", "ImageToImageBody", "InpaintingBody", "JobDocument"):
        assert schemas[name]["additionalProperties"] is False

    def references(value: object) -> set[str]:
        if isinstance(value, dict):
            here = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
            return here.union(*map(references, value.values()))
        return set().union(*map(references, value)) if isinstance(value, list) else set()

    for reference in references(document):
        assert reference.removeprefix("#/components/schemas/") in schemas, reference
    assert "HTTPValidationError" not in str(document)


def test_every_operation_documents_its_problems_in_our_shape() -> None:
    for path, operations in _openapi()["paths"].items():
        for operation in operations.values():
            for status, answer in operation["responses"].items():
                if int(status) >= 400:
                    assert list(answer["content"]) == ["application/problem+json"], (path, status)


def test_openapi_asks_for_a_key_where_the_server_has_keys(redis_url: str, store: LocalStore) -> None:
    def secured(**changes: Any) -> set[str]:
        paths = create_app(settings_for(redis_url, store, **changes)).openapi()["paths"]
        return {path for path, operations in paths.items() if any("security" in each for each in operations.values())}

    assert secured() == set()
    assert secured(api_keys=KEYS) == set(_openapi()["paths"]) - {"/healthz", "/readyz"}


def test_openapi_names_every_field_of_a_form() -> None:
    form = _openapi()["paths"]["/generate"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    schemas = _openapi()["components"]["schemas"]
    bodies = ("TextToImageBody", "ImageToImageBody", "InpaintingBody", "UpscaleBody")
    assert set(form["properties"]) == {name for body in bodies for name in schemas[body]["properties"]}
    assert form["properties"]["mask_image"]["format"] == "binary"
    assert (form["properties"]["seed"]["type"], form["properties"]["seed"]["minimum"]) == ("integer", 0)
    assert form["properties"]["sampler"]["type"] == "string"


def test_importing_the_application_loads_no_heavy_library() -> None:
    program = (
        "import sys, app.main; app.main.create_app();"
        "heavy = {'torch', 'numpy', 'diffusers', 'transformers', 'scipy', 'workers.worker'} & set(sys.modules);"
        "sys.exit(f'loaded: {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.asyncio
async def test_the_access_log_names_request_tenant_and_job(redis_url, store, worker, capsys) -> None:
    app = create_app(settings_for(redis_url, store, api_keys=KEYS))
    async with client_of(app, ALICE) as client:
        answer = await client.post("/generate", json={"prompt": "a secret"}, headers={"X-Request-ID": "req-7"})
    assert answer.headers["x-request-id"] == "req-7"
    line = next(line for line in capsys.readouterr().err.splitlines() if '"event": "request"' in line)
    assert '"request_id": "req-7"' in line
    assert '"tenant": "alice"' in line
    assert f'"job": "{answer.json()["id"]}"' in line
    assert "secret" not in line
    assert "alice-key" not in line


@pytest.mark.asyncio
async def test_nothing_of_a_tenants_prompt_is_in_the_keys_of_redis(redis_url, store, worker) -> None:
    async with serving(redis_url, store) as client:
        await client.post("/generate", json={"prompt": "a secret"})
    assert not [name for name in worker.client.keys("*") if b"secret" in name]
    assert worker.client.exists(key("jobs", "local"))
