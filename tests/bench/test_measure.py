import pytest

from pipeline.base.watch import Watch
from pipeline.bench.measure import Bench, Figure, Goal, rate, ratio, seconds


def test_ways_take_turns(tmp_path):
    calls = []

    def way(name):
        return lambda: (calls.append(name), float(len(calls)))[1]

    found = Bench(3, tmp_path, Watch()).alternate("letters", {"A": way("A"), "B": way("B")})
    assert calls == ["A", "B", "A", "B", "A", "B"]
    assert found == {"A": (1.0, 3.0, 5.0), "B": (2.0, 4.0, 6.0)}


def test_a_ratio_is_taken_pair_by_pair_and_its_median_reported():
    # the machine halves its speed for the last two pairs: each pair's ratio is untouched
    figure = ratio("e", "a ÷ b", (("a", [20.0, 22.0, 10.0, 12.0]), ("b", [10.0, 10.0, 5.0, 5.0])), "images/s")
    assert figure.each == (2.0, 2.2, 2.0, 2.4)
    assert figure.value == pytest.approx(2.1)


def test_pairs_that_do_not_match_are_refused():
    with pytest.raises(ValueError):
        ratio("e", "a ÷ b", (("a", [1.0, 2.0]), ("b", [1.0])), "s")


@pytest.mark.parametrize(
    ("sense", "value", "met"),
    [
        ("least", 2.0, True),
        ("least", 1.99, False),
        ("most", 3.0, True),
        ("most", 3.01, False),
        ("exactly", 2.0, False),
        ("least", float("nan"), False),
    ],
)
def test_a_goal_is_met_on_its_own_side_only(sense, value, met):
    floor = 3.0 if sense == "most" else 2.0
    floor = 100.0 if sense == "exactly" else floor
    assert Figure("e", "n", (value,), {}, goal=Goal(floor, sense=sense)).floor_met is met


def test_a_figure_without_a_floor_is_neither_met_nor_missed():
    assert Figure("e", "n", (1.0,), {}).floor_met is None


def test_a_goal_may_have_an_aim_alone():
    figure = Figure("e", "n", (1.0,), {}, goal=Goal(None, aim=1.5, sense="most"))
    assert figure.floor_met is None and figure.aim_met is True
    assert figure.to_json()["floor"] is None


def test_the_record_of_a_figure_holds_every_repeat_and_no_nan():
    figure = ratio("e", "a ÷ b", (("a", [1.0, 3.0]), ("b", [2.0, 2.0])), "s", goal=Goal(0.9, 1.2), note="why")
    assert figure.to_json() == {
        "entry": "e",
        "name": "a ÷ b",
        "unit": "ratio",
        "median": 1.0,
        "lowest": 0.5,
        "highest": 1.5,
        "repeats": [0.5, 1.5],
        "ways": {"a": [1.0, 3.0], "b": [2.0, 2.0]},
        "ways_unit": "s",
        "floor": 0.9,
        "aim": 1.2,
        "sense": "least",
        "floor_met": True,
        "aim_met": False,
        "note": "why",
    }
    assert Figure("e", "n", (float("inf"),), {}).to_json()["median"] is None


def test_a_rate_is_the_count_divided_by_the_seconds(monkeypatch):
    ticks = iter([10.0, 14.0, 20.0, 20.5])
    monkeypatch.setattr("time.perf_counter", lambda: next(ticks))
    assert rate(32, lambda: None)() == 8.0
    assert seconds(lambda: None) == 0.5
