import xml.etree.ElementTree as ET

import pytest
from made_runs import write_run

from stepdistill_jax.report import learning_curve
from stepdistill_jax.report.comparisons import analyze
from stepdistill_jax.report.learning_curve import AnnotationPrices
from stepdistill_jax.report.report import write_report
from stepdistill_jax.report.runs import read_runs

STEP_BY_STEP = {"method": "step_by_step", "rationales": "teacher"}
FALLING = {0.125: 0.5, 0.25: 0.575, 0.5: 0.63, 1.0: 0.67}


def write_curve(folder, accuracies, *, pairs=8000, seeds=3, spread=0.005, n=1000, **facts):
    """Runs at each fraction, their accuracies `spread` apart."""
    for fraction, accuracy in accuracies.items():
        for seed in range(seeds):
            size = None if pairs is None else int(pairs * fraction)
            name = f"{facts.get('method', 'standard')}-{facts.get('labels', '')}{fraction}-{seed}"
            write_run(
                folder / name, accuracy + spread * (seed - (seeds - 1) / 2), n=n, seed=seed,
                fraction=fraction, train_pairs=size, **facts,
            )  # fmt: skip


def forecasts(folder, prices=None):
    data = analyze(read_runs([folder]))
    found = learning_curve.forecasts(data, prices or AnnotationPrices())
    return learning_curve.section(data, found), learning_curve.lines(found)


def table(section):
    return [
        [entry.text for entry in row]
        for block in section.blocks
        if getattr(block, "caption", "") == "The next annotations"
        for row in block.body
    ]


def test_says_what_the_next_annotations_bring_and_cost(tmp_path):
    write_curve(tmp_path, FALLING, **STEP_BY_STEP)
    section, lines = forecasts(tmp_path, AnnotationPrices(0.02))
    (row,) = table(section)
    setting, method, pilot, _, more, gain, interval, cost, reading = row
    assert (setting, method) == ("CQA, gold labels, tiny", "step-by-step")
    assert pilot == "1,000 to 8,000 (4 sizes, 12 runs)"
    assert (more, cost, reading) == ("1,000", "20.0", "still learning")
    low, high = (float(end) for end in interval.split(" to "))
    assert 0 < low < float(gain) < high < 2
    assert lines == (
        f"CQA, gold labels, tiny, step-by-step: the next 1,000 annotations for 20.0 bring {gain} "
        f"points (95% interval {interval}); still learning",
    )


def test_a_price_of_the_teacher_is_for_those_who_learn_from_it(tmp_path):
    write_curve(tmp_path, FALLING)
    write_curve(tmp_path, FALLING, **STEP_BY_STEP)
    write_curve(tmp_path, FALLING, labels="teacher")
    prices = AnnotationPrices(of_examples={"cqa": 0.5, "esnli": 7.0}, of_labels={"cqa": 0.8})
    section, _ = forecasts(tmp_path, prices)
    assert [(row[0], row[1], row[7]) for row in table(section)] == [
        ("CQA, gold labels, tiny", "standard", "no price"),
        ("CQA, gold labels, tiny", "step-by-step", "500"),
        # Rows that got no label are no pairs, and were paid for.
        ("CQA, teacher labels, tiny", "standard", "800"),
    ]


def test_flat_data_is_said_to_be_flat(tmp_path):
    write_curve(tmp_path, {0.125: 0.5, 0.25: 0.504, 0.5: 0.497, 1.0: 0.501})
    section, (line,) = forecasts(tmp_path)
    (row,) = table(section)
    assert row[6].startswith("+0.00 to ")
    assert row[8] == "flat: the gain may be 0"
    assert line.endswith("flat: the gain may be 0")


def test_all_or_nothing_gives_no_forecast(tmp_path):
    write_curve(tmp_path, {0.125: 0.34, 0.25: 0.34, 0.5: 0.98, 1.0: 0.99})
    section, (line,) = forecasts(tmp_path)
    (row,) = table(section)
    assert row[4:8] == ["no forecast"] * 4
    assert row[8].startswith("poor fit: at 2,000 pairs, the curve is off by ")
    assert "no forecast, poor fit" in line
    (figure,) = section.figures
    assert "the next" not in figure.alt


def test_far_extrapolation_is_refused_and_what_is_near_is_told(tmp_path):
    write_curve(tmp_path, FALLING, pairs=200)
    section, _ = forecasts(tmp_path)
    (row,) = table(section)
    assert row[4] == "600"
    assert "1,000 more would exceed 4 times the data" in row[8]


def test_what_is_missing_is_said(tmp_path):
    write_curve(tmp_path / "two", {0.5: 0.5, 1.0: 0.6})
    section, lines = forecasts(tmp_path / "two")
    assert table(section)[0][8] == "2 sizes of training data; 3 are needed"
    assert lines == ("1 learning curve not fitted: 2 sizes of training data; 3 are needed",)
    assert not section.figures
    write_curve(tmp_path / "unknown", FALLING, pairs=None)
    section, _ = forecasts(tmp_path / "unknown")
    assert table(section)[0][8] == "number of training pairs unknown"
    write_curve(tmp_path / "one", {1.0: 0.6})
    section, lines = forecasts(tmp_path / "one")
    (paragraph,) = section.blocks
    assert paragraph.text.startswith("Not run: a learning curve needs one method at 3 or more")
    assert lines == ()


def test_one_seed_each_takes_its_noise_from_the_examples(tmp_path):
    write_curve(tmp_path, FALLING, seeds=1)
    section, _ = forecasts(tmp_path)
    assert "one seed each: noise estimated from the test examples" in table(section)[0][8]


def test_figure_shows_points_curves_and_forecast(tmp_path):
    write_curve(tmp_path, FALLING)
    write_curve(tmp_path, {f: a + 0.05 for f, a in FALLING.items()}, **STEP_BY_STEP)
    section, _ = forecasts(tmp_path)
    (figure,) = section.figures
    assert figure.name == "pairs-cqa-gold-tiny"
    assert "standard: 50.0 at 1,000, 57.5 at 2,000, 63.0 at 4,000, 67.0 at 8,000." in figure.alt
    assert "step-by-step, the next 1,000 pairs: +" in figure.alt
    texts = {node.text for node in ET.fromstring(figure.svg).iter() if node.tag.endswith("}text")}
    assert {"standard", "step-by-step", "1,000", "8,000", "training pairs"} <= texts
    assert len(figure.table.rows) == 8
    # Of the curve, to within the points' own scatter.
    for row in figure.table.body:
        assert float(row[2].text) == pytest.approx(float(row[3].text), abs=0.5)


def test_same_results_give_the_same_bytes(tmp_path):
    write_curve(tmp_path / "runs", FALLING, **STEP_BY_STEP)
    for out in ("a", "b"):
        write_report([tmp_path / "runs"], tmp_path / out, annotation_cost=0.1)
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*.*"))
    assert len(files) == 3 + 2 * 2
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
