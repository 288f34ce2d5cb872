import json

from stepdistill_jax.bench.measure import Measurement, spread
from stepdistill_jax.bench.report import as_json, text

ABOUT = {"machine": {"cpu": "Model 5", "cores": 2}}
MEASURED = [
    Measurement("train, packed", "pairs/s", spread([1000.0, 1500.0, 3000.0]), "2 steps"),
    Measurement("peak host memory", "MiB", spread([0.5])),
    Measurement("peak device memory", "MiB", None),
]


def test_table():
    assert text(ABOUT, MEASURED, ["start-up (not asked for)"]) == (
        "machine: cpu Model 5, cores 2\n"
        "\n"
        "measured            median  spread (IQR)  windows  unit     remark\n"
        "train, packed        1,500         1,000        3  pairs/s  2 steps\n"
        "peak host memory       0.5                      1  MiB\n"
        "peak device memory       -                         MiB      not reported by this device\n"
        "left out: start-up (not asked for)"
    )


def test_json_keeps_every_window():
    found = json.loads(as_json(ABOUT, MEASURED, []))
    assert found["machine"]["cores"] == 2
    assert found["left_out"] == []
    packed, _, device = found["measurements"]
    assert packed["spread"] == {"median": 1500.0, "iqr": 1000.0, "values": [1000.0, 1500.0, 3000.0]}
    assert device["spread"] is None
