"""The power law of a learning curve against known parameters and SciPy's least squares; how many more labels."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import curve_fit

from pipeline.heads.scores.power_law import FEWEST_SIZES, PowerLaws, fit_power_laws, more_labels, resampled_laws

IMAGES = np.array([10, 20, 50, 100, 200, 500, 1000, 2000, 8500])


def law(n, a, b, c):
    return a + b * n**-c


def laws(*parameters):
    return PowerLaws(*(np.array(values, float) for values in zip(*parameters, strict=True)))


@pytest.mark.parametrize("true", [(0.1, 0.9, 0.35), (0.0, 1.2, 0.2), (0.05, 3.0, 1.0), (0.3, 0.5, 0.05)])
def test_a_law_without_noise_is_found_again(true):
    found = fit_power_laws(IMAGES, law(IMAGES.astype(float), *true)[None], np.ones(9))
    assert (found.a[0], found.b[0], found.c[0]) == pytest.approx(true, rel=1e-5, abs=1e-6)


def test_the_fit_is_the_weighted_least_squares_that_scipy_finds():
    rng, deviation = np.random.default_rng(0), np.linspace(0.03, 0.008, 9)
    errors = law(IMAGES.astype(float), 0.1, 0.9, 0.35) + rng.normal(size=(20, 9)) * deviation
    found = fit_power_laws(IMAGES, errors, deviation**2)
    for row, a, b, c in zip(errors, found.a, found.b, found.c, strict=True):
        begin, bounds = (0.1, 1.0, 0.3), ([0, 0, 0.01], [1, 100, 3])
        theirs, _ = curve_fit(law, IMAGES.astype(float), row, begin, sigma=deviation, bounds=bounds, ftol=1e-14)

        def loss(*parameters, row=row):
            return float((((row - law(IMAGES.astype(float), *parameters)) / deviation) ** 2).sum())

        assert a >= 0
        assert loss(a, b, c) <= loss(*theirs) * (1 + 1e-6)


def test_the_resamples_of_noisy_data_hold_the_true_parameters():
    rng, deviation, true = np.random.default_rng(1), np.full(9, 0.004), (0.1, 0.9, 0.35)
    held = np.zeros(3)
    for _ in range(60):
        seen = law(IMAGES.astype(float), *true) + rng.normal(size=9) * deviation
        found = fit_power_laws(IMAGES, seen + rng.normal(size=(200, 9)) * deviation, deviation**2)
        for i, values in enumerate((found.a, found.b, found.c)):
            low, high = np.quantile(values, (0.025, 0.975))
            held[i] += low <= true[i] <= high
    assert (held / 60 >= 0.85).all()


def test_an_error_that_does_not_fall_is_a_constant():
    rising = np.linspace(0.2, 0.3, 9)
    found = fit_power_laws(IMAGES, rising[None], np.ones(9))
    assert found.b[0] == 0 and found.a[0] == pytest.approx(rising.mean())
    assert np.isinf(found.images_for(np.array([0.1]))[0])


def test_the_same_input_gives_the_same_bits():
    errors = law(IMAGES.astype(float), 0.1, 0.9, 0.35)[None] + np.random.default_rng(2).normal(size=(50, 9)) * 0.01
    first, again = (fit_power_laws(IMAGES, errors, np.ones(9)) for _ in range(2))
    for name in ("a", "b", "c"):
        assert getattr(first, name).tobytes() == getattr(again, name).tobytes()


def test_a_size_of_infinite_variance_has_no_part():
    rng = np.random.default_rng(3)
    errors = law(IMAGES.astype(float), 0.1, 0.9, 0.35)[None] + rng.normal(size=(30, 9)) * 0.01
    variance = np.linspace(1, 0.1, 9)
    without = fit_power_laws(IMAGES[2:], errors[:, 2:], variance[2:])
    left_out = fit_power_laws(IMAGES, errors, np.where(np.arange(9) < 2, np.inf, variance))
    n = [1000, 50_000]
    np.testing.assert_allclose(left_out.error(n), without.error(n), rtol=1e-6)


def test_resamples_leave_out_the_smallest_numbers_but_what_was_seen_does_not():
    """Below 100 images the error lies on another law: some resamples know of it, and some do not."""
    true = law(IMAGES.astype(float), 0.1, 0.9, 0.35)
    bent = np.where(IMAGES < 100, 0.6, true)
    found = resampled_laws(IMAGES, np.tile(bent, (300, 1)), np.ones(9), seed=0)
    assert found.c[0] == fit_power_laws(IMAGES, bent[None], np.ones(9)).c[0]
    on_the_law = np.abs(found.c[1:] - 0.35) < 1e-4
    assert on_the_law.mean() == pytest.approx((9 - FEWEST_SIZES + 1 - 3) / (9 - FEWEST_SIZES + 1), abs=0.1)


def test_images_for_an_error_are_those_at_which_the_law_has_it():
    found = laws((0.1, 0.9, 0.35), (0.0, 0.5, 0.2))
    n = found.images_for(np.array([0.15, 0.1]))
    assert found.error(n).diagonal() == pytest.approx([0.15, 0.1])


def test_a_point_costs_what_the_law_says():
    told = more_labels(laws(*[(0.1, 0.9, 0.35)] * 5), 1000)
    error = law(1000.0, 0.1, 0.9, 0.35)
    expected = (0.9 / (error - 0.01 - 0.1)) ** (1 / 0.35) - 1000
    assert told.error == pytest.approx(error)
    assert told.more == pytest.approx(expected, abs=1) and told.low == told.more == told.high and told.never == 0


def test_what_lies_beyond_the_level_or_ten_times_as_many_is_open():
    levels_off, slow, quick = (0.2, 0.1, 0.9), (0.0, 0.3, 0.01), (0.0, 3.0, 0.5)
    told = more_labels(laws(quick, *[quick] * 30, *[levels_off] * 10), 1000)
    assert told.more is not None and told.low == told.more and told.high is None
    assert told.never == pytest.approx(0.25)
    told = more_labels(laws(slow, *[slow] * 40), 1000)
    assert (told.more, told.low, told.high, told.never) == (None, None, None, 0)


def test_the_interval_is_the_resamples_and_holds_the_law_of_what_was_seen():
    many = [(0.0, 3.0, c) for c in np.linspace(0.4, 0.6, 401)]
    told = more_labels(laws((0.0, 3.0, 0.5), *many), 1000)
    each = [(3.0 / (3.0 * 1000**-c - 0.01)) ** (1 / c) - 1000 for _, _, c in many]
    low, high = np.quantile(each, (0.025, 0.975))
    assert told.low == pytest.approx(low, rel=0.02) and told.high == pytest.approx(high, rel=0.02)
    assert told.low < told.more < told.high
