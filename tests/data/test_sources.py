"""Raw released files to examples: what a row becomes, and the text of every refusal."""

import json
import re

import pytest
from etils import epath

from stepdistill_jax.data.sources import SOURCES, ColumnConfig, Options
from stepdistill_jax.data.sources.asdiv import gold_label
from stepdistill_jax.spec import InputError

NLI_ROW = {
    "premise": "Two women embrace.",
    "hypothesis": "They hug goodbye.",
    "label": 1,
    "explanation_1": "Not every embrace is a goodbye.",
}
ANLI_ROW = {
    "uid": "u1",
    "premise": "A shop opened.",
    "hypothesis": "It is new.",
    "label": 0,
    "reason": "It opened. ",
}
CQA_ROW = {
    "id": "8a1f0c2d99",
    "question": "Where does a bum live?",
    "choices": ["bus depot", "beach", "train station", "bridge", "bridge"],
    "answer": "bridge",
    "abstractive_explanation": "bums live under bridges.",
    "extractive_explanation": "a bum",
}
SVAMP_ROW = {
    "input": "Luke scored 84 points in 2 rounds.\nHow many per round?",
    "label": "( 84 / 2 )",
}

FILES = {
    "esnli": ("esnli/esnli_train.json", NLI_ROW),
    "anli": ("anli1/anli1_train.json", ANLI_ROW),
    "cqa": ("cqa/cqa_train.json", CQA_ROW),
    "svamp": ("svamp/svamp_train.json", SVAMP_ROW),
}


def write(tmp_path, name, *rows):
    """The data set's train file; a str row is written as it is."""
    path = tmp_path / FILES[name][0]
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n")
    return epath.Path(tmp_path)


def load(tmp_path, name, *rows, **options):
    return SOURCES[name].load(write(tmp_path, name, *rows), "train", Options(**options))


def changed(name, **changes):
    row = {**FILES[name][1], **changes}
    return {key: value for key, value in row.items() if value is not ...}


def test_nli_joins_the_sentences_by_the_separator(tmp_path):
    first, second = load(tmp_path, "esnli", NLI_ROW, changed("esnli", label=2))
    assert first.input == "Two women embrace.</s>They hug goodbye."
    assert (first.id, first.label, second.id, second.label) == (
        "0",
        "neutral",
        "1",
        "contradiction",
    )
    assert first.explanation == "Not every embrace is a goodbye."
    assert first.choices == ("entailment", "neutral", "contradiction")
    assert second.where == "esnli_train.json:2"


def test_anli_has_its_own_ids_and_reasons(tmp_path):
    (example,) = load(tmp_path, "anli", ANLI_ROW)
    assert (example.id, example.label, example.explanation) == ("u1", "entailment", "It opened.")


def test_cqa_letters_the_choices_and_keeps_twins(tmp_path):
    (example,) = load(tmp_path, "cqa", CQA_ROW)
    assert example.input == (
        "Where does a bum live?\nAnswer Choices:\n(a) bus depot\n(b) beach\n(c) train station\n"
        "(d) bridge\n(e) bridge"
    )
    assert (example.label, example.choices[3:]) == ("bridge", ("bridge", "bridge"))


def test_svamp_label_is_the_equation(tmp_path):
    (example,) = load(tmp_path, "svamp", SVAMP_ROW)
    assert (example.id, example.label, example.choices) == ("0", "( 84 / 2 )", ())


BAD_ROWS = [
    (
        "cqa",
        changed("cqa", choices=["park", "beach", "bridge", "depot"]),
        r"^cqa_train.json:2: got 4 choices, expected 5 \(id 8a1f…\)\. Fix the row, or set "
        r"SKIP_BAD_ROWS=True\.$",
    ),
    (
        "cqa",
        changed("cqa", choices=["a", "b", "c", "d", " "]),
        r"^cqa_train.json:2: got choice ' ', expected a text",
    ),
    (
        "cqa",
        changed("cqa", answer="tent"),
        r"^cqa_train.json:2: answer 'tent' is not one of the choices \['bus depot'",
    ),
    (
        "cqa",
        changed("cqa", answer=...),
        r"^cqa_train.json:2: no key 'answer', got 'id', 'question', ",
    ),
    (
        "cqa",
        changed("cqa", choices="abcde"),
        r"^cqa_train.json:2: 'choices': got str 'abcde', expected list",
    ),
    ("cqa", changed("cqa", question=" "), r"^cqa_train.json:2: 'question' is empty. Fix"),
    ("cqa", CQA_ROW, r"^cqa_train.json:2: id 8a1f0c2d99 was already used at cqa_train.json:1. Fix"),
    (
        "esnli",
        changed("esnli", label=3),
        r"^esnli_train.json:2: got label 3, expected one of 0 \(entailment\), 1 \(neutral\), 2 \(",
    ),
    ("esnli", changed("esnli", label=-1), r"^esnli_train.json:2: got label -1, expected one of 0"),
    ("esnli", changed("esnli", label="neutral"), r"'label': got str 'neutral', expected int. Fix"),
    ("esnli", changed("esnli", label=True), r"'label': got bool True, expected int"),
    ("esnli", changed("esnli", hypothesis=None), r"'hypothesis': got NoneType None, expected str"),
    (
        "esnli",
        changed("esnli", premise="a</s>b"),
        r"^esnli_train.json:2: a sentence contains .*'</s>'",
    ),
    ("anli", changed("anli", reason=..., uid="u2"), r"^anli1_train.json:2: no key 'reason', got"),
    ("anli", ANLI_ROW, r"^anli1_train.json:2: id u1 was already used at anli1_train.json:1"),
    (
        "svamp",
        changed("svamp", label="9**9**9"),
        r"^svamp_train.json:2: label '9\*\*9\*\*9' has no arithmetic value \(power\). Fix the row",
    ),
]


@pytest.mark.parametrize(("name", "bad", "message"), BAD_ROWS)
def test_a_bad_row_is_named_or_skipped_and_counted(tmp_path, name, bad, message):
    good = FILES[name][1]
    with pytest.raises(InputError, match=message):
        load(tmp_path, name, good, bad)
    skipped = []
    examples = load(tmp_path, name, good, bad, skipped=skipped)
    assert len(examples) == 1
    assert len(skipped) == 1
    assert re.search(message, skipped[0])


def test_ids_by_row_number_do_not_move_when_a_row_is_skipped(tmp_path):
    examples = load(tmp_path, "esnli", changed("esnli", label=9), NLI_ROW, skipped=[])
    assert [example.id for example in examples] == ["1"]


def test_a_truncated_line_is_an_error_even_when_bad_rows_are_skipped(tmp_path):
    cut = json.dumps(CQA_ROW)[:40]
    message = (
        r"^cqa_train.json:2: not a JSON object \(.* at the end of the line\); the line is damaged "
        r"or truncated\. Fetch the file again\.$"
    )
    with pytest.raises(InputError, match=message):
        load(tmp_path, "cqa", CQA_ROW, cut)
    with pytest.raises(InputError, match=message):
        load(tmp_path, "cqa", CQA_ROW, cut, skipped=[])


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"svamp_train\.json: no such file"):
        SOURCES["svamp"].load(epath.Path(tmp_path), "train", Options())


@pytest.mark.parametrize(
    ("formula", "answer", "label"),
    [
        ("7+2=9", "9 (apples)", "7+2"),
        ("10.20-2.5=7.7", "7.7 (dollars)", "10.20-2.5"),
        ("10/3=3.333", "3.333 (minutes)", "10/3"),
        ("600*2=1200", "1,200 (pounds)", "600*2"),
        ("17/7=2 r3", "2 (croissants)", None),
        ("1.80+1.40=3.2; 11.15-3.2=7.95", "7.95 (dollars)", None),
        ("6 (penny)*1 (cent/penny) = 6 (cent)", "6 (cents)", None),
        ("15:18=5:6", "5:6", None),
        ("3(75+15)=270", "270 (m)", None),
        ("7+2=9", "8 (apples)", None),
        ("7+2=10", "10 (apples)", None),
        ("10/3=3", "3 (minutes)", None),
        ("17 centimeters < 18 centimeters", "Cesar", None),
    ],
)
def test_asdiv_gold_label_only_where_certain(formula, answer, label):
    assert gold_label(formula, answer) == label


def asdiv(tmp_path, text, **options):
    path = tmp_path / "asdiv" / "ASDiv.xml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return SOURCES["asdiv"].load(epath.Path(tmp_path), "train", Options(**options))


PROBLEM = (
    '<Problem ID="nluds-0001"><Body>Seven apples and two pears.</Body><Question>How many fruits? '
    "</Question><Answer>9 (fruits)</Answer><Formula>7+2=9</Formula></Problem>"
)


def test_asdiv_reads_problems(tmp_path):
    (example,) = asdiv(tmp_path, f"<Set>{PROBLEM}</Set>")
    assert example.input == "Seven apples and two pears.\nHow many fruits?"
    assert (example.id, example.label) == ("nluds-0001", "7+2")


def test_asdiv_errors_name_the_problem(tmp_path):
    bad = PROBLEM.replace("How many fruits? ", "").replace("0001", "0002")
    message = r"^ASDiv.xml:2: problem nluds-0002 has no Question. Fix the row, or set SKIP_BAD_ROWS"
    with pytest.raises(InputError, match=message):
        asdiv(tmp_path, f"<Set>{PROBLEM}{bad}</Set>")
    with pytest.raises(InputError, match=r"ASDiv.xml:2: id nluds-0001 was already used"):
        asdiv(tmp_path, f"<Set>{PROBLEM}{PROBLEM}</Set>")
    skipped = []
    assert len(asdiv(tmp_path, f"<Set>{PROBLEM}{bad}</Set>", skipped=skipped)) == len(skipped) == 1
    with pytest.raises(
        InputError,
        match=r"^ASDiv.xml:1: damaged or truncated XML \(no element found.*Fetch",
    ):
        asdiv(tmp_path, f"<Set>{PROBLEM}")


def test_rows_of_the_public_files(shared):
    data_dir = epath.Path(shared) / "data"
    rows = {
        ("esnli", "validation"): 9842,
        ("esnli", "test"): 9824,
        ("anli", "validation"): 1000,
        ("anli", "test"): 1000,
        ("cqa", "train"): 9741,
        ("cqa", "test"): 1221,
        ("svamp", "train"): 800,
        ("svamp", "test"): 200,
        ("asdiv", "train"): 2305,
    }
    for (name, split), count in rows.items():
        assert len(SOURCES[name].load(data_dir, split, Options())) == count
    labelled = [e for e in SOURCES["asdiv"].load(data_dir, "train", Options()) if e.label]
    assert len(labelled) == 1534


@pytest.mark.parametrize("template", ["{a.b}", "{a[0]}", "{a!r}", "{a:>9}", "{}", "{a", "a}"])
def test_a_template_holds_plain_fields_only(template):
    with pytest.raises(InputError, match="INPUT_TEMPLATE"):
        ColumnConfig(input_template=template)


def test_template_fields_and_label_sets():
    columns = ColumnConfig(
        input_template="{{x}} {premise}</s>{hypothesis}", label_set=((0, "yes"), (1, "no"))
    )
    assert columns.input_fields() == ("premise", "hypothesis")
    assert columns.label_texts() == ("yes", "no")
    assert columns.label_map() == {0: "yes", 1: "no"}
    assert ColumnConfig(label_set=("yes", "no")).label_map() == {"yes": "yes", "no": "no"}
