"""Repository files: no package index addresses, consistent pins, a complete package."""

import importlib
import os
import re
import shutil
import subprocess
import tomllib
import zipfile
from importlib.metadata import PackageNotFoundError, distribution
from importlib.resources import files
from itertools import pairwise
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from app.settings import Settings

ROOT = Path(__file__).parents[2]
LOCKS = ("requirements.lock", "requirements-sandbox.lock", "requirements-dev.lock")
CLIENTS_LOCK = "requirements-clients.lock"  # for a separate environment, so its pins may differ

# Joined here, so that this file does not find itself.
ADDRESSES = [
    "".join(parts)
    for parts in [
        ("pypi.", "org"),
        ("python", "hosted"),
        ("--index", "-url"),
        ("--extra-index", "-url"),
        ("--find", "-links"),
        ("pip_index", "_url"),
        ("registry.", "npmjs"),
        ("registry.", "yarnpkg"),
    ]
]


@pytest.fixture(scope="module")
def repository() -> list[Path]:
    """Return every file that git tracks or would add."""
    git = shutil.which("git")
    if not git or not (ROOT / ".git").exists():
        pytest.skip("not a checkout of git")
    listing = [git, "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(listing, cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0")
    return [ROOT / name for name in names if (ROOT / name).is_file()]


def pins(lock: str) -> dict[str, set[str]]:
    """Return the pinned versions of each package; there may be several, for several Pythons."""
    pinned: dict[str, set[str]] = {}
    for requirement, _ in requirements(lock):
        pinned.setdefault(requirement.name, set()).add(str(requirement.specifier))
    return pinned


def extras(lock: str) -> dict[str, set[str]]:
    """Return the extras that each package of a lock file is pinned with."""
    pinned: dict[str, set[str]] = {}
    for requirement, _ in requirements(lock):
        pinned.setdefault(requirement.name, set()).update(requirement.extras)
    return pinned


def requirements(lock: str) -> list[tuple[Requirement, str]]:
    """Return each requirement of a lock file, and the hashes behind it; one that is not pinned fails the test."""
    text = (ROOT / lock).read_text(encoding="utf-8").replace("\\\n", " ")
    read = []
    for line in text.splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            text, hashes, rest = line.partition(" --hash=")
            requirement = Requirement(text)
            assert re.fullmatch(r"==[^,*]+", str(requirement.specifier)), f"{lock}: not pinned: {text}"
            read.append((requirement, hashes + rest))
    return read


def test_no_file_contains_the_address_of_a_package_index(repository: list[Path]) -> None:
    """Packages are installed from the index that the machine is configured for."""
    seen = [
        f"{path.relative_to(ROOT)}: {address}"
        for path in repository
        for address in ADDRESSES
        if address.encode() in path.read_bytes().lower()
    ]
    assert not seen


def test_no_lock_file_format_that_stores_index_addresses_is_used(repository: list[Path]) -> None:
    kinds = {"uv.lock", "poetry.lock", "pdm.lock", "pylock.toml", "Pipfile.lock", "package-lock.json", "yarn.lock"}
    assert not [path for path in repository if path.name in kinds]


@pytest.mark.parametrize("lock", [*LOCKS, CLIENTS_LOCK])
def test_every_requirement_is_pinned_and_has_hashes(lock: str) -> None:
    found = requirements(lock)
    assert found
    assert not [requirement.name for requirement, hashes in found if "--hash=sha256:" not in hashes]


@pytest.mark.parametrize("lock", LOCKS)
def test_every_dependency_of_a_locked_package_is_locked_with_its_extras(lock: str) -> None:
    """Old versions of pip take the newest release of a package whose extra is not pinned, and refuse to install it."""
    pinned = extras(lock)
    examined, missing = 0, []
    for name in pinned:
        try:
            needs = distribution(name).requires or []
        except PackageNotFoundError:
            continue  # it is for another platform
        examined += 1
        for needed in map(Requirement, needs):
            needed_name = canonicalize_name(needed.name)
            wanted = [
                extra for extra in ("", *pinned[name]) if not needed.marker or needed.marker.evaluate({"extra": extra})
            ]
            if wanted and not (needed_name in pinned and needed.extras <= pinned[needed_name]):
                missing.append(f"{name} needs {needed}")
    assert examined > len(pinned) / 2
    assert not missing


def test_the_lock_files_pin_the_extras_of_the_project_dependencies() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = [Requirement(text) for text in project["dependencies"]]
    assert any(requirement.extras for requirement in asked)
    assert all(
        requirement.extras <= extras(lock)[canonicalize_name(requirement.name)]
        for requirement in asked
        for lock in LOCKS
    )


def test_the_lock_files_pin_the_same_versions() -> None:
    """Each file includes all pins of the smaller one, so that what is tested is what runs."""
    for smaller, larger in pairwise(map(pins, LOCKS)):
        assert smaller == {name: larger.get(name) for name in smaller}


def test_the_package_includes_its_lua_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both as imported here and as a built wheel."""
    scripts = {str(path.relative_to(ROOT)) for path in (ROOT / "app/store/lua").rglob("*.lua")}
    assert len(scripts) > 1
    assert all((files("app") / name.removeprefix("app/")).is_file() for name in scripts)

    monkeypatch.chdir(ROOT)  # where a build backend looks for the project
    wheel = importlib.import_module("flit_core.buildapi").build_wheel(str(tmp_path))
    with zipfile.ZipFile(tmp_path / wheel) as built:
        assert scripts <= set(built.namelist())


@pytest.mark.parametrize("name", ["host", "port"])
def test_make_run_uses_the_default_host_and_port_of_the_settings(name: str) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.findall(rf"^{name.upper()} := (.*)$", makefile, re.MULTILINE) == [
        str(Settings.model_fields[name].default)
    ]


@pytest.mark.parametrize("name", ["PYTHONHOME", "PYTHONPATH", "PIP_PREFIX", "PIP_TARGET", "PIP_USER"])
def test_make_ignores_python_and_pip_variables_of_the_shell(name: str) -> None:
    done = subprocess.run(
        ["make", "--eval", "show: ; @env", "show"],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], name: "/another/project", "PIP_CERT": "/a/company.pem"},
        capture_output=True,
        text=True,
        check=True,
    )

    assert f"{name}=" not in done.stdout
    assert "PIP_CERT=/a/company.pem\n" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "host"), [((), "127.0.0.1"), (("HOST=::",), "::")], ids=["environment", "command line"]
)
def test_make_run_takes_host_from_its_command_line_and_not_from_the_environment(
    arguments: tuple[str, ...], host: str
) -> None:
    done = subprocess.run(
        ["make", "--dry-run", "run", *arguments],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "HOST": "x86_64-conda-linux-gnu", "PORT": "tcp://10.0.0.1:80"},
        capture_output=True,
        text=True,
        check=True,
    )

    assert f"demo --host {host} --port 8000" in done.stdout
