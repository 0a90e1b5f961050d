"""The temperature against a fine search in float64; scaled figures against their definitions."""

import numpy as np
import pytest
import scipy.special
import scipy.stats
from scipy.optimize import minimize_scalar

from pipeline.base.errors import HeadError
from pipeline.heads import standardize
from pipeline.heads.scores import calibration
from pipeline.heads.scores.calibration import calibrated, expected_calibration_error, fit_temperature
from pipeline.heads.scores.metrics import classification_report


def overconfident(n=400, c=6, scale=5.0, seed=0):
    """Logits that are ``scale`` times what their labels were drawn from."""
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((n, c)) * 2
    y = np.array([rng.choice(c, p=p) for p in scipy.special.softmax(logits, axis=1)])
    return (scale * logits).astype(np.float32), y


def loss(logits, y, temperature):
    return -scipy.special.log_softmax(logits.astype(float) / temperature, axis=1)[np.arange(len(y)), y].mean()


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1e-3, 0.3, 1.0, 5.0, 1e4])
@pytest.mark.parametrize("n", [6, 400])
def test_temperature_is_the_likeliest_under_a_normal_prior_of_its_logarithm(scale, n):
    logits, y = overconfident(n=n, scale=scale)
    us = np.linspace(-12, 12, 240_001 // 100)
    worth = [n * loss(logits, y, np.exp(u)) - scipy.stats.norm.logpdf(u, scale=0.7) for u in us]
    near = us[int(np.argmin(worth))]
    best = minimize_scalar(
        lambda u: n * loss(logits, y, np.exp(u)) - scipy.stats.norm.logpdf(u, scale=0.7),
        bounds=(near - 0.02, near + 0.02),
        method="bounded",
        options={"xatol": 1e-9},
    )
    assert fit_temperature(logits, y) == pytest.approx(np.exp(best.x), rel=1e-4)


def test_the_temperature_is_the_same_to_the_bit_in_pieces_of_any_size(monkeypatch):
    """And none of what is made of the logits is larger than a piece of them."""
    logits, y = overconfident(n=301, c=23)
    whole, sizes, made = fit_temperature(logits, y), [], calibration.log_softmax
    monkeypatch.setattr(calibration, "log_softmax", lambda z: (sizes.append(len(z)), made(z))[1])
    monkeypatch.setattr(standardize, "CHUNK_ROWS", 16)
    assert fit_temperature(logits, y) == whole
    assert max(sizes) == 16


def test_few_rows_say_little_and_many_say_all():
    """6 val rows once gave 2133; what 400 rows say stands."""
    few, many = (fit_temperature(*overconfident(n=n, scale=5.0, seed=3)) for n in (6, 4000))
    assert many == pytest.approx(5, rel=0.1) and 0.3 < few < 5


def test_scaled_figures_are_those_of_the_scaled_logits():
    logits, y = overconfident()
    found, scores = calibrated(logits, y, 2.5), classification_report(y, logits / 2.5, list("abcdef"))
    assert (found.temperature, found.log_loss, found.ece) == (2.5, scores.log_loss, scores.ece)
    assert found.log_loss == pytest.approx(loss(logits, y, 2.5))


def test_temperature_mends_the_calibration_of_rows_it_has_not_seen():
    val, test = overconfident(seed=0), overconfident(seed=1)
    after = calibrated(*test, fit_temperature(*val))
    assert after.ece < calibrated(*test, 1.0).ece / 3


def test_all_rows_right_lower_the_temperature_and_the_prior_bounds_it():
    y = np.arange(60) % 3
    logits = np.random.default_rng(0).standard_normal((60, 3)) * 0.1 + 3 * np.eye(3)[y]
    more = np.concatenate([logits] * 50)
    assert fit_temperature(more, np.tile(y, 50)) < fit_temperature(logits, y) < 1
    assert fit_temperature(more, np.tile(y, 50)) > 0.1


def test_logits_worse_than_guessing_are_flattened_and_finite():
    y = np.arange(60) % 3
    temperature = fit_temperature(-4.0 * np.eye(3)[y], y)
    assert 5 < temperature < 100


def test_equal_logits_need_no_temperature():
    assert fit_temperature(np.full((4, 3), 7.0), np.array([0, 1, 2, 0])) == 1.0


def test_a_class_absent_from_val_does_no_harm():
    logits, y = overconfident()
    rows = y != 2
    assert fit_temperature(logits[rows], y[rows]) == pytest.approx(5, rel=0.5)


def test_one_row_is_enough():
    assert np.isfinite(fit_temperature(np.array([[1.0, 0.0]]), np.array([0])))


def test_no_rows_are_refused():
    with pytest.raises(HeadError, match="at least one row"):
        fit_temperature(np.zeros((0, 3)), np.zeros(0, dtype=int))


def test_a_calibrated_head_shows_the_error_that_the_sums_of_coins_give():
    """Bin by bin the mean distance of a sum of unlike coins from its mean, exactly, by convolution."""
    confidence = np.random.default_rng(0).beta(6, 1, 269)
    exact = 0.0
    for m in range(15):
        inside = confidence[(confidence > m / 15) & (confidence <= (m + 1) / 15)]
        right = np.ones(1)
        for p in inside:
            right = np.convolve(right, [1 - p, p])
        exact += right @ np.abs(np.arange(len(right)) - inside.sum())
    assert expected_calibration_error(confidence) == pytest.approx(exact / 269, rel=0.05)  # 200 draws: 1.5 %


def test_a_calibrated_head_of_one_confidence_shows_the_binomials_mean_deviation():
    expected = scipy.stats.binom(50, 0.7).expect(lambda k: abs(k / 50 - 0.7))
    assert expected_calibration_error(np.full(50, 0.7)) == pytest.approx(expected, rel=0.15)
    assert expected_calibration_error(np.ones(50)) == 0


def test_draws_in_parts_and_rows_in_another_order_change_nothing(monkeypatch):
    confidence = np.random.default_rng(1).uniform(0.1, 1, 300)
    whole = expected_calibration_error(confidence)
    assert expected_calibration_error(confidence[::-1]) == whole
    monkeypatch.setattr("pipeline.heads.scores.calibration.DRAWN_AT_ONCE", 7 * 300)
    assert expected_calibration_error(confidence) == pytest.approx(whole, rel=1e-12)


def test_an_honest_head_has_about_the_error_expected_and_an_overconfident_one_more():
    for scale, more in ((1.0, False), (5.0, True)):
        found = calibrated(*overconfident(2000, scale=scale), 1.0)
        assert (found.ece > 1.5 * found.ece_expected) is more
