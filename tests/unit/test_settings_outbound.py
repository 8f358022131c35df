"""Settings of outbound connections: proxy URL and CA file."""

from pathlib import Path

import pytest
import trustme

from app.settings import SettingsError, load_settings
from app.settings.redact import redacted_settings


def load(**outbound: object) -> object:
    return load_settings(mode="sandbox", outbound=outbound).outbound


@pytest.mark.parametrize(
    "url",
    [
        "http://proxy.example:3128",
        "http://proxy:3128/",
        "http://10.0.0.1",
        "http://[2001:db8::1]:8080",
        "http://user:p%40ss%2Fword@proxy.example:3128",
        "http://DOMAIN%5Cuser:x@proxy.example:3128",
    ],
)
def test_a_valid_proxy_url_is_accepted_and_its_password_redacted(url: str) -> None:
    settings = load_settings(mode="sandbox", outbound={"proxy": url})
    assert settings.outbound.proxy_url == url
    assert "p%40ss" not in str(redacted_settings(settings)) + repr(settings)


@pytest.mark.parametrize(
    "url",
    [
        "proxy.example:3128",
        "https://proxy.example:3128",
        "socks5://proxy.example:1080",
        "http://proxy.example:99999",
        "http://proxy.example:port",
        "http://proxy.example:3128/path",
        "http://proxy.example:3128?x",
        "http://user:pa@ss@proxy.example:3128",
        "http://user:pa/ss@proxy.example:3128",
        "http://proxy.example:3128\n",
        "http://",
    ],
)
def test_an_invalid_proxy_url_is_reported_without_its_value(url: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load(proxy=url)
    assert caught.value.sentences == [
        "OUTBOUND_PROXY must be http://host:port or http://user:password@host:port; percent-encode the password."
    ]


def test_a_ca_file_is_accepted(tmp_path: Path) -> None:
    trustme.CA().cert_pem.write_to_path(tmp_path / "ca.pem")
    assert load_settings(mode="sandbox", outbound={"ca_file": tmp_path / "ca.pem"}).outbound.ca_file


@pytest.mark.parametrize("content", [None, b"", b"no certificate", b"\xff\xfe\x00"])
def test_a_ca_file_without_a_certificate_is_rejected(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_bytes(content)
    for wrong in (path, tmp_path):
        with pytest.raises(SettingsError) as caught:
            load(ca_file=wrong)
        assert caught.value.sentences == ["OUTBOUND_CA_FILE must be a file with certificates in PEM that can be read."]
