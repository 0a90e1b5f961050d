"""How numbers and names are written."""

from __future__ import annotations

import math
import os

import pytest

from pipeline.base import words as numbers


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.953, "95.3 %"), (0.0, "0.0 %"), (1.0, "100.0 %"), (1, "100.0 %"), (None, "–"), (math.nan, "nan")],
)
def test_percent_has_one_decimal_and_a_space(share, text):
    assert numbers.percent(share) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (math.log(2), "0.6931"),
        (2.3, "2.300"),
        (0.5, "0.5000"),
        (1234.4, "1234"),
        (1.23456e-05, "1.235e-05"),
        (123456.0, "1.235e+05"),
        (0.0, "0.000"),
        (-0.12345, "-0.1235"),
        (math.inf, "inf"),
        (math.nan, "nan"),
        (None, "–"),
    ],
)
def test_significant_keeps_four_digits(value, text):
    assert numbers.significant(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.004, "4 ms"),
        (0.42, "0.42 s"),
        (0.996, "1.0 s"),
        (4.24, "4.2 s"),
        (9.96, "10 s"),
        (12.3, "12 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (185, "3 min 05 s"),
        (3599.6, "1 h 00 min"),
        (7500, "2 h 05 min"),
        (86_399, "1 d 00 h"),
        (120 * 3600, "5 d 00 h"),
        (None, "–"),
    ],
)
def test_seconds_changes_its_form_where_the_rounded_figure_does(value, text):
    assert numbers.seconds(value) == text


def test_counts_are_grouped():
    assert numbers.count(23_508_032) == "23,508,032"


@pytest.mark.parametrize(
    ("n", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (7 * 2**20, "7.0 MiB"),
        (2**20 - 1, "1.0 MiB"),
        (3 * 2**50, "3,072.0 TiB"),
    ],
)
def test_sizes_are_in_binary_units(n, text):
    assert numbers.size(n) == text


@pytest.mark.parametrize(
    ("speed", "unit", "text"),
    [
        (20.84, "images", "20.8 images/s"),
        (1530.4, "images", "1,530 images/s"),
        (0.3125, "epochs", "3.2 s/epoch"),
        (None, "images", "–"),
    ],
)
def test_a_rate_below_one_a_second_is_written_as_time_per_unit(speed, unit, text):
    assert numbers.rate(speed, unit) == text


@pytest.mark.parametrize(
    ("difference", "text"), [(0.014, "+1.4 points"), (-0.003, "−0.3 points"), (0.0001, "±0.0 points"), (None, "–")]
)
def test_points_carry_their_sign(difference, text):
    assert numbers.points(difference) == text


def test_an_interval_of_points_names_its_ends():
    assert numbers.points_between(-0.002, 0.031) == "−0.2 to +3.1"


@pytest.mark.parametrize(("number", "text"), [(0, "0 images"), (1, "1 image"), (1203, "1,203 images")])
def test_so_many_of_something_is_singular_for_one(number, text):
    assert numbers.many(number, "image") == text


def test_a_shape_is_joined_with_times_signs():
    assert [numbers.shape(s) for s in ((3, 224, 224), (2048,), ())] == ["3 × 224 × 224", "2048", "scalar"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1e-3, "0.001"),
        (1e-6, "1e-06"),
        (True, "yes"),
        (None, "–"),
        (("a", 0.1), "a, 0.1"),
        (b"x\xff", "x\\xff"),
        (3, "3"),
    ],
)
def test_a_setting_is_written_as_a_person_would_type_it(value, text):
    assert numbers.setting(value) == text


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (b"caf\xe9/\xf0\x9f\x90\x9c.png", "caf\\xe9/🐜.png"),
        (os.fsdecode(b"caf\xe9.png"), "caf\\xe9.png"),
        ("two\nlines\t", "two\\nlines\\t"),
        ("\x1b[2Jgone", "\\x1b[2Jgone"),
        ("right\u202eleft", "right\\u202eleft"),
        ("été 👩\u200d🔬", "été 👩\u200d🔬"),
    ],
)
def test_visible_shows_every_byte_and_lets_no_control_character_through(name, text):
    """Newlines, emoji, and bytes that are not UTF-8."""
    assert numbers.visible(name) == text


def test_visible_text_can_always_be_encoded():
    """Any file name at all."""
    every_byte = bytes(range(1, 256))
    shown = numbers.visible(every_byte)
    assert shown.encode("utf-8").decode("utf-8").isprintable()


@pytest.mark.parametrize(
    ("n", "text"), [(0, ""), (2, "r0, r1"), (3, "r0, r1, r2"), (2003, "r0, r1, r2 and 2,000 more")]
)
def test_of_many_names_the_first_few_are_told_and_how_many_more(n, text):
    names = [f"r{i}" for i in range(n)]
    assert numbers.few(names, 3) == text
    assert numbers.named(names, 3) == text.replace("r0", "'r0'").replace("r1", "'r1'").replace("r2", "'r2'")
