"""The wire models of what operators read, by the routes below ``/admin`` and by the commands with ``--json``."""

import asyncio
from datetime import date, datetime
from decimal import Decimal
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field

from app.api.schemas import RecordedConsent, example_of
from app.verification.attempts import AttemptJournal, Ending, Outcome
from app.verification.fraud_guard import FraudGuard
from app.verification.model import CallStatus
from app.verification.phone import Phone
from app.verification.stats import CallCounts, Dimension, Stats, to_rub
from app.verification.webhooks import DeadLetter

_ID = "vrf_0a11b22c33d44e55f667788"


class _View(BaseModel):
    model_config = ConfigDict(from_attributes=True)


class TimelineEntry(_View):
    """What happened to an attempt at a moment."""

    at: Annotated[datetime, Field(examples=["2026-01-31T09:00:02Z"])]
    event: Annotated[
        str,
        Field(description="a word of `outcome`, `call_status` or `ending`, or `wrong_code`", examples=["no_answer"]),
    ]
    reason: Annotated[str, Field(description="what the provider said, if anything", examples=[""])]


class Attempt(_View):
    """One call of a verification: a resend is another attempt of the same verification."""

    verification_id: Annotated[str, Field(examples=[_ID])]
    call_number: Annotated[int, Field(examples=[1])]
    started_at: Annotated[datetime, Field(examples=["2026-01-31T09:00:00Z"])]
    client: Annotated[str, Field(examples=["shop"])]
    purpose: Annotated[str, Field(examples=["phone_verification"])]
    reference: Annotated[str | None, Field(description="the client's own name for it", examples=["order-1024"])]
    consent: Annotated[
        RecordedConsent | None,
        Field(description="the latest that the client had given by then", examples=[example_of(RecordedConsent)]),
    ]
    channel: Annotated[str, Field(examples=["voice"])]
    phone: Annotated[str, Field(description="masked", examples=["+7900•••4567"])]
    phone_digest: Annotated[
        str, Field(description="the same for all attempts to call a phone", examples=["5c2Hh0Nm4p8bV"])
    ]
    outcome: Annotated[Outcome, Field(description="what the provider made of it", examples=[Outcome.PLACED])]
    reason: Annotated[str, Field(description="why it was refused, in the provider's words", examples=[""])]
    call_ref: Annotated[str | None, Field(description="the provider's id of the call", examples=["8213"])]
    operator: Annotated[
        str, Field(description="that the phone's range is assigned to, as in the statistics", examples=["mts"])
    ]
    reported_operator: Annotated[
        str | None, Field(description="of the phone, if the provider says it", examples=["мтс москва"])
    ]
    call_status: Annotated[CallStatus | None, Field(examples=[CallStatus.NO_ANSWER])]
    wrong_codes: Annotated[int, Field(description="of the verification", examples=[0])]
    ending: Annotated[
        Ending | None, Field(description="of the verification; null if it has no call", examples=[Ending.EXPIRED])
    ]
    cost_rub: Annotated[Decimal, Field(description="at the price of the settings", examples=["3"])]
    timeline: Annotated[list[TimelineEntry], Field(examples=[[example_of(TimelineEntry)]])]


class Attempts(_View):
    """The attempts of a verification, the oldest first."""

    attempts: Annotated[list[Attempt], Field(examples=[[example_of(Attempt)]])]


class AttemptPage(_View):
    """Attempts, the latest first."""

    attempts: Annotated[list[Attempt], Field(examples=[[example_of(Attempt)]])]
    next_before: Annotated[
        datetime | None,
        Field(description="the `before` of the next page; null: there is none", examples=["2026-01-31T08:00:00Z"]),
    ]


class RefusedStarts(_View):
    """How many starts of a phone were refused in an hour before a provider was asked."""

    hour: Annotated[datetime, Field(description="when the hour begins", examples=["2026-01-31T09:00:00Z"])]
    reason: Annotated[
        str,
        Field(
            description="the limit that refused them, or `provider_unavailable` or `provider_balance_too_low`",
            examples=["call_cooldown"],
        ),
    ]
    count: Annotated[int, Field(examples=[2])]


class PhoneAttempts(_View):
    """The attempts to call a phone, and how many other starts were refused, the latest first."""

    attempts: Annotated[list[Attempt], Field(examples=[[example_of(Attempt)]])]
    refused_starts: Annotated[list[RefusedStarts], Field(examples=[[example_of(RefusedStarts)]])]

    @classmethod
    async def of(cls, attempts: AttemptJournal, phone: Phone, since: datetime) -> Self:
        """Return what is known of a phone since then. Raises StoreUnavailable."""
        found = await attempts.of_phone(phone, since), await attempts.refused_starts(phone, since)
        return cls.model_validate(dict(zip(cls.model_fields, found, strict=True)))


class CallFigures(BaseModel):
    """Figures of some calls. Flash calls report no end, so they are neither answered nor unanswered."""

    asked: Annotated[int, Field(description="calls that clients asked for, whatever became of them", examples=[14])]
    started: Annotated[int, Field(description="verifications whose first call was placed", examples=[10])]
    placed: Annotated[int, Field(description="calls that were placed, or may have been", examples=[12])]
    unconfirmed: Annotated[int, Field(description="of these, calls that may not have been placed", examples=[0])]
    answered: Annotated[int, Field(examples=[9])]
    busy: Annotated[int, Field(examples=[0])]
    no_answer: Annotated[int, Field(examples=[2])]
    failed: Annotated[int, Field(examples=[1])]
    verified: Annotated[int, Field(description="calls that verified somebody", examples=[9])]
    conversion: Annotated[
        float | None, Field(description="verified calls by placed ones; null without any", examples=[0.75])
    ]
    spend_rub: Annotated[
        float, Field(description="what they cost, computed by the prices in the settings", examples=[27.9])
    ]

    @staticmethod
    def of(counts: CallCounts) -> dict[str, Any]:
        """Return the figures of some counts."""
        return {
            **{name: counts[name] for name in ("asked", "started", "verified", "unconfirmed", *_UNANSWERED)},
            "placed": counts.placed,
            "answered": counts.answered,
            "conversion": None if counts.conversion is None else round(counts.conversion, 4),
            "spend_rub": float(counts.spend_rub),  # has at most 15 digits, so JSON shows it exactly
        }


_UNANSWERED = ("busy", "no_answer", "failed")


class StatsRow(CallFigures):
    """The figures of the calls that have something in common."""

    group: Annotated[
        dict[Dimension, str], Field(description="what, by the names in `by`", examples=[{"client": "shop"}])
    ]


class StatsReport(BaseModel):
    """The statistics of a period. Test numbers are not counted."""

    first_day: Annotated[date, Field(examples=["2026-01-01"])]
    last_day: Annotated[date, Field(examples=["2026-01-31"])]
    tz: Annotated[str, Field(description="the time zone of the days", examples=["Europe/Moscow"])]
    total: Annotated[CallFigures, Field(examples=[example_of(CallFigures)])]
    rows: Annotated[
        list[StatsRow], Field(description="one for each group, if there is `by`", examples=[[example_of(StatsRow)]])
    ]
    refused: Annotated[
        dict[str, dict[str, int]],
        Field(
            description="calls that the provider did not place, by channel and kind",
            examples=[{"voice": {"rejected": 1}}],
        ),
    ]
    limits: Annotated[
        dict[str, int], Field(description="starts and checks that a limit refused", examples=[{"call_cooldown": 1}])
    ]
    wrong_codes: Annotated[int, Field(examples=[4])]
    locked: Annotated[int, Field(description="verifications locked by wrong codes", examples=[0])]
    canceled: Annotated[int, Field(examples=[1])]
    balance_fall_rub: Annotated[
        float, Field(description="by how much the balance at Plusofon fell, between two reads", examples=[28.1])
    ]
    balance_rise_rub: Annotated[
        float, Field(description="by how much it rose, less what calls cost then", examples=[0])
    ]

    @classmethod
    def of(cls, stats: Stats) -> Self:
        """Return the report of some statistics."""
        refused: dict[str, dict[str, int]] = {}
        for (channel, kind), count in stats.refused.items():
            refused.setdefault(channel, {})[kind] = count
        return cls.model_validate(
            {
                "first_day": stats.period.first,
                "last_day": stats.period.last,
                "tz": str(stats.period.zone),
                "total": CallFigures.of(stats.total),
                "rows": [
                    {"group": dict(zip(stats.by, group, strict=True)), **CallFigures.of(counts)}
                    for group, counts in sorted(stats.rows.items())
                ],
                "refused": refused,
                "limits": dict(stats.limits),
                "wrong_codes": stats.others["wrong"],
                "locked": stats.others["locked"],
                "canceled": stats.others["canceled"],
                "balance_fall_rub": float(to_rub(stats.others["balance_fall"])),
                "balance_rise_rub": float(to_rub(stats.others["balance_rise"])),
            }
        )


class BlockedRange(BaseModel):
    """A blocked range of a thousand numbers."""

    range: Annotated[str, Field(description="what its numbers begin with", examples=["+79001234"])]
    since: Annotated[datetime, Field(examples=["2026-01-31T09:00:00Z"])]
    until: Annotated[datetime, Field(examples=["2026-01-31T10:00:00Z"])]
    level: Annotated[int, Field(description="1 for its first block; each is twice as long", examples=[1])]
    calls: Annotated[int, Field(description="calls that were counted", examples=[24])]
    successes: Annotated[int, Field(description="verifications that succeeded", examples=[1])]


class SuspectClient(BaseModel):
    """A client with a low conversion rate. It is not blocked."""

    client: Annotated[str, Field(examples=["shop"])]
    since: Annotated[datetime, Field(examples=["2026-01-31T09:00:00Z"])]
    until: Annotated[datetime, Field(description="not reported anew before", examples=["2026-01-31T10:00:00Z"])]
    calls: Annotated[int, Field(description="calls that were counted", examples=[200])]
    successes: Annotated[int, Field(description="verifications that succeeded", examples=[8])]


class FraudGuardReport(BaseModel):
    """What the fraud guard has found."""

    blocks: Annotated[list[BlockedRange], Field(description="the oldest first", examples=[[example_of(BlockedRange)]])]
    suspects: Annotated[
        list[SuspectClient], Field(description="the oldest first", examples=[[example_of(SuspectClient)]])
    ]

    @classmethod
    async def of(cls, guard: FraudGuard) -> Self:
        """Return what the guard has found. Raises StoreUnavailable."""
        blocks, suspects = await asyncio.gather(guard.blocks(), guard.suspects())
        return cls.model_validate({"blocks": blocks, "suspects": suspects}, from_attributes=True)


class FailedWebhook(BaseModel):
    """An event that was given up after its last attempt; without the phone."""

    id: Annotated[str, Field(examples=["msg_0a11b22c33d44e55f667788-3"])]
    type: Annotated[str, Field(examples=["verification.verified"])]
    client: Annotated[str, Field(examples=["shop"])]
    verification_id: Annotated[str, Field(examples=["vrf_0a11b22c33d44e55f667788"])]
    attempts: Annotated[int, Field(examples=[9])]
    error: Annotated[str, Field(description="of the last attempt", examples=["status 500"])]
    happened_at: Annotated[datetime, Field(examples=["2026-01-31T09:00:00Z"])]
    given_up_at: Annotated[datetime, Field(examples=["2026-02-01T12:00:00Z"])]

    @classmethod
    def of(cls, letter: DeadLetter) -> Self:
        """Return what an operator needs of a dead letter; its moments to the second."""
        event = letter.event
        return cls(
            id=event.id,
            type=event.type,
            client=event.client,
            verification_id=event.verification_id,
            attempts=letter.attempts,
            error=letter.error,
            happened_at=event.at.replace(microsecond=0),
            given_up_at=letter.died_at.replace(microsecond=0),
        )


class FailedWebhooks(BaseModel):
    """The events that were given up."""

    events: Annotated[
        list[FailedWebhook], Field(description="the oldest first", examples=[[example_of(FailedWebhook)]])
    ]
