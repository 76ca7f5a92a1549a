"""Keys, hosts, origins, and the refusal to listen openly without keys."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from app.security import BindRefused, KeysInvalid, check_bind, load_keys
from app.settings import ApiSettings
from tests.http_kit import ALICE, KEYS, serving


def settings(tmp_path: Path, **changes: Any) -> ApiSettings:
    return ApiSettings(redis_url="redis://127.0.0.1:1/0", data_dir=tmp_path, **changes)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("host", "changes", "status"),
    [
        ("localhost", {}, 200),
        ("LOCALHOST:8000", {}, 200),
        ("127.0.0.1:8000", {}, 200),
        ("127.8.9.1", {}, 200),
        ("[::1]:8000", {}, 200),
        ("studio.localhost", {}, 200),
        ("192.168.1.7", {}, 421),
        ("evil.example", {}, 421),
        ("localhost.evil.example", {}, 421),
        ("127.0.0.1.evil.example", {}, 421),
        ("", {}, 421),
        ("evil.example", {"api_keys": KEYS}, 200),
        ("evil.example", {"api_keys": KEYS, "allowed_hosts": ("draw.example",)}, 421),
        ("draw.example:443", {"api_keys": KEYS, "allowed_hosts": ("draw.example",)}, 200),
        ("draw.example", {"allowed_hosts": ("draw.example",)}, 200),
    ],
)
async def test_only_our_own_host_names_are_answered(redis_url, store, worker, host, changes, status) -> None:
    async with serving(redis_url, store, **changes) as client:
        answer = await client.get("/models", headers={**ALICE, "Host": host})
    assert answer.status_code == status


@pytest.mark.asyncio
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
@pytest.mark.parametrize(
    ("headers", "is_let_in"),
    [
        ({}, True),
        ({"Origin": "http://localhost"}, True),
        ({"Origin": "https://localhost"}, True),
        ({"Origin": "http://localhost:3000"}, False),
        ({"Origin": "http://evil.example"}, False),
        ({"Origin": "null"}, False),
        ({"Origin": "file://localhost"}, False),
        ({"Origin": "https://studio.example"}, True),
        ({"Origin": "https://studio.example.evil.example"}, False),
        ({"Sec-Fetch-Site": "same-origin"}, True),
        ({"Sec-Fetch-Site": "none", "Sec-Fetch-Mode": "navigate"}, True),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, True),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, False),
    ],
)
async def test_foreign_pages_are_refused(redis_url, store, worker, method, headers, is_let_in) -> None:
    async with serving(redis_url, store, allowed_origins=("https://studio.example",)) as client:
        answer = await client.request(method, "/jobs", headers=headers)
    assert (answer.status_code != 403) == is_let_in


@pytest.mark.asyncio
async def test_an_allowed_origin_may_read_the_answers(redis_url, store, worker) -> None:
    origin = {"Origin": "https://studio.example"}
    asking = {**origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    async with serving(redis_url, store, api_keys=KEYS, allowed_origins=("https://studio.example",)) as client:
        preflight = await client.options("/generate", headers=asking)
        answer = await client.get("/models", headers={**origin, **ALICE})
        foreign = await client.options("/generate", headers={**asking, "Origin": "https://evil.example"})
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == "https://studio.example"
    assert answer.headers["access-control-allow-origin"] == "https://studio.example"
    assert "Location" in answer.headers["access-control-expose-headers"]
    assert foreign.status_code == 403


@pytest.mark.asyncio
async def test_a_key_is_wanted_everywhere_but_at_probes_and_the_reference(redis_url, store, worker) -> None:
    worker.beat()
    async with serving(redis_url, store, api_keys=KEYS) as client:
        for path in ("/healthz", "/readyz", "/docs", "/openapi.json"):
            assert (await client.get(path)).status_code == 200
        paths = (await client.get("/openapi.json")).json()["paths"]
        for path, operations in paths.items():
            for method in operations:
                if path in ("/healthz", "/readyz"):
                    continue
                answer = await client.request(method, path.format(job_id="f" * 44, index=0, name="first"))
                assert answer.json()["code"] == "key_required", path
        assert (await client.get("/models", headers=ALICE)).status_code == 200
        bearer = {"Authorization": ALICE["Authorization"].replace("Bearer", "bearer")}
        assert (await client.get("/models", headers=bearer)).status_code == 200


def test_keys_come_from_the_environment_and_from_a_file_as_hashes(tmp_path: Path, monkeypatch) -> None:
    digest = hashlib.sha256(b"file-key").hexdigest()
    (tmp_path / "keys").write_text(f"# people\ncarol {digest.upper()}  # by post\n\n", "utf-8")
    monkeypatch.setenv("DENOISED_API_KEYS", "alice:one-key, alice:another:key")
    monkeypatch.setenv("DENOISED_DATA_DIR", str(tmp_path))
    chosen = ApiSettings()
    keys = load_keys(chosen)
    for key, tenant in (("one-key", "alice"), ("another:key", "alice"), ("file-key", "carol")):
        assert keys.tenant_of(f"Bearer {key}") == tenant
    assert "one-key" not in repr(keys) + repr(chosen)
    other = tmp_path / "others"
    other.write_text(f"dave {hashlib.sha256(b'x').hexdigest()}\n", "utf-8")
    assert load_keys(settings(tmp_path, keys_file=other)).tenant_of("Bearer x") == "dave"


@pytest.mark.parametrize("text", ["alice", "alice:", ":key", "al ice:key", "a/b:key"])
def test_keys_that_cannot_be_meant_stop_the_start(tmp_path: Path, text: str) -> None:
    with pytest.raises(KeysInvalid, match="tenant:key"):
        load_keys(settings(tmp_path, api_keys=SecretStr(text)))


@pytest.mark.parametrize("line", ["alice", "alice secret", f"al/ice {'0' * 64}", f"alice {'0' * 64} more"])
def test_a_keys_file_with_a_wrong_line_names_it(tmp_path: Path, line: str) -> None:
    (tmp_path / "keys").write_text(f"# fine\n{line}\n", "utf-8")
    with pytest.raises(KeysInvalid, match="line 2"):
        load_keys(settings(tmp_path))


def test_a_keys_file_that_is_named_and_missing_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(KeysInvalid, match="cannot be read"):
        load_keys(settings(tmp_path, keys_file=tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("host", "has_keys", "is_allowed"),
    [
        ("127.0.0.1", False, True),
        ("localhost", False, True),
        ("::1", False, True),
        ("0.0.0.0", False, False),
        ("::", False, False),
        ("192.168.1.7", False, False),
        ("draw.example", False, False),
        ("", False, False),
        ("0.0.0.0", True, True),
    ],
)
def test_listening_beyond_loopback_wants_keys(tmp_path: Path, host: str, has_keys: bool, is_allowed: bool) -> None:
    chosen = settings(tmp_path, host=host, api_keys=SecretStr("alice:key" if has_keys else ""))
    if is_allowed:
        check_bind(chosen)
        return
    with pytest.raises(BindRefused, match="DENOISED_API_KEYS"):
        check_bind(chosen)


def test_settings_are_frozen_and_refuse_what_they_do_not_know(tmp_path: Path, monkeypatch) -> None:
    chosen = settings(tmp_path)
    with pytest.raises(ValidationError):
        chosen.port = 1  # type: ignore[misc]
    with pytest.raises(ValidationError):
        settings(tmp_path, max_quued=3)
    monkeypatch.setenv("DENOISED_ALLOWED_ORIGINS", "https://A.example/, https://b.example")
    assert ApiSettings().allowed_origins == ("https://a.example", "https://b.example")


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("changes", "status"),
    [({}, 202), ({"api_keys": KEYS}, 403), ({"api_keys": KEYS, "high_priority": ("alice",)}, 202)]
    + [({"api_keys": KEYS, "operators": ("alice",)}, 202), ({"api_keys": KEYS, "high_priority": ("bob",)}, 403)],
)
async def test_a_key_may_ask_for_high_priority_when_it_is_said_so(redis_url, store, worker, changes, status) -> None:
    async with serving(redis_url, store, **changes) as client:
        body = {"prompt": "a pear", "priority": "high", "deadline_s": 60.5}
        answer = await client.post("/generate", headers=ALICE, json=body)
        assert answer.status_code == status
        if status == 202:
            assert answer.json()["request"]["deadline_s"] == 60.5
            return
        assert answer.json()["code"] == "priority_refused"
        assert (await client.post("/generate", headers=ALICE, json=body | {"priority": "low"})).status_code == 202
