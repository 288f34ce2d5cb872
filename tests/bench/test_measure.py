import pytest

from stepdistill_jax.bench.measure import Spread, Window, ratio, spread, take_turns


def test_median_and_interquartile_range():
    # Quartiles of 1, 2, 4, 8, 16 lie on its second and fourth value.
    assert spread([16, 1, 4, 8, 2]) == Spread(4.0, 6.0, (16.0, 1.0, 4.0, 8.0, 2.0))


def test_quartiles_between_two_values_are_interpolated():
    # At a quarter of the way over 3 intervals: 1 + 0.75 * 1; at three quarters: 3 + 0.25 * 7.
    assert spread([1, 2, 3, 10]) == Spread(2.5, 4.75 - 1.75, (1.0, 2.0, 3.0, 10.0))


def test_one_outlier_moves_neither():
    calm, disturbed = spread([10, 11, 12, 13, 14]), spread([10, 11, 12, 13, 1000])
    assert (calm.median, calm.iqr) == (disturbed.median, disturbed.iqr)


@pytest.mark.parametrize("values", [[], [1.0, float("nan")], [float("inf")]])
def test_no_statistics_of_nothing_or_of_what_is_not_finite(values):
    with pytest.raises(ValueError, match="expected finite numbers"):
        spread(values)


def test_ratio_is_that_of_each_turn():
    # The machine was four times slower in the second turn: the quotient does not know.
    found = ratio([8.0, 2.0, 9.0], [4.0, 1.0, 3.0])
    assert found.values == (2.0, 2.0, 3.0)
    assert found.median == 2.0


def test_ratio_refuses_measurements_without_a_partner():
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        ratio([1.0, 2.0], [1.0])


def test_turns_alternate_their_order():
    ran = []

    def contestant(name):
        def run():
            ran.append(name)
            return Window(1.0, {"number": len(ran)})

        return run

    taken = take_turns({name: contestant(name) for name in "ab"}, 3)
    assert "".join(ran) == "abbaab"
    assert {n: [w.amounts["number"] for w in ws] for n, ws in taken.items()} == {
        "a": [1, 4, 5],
        "b": [2, 3, 6],
    }


def test_rate_is_amount_over_seconds():
    assert Window(0.5, {"pairs": 32}).rate("pairs") == 64.0
    with pytest.raises(ValueError, match="measures nothing"):
        Window(0.0, {"pairs": 32})
