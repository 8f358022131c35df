"""The provider account's balance: a low one stops calls, an unknown one does not, and one worker reads it for all."""

import logging
from datetime import timedelta
from decimal import Decimal

import pytest

from app.verification.domain_events import BalanceChanged, DomainEvent
from app.verification.errors import BalanceTooLow, ProviderUnavailable, StoreUnavailable
from app.verification.provider_account import Balance, BalanceLevel, BalancePoller, CachedBalance
from tests.fakes import FakeAccounts

LOW, ENOUGH, PLENTY = Decimal("9.99"), Decimal("99.99"), Decimal(500)
FAILURE = ProviderUnavailable(retry_after=5)


class FakeClock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class FakeBalanceCache:
    """The cached balance that workers share; ``is_due`` makes the next worker the one that reads the account."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.is_due = self.is_available = True
        self.intervals: list[timedelta] = []
        self.written: tuple[Decimal, float] | None = None

    async def read(self, interval: timedelta) -> CachedBalance:
        self.intervals.append(interval)
        if not self.is_available:
            raise StoreUnavailable
        is_reader, self.is_due = self.is_due, False
        if self.written is None:
            return CachedBalance(is_reader=is_reader)
        rub, moment = self.written
        return CachedBalance(rub=rub, age=timedelta(seconds=self.clock() - moment), is_reader=is_reader)

    async def write(self, rub: Decimal) -> Decimal | None:
        before, self.written = self.written, (rub, self.clock())
        return before[0] if before else None


class Deployment:
    """Workers that share a cache, a clock and an account."""

    def __init__(self, workers: int = 1) -> None:
        self.clock = FakeClock()
        self.cache = FakeBalanceCache(self.clock)
        self.accounts = FakeAccounts()
        self.published: list[DomainEvent] = []
        self.workers = [
            BalancePoller(
                self.accounts,
                self.cache,
                Balance(minimum=Decimal(10), warning=Decimal(100), clock=self.clock),
                self.published.append,
            )
            for _ in range(workers)
        ]

    @property
    def balance(self) -> Balance:
        return self.workers[0].balance

    async def read(self, balance: Decimal | ProviderUnavailable) -> None:
        """Let the first worker read this balance from the account, and the others read it from the cache."""
        self.accounts.balance = balance
        self.cache.is_due = True
        for worker in self.workers:
            await worker.step()


@pytest.fixture
def deployment() -> Deployment:
    return Deployment()


def seen(balance: Balance) -> tuple[Decimal | None, BalanceLevel]:
    return balance.rub, balance.level


def events(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    return [(record.message, record.levelname) for record in caplog.records if record.message.startswith("balance.")]


@pytest.mark.parametrize(
    ("rub", "level"),
    [
        ("-1", BalanceLevel.LOW),
        ("9.99", BalanceLevel.LOW),
        ("10.00", BalanceLevel.WARNING),
        ("99.99", BalanceLevel.WARNING),
        ("100.00", BalanceLevel.OK),
    ],
)
async def test_the_level_is_low_below_the_minimum_and_warning_below_the_warning_threshold(
    deployment: Deployment, rub: str, level: BalanceLevel
) -> None:
    await deployment.read(Decimal(rub))

    assert (deployment.balance.rub, deployment.balance.level) == (Decimal(rub), level)


async def test_only_a_balance_known_to_be_low_stops_calls(deployment: Deployment) -> None:
    deployment.balance.require_enough()  # it was not read yet

    for stops_nothing in (FAILURE, ENOUGH, PLENTY):
        await deployment.read(stops_nothing)
        deployment.balance.require_enough()

    await deployment.read(LOW)
    with pytest.raises(BalanceTooLow):
        deployment.balance.require_enough()

    await deployment.read(ENOUGH)
    deployment.balance.require_enough()


async def test_one_worker_reads_the_balance_for_all_workers(deployment: Deployment) -> None:
    deployment = Deployment(workers=3)
    await deployment.read(LOW)

    assert [worker.balance.level for worker in deployment.workers] == [BalanceLevel.LOW] * 3
    deployment.accounts.balance = PLENTY
    for worker in deployment.workers:
        await worker.step()  # no reading is due
    assert [worker.balance.rub for worker in deployment.workers] == [LOW] * 3


async def test_all_workers_notice_a_top_up_within_a_minute(deployment: Deployment) -> None:
    """A reading is due after the interval; one worker notices a step later, the others a step after it has read."""
    pause = await deployment.workers[0].step()
    (interval,) = deployment.cache.intervals
    longest_reading = timedelta(seconds=10)

    assert timedelta(seconds=3) < pause <= timedelta(seconds=5)
    assert interval + timedelta(seconds=5) + longest_reading + timedelta(seconds=5) <= timedelta(minutes=1)


async def test_after_a_failed_reading_the_last_balance_is_used_until_it_is_five_minutes_old(
    deployment: Deployment,
) -> None:
    await deployment.read(LOW)
    deployment.clock.now += 299
    await deployment.read(FAILURE)
    assert seen(deployment.balance) == (LOW, BalanceLevel.LOW)

    deployment.clock.now += 1
    assert seen(deployment.balance) == (None, BalanceLevel.UNKNOWN)
    deployment.balance.require_enough()
    await deployment.workers[0].step()  # the cache still has it, with its age
    assert seen(deployment.balance) == (None, BalanceLevel.UNKNOWN)


async def test_the_age_of_a_cached_balance_counts_from_when_the_account_was_read() -> None:
    deployment = Deployment(workers=2)
    reader, other = deployment.workers
    await reader.step()
    deployment.clock.now += 200
    await other.step()
    assert seen(other.balance) == (Decimal("12.50"), BalanceLevel.WARNING)

    deployment.clock.now += 100
    assert seen(other.balance) == (None, BalanceLevel.UNKNOWN)


async def test_a_level_is_logged_only_when_it_changes(deployment: Deployment, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for rub in (PLENTY, ENOUGH, LOW, ENOUGH, PLENTY):
        for _ in range(3):
            await deployment.read(rub)
    deployment.clock.now += 300
    for _ in range(3):
        await deployment.workers[0].step()
    await deployment.read(PLENTY)

    assert events(caplog) == [
        ("balance.warning", "WARNING"),
        ("balance.low", "WARNING"),
        ("balance.warning", "WARNING"),
        ("balance.recovered", "INFO"),
        ("balance.unknown", "WARNING"),
        ("balance.recovered", "INFO"),
    ]
    assert [vars(record).get("rub") for record in caplog.records] == ["99.99", "9.99", "99.99", "500", None, "500"]


async def test_a_balance_that_is_low_at_the_first_reading_is_logged(
    deployment: Deployment, caplog: pytest.LogCaptureFixture
) -> None:
    await deployment.read(LOW)

    assert events(caplog) == [("balance.low", "WARNING")]


async def test_a_balance_that_was_never_read_is_logged_once_and_the_failure_each_time(
    deployment: Deployment, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        await deployment.read(FAILURE)

    assert [event for event, _ in events(caplog)] == ["balance.not_read", "balance.unknown", "balance.not_read"]


async def test_nothing_is_logged_before_the_first_reading(
    deployment: Deployment, caplog: pytest.LogCaptureFixture
) -> None:
    deployment.cache.is_due = False
    await deployment.workers[0].step()

    assert deployment.balance.level is BalanceLevel.UNKNOWN
    assert events(caplog) == []


async def test_when_the_cache_is_unavailable_the_balance_expires_and_that_is_logged(
    deployment: Deployment, caplog: pytest.LogCaptureFixture
) -> None:
    await deployment.read(LOW)
    deployment.cache.is_available = False
    deployment.clock.now += 300
    with pytest.raises(StoreUnavailable):
        await deployment.workers[0].step()

    deployment.balance.require_enough()
    assert [event for event, _ in events(caplog)] == ["balance.low", "balance.unknown"]


async def test_each_change_of_the_balance_is_published_once_for_all_workers() -> None:
    deployment = Deployment(workers=3)
    for rub in ("50", "44.40", "44.40", "144.40"):
        await deployment.read(Decimal(rub))

    assert deployment.published == [BalanceChanged(Decimal("-5.60")), BalanceChanged(Decimal(100))]
