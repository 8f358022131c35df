"""The dashboard, the alert rules and the docs use only metrics, labels and label values that exist."""

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml  # type: ignore[import-untyped] # its stubs would be one more dependency
from prometheus_client.parser import text_string_to_metric_families

from app.telemetry.exposition import GAUGES, Exposition, Gauges
from app.telemetry.metrics import Metrics
from app.verification.channels import Channel
from app.verification.domain_events import LimitHit, Segment
from app.verification.stats import CallCounts

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
DASHBOARD = DEPLOY / "grafana/dashboards/plusofon-verify.json"
RULES = DEPLOY / "prometheus/rules/plusofon-verify.yml"
RULE_TESTS = DEPLOY / "prometheus/tests/plusofon-verify.yml"
CONFIG = DEPLOY / "prometheus/prometheus.yml"

OF_PROMETHEUS = {"up", "ALERTS"}
LABELS_OF_PROMETHEUS = {"job", "instance", "alertname", "alertstate"}
SELECTOR = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{([^}]*)\})?")
MATCHER = re.compile(r'([a-z_]+)\s*(=~|!~|!=|=)\s*"([^"]*)"')
GROUPING = re.compile(r"\b(?:by|on|ignoring)\s*\(([^)]*)\)")
WORDS = {
    "sum",
    "min",
    "max",
    "count",
    "rate",
    "increase",
    "absent",
    "histogram_quantile",
    "vector",
    "and",
    "or",
    "by",
    "on",
}
# Label values that appear only after such an event.
RARE = {("outcome", "http-500"), ("status", "5xx")}

Series = dict[str, dict[str, set[str]]]


def metrics_in(*texts: str) -> Series:
    """Return each series by name, with the values of each of its labels."""
    found: Series = defaultdict(lambda: defaultdict(set))
    for family in (family for text in texts for family in text_string_to_metric_families(text)):
        for sample in family.samples:
            labels = found[sample.name]  # it exists, with or without labels
            for label, word in sample.labels.items():
                labels[label].add(word)
    return found


@pytest.fixture
async def real(api: httpx.AsyncClient) -> Series:
    """Return the metrics after some traffic, and those of a registry in which every source has a value."""
    await api.post("/verify/start", json={"phone": "+79001234567"})
    await api.post("/verify/start", json={"phone": "+79001234567"})
    of_app = (await api.get("/metrics")).text

    async def known() -> Gauges:
        return {**dict.fromkeys(GAUGES, 1), "client_spend_today_rub": {"shop": Decimal(1)}}

    metrics = Metrics()
    metrics.set_process(circuits={"voice": "open"}, listeners=1, background={"follow": 1.0})
    metrics.observe(LimitHit("call_cooldown", "start", 30))
    metrics.count_calls({Segment("shop", Channel.VOICE, "mts"): CallCounts(initiated=1, completed=1, verified=1)})
    text = await Exposition(registry=metrics.registry, version="1", gauges=[known], refresh=lambda: None).render()
    return metrics_in(of_app, text.decode())


def load(path: Path) -> Any:  # noqa: ANN401 - any YAML
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def rules() -> list[dict[str, Any]]:
    return [rule for group in load(RULES)["groups"] for rule in group["rules"]]


def alerts() -> dict[str, dict[str, Any]]:
    return {rule["alert"]: rule for rule in rules() if "alert" in rule}


def recorded() -> set[str]:
    return {rule["record"] for rule in rules() if "record" in rule}


def panels() -> list[dict[str, Any]]:
    return [panel for panel in json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"] if panel["type"] != "row"]


def expressions() -> Iterator[tuple[str, str]]:
    for rule in rules():
        yield rule.get("alert") or rule["record"], rule["expr"]
    for panel in panels():
        for target in panel["targets"]:
            yield panel["title"], target["expr"]


def selectors(expression: str) -> Iterator[tuple[str, str]]:
    """Yield each metric of a PromQL expression, with its matchers."""
    without_groupings = GROUPING.sub(" ", expression)
    without_ranges = re.sub(r"\[[^\]]*\]", " ", without_groupings)
    for name, matchers in SELECTOR.findall(without_ranges):
        if name not in WORDS:
            yield name, matchers


def test_the_promql_parser_of_these_tests_finds_metrics_and_matchers() -> None:
    expression = (
        'histogram_quantile(0.9, sum by (le, route) (rate(a_bucket{x="1", y!~"a|b"}[$__rate_interval]))) > 2 * b:c'
    )
    assert list(selectors(expression)) == [("a_bucket", 'x="1", y!~"a|b"'), ("b:c", "")]


async def test_every_metric_of_a_rule_or_panel_exists(real: Series) -> None:
    asked = {(where, name) for where, expression in expressions() for name, _ in selectors(expression)}

    assert len({name for _, name in asked}) > 25
    assert not [(where, name) for where, name in asked if name not in {*real, *recorded(), *OF_PROMETHEUS}]


async def test_every_label_and_label_value_of_a_rule_or_panel_exists(real: Series) -> None:
    seen = 0
    for where, expression in expressions():
        for name, matchers in selectors(expression):
            for label, operator, words in MATCHER.findall(matchers):
                if name in OF_PROMETHEUS:
                    assert label in LABELS_OF_PROMETHEUS, where
                    continue
                assert label in real[name], (where, name, label)
                seen += 1
                for word in words.split("|"):
                    known = any(re.fullmatch(word, each) for each in real[name][label])
                    assert known or (label, word) in RARE, (where, name, label, operator, word)
        labels = {label for labels in real.values() for label in labels} | LABELS_OF_PROMETHEUS
        for group in GROUPING.findall(expression):
            assert {label.strip() for label in group.split(",") if label.strip()} <= labels, where
    assert seen >= 8


async def test_the_docs_explain_exactly_the_metrics_that_exist(real: Series) -> None:
    table = (ROOT / "docs/monitoring.md").read_text(encoding="utf-8").split("## Metrics")[1].split("## Alerts")[0]
    names = {name for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)}

    ours = {name.removeprefix("plusofon_verify_") for name in real if name.startswith("plusofon_verify_")}
    assert names == {re.sub(r"_(bucket|count|sum)$", "", name) for name in ours}


async def test_every_metric_is_used_in_a_rule_or_panel(real: Series) -> None:

    used = {name for _, expression in expressions() for name, _ in selectors(expression)}

    ours = {name for name in real if name.startswith("plusofon_verify_") and not name.endswith(("_count", "_sum"))}
    assert ours - used == set()


def test_every_alert_has_a_severity_a_summary_a_description_and_a_runbook() -> None:
    assert len(alerts()) > 10
    for name, alert in alerts().items():
        assert alert["labels"]["severity"] in {"critical", "warning"}, name
        assert set(alert["annotations"]) == {"summary", "description", "runbook_url"}, name
        place, _, anchor = alert["annotations"]["runbook_url"].partition("#")
        assert place == '{{ or $externalLabels.runbooks "docs/operations.md" }}', name
        assert re.fullmatch(r"[a-z-]+", anchor), name


def test_every_alert_has_a_test_in_which_it_fires() -> None:
    tested = set()
    for test in load(RULE_TESTS)["tests"]:
        for expected in test.get("promql_expr_test", []):
            if expected["exp_samples"] and 'alertstate="firing"' in expected["exp_samples"][0]["labels"]:
                tested |= set(re.findall(r'alertname="(\w+)"', expected["expr"]))

    assert tested == set(alerts())


def test_the_job_name_of_prometheus_is_that_of_the_rules() -> None:
    (job,) = load(CONFIG)["scrape_configs"]

    assert {job["job_name"]} == {
        word for _, expression in expressions() for label, _, word in MATCHER.findall(expression) if label == "job"
    }
    assert job["metrics_path"] == "/metrics"
    assert [(CONFIG.parent / glob).parent for glob in load(CONFIG)["rule_files"]] == [DEPLOY / "prometheus" / "rules"]


def test_panels_do_not_overlap_and_have_unique_ids() -> None:
    every = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    taken: set[tuple[int, int]] = set()
    for panel in every:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in every}) == len(every)


def test_grafana_finds_prometheus_and_the_dashboard() -> None:
    (source,) = load(DEPLOY / "grafana/provisioning/datasources/prometheus.yml")["datasources"]
    (variable,) = json.loads(DASHBOARD.read_text(encoding="utf-8"))["templating"]["list"]

    assert (source["uid"], source["type"]) == (variable["current"]["value"], variable["query"])
    for panel in panels():
        assert {target["datasource"]["uid"] for target in panel["targets"]} == {"${datasource}"}, panel["title"]
