"""docker-compose.yml: which services belong to which profile, what is pinned, and whom the service believes."""

import re
import subprocess
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped] # its stubs would be one more dependency

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
COMPOSE: Any = yaml.safe_load(TEXT)
SERVICES: dict[str, Any] = COMPOSE["services"]
CADDYFILE = (ROOT / "deploy/caddy/Caddyfile").read_text(encoding="utf-8")


def test_without_a_profile_there_are_the_service_and_its_redis() -> None:
    profiles = {name: tuple(service.get("profiles", ())) for name, service in SERVICES.items()}

    assert profiles == {
        "verify": (),
        "redis": (),
        "caddy": ("tls",),
        "prometheus": ("monitoring",),
        "grafana": ("monitoring",),
    }


@pytest.mark.parametrize("name", sorted(set(SERVICES) - {"verify"}))
def test_every_image_is_pinned_by_a_tag(name: str) -> None:
    assert re.fullmatch(r"[a-z/]+:v?[0-9]+\.[0-9]+[0-9.a-z-]*", SERVICES[name]["image"])


@pytest.mark.parametrize("name", SERVICES)
def test_no_service_may_more_than_it_needs(name: str) -> None:
    assert SERVICES[name]["cap_drop"] == ["ALL"]
    assert SERVICES[name]["security_opt"] == ["no-new-privileges:true"]


def test_what_is_mounted_from_here_is_here() -> None:
    sources = [
        mount.split(":")[0] for service in SERVICES.values() for mount in service.get("volumes", ()) if mount[0] == "."
    ]

    assert sources
    assert not [source for source in sources if not (ROOT / source).exists()]


def test_what_it_asks_of_the_environment_is_in_the_example() -> None:
    asked = set(re.findall(r"(?<!\$)\$\{([A-Z_]+)", TEXT)) | {COMPOSE["secrets"]["grafana-password"]["environment"]}
    example = (ROOT / ".env.example").read_text(encoding="utf-8")

    assert not [name for name in asked if not re.search(rf"^#?{name}=", example, re.MULTILINE)]


@pytest.mark.parametrize(("password", "code"), [("made-up", 0), ("", 1)])
def test_grafana_does_not_start_without_a_password(tmp_path: Path, password: str, code: int) -> None:
    (tmp_path / "password").write_text(password, encoding="utf-8")
    shell, option, script = SERVICES["grafana"]["entrypoint"]
    script = script.replace("/run/secrets/grafana-password", str(tmp_path / "password")).replace("/run.sh", "true")

    done = subprocess.run([shell, option, script], capture_output=True, text=True, check=False)

    assert (done.returncode, "GRAFANA_PASSWORD" in done.stdout) == (code, not password)


def test_the_one_proxy_that_is_believed_is_caddy_and_nobody_else_is_given_its_address() -> None:
    address = SERVICES["caddy"]["networks"]["front"]["ipv4_address"]
    (config,) = COMPOSE["networks"]["front"]["ipam"]["config"]

    assert SERVICES["verify"]["environment"]["PROXY_ADDRESSES"] == f"${{PROXY_ADDRESSES:-{address}}}"
    assert ip_address(address) in ip_network(config["subnet"])
    assert ip_address(address) not in ip_network(config["ip_range"])


def test_caddy_hands_over_to_the_service_and_writes_the_callers_address_itself() -> None:
    port = SERVICES["verify"]["environment"]["PORT"]

    assert f"reverse_proxy verify:{port} {{" in CADDYFILE
    assert "header_up X-Forwarded-For {remote_host}" in CADDYFILE
    assert CADDYFILE.count("{") == CADDYFILE.count("}")
