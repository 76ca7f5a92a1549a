"""Models that come, change and go while a worker runs, and what operators ask of them."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest
import redis

from tests.board_values import make_entry, make_submission
from tests.fakes import FakeEngine, FakeShelf
from tests.fleet import Fleet
from workers import repertoire as module
from workers.board import JobBoard
from workers.contract import WorkerBeat, key
from workers.model_folder import found_models
from workers.repertoire import Repertoire
from workers.settings import WorkerSettings

BEAT_S = 0.01


class Bench:
    """A repertoire with its surroundings; `models` is its directory."""

    def __init__(self, client: redis.Redis, folder: Path, shelf: FakeShelf | None = None) -> None:
        self.client = client
        self.models = folder / "models"
        self.board = JobBoard(client)
        self.shelf = shelf or FakeShelf(("fake",))
        settings = WorkerSettings(models={"fake": "fake"}, data_dir=folder, beat_s=BEAT_S)
        self.repertoire = Repertoire(client, self.board, settings, FakeEngine(), self.shelf)
        self.in_use: set[str] = set()

    def open(self) -> None:
        for name in self.repertoire.open():
            self.repertoire.load(name)
        self.repertoire.publish()

    def put(self, name: str, weights: str = "some") -> None:
        (self.models / name / "unet").mkdir(parents=True, exist_ok=True)
        (self.models / name / "model_index.json").write_text("{}")
        (self.models / name / "unet" / "weights.safetensors").write_text(weights)

    def look_twice(self) -> None:
        for _ in range(2):
            self.repertoire.keep_up(self.in_use)

    def take_away(self, name: str) -> None:
        """The folder, until everybody has heard of it."""
        shutil.rmtree(self.models / name)
        self.look_twice()
        time.sleep(3 * BEAT_S)
        self.repertoire.keep_up(self.in_use)

    @property
    def catalogue(self) -> set[str]:
        return {name.decode() for name in self.client.hkeys(key("catalogue"))}


@pytest.fixture
def bench(redis_client: redis.Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr(module, "LOOK_S", 0.0)
    return Bench(redis_client, tmp_path)


def test_models_of_the_directory_are_served_beside_the_configured_ones(bench: Bench) -> None:
    bench.put("second")
    (bench.models / "no model").mkdir()
    bench.open()
    assert bench.catalogue == {"fake", "second"}
    assert set(bench.repertoire.loads()) == {"fake", "second"}


def test_a_configured_name_is_not_taken_by_the_directory(bench: Bench) -> None:
    bench.put("fake")
    bench.open()
    bench.put("fake", "other weights")
    bench.look_twice()
    assert bench.shelf.offered == {}


def test_a_model_that_is_put_there_is_loaded_once_it_has_come_to_rest(bench: Bench) -> None:
    bench.open()
    bench.put("second")
    assert not bench.repertoire.keep_up(())
    bench.put("second", "more of it")  # still being copied
    assert not bench.repertoire.keep_up(())
    assert "second" not in bench.repertoire.loads()
    assert bench.repertoire.keep_up(())
    assert bench.repertoire.loads()["second"].loaded
    assert bench.catalogue == {"fake", "second"}
    assert not bench.repertoire.keep_up(())  # and only once


def test_a_model_that_changes_on_disk_is_loaded_anew_after_the_jobs_it_has(bench: Bench) -> None:
    bench.put("second")
    bench.open()
    before = bench.shelf.get("second")
    bench.in_use = {"second"}
    bench.put("second", "quite other weights")
    bench.look_twice()
    assert bench.repertoire.paused == {"second"}
    assert bench.shelf.get("second") is before
    bench.in_use = set()
    assert bench.repertoire.keep_up(())
    assert bench.shelf.get("second") is not before
    assert bench.repertoire.paused == frozenset()


def test_a_model_that_is_gone_draws_what_it_had_accepted_and_is_told_no_more(bench: Bench) -> None:
    bench.put("second")
    bench.open()
    bench.client.hset(key("costs", "second"), "job", 5.0)
    bench.take_away("second")
    assert "second" not in bench.repertoire.loads()  # no new jobs
    assert bench.shelf.is_loaded("second")  # and the old ones can be drawn
    assert bench.repertoire.paused == frozenset()
    bench.client.hdel(key("costs", "second"), "job")
    assert bench.repertoire.keep_up(())
    assert bench.shelf.names() == ("fake",)
    assert bench.catalogue == {"fake"}


def test_a_model_that_comes_back_before_it_has_left_stays(bench: Bench) -> None:
    bench.put("second")
    bench.open()
    bench.client.hset(key("costs", "second"), "job", 5.0)
    shutil.rmtree(bench.models / "second")
    bench.look_twice()
    bench.put("second")
    bench.look_twice()
    assert bench.repertoire.loads()["second"].loaded
    assert bench.catalogue == {"fake", "second"}


def test_the_catalogue_keeps_a_model_that_another_worker_serves(bench: Bench) -> None:
    bench.put("second")
    bench.open()
    other = WorkerBeat.model_validate(
        {"name": "other", "beat_at": 9e9, "started_at": 0, "pid": 1, "host": "there", "state": "running"}
        | {"models": {"second": {"loaded": True, "warmed": True}}}
    )
    bench.client.hset(key("workers"), "other", other.model_dump_json())
    bench.take_away("second")
    assert bench.shelf.names() == ("fake",)
    assert bench.catalogue == {"fake", "second"}


def test_a_model_is_not_gone_before_everybody_has_heard_that_it_leaves(
    redis_client: redis.Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOOK_S", 0.0)
    monkeypatch.setattr("tests.test_repertoire.BEAT_S", 2.5)
    bench = Bench(redis_client, tmp_path)
    bench.put("second")
    bench.open()
    shutil.rmtree(bench.models / "second")
    bench.look_twice()
    assert "second" not in bench.repertoire.loads()
    bench.client.hset(key("costs", "second"), "accepted meanwhile", 5.0)
    bench.look_twice()
    assert bench.shelf.is_loaded("second")


def test_a_worker_that_starts_does_not_take_upscalers_away_that_it_will_have_too(
    bench: Bench, redis_client: redis.Redis, tmp_path: Path
) -> None:
    bench.put("x4")
    bench.open()
    starting = Bench(redis_client, tmp_path)
    assert set(starting.repertoire.open()) == {"fake", "x4"}
    starting.repertoire.load("fake")
    starting.repertoire.publish()
    assert bench.board.catalogue()["fake"].upscalers == ("x4",)
    starting.shelf.broken.add("x4")
    starting.repertoire.load("x4")
    starting.repertoire.publish()
    assert bench.board.catalogue()["fake"].upscalers == ()


def test_an_upscaler_stays_for_what_is_to_be_enlarged(bench: Bench) -> None:
    bench.put("x4")
    bench.open()
    plain = make_submission()
    request = plain.request.model_copy(update={"upscaler": "x4"})
    record = bench.board.submit(plain.model_copy(update={"request": request}), make_entry())[0].record
    bench.take_away("x4")
    assert bench.shelf.is_loaded("x4")
    bench.board.cancel(record.id)
    assert bench.repertoire.keep_up(())
    assert bench.shelf.names() == ("fake",)


def test_a_change_that_redis_did_not_hear_of_is_done_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("second", "third"):
        bench.put(name)
    bench.open()
    for name in ("second", "third"):
        shutil.rmtree(bench.models / name)
    bench.look_twice()
    time.sleep(3 * BEAT_S)
    has_unended, asked = bench.board.has_unended, []

    def fail_once(model: str) -> bool:
        asked.append(model)
        if len(asked) == 2:
            raise redis.ConnectionError("away")
        return has_unended(model)

    monkeypatch.setattr(bench.board, "has_unended", fail_once)
    with pytest.raises(redis.ConnectionError):
        bench.repertoire.keep_up(())
    assert bench.repertoire.keep_up(())
    assert bench.shelf.names() == ("fake",)
    assert bench.catalogue == {"fake"}


def test_a_wish_for_a_model_that_left_is_not_one_for_the_next_of_its_name(bench: Bench) -> None:
    bench.put("second")
    bench.open()
    bench.board.wish("second", "unload")
    bench.repertoire.keep_up(())
    bench.take_away("second")
    assert "second" not in bench.shelf.names()
    bench.put("second")
    bench.look_twice()
    bench.look_twice()
    assert bench.shelf.is_loaded("second")


def test_a_new_model_that_finds_no_room_is_loaded_before_it_is_unloaded(
    redis_client: redis.Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOOK_S", 0.0)
    bench = Bench(redis_client, tmp_path, FakeShelf(("fake",), places=1))
    bench.open()
    bench.in_use = {"fake"}
    bench.put("second")
    bench.look_twice()
    wish = bench.board.wish("second", "unload")
    bench.look_twice()
    assert bench.catalogue == {"fake"}
    bench.in_use = set()
    bench.look_twice()
    assert bench.catalogue == {"fake", "second"}
    assert bench.repertoire.wishes["second"] == wish.id
    assert not bench.shelf.is_loaded("second")


def test_a_model_that_breaks_in_an_unforeseen_way_harms_no_other(bench: Bench) -> None:
    bench.put("odd")
    bench.open()
    fault = bench.repertoire.faults["odd"]
    assert (fault.code, "KeyError" in fault.detail) == ("checkpoint_refused", True)
    assert bench.catalogue == {"fake"}
    assert not bench.shelf.is_loaded("odd")


def test_a_directory_that_cannot_be_read_changes_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.put("second")
    bench.open()

    def fail(_: Path) -> None:
        raise OSError("the network drive is away")

    monkeypatch.setattr(module, "found_models", fail)
    bench.look_twice()
    assert bench.catalogue == {"fake", "second"}
    assert bench.shelf.is_loaded("second")


def test_a_model_that_cannot_be_loaded_is_told_and_tried_again_when_it_changes(bench: Bench) -> None:
    bench.put("missing")  # what the shelf says of it
    bench.put("huge")
    bench.open()
    assert {name: fault.code for name, fault in bench.repertoire.faults.items()} == {
        "missing": "checkpoint_missing",
        "huge": "out_of_memory",
    }
    assert set(bench.repertoire.loads()) == bench.catalogue == {"fake"}
    assert not bench.shelf.is_loaded("huge")
    bench.look_twice()
    assert bench.shelf.tries["missing"] == 1  # not every second
    bench.put("missing", "mended")
    bench.look_twice()
    assert bench.shelf.tries["missing"] == 2


def test_an_operators_wish_is_done_once(bench: Bench) -> None:
    bench.open()
    wish = bench.board.wish("fake", "unload")
    bench.in_use = {"fake"}
    assert not bench.repertoire.keep_up(bench.in_use)
    assert bench.repertoire.paused == {"fake"}  # or it would never come to rest
    assert bench.repertoire.keep_up(())
    assert not bench.shelf.is_loaded("fake")
    assert bench.repertoire.wishes == {"fake": wish.id}
    assert "fake" in bench.repertoire.loads()  # the next job loads it
    bench.shelf.get("fake")
    assert not bench.repertoire.keep_up(())
    assert bench.shelf.is_loaded("fake")
    bench.shelf.evict("fake")
    bench.board.wish("fake", "load")
    assert bench.repertoire.keep_up(())
    assert bench.shelf.is_loaded("fake")


def test_what_was_asked_of_workers_before_is_not_asked_of_a_new_one(bench: Bench) -> None:
    wish = bench.board.wish("fake", "unload")
    bench.open()
    assert not bench.repertoire.keep_up(())
    assert bench.shelf.is_loaded("fake")
    assert bench.repertoire.wishes == {"fake": wish.id}  # nobody waits for it
    assert 0 < bench.client.ttl(key("wishes")) <= 3600


def test_a_wish_that_finds_no_room_waits_until_others_have_left(redis_client: redis.Redis, tmp_path: Path) -> None:
    bench = Bench(redis_client, tmp_path, FakeShelf(("fake", "other"), places=1))
    bench.open()
    assert bench.shelf.is_loaded("fake")
    bench.board.wish("other", "load")
    assert not bench.repertoire.keep_up({"fake"})
    assert bench.repertoire.paused == {"fake"}
    assert bench.repertoire.keep_up(())
    assert bench.shelf.is_loaded("other")
    assert bench.repertoire.paused == frozenset()


def test_a_model_that_was_fine_stays_offered_when_it_cannot_be_loaded_again(bench: Bench) -> None:
    bench.put("second")
    bench.open()
    bench.board.wish("second", "unload")
    bench.repertoire.keep_up(())
    bench.shelf.broken.add("second")
    wish = bench.board.wish("second", "load")
    assert bench.repertoire.keep_up(())
    assert bench.repertoire.faults["second"].code == "checkpoint_missing"
    assert bench.repertoire.wishes["second"] == wish.id
    assert bench.catalogue == {"fake", "second"}


def _write(path: Path, text: str = "{}") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_found_models_are_told_apart_by_every_file(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    assert found_models(folder) == {}
    _write(folder / "one" / "model_index.json")
    assert found_models(folder) == {}, "a folder that is still being filled"
    _write(folder / "one" / "unet" / "weights.safetensors")
    first = found_models(folder)
    assert list(first) == ["one"]
    _write(folder / "one" / "unet" / "weights.safetensors", "more")
    assert list(found_models(folder)) == ["one"]
    assert found_models(folder) != first


def test_a_folder_of_pickles_is_found_so_that_it_can_be_refused(tmp_path: Path) -> None:
    _write(tmp_path / "one" / "model_index.json")
    _write(tmp_path / "one" / "unet" / "diffusion_pytorch_model.bin")
    assert list(found_models(tmp_path)) == ["one"]


def test_single_files_are_found_and_change_with_their_configuration(tmp_path: Path) -> None:
    _write(tmp_path / "dream.v2.safetensors", "weights")
    _write(tmp_path / "dream.ckpt", "a pickle, never opened")
    first = found_models(tmp_path)
    assert {name: found.source for name, found in first.items()} == {"dream.v2": str(tmp_path / "dream.v2.safetensors")}

    _write(tmp_path / "stable-diffusion-v1-5" / "model_index.json")
    second = found_models(tmp_path)
    assert list(second) == ["dream.v2"], "a folder without weights is no model"
    assert second != first

    _write(tmp_path / "dream.v2" / "model_index.json")
    third = found_models(tmp_path)
    assert list(third) == ["dream.v2"]
    assert third != second


def test_a_file_goes_before_a_folder_of_its_name(tmp_path: Path) -> None:
    _write(tmp_path / "dream" / "model_index.json")
    _write(tmp_path / "dream" / "unet" / "weights.safetensors")
    _write(tmp_path / "dream.safetensors", "weights")
    assert {found.source for found in found_models(tmp_path).values()} == {str(tmp_path / "dream.safetensors")}


def test_what_cannot_be_read_hides_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(tmp_path / "one" / "model_index.json")
    _write(tmp_path / "one" / "unet" / "weights.safetensors")
    (tmp_path / "lost+found").mkdir()
    (tmp_path / "loop.safetensors").symlink_to("loop.safetensors")
    is_file = Path.is_file

    def refuse(path: Path) -> bool:
        if path.parent.name == "lost+found":
            raise PermissionError(13, "Permission denied")
        return is_file(path)

    monkeypatch.setattr(Path, "is_file", refuse)
    assert list(found_models(tmp_path)) == ["one"]


def test_a_whole_model_beside_a_file_may_be_the_configuration_that_it_lacks(bench: Bench) -> None:
    _write(bench.models / "missing.safetensors")
    _write(bench.models / "fine.safetensors")
    bench.open()
    bench.put("other")
    bench.look_twice()
    assert bench.shelf.tries == {"fake": 1, "missing": 2, "fine": 1, "other": 1}


def test_a_running_worker_takes_up_a_model_and_lets_it_go(fleet: Fleet, tmp_path: Path) -> None:
    worker = fleet.start()
    folder = tmp_path / "models" / "second"
    _write(folder / "model_index.json")
    _write(folder / "unet" / "weights.safetensors")
    fleet.wait_for(lambda: "second" in fleet.beat_of(worker).models)
    assert set(fleet.board.catalogue()) == {"fake", "second"}
    submissions = [make_submission(seed=seed, model="second", steps=300) for seed in range(2)]
    ids = [fleet.board.submit(each, make_entry("second"))[0].record.id for each in submissions]
    shutil.rmtree(folder)
    fleet.wait_ended(ids)
    fleet.assert_each_succeeded_once(ids)
    fleet.wait_for(lambda: set(fleet.board.catalogue()) == {"fake"})


def test_a_running_worker_does_what_operators_ask(fleet: Fleet) -> None:
    worker = fleet.start()
    wish = fleet.board.wish("fake", "unload")
    fleet.wait_for(lambda: fleet.beat_of(worker).wishes.get("fake") == wish.id)
    assert not fleet.beat_of(worker).models["fake"].loaded
    ids = fleet.submit(make_submission(seed=1))
    fleet.wait_ended(ids)
    fleet.assert_each_succeeded_once(ids)
    fleet.wait_for(lambda: fleet.beat_of(worker).models["fake"].loaded)
