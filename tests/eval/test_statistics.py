from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint

from eval.statistics import (
    mean_score,
    paired_difference,
    paired_success_difference,
    sign_test,
    success_rate,
)


def once(values) -> dict[tuple[int, int], float]:
    return {(seed, 0): float(value) for seed, value in enumerate(values)}


def repeated(values) -> dict[tuple[int, int], float]:
    return {(s, r): float(v) for s, row in enumerate(values) for r, v in enumerate(row)}


def bounds(estimate) -> tuple[float, float]:
    return estimate.low, estimate.high


def test_success_with_one_repeat_has_wilsons_interval():
    estimate = success_rate(once([1] * 17 + [0] * 3))
    assert estimate.value == pytest.approx(0.85)
    # Wilson 1927 at 17 of 20, z = 1.96, by hand: (0.85 + z²/40 ± z √(0.1275/20 + z²/1600)) / 1.192
    assert bounds(estimate) == pytest.approx((0.6396, 0.9476), abs=1e-4)
    assert bounds(estimate) == pytest.approx(proportion_confint(17, 20, method="wilson"))


def test_full_success_is_not_called_certain():
    assert bounds(success_rate(once([1] * 50))) == pytest.approx((0.9287, 1.0), abs=1e-4)


def test_repeats_that_always_agree_count_once():
    agreeing = success_rate(repeated([[1] * 3] * 17 + [[0] * 3] * 3))
    assert bounds(agreeing) == pytest.approx(proportion_confint(17, 20, method="wilson"))


def test_repeats_that_disagree_count_for_more_than_one():
    rng = np.random.default_rng(0)
    independent = success_rate(repeated(rng.random((200, 3)) < 0.8))
    width = independent.high - independent.low
    episodes = proportion_confint(independent.value * 600, 600, method="wilson")
    seeds = proportion_confint(independent.value * 200, 200, method="wilson")
    assert width == pytest.approx(episodes[1] - episodes[0], rel=0.15)
    assert width < 0.75 * (seeds[1] - seeds[0])


def test_wilson_interval_covers_when_seeds_decide():
    # Success depends on the seed alone: intervals over episodes would be far too narrow.
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(500):
        outcomes = np.repeat(rng.random((100, 1)) < 0.8, 3, axis=1)
        estimate = success_rate(repeated(outcomes))
        covered += estimate.low <= 0.8 <= estimate.high
    assert covered / 500 > 0.92


def test_mean_is_close_to_students_interval_for_well_behaved_scores():
    scores = np.random.default_rng(1).normal(0.5, 0.05, 200)
    estimate = mean_score(once(scores))
    low, high = stats.t.interval(0.95, 199, scores.mean(), scores.std(ddof=1) / np.sqrt(200))
    assert estimate.value == pytest.approx(scores.mean())
    assert bounds(estimate) == pytest.approx((low, high), abs=1e-3)


def test_mean_with_repeats_is_taken_over_the_seeds():
    scores = np.random.default_rng(2).uniform(0, 1, 30)
    over_seeds = mean_score(once(scores))
    assert bounds(mean_score(repeated(np.repeat(scores[:, None], 3, 1)))) == pytest.approx(
        bounds(over_seeds)
    )


def test_equal_scores_have_wilsons_bound():
    estimate = mean_score(once([1.0] * 20))
    assert bounds(estimate) == pytest.approx(proportion_confint(20, 20, method="wilson"))
    half = mean_score(once([0.5] * 20))
    assert half.low < half.value == 0.5 < half.high


def test_one_seed_gives_a_wide_interval_not_an_error():
    estimate = mean_score({(7, 0): 0.9})
    assert estimate.high - estimate.low > 0.7


def test_difference_pairs_seed_and_repeat():
    rng = np.random.default_rng(3)
    baseline = rng.uniform(0, 0.8, (40, 2))
    better = baseline + 0.1 + rng.normal(0, 0.01, (40, 2))
    estimate = paired_difference(repeated(better), repeated(baseline))
    assert estimate.value == pytest.approx(0.1, abs=0.005)
    # Unpaired, the interval would be 0.2 wide.
    assert 0 < estimate.high - estimate.low < 0.01


def test_difference_ignores_episodes_that_only_one_has():
    estimate = paired_difference({(0, 0): 1.0, (1, 0): 0.5, (2, 0): 0.0}, once([0.5, 0.5]))
    assert estimate.value == pytest.approx(0.25)


def test_difference_covers_when_few_episodes_end_quite_differently():
    """As on Push-T: nearly all episodes end alike, now and then one side fails.

    Of 400 such samples of 16 seeds 0.985 are covered, and 0.755 by a bootstrap.
    """
    rng = np.random.default_rng(0)
    covered, bootstrapped = 0, 0
    for _ in range(400):
        both = rng.normal(0, 0.01, 16) + rng.choice([0, -0.4, 0.4], 16, p=[0.92, 0.04, 0.04])
        estimate = paired_difference(once(0.5 + both / 2), once(0.5 - both / 2))
        covered += estimate.low <= 0 <= estimate.high
        interval = stats.bootstrap((both,), np.mean, n_resamples=499, rng=rng).confidence_interval
        bootstrapped += interval.low <= 0 <= interval.high
    assert covered / 400 > 0.95
    assert bootstrapped / 400 < 0.9


def test_difference_stays_in_bounds():
    estimate = paired_difference(once([1, 0.9]), once([0, 0.8]))
    assert estimate.low >= -1 and estimate.high <= 1


def test_no_difference_anywhere_is_bounded_by_the_number_of_seeds():
    estimate = paired_difference(once([1] * 100), once([1] * 100))
    assert estimate.value == 0
    assert bounds(estimate) == pytest.approx((-0.037, 0.037), abs=1e-3)


def pairs(both, wins, losses, neither):
    """Scores of two samplers that agree and differ on so many seeds."""
    ours = [1] * both + [1] * wins + [0] * losses + [0] * neither
    return once(ours), once([1] * both + [0] * wins + [1] * losses + [0] * neither)


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        # Fagerland, Lydersen and Laake (2014), Statistics in Medicine 33: airways.
        ((1, 1, 7, 12), (-0.517, -0.026)),
        # With no pair that differs the bounds are Wilson's for none in n: z² / (n + z²).
        ((100, 0, 0, 0), (-0.037, 0.037)),
        # Where all differ, (n - z²) / (n + z²).
        ((0, 100, 0, 0), (0.926, 1.0)),
        ((0, 0, 100, 0), (-1.0, -0.926)),
    ],
)
def test_paired_successes_have_tangos_interval(table, expected):
    estimate = paired_success_difference(*pairs(*table))
    assert bounds(estimate) == pytest.approx(expected, abs=1e-3)


def test_a_few_wins_are_no_evidence():
    ours, baseline = pairs(94, 3, 0, 3)
    estimate = paired_success_difference(ours, baseline)
    assert estimate.low < 0 < estimate.high and sign_test(ours, baseline) == 0.25
    won = (np.array([1] * 3 + [0] * 97),)
    assert stats.bootstrap(won, np.mean, rng=np.random.default_rng(0)).confidence_interval.low > 0


def test_tangos_interval_covers():
    rng = np.random.default_rng(0)
    for wins, losses in ((0.04, 0.03), (0.02, 0.0), (0.3, 0.1)):
        covered = 0
        for _ in range(400):
            drawn = rng.choice(3, 100, p=[wins, losses, 1 - wins - losses])
            ours, baseline = once(drawn != 1), once(drawn != 0)
            estimate = paired_success_difference(ours, baseline)
            covered += estimate.low <= wins - losses <= estimate.high
        assert covered / 400 > 0.92


def test_pairs_of_repeats_that_always_agree_count_once():
    ours, baseline = pairs(60, 9, 4, 27)
    thrice = [
        {(s, r): v for (s, _), v in once.items() for r in range(3)} for once in (ours, baseline)
    ]
    assert bounds(paired_success_difference(*thrice)) == pytest.approx(
        bounds(paired_success_difference(ours, baseline)), abs=1e-9
    )


@pytest.mark.parametrize(("wins", "losses"), [(9, 1), (4, 4), (1, 0)])
def test_sign_test_is_mcnemars_for_successes(wins, losses):
    ours = once([1] * wins + [0] * losses + [1] * 10 + [0] * 5)
    baseline = once([0] * wins + [1] * losses + [1] * 10 + [0] * 5)
    expected = mcnemar([[10, wins], [losses, 5]], exact=True).pvalue
    assert sign_test(ours, baseline) == pytest.approx(expected)


def test_sign_test_of_equal_scores():
    assert sign_test(once([1, 0, 1]), once([1, 0, 1])) == 1
