"""Teacher outputs: the published accuracies, what is repaired, what is refused and why."""

import json

import pytest
from etils import epath

from stepdistill_jax.data import parse as parser
from stepdistill_jax.data.metrics import accuracy
from stepdistill_jax.data.parse import parse, parse_release
from stepdistill_jax.data.sources import SOURCES, Options
from stepdistill_jax.data.teacher_outputs import output_files, read_outputs
from stepdistill_jax.records import Annotation, Example, ParseFailure

NLI = ("entailment", "neutral", "contradiction")
CHOICES = ("park", "coloring book", "garden center", "math problem", "math problem")


def row(choices=()):
    return Example(id="7", input="", label=None, choices=choices)


def read(format, raw, choices=()):
    choices = {"esnli": NLI, "anli": NLI, "cqa": choices or CHOICES, "svamp": ()}[format]
    return parse(format, row(choices), raw)


# Published: the paper's few-shot CoT PaLM 540B, test; validation and train from its outputs.
# Repaired: ours, so that a change of the parser shows.
ACCURACIES = [
    ("esnli", "validation", "73.17", "73.17", 4),
    ("esnli", "test", "72.99", "72.99", 0),
    ("anli", "validation", "66.80", "67.50", 1),
    ("anli", "test", "65.60", "66.40", 0),
    ("cqa", "train", "74.26", "75.38", 298),
    ("cqa", "test", "77.23", "78.38", 29),
    ("svamp", "train", "73.25", "74.25", 34),
    ("svamp", "test", "74.00", "77.50", 7),
]


@pytest.mark.parametrize(("name", "split", "published", "repaired", "failures"), ACCURACIES)
def test_teacher_accuracy_is_the_published_one(shared, name, split, published, repaired, failures):
    source = SOURCES[name]
    data_dir = epath.Path(shared) / "data"
    examples = source.load(data_dir, split, Options())
    raw = [text for file in output_files(source, data_dir, split) for text in read_outputs(file)]
    golds = [example.label for example in examples]

    released = [parse_release(source.teacher_format, text)[1] for text in raw]
    assert f"{100 * accuracy(source.metric, released, golds).accuracy:.2f}" == published

    parsed = [parse(source.teacher_format, e, text) for e, text in zip(examples, raw, strict=True)]
    ours = [output.label if isinstance(output, Annotation) else "" for output in parsed]
    assert f"{100 * accuracy(source.metric, ours, golds).accuracy:.2f}" == repaired
    assert sum(isinstance(output, ParseFailure) for output in parsed) == failures
    # A label that the release's rules read and that scores is never lost to a repair.
    for theirs, mine, gold in zip(released, ours, golds, strict=True):
        if name != "svamp" and theirs == gold and mine:
            assert mine == gold


@pytest.mark.parametrize(
    ("format", "raw", "rationale", "label"),
    [
        (
            "esnli",
            "Singing is no crack.\nAnswer: neutral\n\nPremise: A\nHypothesis: B\nAnswer: neutral",
            "Singing is no crack.",
            "neutral",
        ),
        (
            "anli",
            "Oxford Street is not there. So the answer is contradiction.\n\nPremise: x So the "
            "answer is neutral.",
            "Oxford Street is not there.",
            "contradiction",
        ),
        (
            "cqa",
            "It must be sums. So the answer is (d) math problem.\n\nQ: Next?\nAnswer Choices:\n(a) "
            "x\nA: So the answer is (a) x.",
            "It must be sums.",
            "math problem",
        ),
        ("svamp", "84 / 2 = 42. The answer is (84 / 2).\n\nQ: x", "84 / 2 = 42.", "(84 / 2)"),
    ],
)
def test_agreed_format_is_read_without_repair_and_the_run_on_is_cut(format, raw, rationale, label):
    assert read(format, raw) == Annotation("7", rationale, label, repaired=False)
    assert parse_release(format, raw) == (rationale, label)


@pytest.mark.parametrize(
    ("format", "raw", "label"),
    [
        ("esnli", "r\nAnswer: Neutral.", "neutral"),
        ("esnli", "r\nAnswer:neutral", "neutral"),
        ("esnli", "r\nAnswer:\nneutral", "neutral"),
        ("esnli", "r\nAnswer: entailment\n\nPre", "entailment"),
        ("esnli", "r\nAnswer: contradic", "contradiction"),
        ("anli", "r, so the answer is entailment.\n\nPremise: x", "entailment"),
        ("anli", "r. The answer is contradiction.\n\nPremise: x", "contradiction"),
        ("anli", "r. So the answer is entailment", "entailment"),
        ("cqa", "r So the answer is (b) Coloring Book.", "coloring book"),
        ("cqa", "r So the answer is (b).", "coloring book"),
        ("cqa", "r So the answer is (b) colour", None),
        ("cqa", "r So the answer is (b) color", "coloring book"),
        ("cqa", "r So the answer is (b) coloring.", "coloring book"),
        ("cqa", "r So the answer is (b) colouring book.", "coloring book"),
        ("cqa", "r So the answer is (b) coloring-book.", "coloring book"),
        ("cqa", "r So the answer is math problem.", "math problem"),
        ("cqa", "r, so the answer is (a) park.", "park"),
        ("svamp", "r The answer is (2 + 14) + 16.\n\nQ: x", "(2 + 14) + 16"),
        ("svamp", "r The answer is 2 + 14.\n\nQ: x", "2 + 14"),
        ("svamp", "r The answer is 16.", "16"),
    ],
)
def test_certain_repairs(format, raw, label):
    output = read(format, raw)
    if label is None:
        assert isinstance(output, ParseFailure)
    else:
        assert (output.label, output.rationale.rstrip(".")) == (label, "r")
        assert output.repaired


@pytest.mark.parametrize(
    ("format", "raw", "reason"),
    [
        ("esnli", "The men stand by a docked boat.\n", parser.NO_MARKER),
        ("esnli", "", parser.NO_MARKER),
        ("esnli", "Premise: x\nAnswer: neutral", parser.NO_MARKER),
        ("esnli", "r\nAnswer: maybe\n", parser.NOT_IN_SET),
        ("esnli", "r\nAnswer: not entailment", parser.NOT_IN_SET),
        ("esnli", "r\nAnswer: en", parser.NOT_IN_SET),
        ("esnli", "r\nAnswer: contradic\n\nPremise:", parser.NOT_IN_SET),
        ("esnli", "r\nAnswer: neutral or entailment", parser.SEVERAL),
        ("esnli", "r\nAnswer: neutral\nAnswer: entailment", parser.SEVERAL),
        ("cqa", "r So the answer is either (a) park or (d) math problem.", parser.SEVERAL),
        ("cqa", "r So the answer is (a) park. So the answer is (b) coloring book.", parser.SEVERAL),
        ("cqa", "r So the answer is one of these four.", parser.NOT_A_CHOICE),
        ("cqa", "r So the answer is (a) water.", parser.NOT_A_CHOICE),
        ("cqa", "r So the answer is not (a) park.", parser.NOT_A_CHOICE),
        ("cqa", "r So the answer is (z) park.", parser.NOT_A_CHOICE),
        ("cqa", "r So the answer is (b) park.", parser.DISAGREE),
        ("svamp", "r The answer is (some - 551).\n\nQ:", f"{parser.NOT_ARITHMETIC}: name"),
        ("svamp", "r The answer is (7x = 14).", f"{parser.NOT_ARITHMETIC}: name"),
        ("svamp", "r The answer is (14, 21).", f"{parser.NOT_ARITHMETIC}: unexpected character"),
        ("svamp", "r The answer is (9**9**9).", f"{parser.NOT_ARITHMETIC}: power"),
        ("svamp", "r The answer is (9 + 6", parser.CUT_SHORT),
        ("svamp", "r The answer is 16", parser.CUT_SHORT),
    ],
)
def test_what_is_not_certain_is_a_failure_with_a_reason(format, raw, reason):
    output = read(format, raw)
    assert isinstance(output, ParseFailure)
    assert (output.id, output.reason, output.raw) == ("7", reason, raw)
    assert output.rationale == ("" if reason == parser.NO_MARKER else "r")


@pytest.mark.parametrize(
    ("format", "raw", "label"),
    [
        ("esnli", "r\n**Answer:** neutral", "neutral"),
        ("esnli", "Reasonings: r\n**Answer**: **neutral**", "neutral"),
        ("esnli", "**Reasoning:** r\nAnswer: `neutral`.", "neutral"),
        ("anli", "Answer: r So the answer is **neutral**.", "neutral"),
        ("anli", "r **So the answer is neutral.**", "neutral"),
        ("anli", "r **So the answer is:** neutral", "neutral"),
        ("cqa", "A: r the answer is: (d)", "math problem"),
        ("cqa", "r So the answer is: (d) math problem.", "math problem"),
        ("cqa", "r So the answer is **(d) math problem**.", "math problem"),
        ("cqa", "r So the answer is d) math problem.", "math problem"),
        ("cqa", "r So the answer is D.", "math problem"),
        ("svamp", "r The answer is (84 / 2) = 42.", "(84 / 2)"),
        ("svamp", "r The answer is **84 / 2 = 42**.", "84 / 2"),
        ("svamp", "r The answer is (6 × 7 − 2).", "(6 * 7 - 2)"),
        ("svamp", "r **The answer is (84 ÷ 2).**", "(84 / 2)"),
        ("svamp", "r The answer is $84 / 2$.", "84 / 2"),
    ],
)
def test_what_chat_models_write_is_read_where_it_is_certain(format, raw, label):
    output = read(format, raw)
    assert isinstance(output, Annotation), output
    assert (output.rationale, output.label) == ("r", label)


@pytest.mark.parametrize(
    ("format", "raw", "reason"),
    [
        ("esnli", "r\n**Answer:** not **neutral**", parser.NOT_IN_SET),
        ("cqa", "r So the answer is d) park.", parser.DISAGREE),
        ("cqa", "r So the answer is e.g. a meadow.", parser.NOT_A_CHOICE),
        ("cqa", "r So the answer is z.", parser.NOT_A_CHOICE),
        ("cqa", "r So the answer is **(a) park** or **(b)**.", parser.SEVERAL),
        ("svamp", "r The answer is (84 / 2) = 41.", f"{parser.NOT_ARITHMETIC}: unexpected charac"),
        ("svamp", "r The answer is 84 / 2 = 42 = x.", f"{parser.NOT_ARITHMETIC}: unexpected char"),
        ("svamp", "r The answer is 42 apples.", f"{parser.NOT_ARITHMETIC}: name"),
    ],
)
def test_what_chat_models_write_is_refused_where_it_is_not(format, raw, reason):
    output = read(format, raw)
    assert isinstance(output, ParseFailure)
    assert output.reason.startswith(reason)


def test_own_data_is_read_by_its_label_set_as_free_text_or_as_equations():
    def own(raw, choices=(), format="own", complete=False):
        return parse(format, row(choices), raw, complete)

    agreed = "r. So the answer is Port Louis.\n\nQ: x So the answer is no."
    assert own(agreed) == Annotation("7", "r.", "Port Louis", repaired=False)
    assert own("r. So the answer is 3.5 m.").label == "3.5 m"
    assert own("r. So the answer is the U.S..").label == "the U.S."
    assert own("r. The answer is no", complete=True) == Annotation("7", "r.", "no", repaired=True)
    assert own("r. So the answer is Port Lou").reason == parser.CUT_SHORT
    assert own("r. So the answer is .").reason == parser.EMPTY
    assert own("r. So the answer is a. So the answer is b.").reason == parser.SEVERAL
    assert own("r. It is so.").reason == parser.NO_MARKER

    assert own("r. So the answer is yes.", ("yes", "no")) == Annotation("7", "r.", "yes")
    assert own("r. So the answer is Yes!", ("yes", "no")) == Annotation("7", "r.", "yes", True)
    assert own("r. So the answer is maybe.", ("yes", "no")).reason == parser.NOT_IN_SET

    equation = own("r. So the answer is 2 + 3.", format="own_equation")
    assert equation == Annotation("7", "r.", "2 + 3", repaired=False)
    failure = own("r. So the answer is five.", format="own_equation")
    assert failure.reason == f"{parser.NOT_ARITHMETIC}: name"


def test_the_demo_is_read_as_its_rationales_are_written():
    drinks = ("tea", "coffee", "cocoa")
    rationale = "they like tea , tea , tea , cocoa and tea , so most like tea ."
    output = parse("demo", row(drinks), f"{rationale} So the answer is tea.")
    assert output == Annotation("7", rationale, "tea", repaired=False)
    assert parse("demo", row(drinks), "r . So the answer is milk.").reason == parser.NOT_IN_SET


def test_a_teacher_that_ended_of_itself_did_not_mean_to_write_more():
    assert parse("svamp", row(), "r The answer is 16", complete=True).label == "16"
    assert parse("svamp", row(), "r The answer is (9 + 6", complete=True).reason.startswith(
        parser.NOT_ARITHMETIC
    )
    cut = "r\nAnswer: contradic"
    assert parse("esnli", row(NLI), cut).label == "contradiction"
    assert parse("esnli", row(NLI), cut, complete=True).reason == parser.NOT_IN_SET


def test_choices_that_differ_in_punctuation_alone_are_told_apart():
    choices = ("C", "C++", "-5", "5", "x")
    assert read("cqa", "r So the answer is (b) C++.", choices).label == "C++"
    assert read("cqa", "r So the answer is C.", choices).label == "C"
    assert read("cqa", "r So the answer is 5.", choices).label == "5"
    assert read("cqa", "r So the answer is (a) C++.", choices).reason == parser.DISAGREE


def test_an_empty_rationale_is_kept_as_such():
    assert read("cqa", "So the answer is (a) park.") == Annotation("7", "", "park")


def test_release_rules_keep_their_quirks():
    assert parse_release("anli", "r So the answer is entailment")[1] == "entailmen"
    assert parse_release("anli", "no marker") == (" ", " ")
    assert parse_release("svamp", "r The answer is (2 + 14) + 16.")[1] == "(2 + 14)"
    assert parse_release("cqa", "r So the answer is (a) ocean or (b) sea.")[1] == "ocean or"
    assert parse_release("esnli", "r\nAnswer: entailment\n\nPre")[1] == "entailment\n\nPre"


def test_every_json_string_is_read_or_refused(shared):
    # Cut every output of one split short at odd places: never another exception, never a label
    # outside the row's choices.
    data_dir = epath.Path(shared) / "data"
    examples = SOURCES["cqa"].load(data_dir, "test", Options())
    raw = json.loads((data_dir / "cqa" / "llm" / "test_CoT_0.json").read_text())
    for place, text in enumerate(raw):
        output = parse("cqa", examples[place], text[: (place * 37) % (len(text) + 1)])
        if isinstance(output, Annotation):
            assert output.label in examples[place].choices


@pytest.mark.parametrize(
    "answer",
    [
        "Final answer: yes",
        "**Final answer:** yes",
        "The final answer is yes.",
        "\\boxed{yes}",
        "$\\boxed{\\text{Yes}}$",
        "So the answer is $\\boxed{yes}$.",
        "**Answer:** yes",
        "Answer: Yes.",
        "### Final Answer\nYES",
    ],
)
def test_the_ways_of_chat_models_to_name_their_answer(answer):
    example = Example(id="7", input="", label="yes", choices=("yes", "no"))
    came = parse("demo", example, f"Fish live in water.\n\n{answer}\n", complete=True)
    assert isinstance(came, Annotation), came
    assert came.label == "yes"
    assert came.rationale == "Fish live in water."


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ("Answer: Fish live in water, so yes it is.", parser.NO_MARKER),
        ("A.\nFinal answer: yes\nFinal answer: no", parser.SEVERAL),
        ("A.\n\\boxed{perhaps}", parser.NOT_IN_SET),
        ("A.\n\\boxed{yes", parser.NOT_IN_SET),
    ],
)
def test_what_names_no_answer_for_certain_is_refused(output, reason):
    example = Example(id="7", input="", label="yes", choices=("yes", "no"))
    assert parse("demo", example, output, complete=True).reason == reason


def test_a_boxed_equation_is_read():
    assert read("svamp", "He halves them.\n\\boxed{84 / 2}").label == "84 / 2"
