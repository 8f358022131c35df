"""The balance: known to be low stops calls, unknown does not, and one worker asks for all."""

import logging
from datetime import timedelta
from decimal import Decimal

import pytest

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


class FakeCache:
    """Shows the last balance to all who share it; ``is_due`` makes the next who looks the one to read."""

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

    async def write(self, rub: Decimal) -> None:
        self.written = rub, self.clock()


class Deployment:
    """Workers that share a cache, a clock and an account."""

    def __init__(self, workers: int = 1) -> None:
        self.clock = FakeClock()
        self.cache = FakeCache(self.clock)
        self.accounts = FakeAccounts()
        self.workers = [
            BalancePoller(self.accounts, self.cache, minimum=Decimal(10), warning=Decimal(100), clock=self.clock)
            for _ in range(workers)
        ]

    @property
    def balance(self) -> Balance:
        return self.workers[0].balance

    async def read(self, balance: Decimal | ProviderUnavailable) -> None:
        """Let the first worker read this, and the others look."""
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
async def test_a_balance_is_low_below_the_minimum_and_warned_of_below_the_other(
    deployment: Deployment, rub: str, level: BalanceLevel
) -> None:
    await deployment.read(Decimal(rub))

    assert (deployment.balance.rub, deployment.balance.level) == (Decimal(rub), level)


async def test_only_a_balance_that_is_known_to_be_low_stops_calls(deployment: Deployment) -> None:
    deployment.balance.require_enough()  # nobody has read it yet

    for stops_nothing in (FAILURE, ENOUGH, PLENTY):
        await deployment.read(stops_nothing)
        deployment.balance.require_enough()

    await deployment.read(LOW)
    with pytest.raises(BalanceTooLow):
        deployment.balance.require_enough()

    await deployment.read(ENOUGH)
    deployment.balance.require_enough()


async def test_one_worker_reads_and_all_know(deployment: Deployment) -> None:
    deployment = Deployment(workers=3)
    await deployment.read(LOW)

    assert [worker.balance.level for worker in deployment.workers] == [BalanceLevel.LOW] * 3
    deployment.accounts.balance = PLENTY
    for worker in deployment.workers:
        await worker.step()  # nobody is to read
    assert [worker.balance.rub for worker in deployment.workers] == [LOW] * 3


async def test_a_top_up_is_noticed_by_all_within_a_minute(deployment: Deployment) -> None:
    """The reading is due after the interval, a worker sees it a step later, the others a step after it has read."""
    pause = await deployment.workers[0].step()
    (interval,) = deployment.cache.intervals
    longest_reading = timedelta(seconds=10)

    assert timedelta(seconds=3) < pause <= timedelta(seconds=5)
    assert interval + timedelta(seconds=5) + longest_reading + timedelta(seconds=5) <= timedelta(minutes=1)


async def test_a_reading_that_fails_leaves_the_last_one_until_it_is_five_minutes_old(deployment: Deployment) -> None:
    await deployment.read(LOW)
    deployment.clock.now += 299
    await deployment.read(FAILURE)
    assert seen(deployment.balance) == (LOW, BalanceLevel.LOW)

    deployment.clock.now += 1
    assert seen(deployment.balance) == (None, BalanceLevel.UNKNOWN)
    deployment.balance.require_enough()
    await deployment.workers[0].step()  # the cache still shows it, with its age
    assert seen(deployment.balance) == (None, BalanceLevel.UNKNOWN)


async def test_the_age_in_the_cache_counts_not_the_moment_of_reading() -> None:
    deployment = Deployment(workers=2)
    reader, other = deployment.workers
    await reader.step()
    deployment.clock.now += 200
    await other.step()
    assert seen(other.balance) == (Decimal("12.50"), BalanceLevel.WARNING)

    deployment.clock.now += 100
    assert seen(other.balance) == (None, BalanceLevel.UNKNOWN)


async def test_levels_are_logged_when_they_change_and_only_then(
    deployment: Deployment, caplog: pytest.LogCaptureFixture
) -> None:
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


async def test_a_balance_that_is_low_from_the_start_is_told(
    deployment: Deployment, caplog: pytest.LogCaptureFixture
) -> None:
    await deployment.read(LOW)

    assert events(caplog) == [("balance.low", "WARNING")]


async def test_a_balance_that_could_never_be_read_is_told_once_and_its_reason_each_time(
    deployment: Deployment, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        await deployment.read(FAILURE)

    assert [event for event, _ in events(caplog)] == ["balance.not_read", "balance.unknown", "balance.not_read"]


async def test_before_the_first_reading_nothing_is_said(
    deployment: Deployment, caplog: pytest.LogCaptureFixture
) -> None:
    deployment.cache.is_due = False
    await deployment.workers[0].step()

    assert deployment.balance.level is BalanceLevel.UNKNOWN
    assert events(caplog) == []


async def test_without_a_cache_the_balance_grows_old_and_that_is_told(
    deployment: Deployment, caplog: pytest.LogCaptureFixture
) -> None:
    await deployment.read(LOW)
    deployment.cache.is_available = False
    deployment.clock.now += 300
    with pytest.raises(StoreUnavailable):
        await deployment.workers[0].step()

    deployment.balance.require_enough()
    assert [event for event, _ in events(caplog)] == ["balance.low", "balance.unknown"]
