"""The log of the webhooks that the sandbox sends: a day, bounded, in pages."""

from datetime import UTC, datetime, timedelta

from app.sandbox.webhook_log import WebhookLog


def record(log: WebhookLog, number: int) -> None:
    log.record(event_id=f"msg_{number}", client="shop", body=b'{"type": "x"}', url=None, error="")


def test_attempts_are_returned_in_order_after_the_last_one_that_was_seen() -> None:
    log = WebhookLog()
    for number in range(5):
        record(log, number)

    seen = log.after(0)[:3]
    later = log.after(seen[-1].number)

    assert [sent.event_id for sent in seen + later] == [f"msg_{number}" for number in range(5)]
    assert later[0].event == {"type": "x"}
    assert log.after(later[-1].number) == []


def test_the_oldest_attempts_are_dropped_and_numbers_go_on() -> None:
    log = WebhookLog(kept=3)
    for number in range(5):
        record(log, number)

    assert [sent.number for sent in log.after(0)] == [3, 4, 5]


def test_attempts_are_shown_for_a_day() -> None:
    moment = datetime(2026, 1, 31, tzinfo=UTC)
    log = WebhookLog(now=lambda: moment)
    record(log, 1)

    moment += timedelta(hours=23)
    record(log, 2)
    assert len(log.after(0)) == 2
    moment += timedelta(hours=1)

    assert [sent.event_id for sent in log.after(0)] == ["msg_2"]
