from pipeline.show.tuning_tables import ChangeRow, GroupRow, groups_table, verdict_table


def line(shown, start):
    (found,) = [row for row in shown.splitlines() if row.startswith(start)]
    return found.split()


def test_a_group_shows_its_rate_and_a_frozen_one_none(printed):
    shown = printed(groups_table([GroupRow("head weights", 20480, 3e-5, 0.01), GroupRow("stem", 9536)], "What learns"))
    assert line(shown, "head weights")[2:] == ["20,480", "3e-05", "0.01", "trained"]
    assert line(shown, "stem")[1:] == ["9,536", "–", "–", "frozen"]


def test_a_verdict_shows_both_sides_their_difference_and_its_interval(printed):
    changes = [ChangeRow("test", 269, 0.9517, 0.9665, -0.004, 0.037)]
    shown = printed(verdict_table(changes, head_seconds=2.0, tuning_seconds=88.0, drift={"val": 0.982}), 140)
    assert line(shown, "Test accuracy (269 images)")[4:] == (
        ["95.2", "%", "96.7", "%", "+1.5", "points", "−0.4", "to", "+3.7"]
    )
    assert line(shown, "Training time")[2:] == ["2.0", "s", "1", "min", "28", "s", "44", "times", "–"]
    assert "0.982" in line(shown, "Features, cosine with cached (val)")


def test_a_head_without_seconds_gives_no_factor(printed):
    shown = printed(verdict_table([], head_seconds=None, tuning_seconds=1.0, drift={}), 140)
    assert line(shown, "Training time")[2:] == ["–", "1.0", "s", "–", "–"]
