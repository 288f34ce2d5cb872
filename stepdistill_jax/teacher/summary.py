"""What an extraction leaves beside its logs: rationales, examples to check, ``summary.json``."""

from __future__ import annotations

import collections
import functools
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from stepdistill_jax import records, text
from stepdistill_jax.data import inputs
from stepdistill_jax.data.parse import plain_text
from stepdistill_jax.records import Annotation, Example
from stepdistill_jax.spec import InputError
from stepdistill_jax.teacher import failure_reasons, prompts, quality, resume, store
from stepdistill_jax.teacher.annotator import Annotator, ExampleState
from stepdistill_jax.teacher.budget import NO_TOKENS, Prices, Tokens, paid_rows, total
from stepdistill_jax.teacher.prepared import Prepared
from stepdistill_jax.teacher.requests import ANSWER, HINT
from stepdistill_jax.teacher.resume import Paid, ResumeState
from stepdistill_jax.teacher.store import SUMMARY_FILE, Response
from stepdistill_jax.teacher.vote import Annotated, is_right


def write(prepared: Prepared, state: ResumeState) -> str:
    """Writes all files of all units that any call asked about; returns the table for the user."""
    extract, folder = prepared.extraction.extract, prepared.folder
    paid = resume.read_paid(folder, extract)
    prices = Prices.of(extract)
    sums = totals(paid, prices)
    notes = describe_totals(sums)
    earlier = read_units(folder)
    if prices.cost(NO_TOKENS) is None and any(unit.get("cost") for unit in earlier.values()):
        notes.append(
            "cost: unknown for the units of this call without PRICE_INPUT and PRICE_OUTPUT"
        )
    units = {}
    for name in store.in_order([*prepared.units, *store.units(folder)]):
        selected = [each for each in state.states if each.unit == name]
        read = functools.partial(_examples, prepared, name)
        states, missing = resume.all_states(folder, name, selected, prepared.annotator, read)
        if missing and name in earlier and name not in prepared.units:
            # A unit of an earlier call whose data is not named now: it stays as it was.
            units[name] = earlier[name]
            continue
        if missing:
            notes.append(
                f"{name}: {missing:,} examples with responses are not in the data any more"
            )
        unit = write_unit(folder, name, prepared.annotator, states, paid.responses.get(name, ()))
        if name not in prepared.units:
            unit["rows"] = max(unit["rows"], earlier.get(name, {}).get("rows") or 0)
        units[name] = unit
    prompt = prepared.annotator.prompt
    content = {
        "dataset": prepared.extraction.run.data.name,
        "model": extract.teacher_model or extract.replay,
        "client": extract.client,
        "prompt": {
            "hash": prompt.hash,
            "exemplars": len(prompt.exemplars),
            "tokens": prompts.written_prefix_tokens([folder], prompt.hash),
        },
        "units": units,
        **sums,
    }
    written = json.dumps(content, ensure_ascii=False, indent=1) + "\n"
    records.write_atomic(folder / SUMMARY_FILE, written)
    for name, unit in units.items():
        notes += [
            f"{name}: {count:,} requests without {fields}, which the endpoint does not take"
            for fields, count in unit.get("omitted", {}).items()
        ]
        if near := unit.get("near_misses"):
            notes.append(
                f"{name}: {near:,} labels differ from the gold label in case or punctuation alone, "
                "and count as wrong. Name your labels in LABEL_SET, and they count as right."
            )
        notes += failure_reasons.describe(name, unit["quality"]["outcomes"], quality.LABELLED)
    return "\n".join(
        [table(units), *notes, f"rationales, summary and examples to check are in {folder}"]
    )


def _is_near_miss(annotated: Annotated, metric: str) -> bool:
    """Whether a label is wrong by no letter or digit, as "Yes." for "yes"."""
    gold, outcome = annotated.example.label, annotated.unhinted
    if metric != "exact" or gold is None or not isinstance(outcome, Annotation):
        return False
    same = plain_text(outcome.label) == plain_text(gold) != ""
    return same and not is_right(annotated.example, outcome, metric)


def _examples(prepared: Prepared, unit: str) -> Sequence[Example]:
    """All examples that a unit can have; none where its data is not named now."""
    extraction = prepared.extraction
    try:
        return inputs.of_split(extraction.run.data, unit, extraction.extract.extract_inputs)
    except InputError:
        return ()


def write_unit(
    folder: pathlib.Path,
    unit: str,
    annotator: Annotator,
    states: Sequence[ExampleState],
    paid: Sequence[Response],
) -> dict[str, Any]:
    """Writes ``rationales_<unit>.jsonl`` and ``worst_<unit>.jsonl``; returns the unit's numbers.

    Requests, tokens and cost are of `paid`, all lines on the unit for which a request was sent,
    failures that were repeated and examples that are not selected any more included. `seconds` is
    the time in which at least one of them was in flight, without the waits between retries.
    """
    annotated, raw = [], {}
    for state in states:
        if (each := annotator.annotated(state)) is None:
            continue
        annotated.append(each)
        response = state.responses.get((HINT if each.hinted else ANSWER, 0))
        raw[each.example.id] = response.text if response and not response.error else None
    rationales = write_rationales(folder, unit, annotated)
    suspects = quality.worst(annotated, annotator.metric, raw)
    records.write_jsonl(folder / f"worst_{unit}.jsonl", suspects)
    responses = [response for state in states for response in state.responses.values()]
    hints = sum((HINT, 0) in state.responses for state in states)
    return {
        "rows": len(states),
        "answered": len(annotated),
        "rationales": rationales,
        "cached": sum(response.cached for response in responses),
        "errors": sum(bool(response.error) for response in responses),
        "near_misses": sum(_is_near_miss(each, annotator.metric) for each in annotated),
        "omitted": dict(collections.Counter(each.omitted for each in responses if each.omitted)),
        **_sums(len(paid), total(each.charged for each in paid), Prices.of(annotator.extract)),
        "seconds": _seconds(paid),
        "quality": quality.assess(annotated, annotator.metric, hints_asked=hints).as_dict(),
    }


def read_units(folder: pathlib.Path) -> dict[str, dict[str, Any]]:
    """The units in the summary of an earlier call; none where it cannot be read."""
    try:
        units = json.loads((folder / SUMMARY_FILE).read_bytes())["units"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return units if isinstance(units, dict) else {}


def _seconds(responses: Sequence[Response]) -> float | None:
    """Length of the union of the times in which requests were in flight; None if not measured."""
    spans = sorted((each.at - each.seconds, each.at) for each in responses if each.seconds)
    if not spans:
        return None
    length, end = 0.0, float("-inf")
    for start, stop in spans:
        length += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return round(length, 3)


def totals(paid: Paid, prices: Prices) -> dict[str, dict[str, Any]]:
    """What was paid for over all units, and of that what is lost in flight or waits in batches."""
    responses = [response for of_unit in paid.responses.values() for response in of_unit]
    lost = total(sending.bound for sending in paid.lost)
    spent = total(response.charged for response in responses).plus(lost)
    waiting = total(sending.bound for sending in paid.waiting)
    return {
        "total": _sums(len(responses) + len(paid.lost), spent, prices),
        "lost": _sums(len(paid.lost), lost, prices),
        "waiting": _sums(len(paid.waiting), waiting, prices),
    }


def _sums(requests: int, tokens: Tokens, prices: Prices) -> dict[str, Any]:
    cost = prices.cost(tokens)
    return {
        "requests": requests,
        "prompt_tokens": tokens.prompt,
        "completion_tokens": tokens.written,
        "cost": None if cost is None else float(cost),
    }


def describe_totals(sums: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """`totals` for a reader, below the table of the units."""
    lines = []
    for name, what in (
        ("lost", "requests lost in flight, counted at their worst case"),
        ("waiting", "requests wait in batches, not counted yet, at most"),
        ("total", "requests paid for in total"),
    ):
        part = sums[name]
        tokens = part["prompt_tokens"] + part["completion_tokens"]
        cost = "" if part["cost"] is None else f", cost {part['cost']:.4f}"
        if part["requests"]:
            lines.append(f"{part['requests']:,} {what}: {tokens:,} tokens{cost}")
    return [*lines, "examples/s: while requests were in flight"]


def table(units: Mapping[str, Mapping[str, Any]]) -> str:
    """The numbers for a reader, a line per unit."""
    heads = (
        *("unit", "examples", "answered", "yield", "accuracy", "requests", "cached", "tokens"),
        *("examples/s", "cost"),
    )
    lines: list[Sequence[str]] = [heads]
    for name, unit in units.items():
        answered, judged = unit["answered"], unit["quality"]
        accuracy = judged["accuracy"]
        paid = paid_rows(answered, unit["requests"], unit["cached"])
        lines.append(
            (
                name,
                f"{unit['rows']:,}",
                f"{answered:,}",
                f"{judged['usable'] / answered:.1%}" if answered else "-",
                f"{accuracy['share']:.1%}" if accuracy else "-",
                f"{unit['requests']:,}",
                f"{unit['cached']:,}",
                f"{unit['prompt_tokens'] + unit['completion_tokens']:,}",
                f"{paid / unit['seconds']:.2f}" if unit["seconds"] and paid else "-",
                "-" if unit["cost"] is None else f"{unit['cost']:.4f}",
            )
        )
    return text.columns(lines, right=heads[1:])


def rationales_path(folder: pathlib.Path, unit: str) -> pathlib.Path:
    """The file that RATIONALES names, or AUGMENT for the unit of added inputs."""
    return folder / f"rationales_{unit}.jsonl"


def write_rationales(folder: pathlib.Path, unit: str, annotated: Iterable[Annotated]) -> int:
    """Writes what training reads; returns the number of lines.

    A line is ``{"id", "input", "choices"?, "rationale", "label"?, "hinted"?}``. A parse failure
    with a rationale has a line without a label. An example without a rationale has no line, unless
    it is an added input with a label.
    """
    lines = []
    for each in annotated:
        line: dict[str, Any] = {"id": each.example.id, "input": each.example.input}
        if each.example.choices:
            line["choices"] = list(each.example.choices)
        if each.outcome.rationale.strip():
            line["rationale"] = each.outcome.rationale.strip()
        if isinstance(each.outcome, Annotation) and each.outcome.label.strip():
            line["label"] = each.outcome.label.strip()
        if each.hinted:
            line["hinted"] = True
        if "rationale" in line or (unit == inputs.ADDED and "label" in line):
            lines.append(line)
    records.write_jsonl(rationales_path(folder, unit), lines)
    return len(lines)
