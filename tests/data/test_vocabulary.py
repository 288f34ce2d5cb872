import functools
import json
import os
import random
import subprocess
import sys

import pytest

from stepdistill_jax.data import vocabulary as vocabulary_module
from stepdistill_jax.data.sources import Options, demo
from stepdistill_jax.data.vocabulary import (
    SentencePieceVocabulary,
    load_vocabulary,
    local_vocabulary,
)
from stepdistill_jax.spec import InputError


@functools.cache
def real_texts(shared):
    """240 real inputs of the four data sets, with prefixes, and 60 rationales of the teacher."""
    nli = "{premise}</s>{hypothesis}"
    cqa = "{question}\nAnswer Choices:\n{choices}"
    templates = {
        "esnli/esnli_test": nli,
        "anli1/anli1_test": nli,
        "cqa/cqa_test": cqa,
        "svamp/svamp_test": "{input}",
    }
    texts = []
    for name, template in templates.items():
        rows = [json.loads(line) for line in (shared / "data" / f"{name}.json").open()]
        for number, row in enumerate(random.Random(0).sample(rows, 60)):
            prefix = ("predict: ", "explain: ")[number % 2]
            texts.append(prefix + template.format(**row))
    outputs = json.loads((shared / "data/svamp/llm/test_CoT_0.json").read_text())
    return texts + random.Random(0).sample(outputs, 60)


@pytest.fixture(scope="module")
def t5(spiece):
    return load_vocabulary(str(spiece))


def test_ids_equal_hugging_faces_t5_tokenizer_on_real_inputs(t5, spiece, shared):
    transformers = pytest.importorskip("transformers")
    reference = transformers.T5TokenizerFast.from_pretrained(spiece.parent)
    texts = real_texts(shared)
    assert sum("</s>" in text for text in texts) == 120
    assert len(texts) == 300
    for text in texts:
        assert t5.encode(text) == reference(text, add_special_tokens=False).input_ids


@pytest.mark.parametrize(
    "text",
    [
        "",
        "</s>",
        "a</s></s>b",
        "</s>a",
        "a </s> b",
        " lead",
        "tab\tx\ny",
        "{a} ~ \\ < >",
        "naïve ﬁ ½",
    ],
)
def test_ids_equal_hugging_faces_t5_tokenizer_on_odd_texts(t5, spiece, text):
    transformers = pytest.importorskip("transformers")
    reference = transformers.T5TokenizerFast.from_pretrained(spiece.parent)
    assert t5.encode(text) == reference(text, add_special_tokens=False).input_ids


def test_t5_has_32000_pieces_and_100_sentinels_that_no_text_reaches(t5):
    assert t5.size == 32100
    assert len(t5.pieces()) == 32000
    assert t5.decode([32099, 32000]) == "<extra_id_0> <extra_id_99>"
    assert max(t5.encode("<extra_id_0> a <extra_id_1>")) < 32000


def test_decoding_returns_the_text_and_stops_at_the_first_eos(t5):
    ids = t5.encode("The answer is (84 - 2).")
    assert t5.decode(ids) == "The answer is (84 - 2)."
    assert t5.decode([0, *ids[:3], 0, *ids[3:], 1, 42, 1]) == "The answer is (84 - 2)."
    assert t5.decode([1, *ids]) == ""


def test_ids_of_the_padded_embedding_read_as_unknown(t5):
    """An untrained model may predict ids 32,100 to 32,127, which T5's embedding has."""
    assert t5.decode([32127]) == t5.decode([2])


def test_every_word_of_the_demo_is_one_known_token():
    vocabulary = load_vocabulary("demo")
    assert vocabulary.size == len(demo.words()) + 3
    texts = [f"[label] [rationale] predict: explain: {word}" for word in demo.words()]
    for seed in (0, 7):
        for row in demo.SOURCE.load(None, "test", Options(seed=seed)):
            texts += [f"predict: {row.input}", row.label, row.explanation]
    for text in texts:
        ids = vocabulary.encode(text)
        assert len(ids) == len(text.split())
        assert min(ids) > 2
        assert vocabulary.decode(ids) == text


def test_the_demo_vocabulary_is_the_same_in_another_process():
    program = (
        "from stepdistill_jax.data.vocabulary import load_vocabulary;"
        "v = load_vocabulary('demo'); print(v.fingerprint, ' '.join(v.pieces()))"
    )
    output = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, check=True, text=True
    ).stdout
    vocabulary = load_vocabulary("demo")
    assert output.strip() == f"{vocabulary.fingerprint} {' '.join(vocabulary.pieces())}"
    assert len(set(vocabulary.pieces())) == vocabulary.size


def test_another_sentencepiece_makes_the_same_demo_vocabulary(monkeypatch):
    """0.2.2 and 0.2.3 write the same words in other bytes; a run must go on with either."""
    result = load_vocabulary("demo")
    # To a protocol buffer, an empty trainer_spec more says nothing.
    other = result.model + b"\x12\x00"
    monkeypatch.setattr(vocabulary_module, "_demo_model", lambda: other)
    again = vocabulary_module._load.__wrapped__("demo", "VOCABULARY", "")
    assert again.model != result.model
    assert again.fingerprint == result.fingerprint


def test_bytes_are_three_ids_up_with_the_separator_as_eos():
    vocabulary = load_vocabulary("bytes")
    assert vocabulary.encode("aé</s>b") == [100, 0xC3 + 3, 0xA9 + 3, 1, 101]
    assert vocabulary.size == 259
    assert vocabulary.decode([100, 0, 2, 0xC3 + 3, 0xA9 + 3, 1, 101]) == "aé"
    # Half a character, as an untrained model writes, is left out.
    assert vocabulary.decode([100, 0xC3 + 3]) == "a"


def test_fingerprints_tell_vocabularies_apart(t5):
    prints = {t5.fingerprint, *(load_vocabulary(n).fingerprint for n in ("demo", "bytes"))}
    assert len(prints) == 3


def test_the_environment_names_the_vocabulary_where_none_is_given(monkeypatch, spiece, t5):
    monkeypatch.setenv("STEPDISTILL_VOCABULARY", str(spiece))
    assert load_vocabulary("").fingerprint == t5.fingerprint
    assert load_vocabulary("demo").fingerprint != t5.fingerprint
    monkeypatch.delenv("STEPDISTILL_VOCABULARY")
    with pytest.raises(InputError, match="VOCABULARY is empty and STEPDISTILL_VOCABULARY is not"):
        load_vocabulary("")


def test_a_missing_or_foreign_file_is_named(tmp_path):
    with pytest.raises(
        InputError, match=r"='/no/spiece.model': no file /no/spiece.model\. Set VOC"
    ):
        load_vocabulary("/no/spiece.model")
    foreign = tmp_path / "config.json"
    foreign.write_text('{"model_type": "t5"}')
    with pytest.raises(InputError, match=r"config.json': not a SentencePiece model \(20 bytes\)"):
        load_vocabulary(str(foreign))
    empty = tmp_path / "empty.model"
    empty.write_bytes(b"")
    with pytest.raises(InputError, match=r"empty.model': "):
        load_vocabulary(str(empty))


def test_a_missing_file_is_to_be_set_right_where_it_was_named(monkeypatch):
    with pytest.raises(InputError, match=r"^--vocabulary='/no': no file /no. Set --vocabulary to"):
        load_vocabulary("/no", "--vocabulary")
    monkeypatch.setenv("STEPDISTILL_VOCABULARY", "/no")
    with pytest.raises(InputError, match=r"\. Set STEPDISTILL_VOCABULARY to 'demo'"):
        load_vocabulary()


def test_a_model_with_other_fixed_ids_is_refused():
    """SentencePiece's own defaults (unknown 0, no padding) would mask real words as padding."""
    import io

    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(["a b c"]),
        model_writer=model,
        model_type="word",
        vocab_size=6,
        minloglevel=2,
    )
    with pytest.raises(InputError, match=r"got \(-1, 2, 0\), expected \(0, 1, 2\)"):
        SentencePieceVocabulary(model.getvalue(), 0, "mine")


def test_without_network_the_message_says_what_to_download(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # no waiting for retries
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.delenv("STEPDISTILL_VOCABULARY", raising=False)
    for name, setting in (
        ("google/t5-v1_1-base", "STEPDISTILL_VOCABULARY"),
        ("me/x", "VOCABULARY"),
    ):
        with pytest.raises(InputError) as error:
            load_vocabulary(f"hf:{name}")
        assert str(error.value) == (
            f"VOCABULARY='hf:{name}': spiece.model is not in {tmp_path} and cannot be downloaded "
            f"(HF_HUB_OFFLINE is set). Run `hf download {name} spiece.model --local-dir FOLDER` "
            f"where there is a network, copy FOLDER here and set {setting}=FOLDER."
        )
    with pytest.raises(InputError, match=r"^VOCABULARY='hf:a/b/c': expected a folder, or hf:OWNER"):
        load_vocabulary("hf:a/b/c")


def test_the_environment_supplies_a_hub_name_only_with_the_same_bytes(
    monkeypatch, spiece, t5, tmp_path
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))
    other = tmp_path / "spiece.model"
    other.write_bytes(load_vocabulary("demo").model)
    for path in (spiece, spiece.parent):
        monkeypatch.setenv("STEPDISTILL_VOCABULARY", str(path))
        for name in ("google/t5-v1_1-base", "google/flan-t5-xxl", "t5-small"):
            assert load_vocabulary(f"hf:{name}").fingerprint == t5.fingerprint
            assert local_vocabulary(f"hf:{name}").fingerprint == t5.fingerprint
        with pytest.raises(InputError, match=r"hf:google/mt5-small': spiece.model is not in"):
            load_vocabulary("hf:google/mt5-small")
    for value in (str(other), "bytes", "/no/such/file", "hf:google/t5-v1_1-base", ""):
        monkeypatch.setenv("STEPDISTILL_VOCABULARY", value)
        with pytest.raises(InputError, match=r"hf:google/t5-v1_1-base': spiece.model is not in"):
            load_vocabulary("hf:google/t5-v1_1-base")
        assert local_vocabulary("hf:google/t5-v1_1-base") is None


@pytest.mark.parametrize("setting", ["VOCABULARY", "STEPDISTILL_VOCABULARY"])
def test_a_hub_that_does_not_answer_is_asked_once_and_the_error_names_the_setting(
    setting, tmp_path
):
    """In a process of its own: the hub's library reads its settings when it is imported."""
    name = "hf:google/t5-v1_1-small"
    environment = os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    environment |= {"HF_HUB_OFFLINE": "0", "STEPDISTILL_VOCABULARY": name}
    program = f"""
import time
from stepdistill_jax.data.vocabulary import load_vocabulary
started = time.perf_counter()
try:
    load_vocabulary({name if setting == "VOCABULARY" else ""!r})
except ValueError as error:
    print(error)
assert time.perf_counter() - started < 12
"""
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{setting}={name!r}: spiece.model is not in {tmp_path}")
    assert done.stdout.endswith("copy FOLDER here and set STEPDISTILL_VOCABULARY=FOLDER.\n")


def test_a_hub_name_reads_the_local_cache(tmp_path, monkeypatch, spiece, t5):
    import huggingface_hub

    snapshot = tmp_path / "models--google--t5-v1_1-small" / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    (snapshot / "spiece.model").symlink_to(spiece)
    refs = tmp_path / "models--google--t5-v1_1-small" / "refs"
    refs.mkdir()
    (refs / "main").write_text("0123abc")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert load_vocabulary("hf:google/t5-v1_1-small").fingerprint == t5.fingerprint
