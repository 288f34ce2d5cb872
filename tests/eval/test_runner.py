import dataclasses
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stepdistill_jax import records
from stepdistill_jax.data.config import DataConfig, TokenConfig
from stepdistill_jax.data.packing import PipelineConfig
from stepdistill_jax.data.views import ViewConfig
from stepdistill_jax.data.vocabulary import load_vocabulary
from stepdistill_jax.decode.greedy import greedy
from stepdistill_jax.eval import runner
from stepdistill_jax.eval.runner import Evaluator
from stepdistill_jax.model.config import T5Config
from stepdistill_jax.model.flops import serving_flops
from stepdistill_jax.model.network import Transformer, init_params, logical_axes
from stepdistill_jax.objective import ObjectiveConfig
from stepdistill_jax.optim import OptimizerConfig
from stepdistill_jax.parallel.mesh import MeshConfig, make_mesh
from stepdistill_jax.parallel.rules import param_shardings
from stepdistill_jax.run.config import RunConfig
from stepdistill_jax.run.eval_config import EvalConfig
from stepdistill_jax.spec import EOS_ID, InputError

VOCABULARY = load_vocabulary("bytes")
MODEL = T5Config(
    vocab_size=VOCABULARY.size,
    emb_dim=16,
    num_heads=2,
    head_dim=8,
    mlp_dim=32,
    num_encoder_layers=1,
    num_decoder_layers=1,
    mlp_activations=("gelu", "linear"),
    logits_via_embedding=False,
    dropout_rate=0.1,
)
CHOICES = ("no", "yes")
LENGTH = 6
ROWS = 7


class Rows:
    """Rows of a data set in memory, as a token cache gives them."""

    manifest = types.SimpleNamespace(fingerprint="first")

    def __init__(self, texts, golds, choices=CHOICES):
        self.texts, self.golds, self.choices = texts, golds, choices
        self.tokens = [np.array([*VOCABULARY.encode(t), EOS_ID], np.int32) for t in texts]

    @property
    def lengths(self):
        return {"label_inputs": np.array([len(ids) for ids in self.tokens], np.int32)}

    def __len__(self):
        return len(self.texts)

    def __getitem__(self, index):
        return {"label_inputs": self.tokens[index]}

    def example(self, index):
        return {
            "id": f"id{index}",
            "input": self.texts[index],
            "label": self.golds[index],
            "gold": self.golds[index],
            "choices": self.choices,
        }


def make_rows(choices=CHOICES):
    words = tuple("abcdefghijklmnopqrst")
    texts = [" ".join(words[start : start + 1 + 8 * (start % 2)]) for start in range(ROWS)]
    return Rows(texts, ["yes"] * len(texts), choices)


@pytest.fixture(scope="module")
def params():
    # Ten times the usual output matrix, so that the most probable token is never a near tie.
    params = jax.jit(init_params, static_argnums=0)(MODEL, jax.random.key(1))
    params["decoder"]["logits_dense"]["kernel"] *= 10
    return params


@pytest.fixture
def evaluator(tmp_path, monkeypatch):
    """Makes the evaluator of a run in `tmp_path` whose splits are all `rows`."""

    def make(rows, mesh=MeshConfig(), devices=2, method="standard", **settings):  # noqa: B008
        monkeypatch.setattr(runner, "open_split", lambda config, split: rows)
        config = RunConfig(
            model_dir=str(tmp_path),
            method=method,
            model=MODEL,
            data=DataConfig(dataset="demo"),
            tokens=TokenConfig(vocabulary="bytes", max_rationale_length=11),
            pipeline=PipelineConfig(),
            views=ViewConfig(answer_marker="so it is"),
            objective=ObjectiveConfig(),
            optimizer=OptimizerConfig(),
            mesh=mesh,
            eval=EvalConfig(**{"batch_size": 4, "max_decode_length": LENGTH, **settings}),
        )
        return Evaluator(config, make_mesh(config.mesh, jax.devices()[:devices]))

    return make


@pytest.fixture(scope="module")
def one_by_one(params):
    """Each row of `make_rows` decoded alone, without padding, mesh or batch."""
    texts = []
    for ids in make_rows().tokens:
        inputs = jnp.asarray(ids)[None]
        tokens = greedy(MODEL, params, inputs, jnp.ones_like(inputs), LENGTH)
        texts.append(VOCABULARY.decode(tokens[0].tolist()))
    return texts


@pytest.mark.parametrize(
    ("mesh", "devices", "batch_size"),
    [
        (MeshConfig(), 1, 1),
        (MeshConfig(), 1, 64),
        (MeshConfig(fsdp=8), 8, 3),
        (MeshConfig(replica=2, fsdp=2, tensor=2), 8, 4),
    ],
)
def test_predictions_are_those_of_each_row_alone(
    evaluator, params, one_by_one, mesh, devices, batch_size
):
    rows = make_rows()
    scorer = evaluator(rows, mesh, devices, batch_size=batch_size)
    shardings = param_shardings(logical_axes(MODEL), params, scorer.mesh)
    predictions = scorer.predict(jax.device_put(params, shardings), rows)
    assert [prediction.row for prediction in predictions] == list(range(len(rows)))
    texts = [prediction.text for prediction in predictions]
    assert texts == one_by_one
    assert len(set(texts)) > 2, "rows that all decode to one text would prove nothing"


def test_files_of_an_evaluation(tmp_path, evaluator, params, one_by_one):
    rows = make_rows()
    rows.golds = [text if i < 4 else "no such text" for i, text in enumerate(one_by_one)]
    result = evaluator(rows).evaluate(params, 30, "test", "validation")
    share = 4 / ROWS
    folder = tmp_path / "eval" / "test" / "30"
    lines = [row for _, row in records.read_jsonl(folder / "predictions.jsonl")]
    assert [set(line) for line in lines] == [
        {"id", "input", "target", "prediction", "correct"}
    ] * ROWS
    assert [line["correct"] for line in lines] == [True] * 4 + [False] * (ROWS - 4)
    assert [line["prediction"] for line in lines] == one_by_one
    stored = json.loads((folder / "metrics.json").read_text())
    assert (stored["n"], stored["accuracy"], stored["mode"]) == (ROWS, share, "decode")
    (line,) = (tmp_path / "results.jsonl").read_text().splitlines()
    written = json.loads(line)
    inputs, tokens = np.mean(rows.lengths["label_inputs"]), [LENGTH] * ROWS
    assert written.pop("serving_flops") == serving_flops(MODEL, inputs, np.mean(tokens))
    assert list(written.items()) == [
        ("dataset", "demo"),
        ("method", "standard"),
        ("labels", "gold"),
        ("rationales", "none"),
        ("fraction", 1.0),
        ("seed", 0),
        ("model", "custom-16x1+1"),
        ("data_seed", 0),
        ("train_split", "train"),
        ("triage", ""),
        ("augment", ""),
        ("initial", ""),
        ("parameters", 2 * 16 * VOCABULARY.size + 2608 + 3648 + 2 * 64),
        (
            "settings",
            {
                "VOCABULARY": "'bytes'",
                "MAX_RATIONALE_LENGTH": "11",
                "ANSWER_MARKER": "'so it is'",
                "VOCAB_SIZE": "259",
                "EMB_DIM": "16",
                "NUM_HEADS": "2",
                "HEAD_DIM": "8",
                "MLP_DIM": "32",
                "NUM_ENCODER_LAYERS": "1",
                "NUM_DECODER_LAYERS": "1",
                "MAX_DECODE_LENGTH": str(LENGTH),
            },
        ),
        ("step", 30),
        ("split", "test"),
        ("n", ROWS),
        ("accuracy", share),
        ("stderr", pytest.approx((share * (1 - share) / ROWS) ** 0.5)),
        ("selected_on", "validation"),
        ("train_pairs", None),
        ("train_flops", None),
        ("device_seconds", None),
    ]
    assert dataclasses.asdict(result) == json.loads(line)


def writes(texts):
    """A decoder whose rows write these texts, in the order of the cache."""

    def decode(config, params, inputs, segment_ids, max_length):
        written = []
        for ids, segments in zip(np.asarray(inputs), np.asarray(segment_ids), strict=True):
            row = make_rows().texts.index(VOCABULARY.decode(ids)) if segments.any() else 0
            tokens = [*VOCABULARY.encode(texts[row]), EOS_ID][:max_length]
            written.append(tokens + [0] * (max_length - len(tokens)))
        return jnp.asarray(written, jnp.int32)

    return decode


def test_the_label_is_read_from_what_follows_the_marker(tmp_path, evaluator, monkeypatch):
    rows = make_rows()
    texts = [
        "rain . so it is yes",
        "so it is yes",
        "so it is no . so it is yes",
        "rain , yes",
        "so it is no",
        "so  it\nis  yes ",
        "a rationale that is so long that it is",
    ]
    monkeypatch.setattr(runner, "greedy", writes(texts))
    scorer = evaluator(rows, devices=1, method="single_task")
    assert scorer.decode_length == LENGTH + 20
    result = scorer.evaluate({}, 30, "test")
    folder = tmp_path / "eval" / "test" / "30"
    lines = [row for _, row in records.read_jsonl(folder / "predictions.jsonl")]
    assert [line["prediction"] for line in lines] == ["yes", "yes", "yes", "", "no", "yes", ""]
    assert [line["correct"] for line in lines] == [True, True, True, False, False, True, False]
    assert [line["output"] for line in lines] == [text[:26] for text in texts]
    stored = json.loads((folder / "metrics.json").read_text())
    assert (stored["unparsed"], stored["unfinished"]) == (2, 2)
    assert result.accuracy == 4 / ROWS
    tokens = np.mean([min(len(text) + 1, 26) for text in texts])
    inputs = np.mean(rows.lengths["label_inputs"])
    assert result.serving_flops == serving_flops(MODEL, inputs, tokens)


def test_what_results_hold_is_not_computed_again(tmp_path, evaluator, params):
    first = evaluator(make_rows()).evaluate(params, 10, "test")

    class Unread:
        manifest = Rows.manifest

        def __getattr__(self, name):
            raise AssertionError("the data of a known result were read")

    again = evaluator(Unread())
    assert again.evaluate(None, 10, "test") == first
    # Selected since: the line says so from now on.
    selected = dataclasses.replace(first, selected_on="validation")
    assert again.evaluate(None, 10, "test", "validation") == selected
    assert again.evaluate(None, 10, "test") == selected
    # The line is enough: predictions may have been deleted to save space.
    (tmp_path / "eval" / "test" / "10" / "metrics.json").unlink()
    assert again.evaluate(None, 10, "test") == selected
    with pytest.raises(AssertionError, match="were read"):
        again.evaluate(None, 20, "test")
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 1


def test_a_crash_before_the_results_line_is_made_good(tmp_path, evaluator, params, monkeypatch):
    def crash(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(runner, "append_result", crash)
        with pytest.raises(KeyboardInterrupt):
            evaluator(make_rows()).evaluate(params, 10, "test")
    assert not (tmp_path / "results.jsonl").exists()
    evaluator(make_rows()).evaluate(params, 10, "test")
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 1


def log_prob(params, ids, choice):
    """Sum of the log-probabilities of a choice's tokens, by the whole-sequence pass."""
    targets = [*VOCABULARY.encode(choice), EOS_ID]
    inputs = jnp.asarray(ids)[None]
    decoder_inputs = jnp.asarray([[0, *targets[:-1]]])
    ones = jnp.ones_like
    model = jax.jit(Transformer(MODEL).apply)
    logits = model({"params": params}, inputs, ones(inputs), decoder_inputs, ones(decoder_inputs))
    log_probs = np.asarray(logits[0], np.float64)
    log_probs -= np.logaddexp.reduce(log_probs, axis=-1, keepdims=True)
    return log_probs[np.arange(len(targets)), targets].sum()


def test_choices_get_probabilities(evaluator, params):
    rows = make_rows()
    predictions = evaluator(rows, mode="choices").predict(params, rows)
    for prediction in predictions[::2]:
        ids = rows.tokens[prediction.row]
        scores = np.array([log_prob(params, ids, choice) for choice in CHOICES])
        expected = np.exp(scores - np.logaddexp.reduce(scores))
        assert prediction.text == CHOICES[int(np.argmax(expected))]
        assert prediction.probabilities == pytest.approx(
            dict(zip(CHOICES, expected, strict=True)), abs=1e-5
        )


def test_a_choice_offered_twice_counts_once(evaluator, params):
    once, twice = make_rows(("no", "yes")), make_rows(("no", "yes", "no"))
    for one, two in zip(
        evaluator(once, mode="choices").predict(params, once),
        evaluator(twice, mode="choices").predict(params, twice),
        strict=True,
    ):
        assert two.probabilities == pytest.approx(one.probabilities, abs=1e-6)


def test_a_score_of_other_data_is_not_passed_off_as_this(evaluator, params):
    evaluator(make_rows()).evaluate(params, 10, "test")
    changed = make_rows()
    changed.manifest = types.SimpleNamespace(fingerprint="second")
    with pytest.raises(InputError, match="scored with data and vocabulary first, now second"):
        evaluator(changed).evaluate(params, 10, "test")


def test_another_way_of_scoring_gets_its_own_line_and_folder(tmp_path, evaluator, params):
    decoded = evaluator(make_rows()).evaluate(params, 10, "test")
    short = evaluator(make_rows(), max_decode_length=1).evaluate(params, 10, "test")
    chooser = evaluator(make_rows(), mode="choices")
    chosen = chooser.evaluate(params, 10, "test")
    assert chooser.evaluate(None, 10, "test") == chosen
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        dataclasses.asdict(result) for result in (decoded, short, chosen)
    ]
    folder = tmp_path / "eval" / "test" / "10"
    of_chosen = folder / f"eval_mode=choices,max_decode_length={LENGTH}"
    for path, mode, length in (
        (folder, "decode", LENGTH),
        (folder / "max_decode_length=1", "decode", 1),
        (of_chosen, "choices", LENGTH),
    ):
        stored = json.loads((path / "metrics.json").read_text())
        assert (stored["mode"], stored["max_decode_length"]) == (mode, length)
    for _, line in records.read_jsonl(of_chosen / "predictions.jsonl"):
        assert set(line["probabilities"]) == set(CHOICES)


def test_outputs_may_be_longer_than_the_longest_gold_label(evaluator, params):
    rows = make_rows()
    rows.golds = ["", "x" * 70, *rows.golds[2:]]
    scorer = evaluator(rows, max_decode_length=0)
    # 70 bytes and EOS, and room to see that an output goes on.
    assert scorer._length(rows) == 72
    (long,) = [p for p in scorer.predict(params, rows) if p.row == 0]
    assert long.ended or long.tokens == 72


def test_rows_without_gold_label_or_choices_stop(tmp_path, evaluator, params):
    unlabelled = make_rows()
    unlabelled.golds[3] = None
    with pytest.raises(InputError, match=r"test has 1 example.* a gold label: id3"):
        evaluator(unlabelled).evaluate(params, 10, "test")
    with pytest.raises(InputError, match=r"'choices' needs .*example id0 of DATASET='demo'"):
        evaluator(make_rows(()), mode="choices").evaluate(params, 10, "test")
    assert not (tmp_path / "results.jsonl").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"splits": ()}, "EVAL_SPLITS"),
        ({"step": -1}, "EVAL_STEP: got -1"),
        ({"batch_size": 0}, "EVAL_BATCH_SIZE: got 0"),
        ({"max_decode_length": -1}, "MAX_DECODE_LENGTH: got -1"),
        ({"watch_period": 0.0}, "WATCH_PERIOD: got 0"),
    ],
)
def test_illegal_settings_name_their_macro(settings, message):
    with pytest.raises(InputError, match=message):
        EvalConfig(**settings)
