"""What a teacher is shown: the formats, turns, hints, hashes, and a user's own exemplars."""

import dataclasses
import json

import pytest

from stepdistill_jax.data.config import DataConfig
from stepdistill_jax.data.parse import parse
from stepdistill_jax.data.sources import ColumnConfig
from stepdistill_jax.records import Annotation, Example
from stepdistill_jax.spec import InputError
from stepdistill_jax.teacher import prompts
from stepdistill_jax.teacher.config import ExtractConfig
from stepdistill_jax.teacher.requests import HINT, Decoding, Message

NLI = ("entailment", "neutral", "contradiction")
ESNLI = {
    "instruction": "Judge.",
    "exemplars": [
        {"premise": "A cat naps.", "hypothesis": "It rests.", "rationale": "R1.", "label": NLI[0]},
        {"premise": "A dog runs.", "hypothesis": "It naps.", "rationale": "R2.", "label": NLI[2]},
    ],
}
ROW = Example("7", "A bird sings.</s>It is a wren.", "neutral", choices=NLI, where="x.json:8")
OWN_ROWS = [
    {
        "uid": 4,
        "story": "Mia waters the fern.",
        "ask": "Is it wet?",
        "gold": 1,
        "why": "Water wets.",
    },
    {"story": "Bo bakes.", "ask": "Is it {cold}?", "gold": 0, "why": "Ovens are hot.", "x": None},
]
OWN = ColumnConfig(
    train_file="train.jsonl",
    id_column="uid",
    input_template="{story}</s>{ask}",
    label_column="gold",
    rationale_column="why",
    label_set=((0, "no"), (1, "yes")),
)


def config(**changes):
    return ExtractConfig(**{"extract_dir": "x", "teacher_model": "m", **changes})


def write(folder, content):
    path = folder / "mine.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def load(folder, content, dataset="esnli", columns=None, seed=0, **changes):
    data = DataConfig(dataset, columns=columns, data_seed=seed)
    return prompts.load(config(prompt_file=write(folder, content), **changes), data)


def load_own(folder, rows, columns=OWN, **more):
    return load(folder, {"exemplars": rows, **more}, "jsonl", columns, prompt_form="completion")


def test_a_completion_ends_where_the_rationale_begins(tmp_path):
    extract = config(prompt_form="completion", max_new_tokens=9, temperature=0.5, sampling_seed=3)
    prompt = load(tmp_path, ESNLI, prompt_form="completion")
    request = prompt.request(ROW, extract, sample=2)
    assert request.prompt == (
        "Judge.\n\n"
        "Premise: A cat naps.\nHypothesis: It rests.\nReasonings: R1.\nAnswer: entailment\n\n"
        "Premise: A dog runs.\nHypothesis: It naps.\nReasonings: R2.\nAnswer: contradiction\n\n"
        "Premise: A bird sings.\nHypothesis: It is a wren.\nReasonings:"
    )
    assert request.prompt.startswith(prompt.prefix_text())
    assert (request.example_id, request.model, request.messages) == ("7", "m", ())
    assert request.stop == ("\nPremise:",)
    # Samples of one seed would be the same answer over and over.
    assert request.decoding == Decoding(0.5, 1.0, 9, seed=5)


def test_a_chat_has_the_exemplars_in_turns_and_the_row_as_the_last(tmp_path):
    prompt = load(tmp_path, ESNLI)
    request = prompt.request(ROW, config())
    assert request.prompt == ""
    assert request.messages == (
        Message("system", "Judge."),
        Message("user", "Premise: A cat naps.\nHypothesis: It rests."),
        Message("assistant", "R1.\nAnswer: entailment"),
        Message("user", "Premise: A dog runs.\nHypothesis: It naps."),
        Message("assistant", "R2.\nAnswer: contradiction"),
        Message("user", "Premise: A bird sings.\nHypothesis: It is a wren."),
    )
    assert prompt.prefix_text().endswith("[assistant]\nR2.\nAnswer: contradiction")
    without = load(tmp_path, {"exemplars": ESNLI["exemplars"]})
    assert [turn.role for turn in without.messages(ROW)] == ["user", "assistant"] * 2 + ["user"]


@pytest.mark.parametrize(
    ("dataset", "example", "ending"),
    [
        ("anli", ROW, "Premise: A bird sings.\nHypothesis: It is a wren.\nAnswer:"),
        (
            "cqa",
            Example("1", "Where?\nAnswer Choices:\n(a) sea\n(b) sky", "sky", None, ("sea", "sky")),
            "Q: Where?\nAnswer Choices:\n(a) sea\n(b) sky\nA:",
        ),
        ("svamp", Example("1", "Two ducks.\nHow many?", "2"), "Q: Two ducks.\nHow many?\nA:"),
    ],
)
def test_shipped_prompts_ask_in_the_formats_of_the_release(dataset, example, ending):
    prompt = prompts.load(config(prompt_form="completion"), DataConfig(dataset))
    assert prompt.text(example) == prompt.prefix_text() + ending
    assert prompt.format == dataset


def test_asdiv_is_asked_with_the_prompt_of_svamp():
    svamp, asdiv = (prompts.load(config(), DataConfig(name)) for name in ("svamp", "asdiv"))
    assert svamp.hash == asdiv.hash


def test_the_hint_gives_the_gold_label_as_answers_give_it(tmp_path):
    prompt = load(tmp_path, ESNLI, prompt_form="completion")
    hinted = prompt.request(ROW, config(), HINT)
    assert hinted.purpose == HINT
    assert hinted.prompt.endswith(
        "Premise: A bird sings.\nHypothesis: It is a wren.\n"
        "Hint: the correct answer is neutral.\nReasonings:"
    )
    # The exemplars show how a hint is used; asked without one they have none.
    assert hinted.prompt.count("Hint: ") == 3
    assert "Hint" not in prompt.text(ROW)
    with pytest.raises(InputError, match=r"x.json:8: no gold label to give as a hint"):
        prompt.request(dataclasses.replace(ROW, label=None), config(), HINT)

    choices = ("sea", "sky", "den", "bog", "bay")
    example = Example("1", "Where?", "den", choices=choices)
    cqa = prompts.load(config(), DataConfig("cqa"))
    assert cqa.messages(example, HINT)[-1].content.endswith(
        "\nHint: the correct answer is (c) den."
    )
    svamp = prompts.load(config(), DataConfig("svamp"))
    asked = svamp.messages(Example("1", "How?", "( ( 17.0 + 10.50 ) / 2.0 )"), HINT)[-1].content
    assert asked == "Q: How?\nHint: the correct answer is ((17 + 10.50) / 2)."


def test_the_hash_is_of_all_that_decides_the_text_but_the_row(tmp_path):
    base = load(tmp_path, ESNLI)
    first, second = ESNLI["exemplars"]
    variants = [
        {**ESNLI, "instruction": "Decide."},
        {**ESNLI, "exemplars": [second, first]},
        {**ESNLI, "exemplars": [first]},
        {**ESNLI, "exemplars": [first, {**second, "rationale": "R3."}]},
    ]
    hashes = [base.hash, *(load(tmp_path, content).hash for content in variants)]
    hashes.append(load(tmp_path, ESNLI, prompt_form="completion").hash)
    hashes.append(load(tmp_path, ESNLI, "anli").hash)
    assert len(set(hashes)) == len(hashes)
    # Neither the file's layout nor its notes nor how answers are sampled are part of it.
    again = load(tmp_path, json.dumps({"note": "n", **ESNLI}, indent=4), temperature=1.0)
    assert again.hash == base.hash


def test_own_exemplars_are_rows_of_the_data_set_read_by_its_columns(tmp_path):
    prompt = load_own(tmp_path, OWN_ROWS)
    row = Example("0", "Ann swims.</s>Is she dry?", None, choices=("no", "yes"))
    assert prompt.text(row) == (
        "Answer as in the examples: give your reasoning in a sentence or two, then end with "
        '"So the answer is X.", where X is the answer, one of: no, yes.\n\n'
        "Q: Mia waters the fern.\nIs it wet?\nA: Water wets. So the answer is yes.\n\n"
        "Q: Bo bakes.\nIs it {cold}?\nA: Ovens are hot. So the answer is no.\n\n"
        "Q: Ann swims.\nIs she dry?\nA:"
    )
    assert load_own(tmp_path, OWN_ROWS, instruction="Say.").prefix_text().startswith("Say.\n\nQ: ")
    answer = " Water is wet. So the answer is no.\n\nQ: and so on"
    assert parse(prompt.format, row, answer) == Annotation("0", "Water is wet.", "no")


def test_own_unlabelled_data_has_labels_in_its_exemplars_alone(tmp_path):
    columns = ColumnConfig(train_file="t.jsonl", input_template="{q}", label_column="")
    rows = [{"q": "Capital of Peru?", "label": "Lima", "rationale": "It has been since 1535."}]
    prompt = load_own(tmp_path, rows, columns)
    row = Example("0", "Capital of Chad?", None)
    assert prompt.text(row).endswith(
        "Q: Capital of Peru?\nA: It has been since 1535. So the answer is Lima.\n\n"
        "Q: Capital of Chad?\nA:"
    )
    assert parse(prompt.format, row, "r. So the answer is N'Djamena.").label == "N'Djamena"


@pytest.mark.parametrize(
    ("column", "key", "message"),
    [
        ("", "reason", r"no key 'rationale' \(RATIONALE_COLUMN=''\): got 'q', .*Add 'rationale'"),
        ("why", "rationale", r"no key 'why' \(RATIONALE_COLUMN='why'\): .*\. Add 'why'\.$"),
    ],
)
def test_an_exemplar_without_its_rationale_is_told_what_to_call_it(tmp_path, column, key, message):
    columns = ColumnConfig(train_file="t.jsonl", input_template="{q}", rationale_column=column)
    with pytest.raises(InputError, match=rf"mine.json: exemplar 1: {message}"):
        load_own(tmp_path, [{"q": "Capital of Peru?", "label": "Lima", key: "It is."}], columns)


def test_own_equations_are_read_as_such(tmp_path):
    columns = ColumnConfig(
        train_file="t.jsonl", input_template="{q}", rationale_column="w", metric="equation"
    )
    rows = [{"q": "2 and 3?", "label": "2 + 3", "w": "Add them."}]
    prompt = load_own(tmp_path, rows, columns)
    assert prompt.format == "own_equation"
    assert prompt.text(Example("0", "x", None)).count("So the answer is 2 + 3.") == 1
    with pytest.raises(InputError, match=r"exemplar 1: label 'two' has no arithmetic value \(name"):
        load_own(tmp_path, [{**rows[0], "label": "two"}], columns)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            '{"exemplars": [\n{"a" 1}]}',
            r"mine.json:2: not JSON \(.* at column 6\)\. Write the file",
        ),
        (
            '{"exemplars": ["a\nb"]}',
            r"json:1: not JSON \(Invalid control character at the end of the line\)\. .* \\n\.$",
        ),
        ([], r"mine.json: got list, expected \{"),
        ({}, r"mine.json: no key 'exemplars'"),
        ({"exemplars": []}, r"mine.json: 'exemplars' is empty. Write at least one"),
        ({"exemplars": {"a": 1}}, r"'exemplars' is dict \{'a': 1\}, expected a list of rows"),
        ({**ESNLI, "examples": []}, r"unknown key 'examples', expected .*Did you mean 'exemplars'"),
        (
            {"exemplars": ESNLI["exemplars"], "instructions": "Say."},
            r"unknown key 'instructions', expected some of instruction, .*mean 'instruction'",
        ),
        ({**ESNLI, "instruction": 3}, r"mine.json: 'instruction' is not text"),
        ({"exemplars": ["x"]}, r"mine.json: exemplar 1: str 'x', expected a JSON object"),
        ('{"exemplars": ["\\ud800"]}', r"mine.json: a text contains \\ud800 alone"),
    ],
)
def test_a_malformed_file_is_named_with_its_line(tmp_path, content, message):
    with pytest.raises(InputError, match=message):
        load(tmp_path, content)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": "maybe"}, r"exemplar 2: label 'maybe' is not one of entailment, neutral"),
        ({"label": 2}, r"exemplar 2: 'label': got int 2, expected str"),
        ({"rationale": " "}, r"exemplar 2: 'rationale' is empty\. Correct it\.$"),
        ({"why": "R"}, r"exemplar 2: unknown keys 'why', expected premise, hyp"),
        ({"premise": "A</s>B"}, r"exemplar 2: 3 texts, expected premise and hypothesis"),
        ({"premise": "A cat naps.", "hypothesis": "It rests."}, r"exemplar 2 has the input of ex"),
        (
            {"rationale": "R.\nAnswer: neutral"},
            r"mine.json: exemplar 2: .* would be parsed as a failure \(several answers\)",
        ),
        (
            {"rationale": "R.\nPremise: x"},
            r"exemplar 2: .* would be parsed as a failure \(no answer marker\)\. Remove",
        ),
    ],
)
def test_an_exemplar_that_cannot_teach_is_named_by_its_number(tmp_path, change, message):
    first, second = ESNLI["exemplars"]
    with pytest.raises(InputError, match=message):
        load(tmp_path, {"exemplars": [first, {**second, **change}]})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gold": 2}, r"mine.json: exemplar 1: got label 2, expected one of 0, 1. .*LABEL_SET"),
        ({"gold": None}, r"exemplar 1: 'gold' \(LABEL_COLUMN\) is null, but an exemplar needs it"),
        ({"why": None}, r"exemplar 1: 'why' \(RATIONALE_COLUMN\) is null"),
        ({"ask": 3}, r"exemplar 1: column 'ask': got int 3, expected str"),
        (
            {"why": "Q: what? A: so"},
            r"exemplar 1: .* would be parsed as a failure \(no answer mark",
        ),
    ],
)
def test_an_own_exemplar_that_does_not_fit_the_columns_is_named(tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        load_own(tmp_path, [{**OWN_ROWS[0], **change}])


def test_what_is_missing_is_said(tmp_path):
    with pytest.raises(InputError, match="PROMPT_FILE='/no': not a file"):
        prompts.load(config(prompt_file="/no"), DataConfig("esnli"))
    own = DataConfig("jsonl", columns=OWN)
    with pytest.raises(InputError, match=r"no exemplars .* for DATASET='jsonl'. Set it to"):
        prompts.load(config(), own)
    row = {key: value for key, value in OWN_ROWS[0].items() if key != "ask"}
    with pytest.raises(InputError, match=r"exemplar 1: no column 'ask', got .*INPUT_TEMPLATE"):
        load_own(tmp_path, [row])


def test_the_shipped_demo_belongs_to_one_world():
    prompts.load(config(), DataConfig("demo", data_seed=0))
    with pytest.raises(InputError, match=r"demo.json: written for DATA_SEED=0, but DATA_SEED=1"):
        prompts.load(config(), DataConfig("demo", data_seed=1))


def test_an_nli_input_without_two_sentences_is_named():
    prompt = prompts.load(config(), DataConfig("anli"))
    with pytest.raises(InputError, match=r"in.jsonl:3: 1 texts, expected premise and hypothesis"):
        prompt.request(Example("a", "One.", None, where="in.jsonl:3"), config())
