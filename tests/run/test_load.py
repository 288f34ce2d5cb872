import dataclasses
import importlib.util
import pathlib
import re
import shutil
import subprocess
import sys
import types
import zipfile

import pytest

from stepdistill_jax.data.sources.base import ColumnConfig
from stepdistill_jax.run import load
from stepdistill_jax.run.config import FREE_MACROS, PARTS, RunConfig
from stepdistill_jax.settings import fits
from stepdistill_jax.spec import METHOD_STREAMS, RATIONALE_METHODS, READER_METHODS, InputError

ROOT = pathlib.Path(__file__).parents[2]


def load_golden() -> types.ModuleType:
    path = ROOT / "tests" / "golden" / "make_configs.py"
    spec = importlib.util.spec_from_file_location("make_configs", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


make_configs = load_golden()


def demo(*overrides: str) -> RunConfig:
    return load.parse(["demo.gin"], overrides)


@pytest.mark.parametrize("path", make_configs.run_files(), ids=lambda path: path.stem)
def test_run_file_resolves_to_its_golden(path):
    golden = make_configs.FOLDER / path.name
    resolved = load.dump(load.parse([path.name]))
    assert resolved == golden.read_text(), (
        f"{path.name} resolves to another configuration; where that is meant, run "
        "`python tests/golden/make_configs.py` and commit the difference"
    )


def test_every_golden_has_its_run_file():
    goldens = {path.name for path in make_configs.FOLDER.glob("*.gin")}
    assert goldens == {path.name for path in make_configs.run_files()}


def test_every_setting_is_documented_and_has_a_default():
    for name, macro in load.macros().items():
        assert macro.doc.endswith("."), f"{name} has no documentation that ends in a full stop"
        assert macro.heading
        assert fits(macro.default, macro.hint), name


def test_a_field_that_is_no_setting_is_made_by_the_run():
    fields = {
        (config.__name__, field.name)
        for config in (*PARTS.values(), ColumnConfig, RunConfig)
        for field in dataclasses.fields(config)
    }
    declared = {(macro.config.__name__, macro.field) for macro in load.macros().values()}
    parts = {("RunConfig", field) for field in PARTS}
    assert fields - declared == parts | {("DataConfig", "columns"), ("PipelineConfig", "seed")}


def test_free_macros_are_macros():
    assert set(load.macros()) >= FREE_MACROS


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("FRACTION=0.125", "EVAL_STEP=100", "EVAL_SPLITS=('validation', 'test')"),
        ("MODEL_DIR='a \"quoted\" folder'", "INITIAL_CHECKPOINT=hf:owner/name"),
    ],
)
def test_dump_reads_back_as_the_same_run(tmp_path, overrides):
    first = demo(*overrides)
    (tmp_path / "config.gin").write_text(load.dump(first))
    assert load.parse([tmp_path / "config.gin"]) == first


def test_dump_of_a_users_own_data_reads_back(tmp_path):
    first = load.parse(["own_jsonl.gin"], ["LABEL_SET={0: 'no', 1: 'yes'}"])
    assert first.data.columns is not None
    assert first.data.columns.label_map() == {0: "no", 1: "yes"}
    (tmp_path / "config.gin").write_text(load.dump(first))
    assert load.parse([tmp_path / "config.gin"]) == first


def test_results_name_a_users_own_data_by_its_file_and_label():
    names = [
        load.parse(["own_jsonl.gin"], overrides).data.name
        for overrides in ([], ["TRAIN_FILE=b.jsonl"], ["LABEL_COLUMN=x"], ["DATA_DIR=mine"])
    ]
    assert names == [
        "jsonl:train.jsonl#answer",
        "jsonl:b.jsonl#answer",
        "jsonl:train.jsonl#x",
        "jsonl:mine/train.jsonl#answer",
    ]
    hub = ["DATASET=hf", "HF_NAME=owner/name", "TRAIN_FILE=train"]
    assert load.parse(["own_jsonl.gin"], hub).data.name == "hf:owner/name/train#answer"
    assert demo().data.name == "demo"


def test_paper_settings():
    for name in ("esnli", "anli", "cqa", "svamp"):
        run = load.parse([f"{name}.gin"])
        assert run.data.dataset == name
        assert (run.optimizer.learning_rate, run.pipeline.batch_size) == (5e-5, 64)
        assert (run.train_steps, run.optimizer.warmup_steps) == (10_000, 0)
        assert (run.optimizer.name, run.optimizer.schedule) == ("adamw", "linear")
        assert (run.optimizer.weight_decay, run.optimizer.clip_norm) == (0.0, 1.0)
        assert run.tokens.max_input_length == 1024
        assert run.tokens.max_label_length == run.tokens.max_rationale_length == 256
        assert run.eval.max_decode_length == 0
        assert run.objective.alpha == 0.5
        assert run.initial_checkpoint == "hf:google/t5-v1_1-base"
        assert load.model_name(run.model) == "t5_1_1_base"


def test_demo_standard_trains_on_all_labels_for_the_same_steps():
    standard, steps = load.values(load.parse(["demo_standard.gin"])), load.values(demo())
    differing = {name for name in steps if steps[name] != standard[name]}
    assert differing == {"METHOD", "RATIONALES", "MODEL_DIR", "FRACTION", "NOTE"}
    assert (steps["FRACTION"], standard["FRACTION"]) == (0.5, 1.0)


def test_last_word_wins_and_user_macros_may_be_used(tmp_path):
    first, second = tmp_path / "first.gin", tmp_path / "second.gin"
    first.write_text('include "demo.gin"\nMY_RATE = 3e-4\nLEARNING_RATE = %MY_RATE\nALPHA = 0.1\n')
    # Includes the run part once more: what the first file set must survive that.
    second.write_text('include "parts/run.gin"\nALPHA = 0.2\n')
    run = load.parse([first, second], ["SEED=7"])
    assert run.optimizer.learning_rate == 3e-4
    assert run.objective.alpha == 0.2
    assert (run.seed, run.pipeline.seed) == (7, 7)
    assert run.train_steps == demo().train_steps


def test_a_parse_leaves_nothing_behind():
    demo("ALPHA=0.9", "SEED=3")
    assert (demo().objective.alpha, demo().seed) == (0.5, 0)


@pytest.mark.parametrize(
    ("override", "field", "value"),
    [
        ("MODEL_DIR=/tmp/run-1", "model_dir", "/tmp/run-1"),
        ("MODEL_DIR=2024", "model_dir", "2024"),
        ("MODEL_DIR='runs/a'", "model_dir", "runs/a"),
        ("INITIAL_CHECKPOINT=None", "initial_checkpoint", None),
        ("METHOD=standard", "method", "standard"),
        ("TENSORBOARD=False", "tensorboard", False),
    ],
)
def test_override_without_quotes_where_nothing_else_can_be_meant(override, field, value):
    assert getattr(demo(override), field) == value


@pytest.mark.parametrize("template", ["{Frage}", "{Frage}</s>{Lag}", "{Frage}: 'ja'?", '"{Frage}"'])
def test_a_template_needs_no_quotes_of_its_own(tmp_path, template):
    path = tmp_path / "own.gin"
    path.write_text(
        'DATASET = "jsonl"\nTRAIN_FILE = "a.jsonl"\nTEST_FILE = "b.jsonl"\nVOCABULARY = "bytes"\n'
        'VOCAB_SIZE = 384\nRATIONALES = "none"\nMETHOD = "standard"\nMODEL_DIR = "runs/own"\n'
    )
    run = load.parse([path], [f"INPUT_TEMPLATE={template}"])
    assert run.data.columns is not None
    assert run.data.columns.input_template == template.strip('"')


def test_a_lone_text_is_a_tuple_of_one():
    assert demo("EVAL_SPLITS=test").eval.splits == ("test",)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("BATCHSIZE=3", r"--gin\.BATCHSIZE: unknown setting\. Did you mean BATCH_SIZE\?"),
        ("alpha=0.1", r"--gin\.alpha: unknown setting\. Did you mean ALPHA\?"),
        ("ALPHA", r"--gin\.ALPHA: write --gin\.NAME=value"),
        ("ALPHA=1.5", r"^--gin\.ALPHA: got 1\.5, expected a number in \[0, 1\]\.$"),
        ("LEARNING_RATE=fast", r"--gin\.LEARNING_RATE: cannot parse 'fast'"),
        (
            "TRAIN_STEPS=1e3",
            r"TRAIN_STEPS: got 1000\.0, expected a whole number",
        ),
        ("PACK=1", r"PACK: got 1, expected True or False"),
        ("SEED=True", r"SEED: got True, expected a whole number"),
        (
            "EVAL_SPLITS=(1, 2)",
            r"EVAL_SPLITS: got \(1, 2\), expected a tuple of texts, as in EVAL_SPLITS",
        ),
        ("LABEL_SET=(0, 1)", r"LABEL_SET: got \(0, 1\), expected a tuple of texts or a dict\.$"),
        ("ALPHA=%RATE", r"%RATE is never set"),
        ("ALPHA=%ALPHA", r"ALPHA -> ALPHA is a circle"),
        ("ALPHA=@DataConfig()", r"@DataConfig is not supported"),
        ("ALPHA=(1", r"cannot parse '\(1'"),
        ("LEARNING_RATE=1e999", r"^--gin\.LEARNING_RATE: got inf, expected a finite number\.$"),
        ("LEARNING_RATE=-1e999", r"^--gin\.LEARNING_RATE: got -inf, expected a finite number\.$"),
        ("WEIGHT_DECAY=" + "9" * 400, r"WEIGHT_DECAY: got inf, expected a finite number\.$"),
        ("TRAIN_STEPS=2147483648", r"got 2147483648, expected a number in \[1, 2147483647\]"),
        ("TRAIN_STEPS=1" + "0" * 400, r"TRAIN_STEPS: got 10{96}\.\.\., expected a number in \["),
        ("TRAIN_STEPS=1" + "0" * 5000, r"TRAIN_STEPS: cannot parse '10{95}\.\.\.\. Write numb"),
        ("SEED=9223372036854775808", r"SEED: got .*, expected a number in \[0, 922337.*5807\]"),
        ("EMB_DIM=1" + "0" * 20, r"EMB_DIM: got 10{20}, expected a number in \[1, 2147483647\]"),
        ("LABEL_SET=" + "(" * 5000 + ")" * 5000, r"LABEL_SET: cannot parse '\(+\.\.\.\. "),
        (
            "MODEL_DIR=(old) run",
            r"cannot parse .* begins with \( in quotes: '--gin\.MODEL_DIR=\"text",
        ),
        ("ALPHA=0.1 0.2", r"cannot parse '0\.1 0\.2'"),
        ("METHOD=stepwise", r"METHOD: got 'stepwise', expected one of 'standard', 'step_by_step'"),
        ("RATIONALES=none", r"METHOD='step_by_step' trains on rationales, but RATIONALES='none'"),
        ("ANSWER_MARKER=''", r"ANSWER_MARKER: got '', expected words"),
        ("ALPHA_END=2.0", r"^--gin\.ALPHA_END: got 2\.0, expected a number in \[0, 1\]\.$"),
        (
            "PROFILE_STEPS=(9, 8)",
            r"PROFILE_STEPS: got \(9, 8\), expected the first and last",
        ),
        ("PROFILE_STEPS=(9, 801)", r"between 1 and TRAIN_STEPS=800"),
        ("WARMUP_STEPS=2000", r"WARMUP_STEPS=2000 is not less than TRAIN_STEPS=800"),
        ("MICROBATCHES=33", r"MICROBATCHES=33 is more than BATCH_SIZE=32\. Lower it\."),
        ("INPUT_ROW_LENGTH=8", r"INPUT_ROW_LENGTH=8 cannot hold .* MAX_INPUT_LENGTH=15"),
        ("HF_NAME=glue", r"HF_NAME has no effect with DATASET='demo'"),
        ("DATASET=cqa", r"VOCABULARY='demo' has only the words of DATASET='demo'"),
        ("MODEL_DIR=''", r"MODEL_DIR is empty"),
        ("CHECKPOINT_PERIOD=0", r"CHECKPOINT_PERIOD: got 0, expected at least 1"),
        ("EVAL_STEP=newest", r"EVAL_STEP: got 'newest'"),
        ("EVAL_SPLITS=testing", r"EVAL_SPLITS: got \('testing',\)"),
        ("EVAL_MODE=beam", r"EVAL_MODE: got 'beam'"),
    ],
)
def test_a_wrong_override_says_where_and_what(override, message):
    with pytest.raises(InputError, match=message):
        demo(override)


TRAINED = {
    "standard": ("standard", "gold", "none"),
    "standard_distillation": ("standard", "teacher", "none"),
    "step_by_step": ("step_by_step", "gold", "teacher"),
    "step_by_step_teacher": ("step_by_step", "teacher", "teacher"),
    "step_by_step_human": ("step_by_step", "gold", "human"),
    "step_by_step_shuffled": ("step_by_step", "gold", "shuffled"),
    "single_task": ("single_task", "gold", "teacher"),
    "single_task_teacher": ("single_task", "teacher", "teacher"),
    "rationale_as_input": ("rationale_as_input", "gold", "teacher"),
    "pinto": ("pinto", "teacher", "teacher"),
    "teacher": ("teacher", "gold", "teacher"),
}


def test_every_method_file_is_known():
    assert {path.stem for path in (ROOT / "gin" / "methods").glob("*.gin")} == set(TRAINED)


@pytest.mark.parametrize("name", TRAINED)
def test_a_method_file_makes_any_run_that_method(name, tmp_path):
    other = tmp_path / "other.gin"
    other.write_text('include "cqa.gin"\nLABELS = "teacher"\nRATIONALES = "human"\nALPHA = 0.3\n')
    for run_file in ("demo.gin", "demo_standard.gin", other):
        run = load.parse([run_file, f"methods/{name}.gin"])
        assert (run.method, run.data.labels, run.data.rationales) == TRAINED[name]
        assert run.streams == METHOD_STREAMS[run.method]


@pytest.mark.parametrize("method", sorted(set(RATIONALE_METHODS)))
def test_methods_that_train_on_rationales_want_some(method):
    with pytest.raises(InputError, match=f"METHOD='{method}' .*, but RATIONALES='none'"):
        demo(f"METHOD={method}", "RATIONALES=none")


@pytest.mark.parametrize("method", READER_METHODS)
def test_readers_want_rationales_that_are_there_at_test(method):
    with pytest.raises(InputError, match=f"METHOD='{method}' .* RATIONALES='shuffled' does not"):
        demo(f"METHOD={method}", "RATIONALES=shuffled")
    with pytest.raises(InputError, match=r"RATIONALES='file:why.jsonl' is one file"):
        demo(f"METHOD={method}", "RATIONALES=file:why.jsonl")
    assert demo(f"METHOD={method}", "RATIONALES=file:{split}.jsonl").method == method


def test_a_label_that_comes_after_a_rationale_is_decoded():
    with pytest.raises(InputError, match=r"EVAL_MODE='choices' .* METHOD='single_task'"):
        demo("METHOD=single_task", "EVAL_MODE=choices")


def test_given_rows_hold_what_the_method_puts_into_them():
    for method, rows, message in (
        ("pinto", "INPUT_ROW_LENGTH", "MAX_INPUT_LENGTH + MAX_RATIONALE_LENGTH=33"),
        ("single_task", "LABEL_ROW_LENGTH", "MAX_LABEL_LENGTH + MAX_RATIONALE_LENGTH=20"),
    ):
        with pytest.raises(InputError, match=f"{rows}=19 cannot .* {re.escape(message)} tokens"):
            demo(f"METHOD={method}", f"{rows}=19")
        assert demo("METHOD=step_by_step", f"{rows}=19").method == "step_by_step"


def test_early_stopping_needs_evaluations():
    with pytest.raises(InputError, match="EARLY_STOP_EVALS=3 has no effect with EVAL_PERIOD=0"):
        demo("EARLY_STOP_EVALS=3", "EVAL_PERIOD=0")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("BATCHSIZE = 3\n", r"user\.gin:2: BATCHSIZE: unknown setting\. Did you mean BATCH_SIZE\?"),
        ("UNUSED = 3\n", r"user\.gin:2: UNUSED: unknown setting"),
        ("ALPHA = 2.0\n", r"user\.gin:2: ALPHA: got 2\.0, expected"),
        ("LABEL_SET = " + "(" * 5000 + ")" * 5000, r"user\.gin: not a gin file: brackets are nes"),
        ("TRAIN_STEPS = " + "1" * 5000, r"user\.gin:2: cannot parse 'TRAIN_STEPS = 1+\.\.\.\. W"),
        ("ALPHA = high\n", r"user\.gin:2: cannot parse 'ALPHA = high'.*quotes"),
        ("ALPHA = (\n", r"user\.gin:3: not a gin file: EOF in multi-line statement\. Close open"),
        ("DataConfig.fraction = 0.5\n", r"user\.gin:2: .*Write FRACTION = \.\.\. instead"),
        ("DataConfig.fracton = 0.5\n", r"user\.gin:2: .*Did you mean DataConfig\.fraction"),
        ("import os\n", r"user\.gin:2: expected an include or NAME = value"),
        ('include "models/t5_1_1_bse.gin"\n', r"user\.gin:2: no file.*models/t5_1_1_base\.gin"),
        ('include "user.gin"\n', r"includes itself: user\.gin -> user\.gin"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, text, message):
    path = tmp_path / "user.gin"
    path.write_text('include "demo.gin"\n' + text)
    with pytest.raises(InputError, match=message):
        load.parse([path])


def test_a_byte_order_mark_of_windows_is_skipped(tmp_path):
    path = tmp_path / "user.gin"
    path.write_bytes(b'\xef\xbb\xbfinclude "demo.gin"\r\nALPHA = 0.25\r\n')
    assert load.parse([path]).objective.alpha == 0.25


def test_a_missing_run_file_names_the_nearest():
    with pytest.raises(InputError, match=r"no file 'dmo\.gin' in .* Did you mean demo\.gin"):
        load.parse(["dmo.gin"])


def test_the_nearest_run_file_may_be_the_users_own(tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    for name in ("own.gin", "runs/mine.gin"):
        (tmp_path / name).write_text('include "demo.gin"\n')
    for name, nearest in (("owm.gin", "own.gin"), ("runs/mien.gin", "runs/mine.gin")):
        with pytest.raises(InputError, match=rf"Did you mean {nearest}\?$"):
            load.parse([name], search_paths=[tmp_path])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"Did you mean own\.gin\?$"):
        load.parse(["owm.gin"])


def test_search_order(tmp_path, monkeypatch):
    work, extra = tmp_path / "work", tmp_path / "extra"
    for folder, seed in ((work, 1), (extra, 2)):
        folder.mkdir()
        (folder / "mine.gin").write_text(f'include "demo.gin"\nSEED = {seed}\n')
    (extra / "other.gin").write_text('include "mine.gin"\n')
    monkeypatch.chdir(work)
    assert load.parse(["mine.gin"], search_paths=[extra]).seed == 1
    # An included file is looked for beside the one that includes it first.
    assert load.parse(["other.gin"], search_paths=[extra]).seed == 2


def test_difference_lists_what_forbids_resuming():
    changed = demo("ALPHA=0.25", "LOG_PERIOD=7", "WATCH=True", "MODEL_DIR=elsewhere")
    assert load.difference(demo(), changed) == {"ALPHA": (0.5, 0.25)}


def test_read_takes_a_run_from_its_folder(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    (old / "config.gin").write_text(load.dump(demo(f"MODEL_DIR='{old}'", "SEED=5")))
    old.rename(new)
    run = load.read(new, ["EVAL_STEP=latest"])
    assert (run.model_dir, run.seed, run.eval.step) == (str(new), 5, "latest")
    with pytest.raises(InputError, match=r"--gin\.MODEL_DIR=other: the folder is .* already"):
        load.read(new, ["MODEL_DIR=other"])
    with pytest.raises(InputError, match=r"config\.gin does not exist: .* holds no run"):
        load.read(old)


def test_vocabulary_larger_than_the_embedding():
    run = demo("VOCAB_SIZE=100")
    run.check_vocabulary(100)
    with pytest.raises(InputError, match=r"VOCAB_SIZE=100 .*has 136 ids\. Set VOCAB_SIZE"):
        run.check_vocabulary(136)


def test_model_name():
    run = demo()
    assert load.model_name(run.model) == "demo"
    assert load.model_name(dataclasses.replace(run.model, dropout_rate=0.3)) == "demo"
    assert load.model_name(dataclasses.replace(run.model, emb_dim=80)) == "custom-80x3+1"


def test_wheel_brings_its_gin_files(tmp_path):
    source = tmp_path / "source"
    ignore = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "runs")
    shutil.copytree(ROOT, source, ignore=ignore)
    subprocess.run(
        [sys.executable, "-c", "import setuptools.build_meta as b; b.build_wheel('out')"],
        cwd=source,
        check=True,
        capture_output=True,
    )
    (wheel,) = (source / "out").glob("*.whl")
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    assert not (site / "gin").exists(), "a top-level gin folder would hide gin-config"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    program = (
        "from stepdistill_jax.run import load as config; "
        "print(config.gin_folder()); print(config.parse(['demo.gin']).model_dir)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=elsewhere,
        env={"PYTHONPATH": str(site), "PATH": "", "JAX_PLATFORMS": "cpu"},
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == [str(site / "stepdistill_jax" / "_gin"), "runs/demo"]


def test_a_reader_cannot_weigh_rationales_that_have_no_loss():
    files = ["demo.gin", "methods/rationale_as_input.gin"]
    triage = "TRIAGE=('states_label',)"
    with pytest.raises(InputError, match=r"TRIAGE_WEIGHT=0\.5 .* METHOD='rationale_as_input'"):
        load.parse(files, [triage, "TRIAGE_WEIGHT=0.5"])
    assert load.parse(files, [triage]).data.triage_weight == 0.0
