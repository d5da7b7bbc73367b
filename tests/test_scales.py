import re

import pytest

from mvar.scales import SIDES_256, SIDES_512, ScaleSchedule


@pytest.mark.parametrize("sides", [SIDES_256, SIDES_512, [4], [2, 2, 3], [[1, 2], 2, [2, 5], (6, 5)]])
def test_every_view_agrees_with_counting_tokens_one_by_one(sides):
    schedule = ScaleSchedule(sides)
    pairs = [(side, side) if isinstance(side, int) else tuple(side) for side in sides]
    tokens = [(k, i, j) for k, (h, w) in enumerate(pairs) for i in range(h) for j in range(w)]
    assert schedule.shapes == tuple(pairs)
    assert (len(schedule), schedule.length) == (len(pairs), len(tokens))
    assert schedule.level_ids == tuple(k for k, _, _ in tokens)
    for k in range(len(pairs)):
        own = [token for token in tokens if token[0] == k]
        assert schedule.areas[k] == len(own)
        assert tokens[schedule.slice(k)] == own
        assert schedule.offsets[k] == tokens.index(own[0])
        for stop in range(k, len(pairs) + 1):
            assert tokens[schedule.span(range(k, stop))] == [token for token in tokens if k <= token[0] < stop]
    assert (len(schedule.offsets), schedule.offsets[-1]) == (len(pairs) + 1, len(tokens))


def test_sides_round_trip_as_users_write_them():
    written = [1, [2, 3], 3, [4, 6]]
    assert ScaleSchedule(written).sides == written
    assert ScaleSchedule([[2, 2], (3, 3)]).sides == [2, 3]
    assert ScaleSchedule(ScaleSchedule(written).sides) == ScaleSchedule(written)
    assert ScaleSchedule([2, 3]) != ScaleSchedule([2, [3, 4]])


@pytest.mark.parametrize("side", [0, [2, -1], [1, 2, 3], 2.0, [2, True], "23"])
def test_what_is_no_side_is_refused(side):
    with pytest.raises(ValueError, match=re.escape(f"sides has {side!r}: a side is an integer >= 1 or a pair")):
        ScaleSchedule([1, side])


@pytest.mark.parametrize("after", [2, [2, 5], [5, 2]])
def test_a_map_smaller_than_the_one_before_it_is_refused(after):
    with pytest.raises(ValueError, match=r"sides must grow from coarse to fine, but \(\d, \d\) follows \(3, 3\)"):
        ScaleSchedule([1, 3, after])
    with pytest.raises(ValueError, match="sides is empty: give at least one scale"):
        ScaleSchedule([])
