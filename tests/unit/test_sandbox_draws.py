"""Which requests meet a fault, and which one."""

import pytest

from app.sandbox import Fault, Faults, VirtualNetwork


def test_a_network_fails_only_if_it_is_told_to() -> None:
    assert {VirtualNetwork().faults.draw() for _ in range(100)} == {None}


def test_about_the_share_asked_for_meets_a_fault_and_every_kind_occurs() -> None:
    faults = Faults(share=0.3, seed=1)
    drawn = [faults.draw() for _ in range(2000)]
    failed = [fault for fault in drawn if fault]
    assert 500 < len(failed) < 700
    assert set(failed) == set(Fault)
    assert faults.met.total() == len(failed)


def test_the_same_seed_draws_the_same_faults_again() -> None:
    one, two, other = (Faults(share=0.5, seed=seed) for seed in (7, 7, 8))
    drawn = [one.draw() for _ in range(50)]
    assert drawn == [two.draw() for _ in range(50)]
    assert drawn != [other.draw() for _ in range(50)]


def test_only_the_kinds_asked_for_occur() -> None:
    faults = Faults(share=1, kinds=(Fault.STALLED,))
    assert {faults.draw() for _ in range(20)} == {Fault.STALLED}
    assert faults.met == {Fault.STALLED: 20}


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_is_from_none_to_all(share: float) -> None:
    with pytest.raises(ValueError, match="share"):
        Faults(share=share)


def test_there_is_something_to_draw_from() -> None:
    with pytest.raises(ValueError, match="kind"):
        Faults(share=0.5, kinds=())
