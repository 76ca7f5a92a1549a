"""What is shipped: the wheel, the images, the compose file."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
WATCHERS = ("prometheus", "grafana")
HEAVY = ("torch", "diffusers", "transformers", "safetensors", "numpy")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    build = f"from hatchling.build import build_wheel; print(build_wheel({str(folder)!r}))"
    built = subprocess.run([sys.executable, "-c", build], cwd=ROOT, capture_output=True, text=True, check=True)
    return zipfile.ZipFile(folder / built.stdout.strip())


@pytest.fixture(scope="module")
def metadata(wheel: zipfile.ZipFile) -> Message:
    name = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    return Parser().parsestr(wheel.read(name).decode())


def test_the_wheel_has_the_three_rooms_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    tops = {name.partition("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"app", "workers", "models"}


def test_the_wheel_has_the_bundled_models_byte_for_byte(wheel: zipfile.ZipFile) -> None:
    files = [path for path in (ROOT / "models" / "bundled").rglob("*") if path.is_file()]
    assert sum(path.suffix == ".safetensors" for path in files) == 5
    for path in files:
        assert wheel.getinfo(str(path.relative_to(ROOT))).file_size == path.stat().st_size


def test_the_wheel_has_every_file_of_the_pages(wheel: zipfile.ZipFile) -> None:
    files = {str(path.relative_to(ROOT)) for path in (ROOT / "app" / "static").rglob("*") if path.is_file()}
    assert "app/static/studio/index.html" in files
    assert files <= set(wheel.namelist())


def test_the_wheel_carries_licence_and_notice(wheel: zipfile.ZipFile) -> None:
    names = {name.rpartition("/")[2] for name in wheel.namelist() if ".dist-info/licenses/" in name}
    assert names == {"LICENSE", "NOTICE"}


def test_the_plain_installation_has_no_torch_and_the_worker_extra_has(metadata: Message) -> None:
    lines = [str(line) for line in metadata.get_all("Requires-Dist", [])]
    names = {line: re.split(r"[^A-Za-z0-9_.-]", line)[0] for line in lines}
    plain = {names[line] for line in lines if "extra ==" not in line}
    worker = {names[line] for line in lines if "extra == 'worker'" in line}
    assert "fastapi" in plain
    assert plain.isdisjoint(HEAVY)
    assert set(HEAVY) == worker


def test_the_api_and_the_command_line_load_without_the_worker_extra() -> None:
    code = f"""
import sys
for name in {HEAVY!r}:
    sys.modules[name] = None  # importing it raises ImportError
import app.main, app.cli, app.cli.generate, app.cli.keys, app.serve, app.listener, workers.board
app.main.create_app()
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_every_installed_package_is_pinned_exactly() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert len(lines) > 60
    for line in lines:
        assert re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][A-Za-z0-9.]*", line), f"{line!r} pins no public version"
    pins = {line.partition("==")[0].lower().replace("_", "-") for line in lines}
    text = (ROOT / "pyproject.toml").read_text()
    for name in re.findall(r'^  "([A-Za-z0-9-]+)[>=]=', text, flags=re.MULTILINE):
        assert name.lower() in pins, f"constraints.txt does not pin {name}"


# --- containers ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return loaded


def test_no_container_opens_a_port_without_keys(compose: dict[str, Any]) -> None:
    opened = {name: service["ports"] for name, service in compose["services"].items() if "ports" in service}
    assert set(opened) == {"api", "grafana"}
    assert all(port.startswith("127.0.0.1:") for port in opened["grafana"])
    assert re.match(r"\$\{DENOISED_API_KEYS:\?.+\}", compose["services"]["api"]["environment"]["DENOISED_API_KEYS"])


def test_every_container_is_checked_and_hardened(compose: dict[str, Any]) -> None:
    assert set(compose["services"]) == {"redis", "api", "worker", *WATCHERS}
    for name, service in compose["services"].items():
        assert service["healthcheck"]["test"], name
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert "no-new-privileges:true" in service["security_opt"], name
        assert "privileged" not in service, name


def test_who_watches_is_started_only_if_asked_for_and_finds_its_files(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert service.get("profiles", []) == (["watch"] if name in WATCHERS else []), name
    for name in WATCHERS:
        service = compose["services"][name]
        assert re.fullmatch(r"[a-z/]+:v?[0-9]+\.[0-9]+\.[0-9]+", service["image"]), "a version, and no other name"
        assert service["networks"] == ["front"], "Redis cannot be reached from there"
        mounted = [volume.partition(":")[0] for volume in service["volumes"] if volume.startswith("./")]
        assert mounted
        assert all((ROOT / path).exists() for path in mounted)
        assert all(volume.endswith(":ro") for volume in service["volumes"] if volume.startswith("./"))


def test_redis_keeps_its_data_and_cannot_be_reached_from_outside(compose: dict[str, Any]) -> None:
    redis = compose["services"]["redis"]
    command = " ".join(redis["command"])
    assert "--appendonly yes" in command
    assert "--maxmemory-policy noeviction" in command
    assert redis["volumes"] == ["queue:/data"]
    assert redis["networks"] == ["backend"]
    assert compose["networks"]["backend"]["internal"] is True


def test_api_and_workers_share_redis_store_and_retention(compose: dict[str, Any]) -> None:
    api, worker = (compose["services"][name] for name in ("api", "worker"))
    for name in ("REDIS_URL", "DENOISED_STORE_URL", "DENOISED_RETENTION_S"):
        assert api["environment"][name] == worker["environment"][name]
    assert api["volumes"] == worker["volumes"]


@pytest.mark.parametrize("image", ["api", "worker"])
def test_images_run_without_rights_and_are_checked(image: str, compose: dict[str, Any]) -> None:
    text = (ROOT / "docker" / f"{image}.Dockerfile").read_text()
    last_stage = text[text.rindex("\nFROM ") :]
    assert re.search(r"^USER 10001:10001$", last_stage, flags=re.MULTILINE)
    assert re.search(r"^HEALTHCHECK ", last_stage, flags=re.MULTILINE)
    assert compose["services"][image]["build"]["dockerfile"] == f"docker/{image}.Dockerfile"


def test_the_api_image_installs_the_plain_distribution() -> None:
    text = (ROOT / "docker" / "api.Dockerfile").read_text()
    assert re.search(r"pip install --no-cache-dir -c constraints\.txt \.$", text, flags=re.MULTILINE)
    assert "worker]" not in text
    assert "find_spec('torch') is None" in text


def test_images_get_nothing_that_the_ignore_file_does_not_let_in() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    let_in = {rule.removeprefix("!") for rule in rules if rule.startswith("!")}
    for dockerfile in (ROOT / "docker").glob("*.Dockerfile"):
        for sources in re.findall(r"^COPY (?!--from)(.+) \S+$", dockerfile.read_text(), flags=re.MULTILINE):
            assert set(sources.split()) <= let_in, f"{dockerfile.name} copies what is left out"


# --- scripts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", ["serve.sh", "test.sh", ".ci/run"])
def test_scripts_are_executable_and_parse(script: str) -> None:
    path = ROOT / script
    assert path.stat().st_mode & 0o111
    shell = "bash" if path.read_text().startswith("#!/usr/bin/env bash") else "sh"
    subprocess.run([shell, "-n", str(path)], check=True)


PYTHON = """#!/bin/sh
case "$*" in
    *--version*) echo "Python $STAND_IN_VERSION" ;;
    *-VV*) echo "Python $STAND_IN_VERSION, built by hand" ;;
    *"-c import sys"*) case $STAND_IN_VERSION in 3.1[1-4]*) ;; *) exit 1 ;; esac ;;
    *"-m venv"*)
        [ -z "$STAND_IN_HAS_NO_VENV" ] || exit 1
        mkdir -p .venv/bin
        cp "$STAND_IN" .venv/bin/python
        echo "VIRTUAL_ENV=$PWD/.venv" >.venv/bin/activate
        for program in denoised ruff mypy lint-imports pytest; do
            printf '#!/bin/sh\\necho "%s $*"\\n[ "$STAND_IN_FAILS" != %s ]\\n' $program $program >.venv/bin/$program
        done
        chmod +x .venv/bin/* ;;
    *"pip install"*)
        [ -z "$STAND_IN_HAS_NO_INDEX" ] || exit 1
        echo "installed ${*##* }" ;;
esac
"""


class Checkout:
    """A copy of the scripts with a stand-in for Python that notes what it was told to install."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "check out"  # scripts that forget to quote fail here
        (self.folder / ".ci").mkdir(parents=True)
        for name in ("serve.sh", "test.sh", ".ci/venv.sh", "pyproject.toml", "constraints.txt"):
            (self.folder / name).write_text((ROOT / name).read_text())
        self.programs = folder / "bin"
        self.programs.mkdir()
        self.python = self.programs / "python3"
        self.python.write_text(PYTHON)
        self.python.chmod(0o755)
        for name in ("cat", "chmod", "cksum", "cp", "dirname", "grep", "mkdir", "rm"):
            found = shutil.which(name)
            assert found is not None
            (self.programs / name).symlink_to(found)

    def run(self, script: str, *words: str, version: str = "3.12.3", **environment: str) -> tuple[int, str]:
        """Exit status and everything said."""
        settings = {"PATH": str(self.programs), "STAND_IN": str(self.python), "STAND_IN_VERSION": version}
        done = subprocess.run(
            ["/bin/sh", str(self.folder / script), *words],
            env={**settings, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def test_serving_installs_once_and_passes_its_arguments_on(checkout: Checkout) -> None:
    status, said = checkout.run("serve.sh", "--port", "8001")
    assert status == 0
    assert "installed .[worker]" in said
    assert "denoised serve --port 8001" in said
    status, said = checkout.run("serve.sh")
    assert (status, said) == (0, "denoised serve\n")


def test_testing_installs_the_tools_too_and_serving_is_content_with_that(checkout: Checkout) -> None:
    status, said = checkout.run("test.sh", "-k", "cli")
    assert status == 0
    assert "installed .[worker,test]" in said
    assert [line for line in said.splitlines() if line.startswith("pytest")] == ["pytest -n 2 --dist worksteal -k cli"]
    assert "installed" not in checkout.run("test.sh")[1]
    assert "installed" not in checkout.run("serve.sh")[1]


@pytest.mark.parametrize("changed", ["pyproject.toml", "constraints.txt"])
def test_a_change_of_the_dependencies_installs_again(changed: str, checkout: Checkout) -> None:
    checkout.run("serve.sh")
    with (checkout.folder / changed).open("a") as file:
        file.write("# changed\n")
    assert "installed .[worker]" in checkout.run("serve.sh")[1]


def test_a_moved_checkout_gets_a_new_environment(checkout: Checkout) -> None:
    checkout.run("serve.sh")
    checkout.folder = checkout.folder.rename(checkout.folder.with_name("elsewhere"))
    assert "Making .venv" in checkout.run("serve.sh")[1]


def test_a_failed_installation_is_told_and_not_taken_for_done(checkout: Checkout) -> None:
    status, said = checkout.run("serve.sh", STAND_IN_HAS_NO_INDEX="1")
    assert status == 1
    assert "pip could not install" in said
    assert "installed .[worker]" in checkout.run("serve.sh")[1]


def test_a_python_that_is_too_old_is_told(checkout: Checkout) -> None:
    status, said = checkout.run("serve.sh", version="3.10.12")
    assert status == 1
    assert "needs Python 3.11" in said
    assert "3.10.12" in said
    assert not (checkout.folder / ".venv").exists()


def test_a_missing_venv_module_is_told_with_the_package_that_has_it(checkout: Checkout) -> None:
    status, said = checkout.run("serve.sh", STAND_IN_HAS_NO_VENV="1")
    assert status == 1
    assert "apt install python3-venv" in said
    assert not (checkout.folder / ".venv").exists()


@pytest.mark.parametrize("tool", ["ruff", "mypy", "lint-imports", "pytest"])
def test_the_test_command_fails_when_any_of_its_checks_fails_and_runs_the_others(tool: str, checkout: Checkout) -> None:
    status, said = checkout.run("test.sh", STAND_IN_FAILS=tool)
    assert status == 1
    assert f"Failed: {tool}" in said
    assert "pytest" in said
