import dataclasses

import pytest

from stepdistill_jax.run import load
from stepdistill_jax.spec import InputError
from stepdistill_jax.sweep import config, matrix, shares

SWEEP = """
include "parts/sweep.gin"
SWEEP_DIR = "sweeps/one"
SWEEP_RUN_FILES = "demo.gin"
"""


@pytest.fixture
def read(tmp_path):
    """Reads a sweep file of SWEEP and `text`, with overrides; method files may be added."""

    def read_text(text="", *overrides, files=None):
        for name, content in (files or {}).items():
            (tmp_path / name).write_text(content)
        path = tmp_path / "mine.gin"
        path.write_text(SWEEP + text)
        return matrix.read([path], overrides)

    return read_text


def names(found):
    return [run.name for run in found.runs]


def test_a_matrix_written_out_by_hand(read):
    found = read("SWEEP_FRACTIONS = (0.5, 1.0)\nSWEEP_SEEDS = (3, 4)\n")
    assert names(found) == [
        "demo-standard-gold-demo-f0.5-s3",
        "demo-standard-gold-demo-f1-s3",
        "demo-step_by_step-gold-demo-f0.5-s3",
        "demo-step_by_step-gold-demo-f1-s3",
        "demo-standard-gold-demo-f0.5-s4",
        "demo-standard-gold-demo-f1-s4",
        "demo-step_by_step-gold-demo-f0.5-s4",
        "demo-step_by_step-gold-demo-f1-s4",
    ]
    run = found.runs[6].config
    assert run.model_dir == "sweeps/one/demo-step_by_step-gold-demo-f0.5-s4"
    assert (run.method, run.data.rationales, run.data.labels) == ("step_by_step", "teacher", "gold")
    assert (run.data.fraction, run.seed, run.pipeline.seed, run.data.data_seed) == (0.5, 4, 4, 4)
    # What the run file says stays.
    assert (run.train_steps, run.pipeline.batch_size) == (800, 32)
    assert found.impossible == ()


def test_fixed_data_seeds_are_the_run_files(read):
    found = read("SWEEP_SEEDS = (3, 4)\nSWEEP_DATA_SEEDS = 'fixed'\nDATA_SEED = 9\n")
    assert {(run.config.seed, run.config.data.data_seed) for run in found.runs} == {(3, 9), (4, 9)}


def test_the_last_word(read):
    # Run file, method, model, sweep, flags: each one more macro of those that all before it set.
    files = {
        "mine_run.gin": 'include "demo.gin"\n'
        + "".join(f"{n} = 1\n" for n in ("LOG_PERIOD", "EVAL_PERIOD", "PREFETCH", "MLP_DIM")),
        "mine_method.gin": 'METHOD = "standard"\nRATIONALES = "none"\n'
        + "".join(f"{n} = 2\n" for n in ("EVAL_PERIOD", "PREFETCH", "MLP_DIM", "KEEP_CHECKPOINTS")),
        "mine_model.gin": "PREFETCH = 3\nMLP_DIM = 3\nKEEP_CHECKPOINTS = 3\n",
    }
    text = (
        'SWEEP_RUN_FILES = "mine_run.gin"\nSWEEP_METHODS = "mine_method.gin"\n'
        'SWEEP_MODELS = "mine_model.gin"\nMY_DIM = 4\nMLP_DIM = %MY_DIM\nKEEP_CHECKPOINTS = 4\n'
    )
    (run,) = read(text, "KEEP_CHECKPOINTS=5", files=files).runs
    got = run.config
    assert run.name == "mine_run-mine_method-gold-mine_model-f1-s0"
    assert (got.log_period, got.eval_period, got.pipeline.prefetch) == (1, 2, 3)
    assert (got.model.mlp_dim, got.keep_checkpoints) == (4, 5)


def test_labels_hold_for_all_methods_and_repetitions_are_run_once(read):
    found = read(
        "SWEEP_METHODS = ('standard', 'standard_distillation')\nSWEEP_LABELS = ('gold', 'teacher')"
    )
    assert names(found) == ["demo-standard-gold-demo-f1-s0", "demo-standard-teacher-demo-f1-s0"]
    assert [run.config.data.labels for run in found.runs] == ["gold", "teacher"]
    assert found.repeated == 2


def test_the_teacher_is_one_run_a_data_set(read):
    found = read(
        "SWEEP_RUN_FILES = ('cqa.gin', 'svamp.gin')\nSWEEP_METHODS = ('teacher', 'standard')\n"
        "SWEEP_FRACTIONS = (0.5, 1.0)\nSWEEP_SEEDS = (1, 2)\nSWEEP_MODELS = ('tiny', 't5_1_1_base')"
    )
    teachers = [run for run in found.runs if run.method == "teacher"]
    assert [run.name for run in teachers] == ["cqa-teacher", "svamp-teacher"]
    assert [(r.config.seed, r.config.data.fraction) for r in teachers] == [(0, 1.0), (0, 1.0)]
    assert [run.cell[2:] for run in teachers] == [("", "", 1.0)] * 2
    assert len(found.runs) == 2 + 2 * 2 * 2 * 2


def test_patterns_choose_runs(read):
    text = "SWEEP_FRACTIONS = (0.5, 1.0)\nSWEEP_SEEDS = (0, 1)\n"
    chosen = read(text, "SWEEP_ONLY=*-s1", "SWEEP_EXCLUDE=*-step_by_step-*-f0.*")
    assert names(chosen) == [
        "demo-standard-gold-demo-f0.5-s1",
        "demo-standard-gold-demo-f1-s1",
        "demo-step_by_step-gold-demo-f1-s1",
    ]
    with pytest.raises(InputError, match=r"SWEEP_EXCLUDE: '\*-standart-\*' matches none of the 8"):
        read(text, "SWEEP_EXCLUDE=*-standart-*")


def test_what_contradicts_itself_is_listed_and_the_rest_stays(read):
    found = read("SWEEP_METHODS = ('standard', 'step_by_step')\nWARMUP_STEPS = 2000\n")
    assert found.runs == ()
    assert [item.name for item in found.impossible] == [
        "demo-standard-gold-demo-f1-s0",
        "demo-step_by_step-gold-demo-f1-s0",
    ]
    assert "WARMUP_STEPS=2000 is not less than TRAIN_STEPS=800" in found.impossible[0].reason
    assert "mine.gin" in found.impossible[0].reason
    without = {"without.gin": 'METHOD = "step_by_step"\nRATIONALES = "none"\n'}
    found = read("SWEEP_METHODS = ('standard', 'without.gin')\n", files=without)
    assert names(found) == ["demo-standard-gold-demo-f1-s0"]
    assert [item.name for item in found.impossible] == ["demo-without-gold-demo-f1-s0"]
    assert "trains on rationales, but RATIONALES='none'" in found.impossible[0].reason


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("SWEEP_DIR = ''\n", r"SWEEP_DIR: got '', expected a folder"),
        ("SWEEP_DIR = 'gs://bucket/sweep'\n", r"SWEEP_DIR: got 'gs://bucket/sweep', .*on a disk"),
        ("SWEEP_RUN_FILES = ()\n", r"SWEEP_RUN_FILES: got \(\), expected at least one"),
        ("SWEEP_SEEDS = ()\n", r"SWEEP_SEEDS: got \(\), expected at least one"),
        (
            "SWEEP_SEEDS = 0.5\n",
            r"mine\.gin:5: SWEEP_SEEDS: got 0\.5, .* whole numbers",
        ),
        (
            "SWEEP_DATA_SEEDS = 'same'\n",
            r"SWEEP_DATA_SEEDS: got 'same', .* 'fixed'",
        ),
        (
            "SWEEP_SEED = (0, 1)\n",
            r"mine\.gin:5: SWEEP_SEED: unknown setting\. Did you mean SWEEP_SEEDS\?",
        ),
        (
            "SWEEP_METHODS = 'standart'\n",
            r"SWEEP_METHODS: no file 'methods/standart\.gin'.*Did you mean methods/standard\.gin",
        ),
        ("SEED = 1\n", r"mine\.gin:5: SEED is an axis of the sweep.*set SWEEP_SEEDS"),
        ("DATA_SEED = 1\n", r"DATA_SEED is an axis.*SWEEP_DATA_SEEDS='fixed'"),
        ("METHOD = 'standard'\n", r"METHOD is an axis.*set SWEEP_METHODS"),
        ("MODEL_DIR = 'runs/x'\n", r"MODEL_DIR is an axis.*set SWEEP_DIR"),
        ("RATIONALES = 'human'\n", r"RATIONALES is an axis.*your own method file"),
        ("SWEEP_LABELS = 'gold'\nLABELS = 'gold'\n", r"LABELS is an axis.*set SWEEP_LABELS"),
        ("SweepConfig.dir = 'x'\n", r"SweepConfig\.dir is set by its macro\. Write SWEEP_DIR"),
        ("include 'demo.gin'\n", r"demo\.gin:\d+: .* is an axis of the sweep"),
    ],
)
def test_a_wrong_sweep_file_says_where_and_what(read, text, message):
    with pytest.raises(InputError, match=message):
        read(text)


def test_a_flag_of_an_axis_is_refused(read):
    with pytest.raises(InputError, match=r"--gin\.FRACTION: FRACTION is an axis"):
        read("", "FRACTION=0.5")


def test_two_files_of_one_name_are_refused(read, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "standard.gin").write_text('METHOD = "standard"\nRATIONALES = "none"\nALPHA = 0.1\n')
    with pytest.raises(InputError, match=r"name demo-standard-gold-demo-f1-s0: .*differ in ALPHA"):
        read(f"SWEEP_METHODS = ('standard', '{other}/standard.gin')\n")


def test_run_and_sweep_files_are_told_apart(read, tmp_path):
    with pytest.raises(
        InputError,
        match=r'^demo\.gin is a run file; .*launch\.train.*_RUN_FILES = \("demo\.gin",\)',
    ):
        matrix.read(["demo.gin"], ["SWEEP_DIR=x"])
    flags = ["SWEEP_DIR=x", "SWEEP_RUN_FILES=demo.gin", "SWEEP_METHODS=standard"]
    (tmp_path / "common.gin").write_text("ALPHA = 0.25\n")
    assert len(matrix.read([tmp_path / "common.gin"], flags).runs) == 1
    path = tmp_path / "mine.gin"
    read()
    with pytest.raises(InputError, match=rf"^{path}:\d+: SWEEP_\w+: .*launch\.sweep"):
        load.parse([path])
    with pytest.raises(InputError, match=r"^--gin\.SWEEP_DIR: a setting of a sweep\."):
        load.parse(["demo.gin"], ["SWEEP_DIR='x'"])


def test_where_a_missing_file_was_looked_for_is_said_once(read):
    with pytest.raises(InputError) as error:
        read("SWEEP_METHODS = 'standart'\n")
    folders = str(error.value).partition(" in ")[2].partition(". ")[0].split(", ")
    assert len(folders) == len(set(folders)) == 3


def test_a_missing_sweep_file():
    with pytest.raises(InputError, match=r"--gin_file is missing. Name a sweep file"):
        matrix.read([])
    with pytest.raises(
        InputError, match=r"no file 'sweeps/demp\.gin'.*Did you mean sweeps/demo\.gin"
    ):
        matrix.read(["sweeps/demp.gin"])


@pytest.mark.parametrize("workers", [1, 2, 3, 5, 40])
def test_shares_are_disjoint_complete_and_balanced(read, workers):
    runs = read(
        "SWEEP_RUN_FILES = ('demo.gin', 'cqa.gin')\nSWEEP_FRACTIONS = (0.25, 0.5, 1.0)\n"
        "SWEEP_SEEDS = (0, 1)\n"
    ).runs
    every = [shares.share_of_runs(runs, worker, workers) for worker in range(workers)]
    dealt = [run.name for share in every for run in share]
    assert sorted(dealt) == sorted(run.name for run in runs)
    loads = [sum(shares.nominal_flops(run.config) for run in share) for share in every]
    largest = max(shares.nominal_flops(run.config) for run in runs)
    assert max(loads) - min(loads) <= largest
    # The order of running is the matrix's.
    order = {run.name: place for place, run in enumerate(runs)}
    for share in every:
        assert [order[run.name] for run in share] == sorted(order[run.name] for run in share)


def test_shares_do_not_depend_on_where_the_sweep_lies(read):
    here = read("SWEEP_SEEDS = (0, 1, 2)\n").runs
    there = read("SWEEP_SEEDS = (0, 1, 2)\n", "SWEEP_DIR=elsewhere", "CACHE_DIR=other").runs
    for worker in range(3):
        mine, theirs = (shares.share_of_runs(runs, worker, 3) for runs in (here, there))
        assert [run.name for run in mine] == [run.name for run in theirs]


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("demo", 4 * 4 * 3),
        ("fair", 4 * 3 * 2 * 3 * 2),
        ("real_tiny", 4 + 4 * 4 * 2 * 2),
        ("own_jsonl", 18),
    ],
)
def test_shipped_sweeps_are_possible(name, count):
    found = matrix.read([f"sweeps/{name}.gin"])
    assert found.impossible == ()
    assert len(found.runs) == count


def test_the_papers_sweep():
    found = matrix.read(["sweeps/paper.gin"])
    assert found.impossible == ()
    four_methods, two_at_full, seeds, data = 4 * 5, 2, 4, 4
    assert len(found.runs) == data * (1 + seeds * (four_methods + two_at_full))
    for run in found.runs:
        assert run.config.pipeline.batch_size == 64
        assert run.config.initial_checkpoint == "hf:google/t5-v1_1-base"


def test_help_lists_every_macro_with_its_comment():
    text = config.help_text()
    for macro in config.macros().values():
        assert f"--gin.{macro.name}={macro.default!r}" in text
        assert macro.doc.endswith(".")
    assert {macro.field for macro in config.macros().values()} == {
        field.name for field in dataclasses.fields(config.SweepConfig)
    }
    assert "sweeps/demo.gin" in text
    assert "python -m launch.train --help lists them" in text
    # The first line of a gin file is its title.
    for line in text.partition("gin files in")[2].splitlines()[1:]:
        assert not line.startswith("  ") or line.endswith("."), line


GRID = 'SWEEP_GRID = {"LEARNING_RATE": (1e-3, 2e-3), "CLIP_NORM": (0, 1)}\n'


def test_a_grid_is_crossed_with_every_method_and_names_its_runs(read):
    found = read(GRID + "SWEEP_SEEDS = (3,)\n")
    expected = [
        f"demo-{method}-gold-demo-f1-learning_rate={rate}-clip_norm={norm}-s3"
        for method in ("standard", "step_by_step")
        for rate in ("0.001", "0.002")
        for norm in ("0", "1")
    ]
    assert names(found) == expected
    values = [(r.config.optimizer.learning_rate, r.config.optimizer.clip_norm) for r in found.runs]
    assert values == [(1e-3, 0.0), (1e-3, 1.0), (2e-3, 0.0), (2e-3, 1.0)] * 2
    assert {run.config.optimizer.weight_decay for run in found.runs} == {4.0}
    assert len({run.variant for run in found.runs}) == 8
    assert len({run.cell for run in found.runs}) == 2
    # A text's characters that a folder's name cannot hold are replaced.
    (run,) = read(
        'SWEEP_GRID = {"INITIAL_CHECKPOINT": ("hf:a/b",)}\nSWEEP_METHODS = "standard"\n'
    ).runs
    assert run.name == "demo-standard-gold-demo-f1-initial_checkpoint=hf_a_b-s0"
    assert run.config.initial_checkpoint == "hf:a/b"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"LEARNING_RAT": (1.0,)}', r"SWEEP_GRID: LEARNING_RAT: unknown .* LEARNING_RATE\?"),
        ('{"LEARNING_RATE": 1.0}', r"SWEEP_GRID: got .*, expected settings and their values"),
        ('{"LEARNING_RATE": ()}', r"SWEEP_GRID: got .*, expected settings and their values"),
        ('"LEARNING_RATE"', r"SWEEP_GRID: got .*, expected settings and their values"),
        ('{"LEARNING_RATE": ("a",)}', r"SWEEP_GRID: LEARNING_RATE: got 'a', expected a number"),
        ('{"SEED": (1,)}', r"SWEEP_GRID: SEED is another axis .* Instead, set SWEEP_SEEDS\."),
        ('{"ALPHA": (0.5,)}\nALPHA = 0.5', r"mine\.gin:\d+: ALPHA is set here and in SWEEP_GRID\."),
    ],
)
def test_a_grid_that_cannot_be_is_one_line(read, text, message):
    with pytest.raises(InputError, match=message):
        read(f"SWEEP_GRID = {text}\n")
