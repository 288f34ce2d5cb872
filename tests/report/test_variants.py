import dataclasses
import math

import pytest
from made_runs import make_result, write_run

from stepdistill_jax.report import markdown, settings_tried
from stepdistill_jax.report.comparisons import analyze
from stepdistill_jax.report.document import Report
from stepdistill_jax.report.fractions import is_above_trivial, labels_saved
from stepdistill_jax.report.runs import read_runs
from stepdistill_jax.report.variants import collect
from stepdistill_jax.spec import InputError

STEP_BY_STEP = {"method": "step_by_step", "rationales": "teacher"}


def analysis(folder):
    return analyze(read_runs([folder]))


def test_seeds_of_one_variant_are_grouped(tmp_path):
    for seed, accuracy in enumerate((0.5, 0.6, 0.55)):
        write_run(tmp_path / str(seed), accuracy, seed=seed, device_seconds=10.0 * seed)
    ((key, variant),) = collect(read_runs([tmp_path])).variants.items()
    assert key.recipe.is_baseline
    assert variant.mean == pytest.approx(0.55)
    # Deviations 0.05, 0.05 and 0: variance 0.0025, over 3 seeds.
    assert variant.error == pytest.approx(math.sqrt(0.0025 / 3))
    assert variant.cost("device_seconds") == 10
    assert variant.cost("train_flops") is None


def test_only_what_was_selected_on_validation_counts(tmp_path):
    earlier = make_result(step=50, accuracy=0.9, selected_on="none")
    on_validation = make_result(split="validation", accuracy=0.99)
    write_run(tmp_path / "a", 0.5, more=(earlier, on_validation))
    write_run(tmp_path / "b", 0.5, seed=1, selected_on="none")
    scores = collect(read_runs([tmp_path]))
    (variant,) = scores.variants.values()
    assert (variant.mean, len(variant.lines)) == (0.5, 1)
    assert scores.unselected == ("b",)
    # The paper's protocol: the best of the steps scored on test, where there are several.
    (best,) = scores.best_on_test.values()
    assert (best.mean, len(best.lines)) == (0.9, 1)


def test_without_a_test_split_validation_is_reported_as_such(tmp_path):
    write_run(tmp_path / "a", 0.5, split="validation", dataset="jsonl")
    scores = collect(read_runs([tmp_path]))
    assert scores.splits == {"jsonl": "validation"}
    assert len(scores.variants) == 1


def test_two_runs_of_one_variant_and_seed_are_refused(tmp_path):
    write_run(tmp_path / "a", 0.5)
    write_run(tmp_path / "b", 0.6)
    with pytest.raises(
        InputError,
        match=r"/a and .*/b: two runs of one variant and seed: cqa, standard.*0.5000 and 0.6000",
    ):
        collect(read_runs([tmp_path]))


def test_runs_with_other_settings_are_not_mixed_and_validation_chooses(tmp_path):
    # The learning rate with the better validation accuracy is worse on test, and is chosen.
    for rate, validation, test in (("0.001", 0.8, 0.5), ("0.002", 0.7, 0.6)):
        settings = {"LEARNING_RATE": rate, "BATCH_SIZE": "32"}
        for seed in (0, 1):
            for fraction in (0.5, 1.0):
                facts = {"seed": seed, "fraction": fraction, "settings": settings}
                # At half of the data the other one would win: a curve has one setting.
                swapped = 1.5 - validation if fraction == 0.5 else validation
                at_same_step = make_result(split="validation", accuracy=swapped, **facts)
                folder = tmp_path / f"{rate}-{fraction}-{seed}"
                write_run(folder, test, more=(at_same_step,), **facts)
    scores = collect(read_runs([tmp_path]))
    assert {key.fraction: v.mean for key, v in scores.variants.items()} == {0.5: 0.5, 1.0: 0.5}
    assert [len(variant.lines) for variant in scores.variants.values()] == [2, 2]
    assert [
        (one.variant.key.fraction, dict(one.settings), one.chosen, round(one.validation, 6))
        for one in scores.tried
    ] == [
        (0.5, {"LEARNING_RATE": "0.001"}, True, 0.7),
        (0.5, {"LEARNING_RATE": "0.002"}, False, 0.8),
        (1.0, {"LEARNING_RATE": "0.001"}, True, 0.8),
        (1.0, {"LEARNING_RATE": "0.002"}, False, 0.7),
    ]
    assert scores.unselected == ()


def test_the_report_shows_what_was_tried_and_hides_test_accuracies_of_the_rest(tmp_path):
    for rate, validation, test in (("0.001", 0.8, 0.51), ("0.002", 0.7, 0.62)):
        facts = {"settings": {"LEARNING_RATE": rate}, **STEP_BY_STEP}
        line = make_result(split="validation", accuracy=validation, **facts)
        write_run(tmp_path / rate, test, more=(line,), **facts)
    write_run(tmp_path / "standard", 0.4)
    section = settings_tried.section(analysis(tmp_path))
    text = markdown.render(Report("t", (), ("l", "https://example.org"), [section]), "figures")
    assert r"LEARNING\_RATE=0.001 | 1 | 80.00 | 51.00 (1)" in text
    assert r"LEARNING\_RATE=0.002 | 1 | 70.00 | (not chosen) |" in text
    assert "62" not in text
    assert "step-by-step tried 2, standard finetuning 1." in text


def test_pairs_within_a_seed_and_its_world_alone(tmp_path):
    for seed in (1, 2):
        write_run(tmp_path / f"s{seed}", 0.5, seed=seed, data_seed=seed)
        write_run(tmp_path / f"d{seed}", 0.7, seed=seed, data_seed=seed, **STEP_BY_STEP)
    # Another world than the baseline's of the same seed.
    write_run(tmp_path / "d3", 0.7, seed=1, data_seed=3, **STEP_BY_STEP)
    (found,) = analysis(tmp_path).comparisons
    assert found.seeds == 2
    assert found.test.examples == 400
    assert found.test.difference == pytest.approx(0.2)
    assert found.test.name == "exact McNemar"


def test_seeds_of_one_test_set_share_its_examples(tmp_path):
    for seed in (1, 2, 3):
        write_run(tmp_path / f"s{seed}", 0.5, seed=seed)
        write_run(tmp_path / f"d{seed}", 0.6, seed=seed, **STEP_BY_STEP)
    (found,) = analysis(tmp_path).comparisons
    assert (found.seeds, found.test.examples) == (3, 200)
    assert found.test.name == "sign-flip permutation"
    assert found.adjusted == found.test.p


def test_says_why_nothing_was_tested(tmp_path):
    write_run(tmp_path / "s", 0.5, predictions=False)
    write_run(tmp_path / "d", 0.6, **STEP_BY_STEP)
    write_run(tmp_path / "other", 0.6, model="small", **STEP_BY_STEP)
    write_run(tmp_path / "apart", 0.6, seed=9, method="single_task", rationales="teacher")
    remarks = {c.variant.lines[0].run: c.remark for c in analysis(tmp_path).comparisons}
    assert remarks == {
        "d": "s: no predictions",
        "other": "baseline not run",
        "apart": "no seed in common",
    }


def saved(folder):
    (row,) = labels_saved(analysis(folder)).blocks[-1].body
    return [entry.text for entry in row]


def curve(folder, accuracies, full, seeds=1, n=200):
    for seed in range(seeds):
        write_run(folder / f"s{seed}", full, seed=seed, n=n)
        for fraction, accuracy in accuracies.items():
            facts = {"seed": seed, "fraction": fraction, "n": n, **STEP_BY_STEP}
            write_run(folder / f"d{fraction}-{seed}", accuracy, **facts)


def test_labels_saved_by_hand(tmp_path):
    # 0.6 lies half way between 0.5 at 25% and 0.7 at 50%.
    curve(tmp_path, {0.25: 0.5, 0.5: 0.7, 1.0: 0.8}, 0.6, seeds=2)
    setting, method, full, _, needed, interval, papers = saved(tmp_path)
    assert (setting, method) == ("CQA, gold labels, tiny", "step-by-step")
    assert full == "60.00 ± 0.00 (2)"
    assert needed == "37.5%"
    assert interval == "37.5% (2 seeds)"
    assert papers == "75.0%"


def test_labels_saved_where_it_is_not_reached_or_one_seed(tmp_path):
    curve(tmp_path, {0.5: 0.5, 1.0: 0.55}, 0.6)
    assert saved(tmp_path)[4:6] == ["not reached", "one seed: no interval"]


def test_no_claim_if_standard_is_at_the_trivial_baseline(tmp_path):
    # The commonest of three labels has more than a third of 200 rows.
    curve(tmp_path, {0.5: 0.5, 1.0: 0.7}, 0.37, seeds=3)
    assert saved(tmp_path)[4:6] == ["standard is at the trivial baseline", "no claim"]


def test_no_claim_if_the_trivial_baseline_is_unknown(tmp_path):
    curve(tmp_path, {0.5: 0.5, 1.0: 0.7}, 0.6)
    (tmp_path / "s0/eval/test/100/predictions.jsonl").unlink()
    assert saved(tmp_path)[4:6] == ["no predictions: trivial baseline unknown", "no claim"]


def test_above_trivial_takes_the_larger_of_two_errors(tmp_path):
    # 60% of 50 rows: binomial error 7 points; seeds agree exactly.
    curve(tmp_path, {0.5: 0.5, 1.0: 0.7}, 0.6, seeds=3, n=50)
    found = analysis(tmp_path)
    baseline = next(v for v in found.scores.variants.values() if v.key.recipe.is_baseline)
    (trivial,) = {b.accuracy for b in found.trivial_baselines(baseline)}
    assert baseline.error == 0
    assert is_above_trivial(found, baseline) == (0.6 - trivial > 2 * math.sqrt(0.24 / 50))
    many = dataclasses.replace(
        baseline,
        lines=tuple(
            dataclasses.replace(line, result=dataclasses.replace(line.result, stderr=0.001))
            for line in baseline.lines
        ),
    )
    assert is_above_trivial(found, many) is True
