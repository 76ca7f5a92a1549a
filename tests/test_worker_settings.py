"""The worker's settings from the environment."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from workers.settings import BUNDLED, BUNDLED_MODEL, BUNDLED_UPSCALER, WorkerSettings


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for field in WorkerSettings.model_fields:
        monkeypatch.delenv(f"DENOISED_{field.upper()}", raising=False)
    monkeypatch.delenv("REDIS_URL", raising=False)


def test_the_bundled_models_are_served_by_default() -> None:
    settings = WorkerSettings()
    assert list(settings.models) == [BUNDLED_MODEL, BUNDLED_UPSCALER]
    assert all((Path(source) / "model_index.json").is_file() for source in settings.models.values())


def test_a_bundled_model_is_its_own_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DENOISED_MODELS", f"sd15=/weights/sd15,{BUNDLED_UPSCALER},other={BUNDLED_MODEL}")
    models = WorkerSettings().models
    assert models == {"sd15": "/weights/sd15"} | {
        BUNDLED_UPSCALER: BUNDLED[BUNDLED_UPSCALER],
        "other": BUNDLED[BUNDLED_MODEL],
    }


def test_models_are_pairs_with_commas_between(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DENOISED_MODELS", "sd15=/weights/sd15, hub=some/model ,/weights/plain")
    assert WorkerSettings().models == {"sd15": "/weights/sd15", "hub": "some/model", "plain": "/weights/plain"}


def test_a_single_file_without_a_name_is_named_without_its_ending(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DENOISED_MODELS", "/weights/sd_xl_base_1.0.safetensors,own=./dream.safetensors,/weights/v1.5")
    assert WorkerSettings().models == {
        "sd_xl_base_1.0": "/weights/sd_xl_base_1.0.safetensors",
        "own": "./dream.safetensors",
        "v1.5": "/weights/v1.5",
    }


@pytest.mark.parametrize("value", ["=x", "a=", "a=x,a=y"])
def test_models_that_cannot_be_told_apart_are_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("DENOISED_MODELS", value)
    with pytest.raises(ValidationError, match="name=source"):
        WorkerSettings()


def test_the_address_of_redis_has_its_usual_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", "unix:///run/valkey.sock")
    assert WorkerSettings().redis_url == "unix:///run/valkey.sock"
    assert WorkerSettings(redis_url="redis://other").redis_url == "redis://other"


@pytest.mark.parametrize("value", ["localhost:6379", "http://127.0.0.1", "redis://host:port"])
def test_an_address_that_is_no_redis_is_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("REDIS_URL", value)
    with pytest.raises(ValidationError, match="REDIS_URL"):
        WorkerSettings()


@pytest.mark.parametrize(
    ("source", "is_local"),
    [
        ("/nowhere", True),
        ("./here", True),
        ("plain", True),
        ("runwayml/sd", False),
        ("/weights/dream.safetensors", True),
        ("weights/dream.safetensors", True),
    ],
)
def test_models_of_a_hub_may_be_there_later(source: str, is_local: bool) -> None:
    assert WorkerSettings(models={"a": source}).has_only_local_models is is_local


def test_pictures_lie_in_the_data_directory_unless_a_store_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DENOISED_DATA_DIR", "/data")
    assert WorkerSettings().store == "/data/store"
    monkeypatch.setenv("DENOISED_STORE_URL", "s3://bucket/pictures")
    assert WorkerSettings().store == "s3://bucket/pictures"


def test_a_beat_that_cannot_keep_a_lease_is_refused() -> None:
    with pytest.raises(ValidationError, match="at most a third"):
        WorkerSettings(lease_s=10, beat_s=5)


def test_an_unknown_setting_is_refused() -> None:
    with pytest.raises(ValidationError, match="extra"):
        WorkerSettings(lease=10)  # type: ignore[call-arg]


def test_every_setting_says_how_to_choose_it() -> None:
    assert [name for name, field in WorkerSettings.model_fields.items() if not field.description] == []
