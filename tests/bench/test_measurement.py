import json

import pytest

from stepdistill_jax.bench.measurement import Results, Spread, Window, ratio, spread, take_turns

ABOUT = {"machine": {"cpu": "Model 5", "cores": 2}}


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
    result = ratio([8.0, 2.0, 9.0], [4.0, 1.0, 3.0])
    assert result.values == (2.0, 2.0, 3.0)
    assert result.median == 2.0


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
    with pytest.raises(ValueError, match="expected more than 0"):
        Window(0.0, {"pairs": 32})


def results():
    collected = Results()
    collected.add("train, packed", "pairs/s", [1000.0, 1500.0, 3000.0], "2 steps")
    collected.add("peak host memory", "MiB", [0.5])
    collected.add("peak device memory", "MiB", None)
    return collected


def test_every_measurement_is_printed_when_it_is_added(capsys):
    results()
    assert capsys.readouterr().out == (
        "train, packed: 1,500 pairs/s; IQR 1,000, 3 windows; 2 steps\n"
        "peak host memory: 0.5 MiB\n"
        "peak device memory: - MiB; not reported by this device\n"
    )


def test_table():
    collected = results()
    collected.left_out.append("start-up (no TensorFlow)")
    assert collected.text(ABOUT) == (
        "machine: cpu Model 5, cores 2\n"
        "\n"
        "measured            median  spread (IQR)  windows  unit     remark\n"
        "train, packed        1,500         1,000        3  pairs/s  2 steps\n"
        "peak host memory       0.5                      1  MiB\n"
        "peak device memory       -                         MiB      not reported by this device\n"
        "left out: start-up (no TensorFlow)"
    )


def test_json_keeps_every_window():
    document = json.loads(results().as_json(ABOUT))
    assert document["machine"]["cores"] == 2
    assert document["left_out"] == []
    packed, _, device = document["measurements"]
    assert packed["spread"] == {"median": 1500.0, "iqr": 1000.0, "values": [1000.0, 1500.0, 3000.0]}
    assert device["spread"] is None
