"""The answer of ``GET /metrics``: the series of all workers, and gauges that are read at that moment."""

import asyncio
import logging
import os
import re
import tempfile
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import ClassVar

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Metric, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector

from app.telemetry.metrics import IS_SHARED, NAMESPACE, SHARED_VARIABLE
from app.verification.errors import ProviderError, StoreUnavailable

log = logging.getLogger(__name__)

FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"  # where the library shares series between workers
_REFRESHED_EVERY = timedelta(seconds=1)
_FILE = re.compile(r"(?:counter|histogram|gauge_[a-z]+)_([0-9]+)\.db")

Gauges = Mapping[str, float | Decimal | Mapping[str, float | Decimal] | None]
"""Some of ``GAUGES`` by name; None while a number is unknown. Those of ``GAUGE_LABELS`` may have several numbers."""
ReadGauges = Callable[[], Awaitable[Gauges]]
"""May raise StoreUnavailable or ProviderError."""

GAUGES: Mapping[str, str] = {
    "store_up": "Whether Redis takes and returns what is written.",
    "balance_rub": "Balance at the provider; absent while unknown.",
    "balance_minimum_rub": "Balance below which no call is placed.",
    "balance_warning_rub": "Balance below which somebody should top up.",
    "spend_today_rub": "Estimated cost of the calls since midnight.",
    "client_spend_today_rub": "Estimated cost of the calls of each client since midnight.",
    "balance_fall_today_rub": "By how much the balance at the provider fell since midnight, between two reads.",
    "calls_today": "Calls placed since midnight, unconfirmed ones among them.",
    "call_budget": "Calls that everybody together may place in 24 hours.",
    "call_budget_used": "Calls of the last 24 hours that count against the budget.",
    "fraud_blocks": "Ranges of numbers that the fraud guard blocks now.",
    "watcher_lag_seconds": "How long the call that waits longest for a look-up is overdue.",
    "webhook_lag_seconds": "How long the event that waits longest for delivery is overdue.",
    "webhooks_pending": "Events that wait for delivery, or for another try.",
    "webhooks_dead": "Events that were given up.",
}
"""The gauges that are the same whichever worker is asked, with their descriptions."""

GAUGE_LABELS: Mapping[str, str] = {"store_up": "node", "client_spend_today_rub": "client"}
"""The label of gauges that may have several numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exposition:
    """Writes all metrics in Prometheus' text format.

    ``gauges`` are read at each scrape, all at once. ``refresh`` sets the gauges of this process,
    and shares its series with the other workers.
    """

    content_type: ClassVar = CONTENT_TYPE_LATEST

    registry: CollectorRegistry
    version: str
    gauges: Sequence[ReadGauges]
    refresh: Callable[[], None]

    async def render(self) -> bytes:
        """Read all gauges, then write in a thread: requests do not wait for it."""
        self.refresh()
        build = GaugeMetricFamily(f"{NAMESPACE}_build_info", "The version that runs.", labels=["version"])
        build.add_metric([self.version], 1)
        read: list[Metric] = [build]
        for gauges in await asyncio.gather(*map(_read, self.gauges)):
            read += [_gauge(name, number) for name, number in gauges.items() if number is not None]
        return await asyncio.to_thread(
            lambda: generate_latest(_series_of_all(self.registry)) + generate_latest(_Collected(read))
        )

    async def step(self) -> timedelta:
        """Share this worker's series with the one that will be scraped; return when to do so again."""
        self.refresh()
        return _REFRESHED_EVERY


class _Collected(Collector):
    """Metrics that were collected before."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics


def _gauge(name: str, number: float | Decimal | Mapping[str, float | Decimal]) -> Metric:
    if not isinstance(number, Mapping):
        return GaugeMetricFamily(f"{NAMESPACE}_{name}", GAUGES[name], float(number))
    gauge = GaugeMetricFamily(f"{NAMESPACE}_{name}", GAUGES[name], labels=[GAUGE_LABELS[name]])
    for label, of_label in number.items():
        gauge.add_metric([label], float(of_label))
    return gauge


async def _read(gauges: ReadGauges) -> Gauges:
    try:
        return await gauges()
    except (StoreUnavailable, ProviderError):
        return {}
    except Exception:  # a bug, which must not hide every other number
        log.exception("metrics.source_failed")
        return {}


def _series_of_all(own: CollectorRegistry) -> Collector:
    """Return the series of all workers, if there are several; else those of this process."""
    if not IS_SHARED:
        return own
    folder = Path(os.environ[FOLDER_VARIABLE])
    for pid in {int(match[1]) for file in folder.glob("gauge_live*.db") if (match := _FILE.fullmatch(file.name))}:
        if not _is_alive(pid):
            mark_process_dead(pid, str(folder))  # type: ignore[no-untyped-call] # the library has no types here
    collector: Collector = MultiProcessCollector(None, str(folder))  # type: ignore[no-untyped-call] # nor here
    return collector


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


@contextmanager
def shared_between_workers() -> Iterator[Path]:
    """Let worker processes started meanwhile share their series, in a folder that is emptied before.

    It is that of ``PROMETHEUS_MULTIPROC_DIR``, else a new one that is removed afterwards. A process that serves alone
    needs none of this, and is cheaper without.
    """
    with ExitStack() as stack:
        if given := os.environ.get(FOLDER_VARIABLE):
            folder = Path(given)
            folder.mkdir(parents=True, exist_ok=True)
            for file in folder.iterdir():
                if _FILE.fullmatch(file.name):  # of an earlier run; other files are left alone
                    file.unlink()
        else:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="plusofon-verify-metrics-")))
            os.environ[FOLDER_VARIABLE] = str(folder)
            stack.callback(os.environ.pop, FOLDER_VARIABLE)
        os.environ[SHARED_VARIABLE] = "1"
        stack.callback(os.environ.pop, SHARED_VARIABLE)
        yield folder
