"""``doctor``: checks an installation, and prints what is wrong and what to do about it."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import asdict

import typer

from app.cli.checks import Finding, Result, check_provider, check_redis, check_settings, check_waiting, wrong
from app.cli.cluster import check_cluster
from app.cli.common import EXIT_FAILED, EXIT_SETTINGS, AsJson, run_with_container
from app.cli.sentinel import check_sentinels
from app.container import Container
from app.settings import Settings, SettingsError, load_settings

_MARKS = {
    Result.FINE: typer.style("✓", fg="green"),
    Result.DOUBTFUL: typer.style("!", fg="yellow"),
    Result.WRONG: typer.style("✗", fg="red"),
}


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
