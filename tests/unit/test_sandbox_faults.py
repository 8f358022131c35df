"""Fault injection in the sandbox: how many requests fail, and how."""

import pytest

from app.sandbox.faults import Fault, Faults
from app.sandbox.network import VirtualNetwork


def test_a_network_injects_no_faults_by_default() -> None:
    assert {VirtualNetwork().faults.draw() for _ in range(100)} == {None}


def test_the_configured_share_of_requests_fails_and_every_kind_of_fault_occurs() -> None:
    faults = Faults(share=0.3, seed=1)
    drawn = [faults.draw() for _ in range(2000)]
    failed = [fault for fault in drawn if fault]
    assert 500 < len(failed) < 700
    assert set(failed) == set(Fault)
    assert faults.met.total() == len(failed)


def test_the_same_seed_draws_the_same_faults() -> None:
    one, two, other = (Faults(share=0.5, seed=seed) for seed in (7, 7, 8))
    drawn = [one.draw() for _ in range(50)]
    assert drawn == [two.draw() for _ in range(50)]
    assert drawn != [other.draw() for _ in range(50)]


def test_only_the_configured_kinds_of_fault_occur() -> None:
    faults = Faults(share=1, kinds=(Fault.STALLED,))
    assert {faults.draw() for _ in range(20)} == {Fault.STALLED}
    assert faults.met == {Fault.STALLED: 20}


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_outside_0_to_1_is_rejected(share: float) -> None:
    with pytest.raises(ValueError, match="share"):
        Faults(share=share)


def test_an_empty_list_of_kinds_is_rejected() -> None:
    with pytest.raises(ValueError, match="kind"):
        Faults(share=0.5, kinds=())
