"""The rules of each channel."""

from contextlib import nullcontext

import pytest
from pydantic import ValidationError

from app.settings.sections import RelaySettings
from app.verification.channels import CHANNELS, Channel
from tests.policies import make_policy


def test_every_channel_has_rules() -> None:
    assert set(CHANNELS) == set(Channel)


def test_the_length_of_a_code_is_that_of_its_channel_or_the_setting() -> None:
    policy = make_policy(code_length=5)

    assert {channel: policy.code_length_of(channel) for channel in Channel} == {
        Channel.VOICE: 5,
        Channel.FLASH_CALL: 4,
        Channel.REVERSE_CALL: None,
    }


def test_only_a_channel_with_short_codes_has_the_lower_limit_of_checks() -> None:
    policy = make_policy(checks=5, flash_call_checks=2)

    assert {channel for channel in Channel if policy.checks_of(channel) == 2} == {Channel.FLASH_CALL}


@pytest.mark.parametrize("channel", Channel)
def test_a_relay_takes_a_channel_only_if_it_has_a_code(channel: Channel) -> None:
    with nullcontext() if channel.rules.has_code else pytest.raises(ValidationError, match="voice or flash_call"):
        assert RelaySettings.model_validate({"channels": channel.value}).channels == [channel]
