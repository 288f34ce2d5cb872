import numpy as np
import pytest

from stepdistill_jax.report import power_law
from stepdistill_jax.report.power_law import Point

SIZES = (1000, 2000, 4000, 8000)


def law(a, b, c):
    """Error at n pairs, b being that above a at 1,000."""
    return lambda size: a + b * (size / 1000) ** -c


def pilot(curve, rng=None, *, sizes=SIZES, seeds=3, deviation=0.01, examples=1000):
    """Runs whose errors scatter about a curve; without a generator they lie on it."""
    points = []
    for size in sizes:
        for _ in range(seeds):
            error = curve(size) + (rng.normal(0, deviation) if rng else 0.0)
            stderr = np.sqrt(max(error * (1 - error), 0) / examples)
            points.append(Point(size, float(np.clip(error, 0, 1)), float(stderr), examples))
    return points


def test_a_power_law_without_noise_is_found_exactly():
    curve = law(0.2, 0.4, 0.5)
    found = power_law.fit(pilot(curve))
    assert found.poor == ""
    assert (found.sizes, found.seeds, found.largest) == (SIZES, (3,) * 4, 8000)
    assert found.a == pytest.approx(0.2, abs=1e-3)
    assert found.b == pytest.approx(0.4 / np.sqrt(8), abs=1e-3)
    assert found.c == pytest.approx(0.5, abs=0.01)
    gain = found.gain(1000)
    assert gain.value == pytest.approx(curve(8000) - curve(9000), rel=0.01)
    assert gain.low <= curve(8000) - curve(9000) <= gain.high
    # More data, more gain, and less sure of it.
    further = found.gain(4000)
    assert further.value > gain.value
    assert further.high - further.low > gain.high - gain.low


def within(curve, pilots, more=1000, **facts):
    """Share of simulated pilots whose interval holds the true gain, and the intervals."""
    rng = np.random.default_rng(5)
    largest = max(facts.get("sizes", SIZES))
    truth = curve(largest) - curve(largest + more)
    gains = []
    for _ in range(pilots):
        found = power_law.fit(pilot(curve, rng, **facts))
        if not found.poor:
            gains.append(found.gain(more))
    assert len(gains) >= 0.9 * pilots
    return np.mean([gain.low <= truth <= gain.high for gain in gains]), gains


@pytest.mark.parametrize(
    ("curve", "facts"),
    [
        (law(0.2, 0.4, 0.5), {}),
        (law(0.3, 0.3, 1.0), {}),
        # The limit is at its bound.
        (law(0.0, 0.5, 0.2), {}),
        # As many points as parameters, two seeds each.
        (law(0.2, 0.4, 0.5), {"sizes": (2000, 4000, 8000), "seeds": 2}),
        # One seed each: the noise is the test examples'.
        (law(0.2, 0.4, 0.5), {"seeds": 1, "deviation": 0.014}),
    ],
)
def test_interval_holds_the_truth_as_often_as_it_says(curve, facts):
    covered, _ = within(curve, 80, **facts)
    # 95% of 80 pilots: three standard errors are 7 points.
    assert covered >= 0.88


def test_interval_is_of_use_not_only_right():
    _, gains = within(law(0.2, 0.4, 0.5), 20)
    # The true gain is 0.8 points: told from 0, and to within a point.
    assert np.mean([gain.low > 0 for gain in gains]) > 0.9
    assert np.median([gain.high - gain.low for gain in gains]) < 0.01


def test_flat_data_promises_nothing():
    rng = np.random.default_rng(0)
    for _ in range(10):
        gain = power_law.fit(pilot(law(0.4, 0.0, 1.0), rng)).gain(1000)
        assert gain.low == 0
        assert gain.high < 0.01


def test_a_curve_that_rises_promises_nothing():
    found = power_law.fit(pilot(lambda size: 0.3 + size / 1e5))
    assert found.gain(1000).value == pytest.approx(0, abs=1e-6)
    assert found.gain(1000).low == 0


def test_a_curve_that_fell_and_is_level_promises_next_to_nothing():
    rng = np.random.default_rng(0)
    gain = power_law.fit(pilot(law(0.2, 0.3, 4.0), rng, deviation=0.005)).gain(1000)
    assert gain.high < 0.004


@pytest.mark.parametrize("seeds", [1, 3])
def test_a_step_is_a_poor_fit(seeds):
    found = power_law.fit(pilot(lambda size: 0.66 if size < 3000 else 0.01, seeds=seeds))
    assert found.poor.startswith("poor fit: at 2,000 pairs, the curve is off by ")
    assert found.poor.endswith(" points")


def test_seeds_that_learn_all_or_nothing_are_no_curve():
    errors = {1000: (0.66, 0.66), 2000: (0.66, 0.02), 4000: (0.02, 0.02)}
    points = [Point(n, e, 0.02, 500) for n, pair in errors.items() for e in pair]
    assert power_law.fit(points).poor == (
        "all or nothing: at 2,000 pairs, seeds differ by 64 points of the curve's 64"
    )


def test_noise_is_pooled_over_seeds_by_hand():
    # Deviations of 1 and 2 points about each mean, at two of three sizes: squares 2 and 8, over
    # 1 + 1 degrees of freedom: 5 points squared. The curve goes through three points.
    errors = {1000: (0.51, 0.49), 2000: (0.42, 0.38), 4000: (0.33,)}
    points = [Point(n, e, 0.02, 1000) for n, group in errors.items() for e in group]
    found = power_law.fit(points)
    assert found.degrees == 2
    assert found.noise == pytest.approx(np.sqrt(5e-4), rel=1e-3)


def test_points_off_the_curve_widen_the_interval():
    curve = law(0.2, 0.4, 0.5)
    bent = [
        Point(p.size, p.error + (0.008 if p.size in (2000, 8000) else -0.008), p.stderr, p.examples)
        for p in pilot(curve, np.random.default_rng(3), deviation=0.01)
    ]
    straight = power_law.fit(pilot(curve, np.random.default_rng(3), deviation=0.01))
    assert power_law.fit(bent).noise > straight.noise


def test_what_is_missing_is_said():
    points = pilot(law(0.2, 0.4, 0.5), sizes=(1000, 2000))
    assert power_law.fit(points) == "2 sizes of training data; 3 are needed"
    assert power_law.fit(points[:3]) == "1 size of training data; 3 are needed"


def test_pilots_that_learn_by_chance_get_no_confident_promise():
    # A seed learns the task whole or not at all, ever more often with more data, and always in
    # the end: more data brings nothing.
    rng = np.random.default_rng(0)
    for _ in range(40):
        points = []
        for size, chance in ((250, 0.0), (500, 0.3), (1000, 0.8), (2000, 1.0)):
            for _ in range(3):
                error = (0.02 if rng.random() < chance else 0.65) + rng.normal(0, 0.005)
                points.append(Point(size, float(error), 0.01, 500))
        found = power_law.fit(points)
        assert found.poor or found.gain(1000).low < 0.001
