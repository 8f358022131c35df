"""docker-compose.yml: the services of each profile, pinned images, and the proxy that the service trusts."""

import os
import re
import stat
import subprocess
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped] # its stubs would be one more dependency

from tests.unit.test_env_example import REQUIRED

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
COMPOSE: Any = yaml.safe_load(TEXT)
SERVICES: dict[str, Any] = COMPOSE["services"]
CADDYFILE = (ROOT / "deploy/caddy/Caddyfile").read_text(encoding="utf-8")


def test_without_a_profile_only_the_service_and_redis_start() -> None:
    profiles = {name: tuple(service.get("profiles", ())) for name, service in SERVICES.items()}

    assert profiles == {
        "verify": (),
        "verify-files": (),
        "redis": (),
        "caddy": ("tls",),
        "tls-files": ("tls",),
        "prometheus": ("monitoring",),
        "grafana": ("monitoring",),
        "monitoring-files": ("monitoring",),
    }


@pytest.mark.parametrize("name", sorted(set(SERVICES) - {"verify"}))
def test_every_image_is_pinned_to_a_version_tag(name: str) -> None:
    assert re.fullmatch(r"[a-z/]+:v?[0-9]+\.[0-9]+[0-9.a-z-]*", SERVICES[name]["image"])


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_drops_all_capabilities_and_gains_no_privileges(name: str) -> None:
    assert SERVICES[name]["cap_drop"] == ["ALL"]
    assert SERVICES[name]["security_opt"] == ["no-new-privileges:true"]


def test_every_file_mounted_from_the_repository_exists() -> None:
    sources = [
        mount.split(":")[0] for service in SERVICES.values() for mount in service.get("volumes", ()) if mount[0] == "."
    ]

    assert sources
    assert not [source for source in sources if not (ROOT / source).exists()]


def test_every_variable_that_compose_reads_is_in_env_example() -> None:
    asked = set(re.findall(r"(?<!\$)\$\{([A-Z_]+)", TEXT)) | {COMPOSE["secrets"]["grafana-password"]["environment"]}
    example = (ROOT / ".env.example").read_text(encoding="utf-8")

    assert not [name for name in asked if not re.search(rf"^#?{name}=", example, re.MULTILINE)]


FILES = {name: service for name, service in SERVICES.items() if name.endswith("-files")}
COMPLETE = {"SITE": "verify.example", "ACME_EMAIL": "ops@verify.example", "GRAFANA_PASSWORD": "made-up"}


def run_files(name: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the script that copies files for containers, with folders of this test in place of those in its container."""
    shell, options = FILES[name]["entrypoint"]
    (script,) = FILES[name]["command"]
    for place in ("from", "to"):
        script = re.sub(rf"(?<![\w/])/{place}\b", str(folder / place), script)
    return subprocess.run(
        [shell, options, script.replace("$$", "$")],
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def old_umask() -> Iterator[None]:
    old = os.umask(0o077)
    yield
    os.umask(old)


@pytest.mark.usefixtures("old_umask")
@pytest.mark.parametrize("name", FILES)
def test_files_made_under_umask_077_are_readable_by_any_container(tmp_path: Path, name: str) -> None:
    folders = {mount.split(":")[1].split("/")[2] for mount in FILES[name]["volumes"]}
    for folder in folders:
        (tmp_path / "from" / folder / "deep").mkdir(parents=True)
        (tmp_path / "from" / folder / "deep" / "key").write_text("made-up")
        (tmp_path / "from" / folder / ".hidden").write_text("made-up")
        (tmp_path / "to" / folder).mkdir(parents=True)
        (tmp_path / "to" / folder / "stale").write_text("of an earlier start")

    done = run_files(name, tmp_path, **COMPLETE)

    assert (done.returncode, done.stderr) == (0, "")
    for folder in folders:
        found = {
            str(path.relative_to(tmp_path / "to" / folder)): stat.filemode(path.stat().st_mode)[-3:]
            for path in (tmp_path / "to" / folder).rglob("*")
        }
        assert found == {"deep": "r-x", "deep/key": "r--", ".hidden": "r--"}
        assert (tmp_path / "to" / folder).stat().st_mode & 0o005 == 0o005


@pytest.mark.parametrize(
    ("name", "empty"),
    [("tls-files", "SITE"), ("tls-files", "ACME_EMAIL"), ("monitoring-files", "GRAFANA_PASSWORD")],
)
@pytest.mark.parametrize("given", [{}, dict.fromkeys(COMPLETE, "")], ids=["missing", "empty"])
def test_a_missing_variable_of_a_profile_is_reported_and_the_container_not_restarted(
    tmp_path: Path, name: str, empty: str, given: dict[str, str]
) -> None:
    others = {key: value for key, value in COMPLETE.items() if key != empty}

    done = run_files(name, tmp_path, **{**given, **others})

    assert done.returncode == 1
    assert re.fullmatch(rf"set [\w ]*\b{empty}\b[\w ]* in \.env\n", done.stdout)
    assert FILES[name]["restart"] == "no"


def test_no_container_starts_before_its_files_are_copied() -> None:
    filled = {mount.split(":")[0]: name for name, service in FILES.items() for mount in service["volumes"]}
    for name, service in SERVICES.items():
        for mount in service.get("volumes", ()):
            if name not in FILES and (files := filled.get(mount.split(":")[0])):
                assert mount.endswith(":ro")
                assert service["depends_on"][files] == {"condition": "service_completed_successfully"}
    waiting = {name for name, service in SERVICES.items() if set(service.get("depends_on", ())) & set(FILES)}
    assert waiting == {"verify", "caddy", "prometheus", "grafana"}
    assert not [mount for name in waiting for mount in SERVICES[name]["volumes"] if mount.startswith(".")]


def test_each_required_secret_can_be_given_as_a_file() -> None:
    pattern = re.compile(r"\$\{(\w+):-\$\{(\w+):\?set \1 in \.env(?:; plusofon-verify keygen makes one)?\}\}")
    required = {found[1]: found[2] for found in map(pattern.fullmatch, COMPOSE["x-required"]) if found}
    assert len(required) == len(COMPOSE["x-required"])

    assert required == {name: f"{name}_FILE" for name in set(REQUIRED) - {"REDIS_URL"}}
    assert {name: SERVICES["verify"]["environment"][name] for name in required} == dict.fromkeys(required)
    assert "verify-files:/run/secrets:ro" in SERVICES["verify"]["volumes"]


def test_only_caddy_is_trusted_as_a_proxy_and_no_other_container_can_get_its_address() -> None:
    address = SERVICES["caddy"]["networks"]["front"]["ipv4_address"]
    (config,) = COMPOSE["networks"]["front"]["ipam"]["config"]

    assert SERVICES["verify"]["environment"]["PROXY_ADDRESSES"] == f"${{PROXY_ADDRESSES:-{address}}}"
    assert ip_address(address) in ip_network(config["subnet"])
    assert ip_address(address) not in ip_network(config["ip_range"])


def test_caddy_forwards_to_the_service_and_overwrites_x_forwarded_for() -> None:
    port = SERVICES["verify"]["environment"]["PORT"]

    assert f"reverse_proxy verify:{port} {{" in CADDYFILE
    assert "header_up X-Forwarded-For {remote_host}" in CADDYFILE
    assert CADDYFILE.count("{") == CADDYFILE.count("}")
