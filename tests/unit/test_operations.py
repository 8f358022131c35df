"""docs/operations.md has a runbook for every alert, and mentions only settings, commands and log events that exist."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from app.cli import cli
from app.providers.http import Reason
from app.verification.errors import StoreFailure

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
OPERATIONS = (DOCS / "operations.md").read_text(encoding="utf-8")
RULES = "\n".join(file.read_text() for file in (ROOT / "deploy" / "prometheus" / "rules").glob("*.yml"))
WRITTEN_HERE = (
    DOCS / "operations.md",
    DOCS / "settings.md",
    *(DOCS / "integration").glob("*.md"),
    ROOT / "deploy" / "kubernetes" / "README.md",
)


def without_code(text: str) -> str:
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


def anchors(text: str) -> list[str]:
    """Return the anchors of the headings, as links refer to them."""
    headings = re.findall(r"^#+ (.*)", without_code(text), re.MULTILINE)
    return [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]


def test_each_alert_links_to_a_runbook() -> None:
    led_to = re.findall(r"runbook_url: .*#([a-z-]+)'$", RULES, re.MULTILINE)

    assert len(led_to) == RULES.count("- alert:")
    assert set(led_to) <= set(anchors(OPERATIONS.partition("## Runbooks")[2]))


def test_each_runbook_has_the_points_means_look_and_do() -> None:
    for runbook in OPERATIONS.partition("## Runbooks")[2].split("\n### ")[1:]:
        assert re.findall(r"^- \*\*(\w+)\*\*: \S", runbook, re.MULTILINE) == ["Means", "Look", "Do"], runbook[:30]


@pytest.mark.parametrize("document", WRITTEN_HERE, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_linked_file_and_heading_exists(document: Path) -> None:
    text = without_code(document.read_text(encoding="utf-8"))
    for target, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", text):
        file = document.parent / target if target else document
        assert file.exists(), target
        assert not anchor or anchor in anchors(file.read_text(encoding="utf-8")), anchor


def test_every_setting_mentioned_in_operations_md_exists() -> None:
    settings = set(re.findall(r"^#?([A-Z_]+)=", (ROOT / ".env.example").read_text(), re.MULTILINE))

    named = set(re.findall(r"`([A-Z]+(?:_[A-Z]+)+|WORKERS|CHANNELS|CLIENTS|SITE)(?=[`=])", OPERATIONS))

    assert named
    assert named <= settings, named - settings


def test_every_command_mentioned_in_operations_md_exists() -> None:
    named = re.findall(r"plusofon-verify ([a-z][^`\n]*)", OPERATIONS)

    assert named
    for command in set(named):
        words, options = (
            re.findall(r"(?<!\S)[a-z]+(?:-[a-z]+)*(?!\S)", command.partition(" --")[0]),
            re.findall(r"--[a-z]+", command),
        )
        helped = CliRunner().invoke(cli, [*words, "--help"], env={"COLUMNS": "200"})
        assert helped.exit_code == 0, command
        assert all(option in helped.output for option in options), command


def test_each_kind_of_redis_failure_has_a_row_in_the_runbook() -> None:
    runbook = OPERATIONS.partition("### Redis down")[2].partition("\n### ")[0]

    assert re.findall(r"^\| `(\w+)` \|", runbook, re.MULTILINE)[1:] == list(StoreFailure)


def test_every_log_event_mentioned_in_a_runbook_is_logged_by_the_code() -> None:
    logged = set(
        re.findall(r'"([a-z_]+\.[a-z_]+)"', "\n".join(file.read_text() for file in (ROOT / "app").rglob("*.py")))
    )

    named = set(re.findall(r"`([a-z]+\.[a-z_]+)`", OPERATIONS.partition("## Runbooks")[2]))

    assert {"plusofon.not_reached", "call.refused", "call.unconfirmed"} <= named
    assert named <= logged, named - logged


def test_every_reason_for_a_failed_connection_is_in_the_runbook() -> None:
    runbook = OPERATIONS.partition("### Provider errors")[2].partition("\n### ")[0]
    assert all(f"`{reason}`" in runbook for reason in Reason)
