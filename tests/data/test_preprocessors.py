import json

import numpy as np
import pytest
import seqio
import tensorflow as tf

from stepdistill_jax.data.config import TokenConfig
from stepdistill_jax.data.join import ColumnConfig, DataConfig, load_pairs
from stepdistill_jax.data.preprocessors import seqio_task, seqio_vocabulary
from stepdistill_jax.data.vocabulary import load_vocabulary
from stepdistill_jax.spec import FEATURES

ROWS = [
    {"x": "red</s>green", "y": "blue", "r": "the first is wild"},
    {"x": "iron pot", "y": "black", "r": None},
    {"x": "a stone pot", "y": "red", "r": "so it goes red , red and red ."},
]


def own_data(folder, rows=ROWS, **changes):
    for split in ("train", "validation", "test"):
        lines = (json.dumps({**row, "x": f"{row['x']} {split}"}) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text("".join(lines))
    columns = ColumnConfig(
        train_file="train.jsonl",
        validation_file="validation.jsonl",
        test_file="test.jsonl",
        input_template="{x}",
        label_column="y",
        rationale_column="r",
    )
    return DataConfig("jsonl", data_dir=str(folder), columns=columns, **changes)


def examples(task, split="train", **arguments):
    dataset = task.get_dataset(split=split, shuffle=False, **arguments)
    return list(dataset.as_numpy_iterator())


@pytest.fixture(scope="module")
def t5(spiece):
    return str(spiece)


def test_every_feature_is_the_encoded_text_and_eos(tmp_path):
    vocabulary = load_vocabulary("bytes")
    rows = examples(seqio_task("x", own_data(tmp_path), TokenConfig("bytes")))
    for row, given in zip(rows, ROWS, strict=True):
        text = given["x"] + " train"
        expected = {
            "label_inputs": vocabulary.encode(f"predict: {text}"),
            "label_targets": vocabulary.encode(given["y"]),
            "rationale_inputs": vocabulary.encode(f"explain: {text}"),
            "rationale_targets": vocabulary.encode(given["r"] or ""),
        }
        for feature in FEATURES:
            assert row[feature].dtype == np.int32
            assert row[feature].tolist() == [*expected[feature], 1]
        assert row["input"].decode() == text
    # The separator is EOS inside the input.
    assert (rows[0]["label_inputs"] == 1).sum() == 2


def test_a_missing_rationale_is_eos_alone_with_weight_zero(tmp_path):
    rows = examples(seqio_task("x", own_data(tmp_path), TokenConfig("bytes")))
    assert [float(row["rationale_weight"]) for row in rows] == [1.0, 0.0, 1.0]
    assert [float(row["label_weight"]) for row in rows] == [1.0, 1.0, 1.0]
    assert rows[1]["rationale_targets"].tolist() == [1]


def test_the_papers_prefixes_by_option(tmp_path):
    (row, *_) = examples(
        seqio_task("x", own_data(tmp_path), TokenConfig("bytes", prefixes="paper"))
    )
    decode = load_vocabulary("bytes").decode
    assert decode(row["label_inputs"]) == "[label] red"
    assert decode(row["rationale_inputs"]) == "[rationale] red"


def test_truncation_keeps_eos_last_and_tells_the_full_length(tmp_path):
    tokens = TokenConfig(
        "bytes", max_input_length=12, max_label_length=4, max_rationale_length=1000
    )
    rows = examples(seqio_task("x", own_data(tmp_path), tokens))
    decode = load_vocabulary("bytes").decode
    assert [decode(row["label_inputs"]) for row in rows] == [
        "predict: re",
        "predict: ir",
        "predict: a ",
    ]
    assert [decode(row["label_targets"]) for row in rows] == ["blu", "bla", "red"]
    assert all(row[feature][-1] == 1 for row in rows for feature in FEATURES)
    assert [int(row["label_targets_full_length"]) for row in rows] == [5, 6, 4]
    assert int(rows[1]["label_inputs_full_length"]) == len("predict: iron pot train") + 1
    assert decode(rows[2]["rationale_targets"]) == ROWS[2]["r"]


def test_a_seqio_programs_own_sequence_length_keeps_eos_too(tmp_path):
    task = seqio_task("x", own_data(tmp_path), TokenConfig("bytes"))
    lengths = {"label_inputs": 6, "label_targets": 3, "rationale_inputs": 6}
    for row in examples(task, sequence_length={**lengths, "rationale_targets": 5}):
        assert row["label_inputs"].tolist()[-1] == 1
        assert len(row["label_inputs"]) == 6
        assert row["label_targets"].tolist()[-1] == 1
        assert len(row["label_targets"]) == 3


@pytest.mark.parametrize("dataset", ["anli", "cqa", "svamp", "esnli"])
def test_seqio_ids_equal_encode_on_real_rows(shared, t5, dataset):
    """Parity of the TensorFlow path with the path that needs none, on every field of the task."""
    config = DataConfig(dataset, data_dir=str(shared / "data"))
    pairs = load_pairs(config, "test")[0][:200]
    task = seqio_task("x", config, TokenConfig(t5), load=lambda *_: pairs)
    vocabulary = load_vocabulary(t5)
    rows = examples(task, "test")
    assert len(rows) == len(pairs)
    for row, pair in zip(rows, pairs, strict=True):
        assert row["label_inputs"].tolist() == [*vocabulary.encode(f"predict: {pair.input}"), 1]
        assert row["rationale_targets"].tolist() == [*vocabulary.encode(pair.rationale or ""), 1]
        assert row["label_targets"].tolist() == [*vocabulary.encode(pair.label), 1]
        assert row["gold"].decode() == pair.gold


@pytest.mark.parametrize("name", ["demo", "bytes", "t5"])
@pytest.mark.parametrize("text", ["", "</s>", "a </s></s> pot", "red</s>", "</s>naïve ½ \n x", "a"])
def test_seqio_ids_equal_encode_on_odd_texts(name, text, t5):
    name = t5 if name == "t5" else name
    theirs, ours = seqio_vocabulary(name), load_vocabulary(name)
    assert theirs.encode(text) == ours.encode(text)
    assert theirs.encode_tf(tf.constant(text)).numpy().tolist() == ours.encode(text)
    several = theirs.encode_tf(tf.constant([text, "red pot", text]))
    assert several.to_list() == [ours.encode(t) for t in (text, "red pot", text)]


def test_seqio_decodes_as_we_do(t5):
    theirs, ours = seqio_vocabulary(t5), load_vocabulary(t5)
    ids = [*ours.encode("so the answer is (b)"), 1, 42, 0]
    assert theirs.decode(ids) == "so the answer is (b)"
    batch = tf.constant([ids, ids])
    assert [x.decode() for x in theirs.decode_tf(batch).numpy()] == ["so the answer is (b)"] * 2
    assert (theirs.vocab_size, theirs.eos_id, theirs.pad_id, theirs.unk_id) == (32100, 1, 0, 2)


def test_tasks_are_made_without_data_or_vocabulary(monkeypatch):
    monkeypatch.delenv("STEPDISTILL_VOCABULARY", raising=False)
    monkeypatch.delenv("STEPDISTILL_DATA_DIR", raising=False)
    task = seqio_task("x", DataConfig("cqa"), TokenConfig())
    assert set(task.output_features) == set(FEATURES)
    assert seqio_vocabulary("/no/such/file") == seqio_vocabulary("/no/such/file")
    assert seqio_vocabulary("demo") != seqio_vocabulary("bytes")


def test_a_seqio_evaluator_scores_the_label_stream_against_gold(tmp_path):
    """SeqIO's own metric class: decoding, postprocessing, gold targets, metric function."""

    def share_right(targets, predictions):
        return {
            "right": float(np.mean([t == p for t, p in zip(targets, predictions, strict=True)]))
        }

    data = own_data(tmp_path)
    task = seqio_task("x", data, TokenConfig("bytes"), metric_fns=[share_right])
    rows = examples(task, "test")
    (metric_fn,) = task.metric_fns
    metric = seqio.metrics.LegacyMetric.empty(metric_fn, task.postprocess_fn)
    encode = load_vocabulary("bytes").encode
    predictions = np.zeros((3, 10), np.int32)
    for place, text in enumerate(["blue", " black ", "green"]):
        ids = [*encode(text), 1, 77]  # what follows EOS does not count
        predictions[place, : len(ids)] = ids
    result = metric.from_model_output(
        rows, predictions, task.output_features, target_field_name="label_targets"
    ).compute()
    assert result == {"right": pytest.approx(2 / 3)}


def test_a_registered_task_works_in_a_mixture(tmp_path):
    task = seqio_task("own_gold_step_by_step", own_data(tmp_path), TokenConfig("bytes"))
    seqio.TaskRegistry.add_provider("own_gold_step_by_step", task)
    seqio.MixtureRegistry.add("own_mixture", [("own_gold_step_by_step", 1.0)])
    try:
        mixture = seqio.get_mixture_or_task("own_mixture")
        lengths = dict.fromkeys(FEATURES, 64)
        dataset = mixture.get_dataset(lengths, split="train", shuffle=True, seed=0, num_epochs=1)
        rows = list(dataset.as_numpy_iterator())
        assert len(rows) == len(ROWS)
        assert all(set(FEATURES) <= row.keys() for row in rows)
    finally:
        seqio.TaskRegistry.remove("own_gold_step_by_step")
        seqio.MixtureRegistry.remove("own_mixture")


def test_choices_of_every_number_travel_with_their_rows(shared, t5):
    config = DataConfig("cqa", data_dir=str(shared / "data"))
    pairs, _ = load_pairs(config, "test")
    task = seqio_task("x", config, TokenConfig(t5), load=lambda *_: pairs[:30])
    rows = examples(task, "test")
    for row, pair in zip(rows, pairs[:30], strict=True):
        assert tuple(choice.decode() for choice in row["choices"]) == pair.choices
