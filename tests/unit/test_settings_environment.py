"""Sources of settings: variables of other programs are ignored, secrets can be files, errors are sentences."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from app.settings import Mode, Settings, SettingsError, load_settings, setting_names
from tests.unit.test_settings import PRODUCTION

ROOT = Path(__file__).parents[2]
SECRETS = {
    "PLUSOFON_USER_ID": "made-up-user",
    "PLUSOFON_ACCESS_TOKEN": "made-up-token",
    "PLUSOFON_CABINET_TOKEN": "made-up-cabinet-token",
    "SECRET_KEY": "not-a-real-secret-0123456789-0123456789",
    "SECRET_NAMES_KEY": "not-a-real-names-key-0123456789-0123456789",
    "SECRET_PREVIOUS_KEYS": "not-a-real-previous-1-0123456789-01,not-a-real-previous-2-0123456789-01",
    "API_KEYS": f"shop:{'0' * 64}",
    "ADMIN_KEYS": f"ops:{'1' * 64}",
    "METRICS_KEYS": f"prometheus:{'2' * 64}",
    "TOKEN_KEYS": PRODUCTION["TOKEN_KEYS"],
    "REDIS_URL": "rediss://verify:not-a-real-password@redis.example:6379/0",
    "RELAY_URL": "https://calls.example/made-up-path",
    "RELAY_SECRET": "whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIz",
    "OUTBOUND_PROXY": "http://verify:not-a-real-password@proxy.example:3128",
    "TEST_NUMBERS": "+79001234567=1234@2099-01-31",
    "TRACING_ENDPOINT": "https://traces.example/made-up-key",
    "SANDBOX_ACCESS_TOKEN": "made-up-sandbox-token",
    "CLIENTS": (
        '{"shop": {"webhook_url": "https://shop.example/hook",'
        ' "webhook_secret": "whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIz"}}'
    ),
}
NO_JSON = 'is not valid JSON; it looks like CLIENTS=\'{"shop": {"calls_per_day": 200}}\'.'
# Variables of other programs and of Kubernetes services, and bare names of sections of the settings.
FOREIGN = {
    **dict.fromkeys(
        ("TOKEN", "LOG", "CODE", "TEST", "API", "ADMIN", "CALL", "CHECK", "EVENTS", "GUARD", "LIMIT", "METRICS"), "abc"
    ),
    **dict.fromkeys(("PHONE", "PLUSOFON", "PROXY", "REDIS", "RELAY", "SANDBOX", "SECRET", "TLS", "TRACING"), "{"),
    "WATCH": "1",
    "CLIENTS_SERVICE_HOST": "10.0.0.1",
    "CLIENTS_SERVICE_PORT": "80",
    "CLIENTS_PORT": "tcp://10.0.0.1:80",
    "CLIENTS_PORT_80_TCP_ADDR": "10.0.0.1",
    "TOKEN_PORT": "tcp://10.0.0.2:80",
    "LOG_FILE": "/var/log/x",
    "REDIS_PORT": "tcp://10.0.0.3:6379",
    "MODE_": "x",
    "TEST_NUMBERS_": "x",
    "PURPOSES_0": "x",
    "WORKERS_": "x",
}


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)  # where .env is looked for
    for name in os.environ:
        monkeypatch.delenv(name)


def mistakes() -> list[str]:
    with pytest.raises(SettingsError) as caught:
        load_settings()
    return caught.value.sentences


def set_all(monkeypatch: pytest.MonkeyPatch, **environment: str) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


def test_variables_of_other_programs_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, MODE="sandbox")
    before = load_settings()
    set_all(monkeypatch, **FOREIGN)

    assert load_settings() == before


def test_variables_of_other_programs_in_the_env_file_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    Path(".env").write_text("MODE=sandbox\n" + "".join(f"{name}={value}\n" for name, value in FOREIGN.items()))

    assert load_settings() == Settings(mode=Mode.SANDBOX)


@pytest.mark.parametrize("order", [1, -1])
def test_variable_names_are_case_sensitive(monkeypatch: pytest.MonkeyPatch, order: int) -> None:
    """``mode`` may belong to another program; the order of the variables does not matter."""
    set_all(monkeypatch, **PRODUCTION)
    given = [("MODE", "production"), ("mode", "sandbox"), ("PORT", "9000"), ("port", "tcp://10.0.0.1:80")]
    set_all(monkeypatch, **dict(given[::order]))

    assert (load_settings().mode, load_settings().port) == (Mode.PRODUCTION, 9000)


@pytest.mark.parametrize("name", ["\ufeffPORT", "\u200bPORT", "\u0420ORT", "export \u2060PORT", "ПОРТ"])
def test_a_name_with_a_non_ascii_character_in_the_env_file_is_reported(name: str) -> None:
    Path(".env").write_text(f"MODE=sandbox\n\n{name}=9000\n")

    assert mistakes() == [".env, line 3 has a name with a character that is not ASCII."]


def test_exactly_these_settings_are_secret() -> None:
    assert {name for name, setting in setting_names().items() if setting.is_secret} == set(SECRETS)


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_each_secret_can_be_read_from_a_file_without_its_final_line_feed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, end: str
) -> None:
    set_all(monkeypatch, RELAY_CHANNELS="voice", **SECRETS)
    plain = load_settings()
    for name, value in SECRETS.items():
        (tmp_path / name).write_bytes(f"{value}{end}".encode())
        monkeypatch.delenv(name)
        monkeypatch.setenv(f"{name}_FILE", str(tmp_path / name))

    assert load_settings() == plain


def test_a_list_in_a_secret_file_may_have_one_item_per_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(f"shop:{'0' * 64}\nbank:{'1' * 64}\n")
    set_all(monkeypatch, MODE="sandbox", API_KEYS_FILE="keys")

    assert [key.client for key in load_settings().api.keys] == ["shop", "bank"]


def missing(file: Path) -> str:
    return "cannot be read: No such file or directory"


def empty(file: Path) -> str:
    file.touch()
    return "names an empty file"


def blank(file: Path) -> str:
    file.write_text(" \n\n")
    return "names an empty file"


def directory(file: Path) -> str:
    file.mkdir()
    return "cannot be read: Is a directory"


def fifo(file: Path) -> str:
    os.mkfifo(file)
    return "must be a regular file"


def unlike_text(file: Path) -> str:
    file.write_bytes(b"\xff\xfe\x00" * 20)
    return "must hold text in UTF-8"


def utf_16(file: Path) -> str:
    file.write_bytes(SECRETS["SECRET_KEY"].encode("utf-16-le"))
    return "must hold text in UTF-8"


def huge(file: Path) -> str:
    file.write_bytes(b"x" * 2_000_000)
    return "must hold less than 1 MiB"


def loop(file: Path) -> str:
    file.symlink_to(file)
    return "cannot be read: Too many levels of symbolic links"


@pytest.mark.parametrize("name", SECRETS)
@pytest.mark.parametrize("make_unusable", [missing, empty, blank, directory, fifo, unlike_text, utf_16, huge, loop])
def test_an_unusable_secret_file_is_reported_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, make_unusable: Callable[[Path], str]
) -> None:
    set_all(monkeypatch, RELAY_CHANNELS="voice", **SECRETS)
    monkeypatch.delenv(name)
    monkeypatch.setenv(f"{name}_FILE", str(tmp_path / "secret"))

    reason = make_unusable(tmp_path / "secret")

    (sentence,) = mistakes()
    assert sentence == f"{name}_FILE {reason}."


@pytest.mark.parametrize("name", SECRETS)
def test_setting_both_a_secret_and_its_file_is_rejected(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    set_all(monkeypatch, RELAY_CHANNELS="voice", **SECRETS)
    (tmp_path / "secret").write_text(SECRETS[name])
    monkeypatch.setenv(f"{name}_FILE", "secret")

    assert mistakes() == [f"{name}_FILE must be left out where {name} is given."]

    monkeypatch.setenv(name, "")  # an empty value counts as left out
    load_settings()


def test_an_invalid_secret_in_a_file_is_reported_by_the_name_of_the_file_setting(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    set_all(monkeypatch, **PRODUCTION)
    (tmp_path / "secret").write_text("too-short")
    for name in ("SECRET_KEY", "API_KEYS", "TOKEN_KEYS", "REDIS_URL"):
        monkeypatch.delenv(name)
        monkeypatch.setenv(f"{name}_FILE", "secret")

    found = mistakes()

    assert {sentence.split()[0] for sentence in found} == {
        *("SECRET_KEY_FILE", "API_KEYS_FILE", "TOKEN_KEYS_FILE", "REDIS_URL_FILE")
    }
    assert "too-short" not in "".join(found)


def test_a_secret_file_without_read_permission_is_reported(tmp_path: Path) -> None:
    """Run as the user nobody if the tests run as root, which may read any file."""
    (tmp_path / "secret").write_text(SECRETS["SECRET_KEY"])
    (tmp_path / "secret").chmod(0)
    tmp_path.chmod(0o755)
    program = (
        "import os, sys; from app.settings import *\n"
        "if os.geteuid() == 0: os.setuid(65534)\n"
        "try: load_settings()\n"
        "except SettingsError as error: print(*error.sentences, sep='\\n')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": str(ROOT), "MODE": "sandbox", "SECRET_KEY_FILE": str(tmp_path / "secret")},
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
    )

    assert (done.stdout, done.stderr) == ("SECRET_KEY_FILE cannot be read: Permission denied.\n", "")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("PORT=9000\n".encode("utf-16"), ".env is in UTF-16; save it in UTF-8."),
        ("PORT=9000\n".encode("utf-16-le"), ".env, line 1 has a NUL character; save the file as text in UTF-8."),
        ("PORT=9000\n# порт\n".encode("cp1251"), ".env, line 2 is not in UTF-8; save the file in UTF-8."),
        (b"PORT=9000\nA=b\0c\n", ".env, line 2 has a NUL character; save the file as text in UTF-8."),
        (b"PORT=9000\n\n\nPORT: 9000\n", ".env, line 4 must be NAME=value."),
        (
            b'PORT=9000\n\nCLIENTS="{"sandbox": {"calls_per_day": 5}}"\n',
            "CLIENTS (.env, line 3) cannot be read: put a value with quotes in it, as JSON has, in 'single quotes'.",
        ),
        (
            b"export PURPOSES='login\nPORT=9000\n",
            "PURPOSES (.env, line 1) cannot be read: put a value with quotes in it, as JSON has, in 'single quotes'.",
        ),
        (
            b"PORT=9000\nCLIENTS=\"{'sandbox': {'calls_per_day': 5}}\"\n",
            'CLIENTS (.env, line 2) is not valid JSON; it looks like CLIENTS=\'{"shop": {"calls_per_day": 200}}\'.',
        ),
        (b"\n\nCLIENTS={\n", f"CLIENTS (.env, line 3) {NO_JSON}"),
        (b"\n\nCLIENTS={shop: {}} # x\n", f"CLIENTS (.env, line 3) {NO_JSON}"),
        (b"CLIENTS=nobody\n", f"CLIENTS {NO_JSON}"),
        (b"PORT=9000\nWORKERS=two\n", "WORKERS must be a whole number."),
    ],
)
def test_a_malformed_env_file_is_reported_with_its_line(
    monkeypatch: pytest.MonkeyPatch, content: bytes, sentence: str
) -> None:
    monkeypatch.setenv("MODE", "sandbox")
    Path(".env").write_bytes(content)

    assert mistakes() == [sentence]


def test_no_missing_settings_are_reported_when_the_env_file_is_unreadable() -> None:
    Path(".env").write_bytes("SECRET_KEY=x\n".encode("utf-16"))

    assert mistakes() == [".env is in UTF-16; save it in UTF-8."]


def test_an_env_file_that_is_a_directory_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    Path(".env").mkdir()
    monkeypatch.setenv("MODE", "sandbox")

    assert mistakes() == [".env cannot be read: Is a directory."]


def test_a_malformed_line_is_not_also_reported_as_a_missing_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {**PRODUCTION, "TOKEN_KEYS": f'"{PRODUCTION["TOKEN_KEYS"]}"'}
    Path(".env").write_text("".join(f"{name}={value}\n" for name, value in given.items()))

    (sentence,) = mistakes()
    assert sentence.startswith("TOKEN_KEYS (.env, line 6) cannot be read")


@pytest.mark.parametrize("content", ["\ufeffPORT=9000\n", "PORT=9000\r\nWORKERS=1\r\n", "export PORT = 9000\n"])
def test_byte_order_mark_crlf_and_export_in_the_env_file_are_accepted(
    monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    monkeypatch.setenv("MODE", "sandbox")
    Path(".env").write_bytes(content.encode())

    assert load_settings().port == 9000


@pytest.mark.parametrize("value", ["INFO", "Info", "wArNiNg", "DEBUG", "ERROR"])
def test_enumerated_values_are_case_insensitive(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    set_all(monkeypatch, MODE="Sandbox", LOG_LEVEL=value, LOG_FORMAT="JSON")

    settings = load_settings()

    assert (settings.mode, settings.log.level, settings.log.format) == (Mode.SANDBOX, value.lower(), "json")


def test_a_variable_that_is_not_utf_8_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, **PRODUCTION)
    for name in setting_names():
        with monkeypatch.context() as patch:
            patch.setenv(name, f"{PRODUCTION.get(name, '')}\udcff")
            assert mistakes() == [f"{name} must be text in UTF-8."]


@pytest.mark.parametrize(
    "url",
    [
        "redis://:1234#x@redis.example:6379/0",
        "redis://:pa#ss@redis.example:6379/0",
        "redis://user:pa@ss@redis.example:6379/0",
        "redis://:pa/ss@redis.example:6379/0",
        "redis://:12/ss@redis.example:6379/0",
        "redis://:12?ss@redis.example:6379/0",
        "rediss://:pa#ss@word/?@redis.example",
        "redis://:pa[ss@redis.example:6379/0",
        "redis://:pa ss@redis.example:6379/0",
        "redis+sentinel://:pa#ss@a.example:26379,b.example/main/0",
        "redis+sentinel://:pa@ss@a.example:26379,b.example/main/0",
        "redis+sentinel://:pa/ss@a.example:26379,b.example/main/0",
        "redis+sentinel://a.example,b.example/main/0?sentinel_password=pa#ss",
        "redis+cluster://:pa#ss@a.example:7000,b.example",
        "redis+cluster://:pa@ss@a.example:7000,b.example",
        "redis+cluster://a.example:7000,b.example?password=pa#ss",
    ],
)
def test_a_redis_password_that_is_not_percent_encoded_is_reported(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    set_all(monkeypatch, MODE="sandbox", REDIS_URL=url)

    (sentence,) = mistakes()
    assert sentence.startswith("REDIS_URL ")
    assert "percent-encode" in sentence
    assert "%23" in sentence
    assert "ss" not in sentence.replace("password", "")


@pytest.mark.parametrize(
    "url",
    [
        "redis://redis.example",
        "redis://redis.example:6379",
        "redis://redis.example/3",
        "rediss://verify:pa%23%40%2Fss%3F@redis.example:6380/1?ssl_cert_reqs=none",
        "redis://:!$&'()*+,;=-._~%25@10.0.0.1:6379/0",
        "redis://[2001:db8::1]:6379/0",
        "redis://:made-up@[::1]/0",
        "unix:///run/redis/redis.sock",
        "redis+sentinel://a.example,b.example:26380,[2001:db8::1]:26379/main",
        "redis+cluster://a.example,b.example:7000,[2001:db8::1]:7001",
        "rediss+cluster://verify:pa%23ss@a.example?ssl_check_hostname=false",
        "rediss+sentinel://verify:pa%23ss@a.example/my-primary.1/2?sentinel_username=verify&sentinel_password=%26",
        "unix:///run/redis/redis.sock?db=2",
        "unix://:made-up@/run/redis/redis.sock",
    ],
)
def test_valid_redis_urls_are_accepted(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    set_all(monkeypatch, MODE="sandbox", REDIS_URL=url)

    redis = load_settings().redis.url
    assert redis is not None
    assert redis.get_secret_value() == url


def test_a_database_of_a_cluster_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    for url in ("redis+cluster://redis.example/1", "redis+cluster://redis.example?db=1"):
        monkeypatch.setenv("REDIS_URL", url)
        monkeypatch.setenv("MODE", "sandbox")
        (sentence,) = mistakes()
        assert sentence.startswith("REDIS_URL ")


@pytest.mark.parametrize(
    "url", ["rediss://redis.example", "rediss+sentinel://redis.example/main", "rediss+cluster://redis.example"]
)
@pytest.mark.parametrize("query", ["foo=1", "db=x", "protocol=9", "port=x", "max_connections=x", "ssl_cert_reqs=maybe"])
def test_an_invalid_option_in_the_redis_url_is_reported(monkeypatch: pytest.MonkeyPatch, url: str, query: str) -> None:
    set_all(monkeypatch, MODE="sandbox", REDIS_URL=f"{url}?{query}")

    (sentence,) = mistakes()
    assert sentence.startswith("REDIS_URL ")
