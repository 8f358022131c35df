"""``doctor``: checks an installation, and prints what is wrong and what to do about it."""

import asyncio
import json
import resource
from collections.abc import Iterator, Sequence
from dataclasses import asdict

import typer

from app.cli.checks import Finding, Result, check_redis, check_waiting, doubtful, fine, wrong
from app.cli.cluster import check_cluster
from app.cli.common import EXIT_FAILED, EXIT_SETTINGS, AsJson, examples
from app.cli.container import run_with_container
from app.cli.provider import check_provider
from app.cli.sentinel import check_sentinels
from app.container import Container, make_tokens
from app.settings import Mode, Settings, SettingsError, load_settings
from app.settings.misspelt import misspelt_settings
from app.verification.errors import VerificationError
from app.verification.phone import Phone

cli = typer.Typer()

_OTHER_FILES = 100  # the process's own, and connections to Redis
_MADE_UP = Phone("+79001234567")  # only to sign a token
_MARKS = {
    Result.FINE: typer.style("✓", fg="green"),
    Result.DOUBTFUL: typer.style("!", fg="yellow"),
    Result.WRONG: typer.style("✗", fg="red"),
}


@cli.command(epilog=examples("doctor", "doctor --json"))
def doctor(*, as_json: AsJson = False) -> None:
    """Check settings, Redis, the provider and this machine.

    It changes nothing and costs nothing. ✓ is fine, ! works but not as it should, ✗ does not work. In sandbox mode the
    provider is the sandbox's own, and without REDIS_URL so is Redis. Exit code 1 with any ✗, and 2 where the settings
    are wrong.
    """
    try:
        settings = load_settings()
    except SettingsError as error:
        advice = ".env.example says what each setting is for."
        _show([wrong("settings", sentence, advice) for sentence in error.sentences], as_json=as_json)
        raise typer.Exit(EXIT_SETTINGS) from None
    findings = run_with_container(lambda container: _examine(container, settings), settings)
    if not _show(findings, as_json=as_json):
        raise typer.Exit(EXIT_FAILED)


async def _examine(container: Container, settings: Settings) -> list[Finding]:
    redis, timeout, prefix = container.stores.redis, 5 * settings.redis.timeout_seconds, settings.redis.key_prefix
    of_redis, of_sentinels, of_cluster, of_waiting, of_provider = await asyncio.gather(
        check_redis(redis, timeout=timeout, prefix=prefix),
        check_sentinels(redis, timeout=timeout),
        check_cluster(redis, timeout=timeout, prefix=prefix),
        check_waiting(redis, replicas=settings.redis.wait_replicas, timeout=timeout),
        check_provider(
            container.providers.accounts, minimum=settings.min_balance_rub, warning=settings.warn_balance_rub
        ),
    )
    return [*check_settings(settings), *of_redis, *of_sentinels, *of_cluster, *of_waiting, *of_provider]


def check_settings(settings: Settings) -> Iterator[Finding]:
    """Check what follows from valid settings, the names in the environment, and this process."""
    yield fine("settings", f"complete, for {settings.mode} mode")
    if settings.plusofon.cabinet_token and settings.mode is Mode.PRODUCTION:
        message = "PLUSOFON_ACCESS_TOKEN cannot be tried here: the account is read with PLUSOFON_CABINET_TOKEN"
        yield doubtful("call token", message, "`plusofon-verify call` tries it, with a call.")
    message = "seen in requests alone: if a backend passes a private or loopback one, the log has client_ip.not_public"
    yield fine("client_ip", message)
    if settings.tls.cert_file:
        yield fine("https", "by the service itself (TLS_CERT_FILE)")
    elif settings.public_url and settings.public_url.startswith("https://"):
        yield fine("https", "by a proxy, as PUBLIC_URL says")
    elif settings.mode is Mode.SANDBOX:
        yield fine("https", "not needed in sandbox mode")
    else:
        message = "nothing says that callers come by HTTPS: codes, phones and API keys could be read"
        advice = "Put a proxy in front and set PUBLIC_URL=https://…, or set TLS_CERT_FILE and TLS_KEY_FILE."
        yield doubtful("https", message, advice)
    yield _tokens(settings)
    yield _files(settings, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    for name, meant in misspelt_settings().items():
        advice = f"Write {meant}, if that is meant." if meant else "Look for its name in .env.example."
        yield doubtful("settings", f"{name} is no setting, and nothing reads it", advice)


def _tokens(settings: Settings) -> Finding:
    try:
        signer = make_tokens(settings)
        token = signer.sign(phone=_MADE_UP, purpose="doctor", verification_id="doctor", client="doctor")
        signer.verify(token, client="doctor")
    except (ValueError, OSError, VerificationError):
        advice = "Make a new one with `plusofon-verify keygen`."
        return wrong("token keys", "a token that was signed with them does not verify", advice)
    return fine("token keys", "sign and verify")


def _files(settings: Settings, limit: int) -> Finding:
    needed = settings.events_listeners + settings.plusofon.max_connections + _OTHER_FILES
    message = f"{'unlimited' if limit == resource.RLIM_INFINITY else limit} here"
    if limit != resource.RLIM_INFINITY and limit < needed:
        advice = f"Allow {needed} (ulimit -n, LimitNOFILE=), or lower EVENTS_LISTENERS."
        return doubtful("open files", f"{message}; EVENTS_LISTENERS and calls may need {needed}", advice)
    return fine("open files", f"{message}, {needed} may be needed")


def _show(findings: Sequence[Finding], *, as_json: bool) -> bool:
    """Print the findings; return whether nothing is wrong."""
    ok = all(finding.result is not Result.WRONG for finding in findings)
    if as_json:
        report = {"ok": ok, "checks": [asdict(finding) for finding in findings]}
        typer.echo(json.dumps(report, indent=2, ensure_ascii=False))
        return ok
    for finding in findings:
        typer.echo(f"{_MARKS[finding.result]} {finding.check:<18} {finding.message}")
        if finding.advice:
            typer.echo(f"  {'':<18} → {finding.advice}")
    return ok
