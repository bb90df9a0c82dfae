"""What is kept of finished sequences: who goes first, and who inherits."""

from __future__ import annotations

from appliance.runtime.parked import Parked


def test_the_old_the_large_and_the_never_asked_for_go_first() -> None:
    parked = Parked()
    parked.add(1, 100, 0.0, is_pinned=False)
    parked.add(2, 100, 500.0, is_pinned=False)
    assert parked.worst(1000.0, pinned=False) == 1
    parked.hit(1, 500.0)
    assert parked.worst(1000.0, pinned=False) == 2
    parked.add(3, 5000, 500.0, is_pinned=False)
    assert parked.worst(1000.0, pinned=False) == 3


def test_what_is_pinned_goes_only_when_asked_and_last() -> None:
    parked = Parked()
    parked.add(1, 10_000, 0.0, is_pinned=True)
    assert parked.worst(1e9, pinned=False) is None
    assert parked.worst(1e9, pinned=True) == 1
    parked.add(2, 1, 1e9, is_pinned=False)
    assert parked.worst(1e9, pinned=True) == 2
    assert parked.ids(pinned=False) == (2,)


def test_a_longer_sequence_inherits_what_the_shorter_were_good_for() -> None:
    parked = Parked()
    for seq_id, pinned in ((1, False), (2, True), (3, False)):
        parked.add(seq_id, 10, 0.0, is_pinned=pinned)
    parked.hit(1, 1.0)
    parked.hit(1, 2.0)
    assert parked.replace(3, [1, 2, 9]) == [1]
    assert 1 not in parked
    assert 2 in parked
    parked.add(4, 10, 0.0, is_pinned=False)
    assert parked.worst(100.0, pinned=False) == 4  # three has the hits of one
