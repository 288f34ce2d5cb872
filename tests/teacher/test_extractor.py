"""The loop that asks: caps to the row, equal questions once, stops, failures, resuming."""

import asyncio
import dataclasses
import json

import pytest

from stepdistill_jax.records import Annotation, Example, ParseFailure
from stepdistill_jax.spec import InputError
from stepdistill_jax.teacher import resume, store, summary
from stepdistill_jax.teacher.annotator import Annotator
from stepdistill_jax.teacher.budget import Bounds, Prices, Tokens
from stepdistill_jax.teacher.config import ExtractConfig
from stepdistill_jax.teacher.extractor import Ending, Extractor
from stepdistill_jax.teacher.requests import (
    ANSWER,
    HINT,
    Client,
    Completion,
    EndpointError,
    Message,
    Request,
    RequestError,
)
from stepdistill_jax.teacher.response_cache import ResponseCache
from stepdistill_jax.teacher.store import ALONE, Share, Store

LABELS = ("yes", "no", "maybe")


@dataclasses.dataclass(frozen=True)
class Ask:
    """A prompt of one turn."""

    format: str = "anli"
    hash: str = "f" * 64

    def request(self, example, extract, purpose=ANSWER, sample=0):
        hint = f" Hint: {example.label}" if purpose == HINT else ""
        return Request(
            example.id,
            purpose,
            sample,
            extract.teacher_model,
            (Message("user", example.input + hint),),
            "",
            (),
            extract.decoding,
        )


class Teacher(Client):
    """A client in this process: 30 tokens read and 10 written for every answer."""

    def __init__(self, answer=lambda request: "It is so. So the answer is yes.", seconds=0.0):
        self.answer = answer
        self.seconds = seconds
        self.asked = []
        self.in_flight = self.most_in_flight = 0
        self.closed = False

    async def complete(self, request):
        self.asked.append(request)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await asyncio.sleep(self.seconds)
        finally:
            self.in_flight -= 1
        said = self.answer(request)
        if isinstance(said, Exception):
            raise said
        return Completion(said, "stop", 30, 10, request.model, 0.01)

    async def close(self):
        self.closed = True


def examples(count, label="yes"):
    return [
        Example(str(i), f"row {i}", label, choices=LABELS, where=f"f:{i}") for i in range(count)
    ]


class Call:
    """One process's call on a folder."""

    def __init__(
        self,
        folder,
        rows,
        teacher,
        share=ALONE,
        cache=None,
        watch=None,
        evaluated=None,
        **fields,
    ):
        fields = {"concurrency": 16, "timeout": 5.0, "max_new_tokens": 10} | fields
        extract = ExtractConfig(extract_dir=str(folder), teacher_model="m", **fields)
        self.annotator = Annotator(extract, Ask(), "exact", evaluated or {})
        self.teacher = teacher
        units = rows if isinstance(rows, dict) else {"train": rows}
        self.store = Store(folder, [*units], share)
        try:
            self.progress = resume.load(folder, units, self.annotator, share)
        except InputError:
            self.store.close()
            raise
        self.extractor = Extractor(
            self.annotator,
            self.progress.states,
            self.store,
            ResponseCache(cache, "there"),
            self.progress.budget(extract, share),
            Bounds(lambda request: 30),
            teacher,
            self.progress.unanswered,
            watch or (lambda counts: None),
        )

    async def run_async(self):
        try:
            return await self.extractor.run()
        finally:
            self.store.close()

    def run(self):
        return asyncio.run(self.run_async())

    def kept(self):
        found = [self.annotator.annotated(row) for row in self.progress.states]
        return {row.example.id: row for row in found if row is not None}


def logged(folder):
    return store.read_responses(folder, "train")


def test_every_row_is_asked_once_with_so_many_in_flight(tmp_path):
    teacher = Teacher(seconds=0.005)
    call = Call(tmp_path, examples(40), teacher, concurrency=7)
    assert call.run() == Ending.DONE
    assert sorted(int(request.example_id) for request in teacher.asked) == [*range(40)]
    assert (teacher.most_in_flight, teacher.closed) == (7, True)
    assert len(logged(tmp_path)) == 40
    counts = call.extractor.counts
    assert (counts.done, counts.parsed, counts.received, counts.cached) == (40, 40, 40, 0)
    again = Call(tmp_path, examples(40), Teacher())
    assert again.run() == Ending.DONE
    assert again.teacher.asked == []
    assert again.extractor.counts.done == 40


# A request is 30 read and 10 written: at these prices it costs 0.00007.
PRICES = {"price_input": 1.0, "price_output": 4.0}


@pytest.mark.parametrize("cap", [0.00007 * 37, 0.00007 * 37 + 0.000069])
def test_the_cap_stops_at_the_last_row_that_fits(tmp_path, cap):
    teacher = Teacher(seconds=0.002)
    call = Call(tmp_path, examples(100), teacher, **PRICES, max_cost=round(cap, 6))
    assert call.run() == Ending.COST
    assert teacher.most_in_flight == 16
    assert len(teacher.asked) == len(logged(tmp_path)) == 37
    # The cap is over all calls.
    for _ in range(2):
        again = Call(tmp_path, examples(100), Teacher(), **PRICES, max_cost=round(cap, 6))
        assert again.run() == Ending.COST
        assert again.teacher.asked == []
    more = Call(tmp_path, examples(100), Teacher(), **PRICES, max_cost=round(cap + 0.00007, 6))
    assert more.run() == Ending.COST
    assert len(more.teacher.asked) == 1


def test_short_answers_leave_room_for_more_rows(tmp_path):
    class Brief(Teacher):
        async def complete(self, request):
            came = await super().complete(request)
            return dataclasses.replace(came, completion_tokens=0)

    # Reserved 0.00007 a request, charged 0.00003: 12 rows cost 0.00036, and a 13th may reach
    # 0.00043.
    call = Call(tmp_path, examples(30), Brief(seconds=0.001), **PRICES, max_cost=0.00042)
    assert call.run() == Ending.COST
    assert len(call.teacher.asked) == 12
    assert call.extractor.budget.reserved == (0, 0)


def test_max_rows_is_exact_over_all_calls(tmp_path):
    teacher = Teacher()
    assert Call(tmp_path, examples(50), teacher, max_rows=13).run() == Ending.DONE
    assert {request.example_id for request in teacher.asked} == {str(i) for i in range(13)}
    again = Call(tmp_path, examples(50), Teacher(), max_rows=13)
    again.run()
    assert again.teacher.asked == []
    more = Call(tmp_path, examples(50), Teacher(), max_rows=20)
    more.run()
    assert len(more.teacher.asked) == 7
    # Other rows than before: those that were asked about count all the same.
    others = examples(50)[30:]
    moved = Call(tmp_path, others, Teacher(), max_rows=25)
    moved.run()
    assert {request.example_id for request in moved.teacher.asked} == {
        str(i) for i in range(30, 35)
    }
    assert moved.progress.beyond == 15


def test_workers_are_disjoint_and_together_ask_about_max_rows(tmp_path):
    teachers = [Teacher() for _ in range(3)]
    for number, teacher in enumerate(teachers):
        # Each sees what the others wrote, as on a shared disk.
        Call(tmp_path, examples(60), teacher, Share(number, 3), max_rows=41).run()
    asked = [{request.example_id for request in teacher.asked} for teacher in teachers]
    assert sum(map(len, asked)) == 41
    assert set.union(*asked) == {str(i) for i in range(41)}
    assert all(asked)
    alone = Call(tmp_path, examples(60), Teacher())
    alone.run()
    assert len(alone.teacher.asked) == 60 - 41


def test_workers_share_the_cap(tmp_path):
    asked = 0
    Call(tmp_path, examples(60), Teacher(), **PRICES, max_rows=10).run()
    for number in range(3):
        teacher = Teacher()
        share = Share(number, 3)
        # 0.00280 is 40 requests: 10 were paid for, each of three workers has a third of 30.
        call = Call(tmp_path, examples(600), teacher, share, **PRICES, max_cost=0.0028)
        assert call.run() == Ending.COST
        assert len(teacher.asked) == 10
        asked += len(teacher.asked)
    assert asked == 30


def test_samples_are_voted_on_and_hints_asked_where_the_vote_is_wrong(tmp_path):
    def answer(request):
        if request.purpose == HINT:
            return "Told so. So the answer is yes."
        wrong = request.example_id == "2" or request.sample == 0
        return f"Thought {request.sample}. So the answer is {'no' if wrong else 'yes'}."

    teacher = Teacher(answer, seconds=0.001)
    call = Call(
        tmp_path, examples(4), teacher, samples=3, temperature=0.7, hint_wrong=True, concurrency=3
    )
    assert call.run() == Ending.DONE
    assert [r.example_id for r in teacher.asked if r.purpose == HINT] == ["2"]
    assert len(teacher.asked) == 4 * 3 + 1
    kept = call.kept()
    assert (kept["1"].outcome.label, kept["1"].samples, kept["1"].agreeing) == ("yes", 3, 2)
    assert kept["2"].hinted
    assert kept["2"].outcome.rationale == "Told so."
    assert kept["2"].unhinted.label == "no"
    # More samples later: only those that lack are asked for.
    later = Call(tmp_path, examples(4), Teacher(answer), samples=5, temperature=0.7)
    later.run()
    assert sorted((r.example_id, r.sample) for r in later.teacher.asked) == [
        (str(i), s) for i in range(4) for s in (3, 4)
    ]


def test_rows_that_are_scored_are_never_told_their_label(tmp_path):
    def answer(request):
        is_told = request.purpose == HINT
        return f"{'Told' if is_told else 'Thought'}. So the answer is {'yes' if is_told else 'no'}."

    fields = {"hint_wrong": True, "evaluated": {"train": {"1", "3"}}}
    call = Call(tmp_path, examples(4), Teacher(answer), **fields)
    assert call.run() == Ending.DONE
    assert {r.example_id for r in call.teacher.asked if r.purpose == HINT} == {"0", "2"}
    # A hint of before that was known is not kept either.
    later = Call(tmp_path, examples(4), Teacher(answer), hint_wrong=True, evaluated={"train": "2"})
    kept = later.kept()
    assert [kept[example_id].hinted for example_id in "0123"] == [True, False, False, False]
    assert kept["2"].outcome == Annotation("2", "Thought.", "no")


def test_hints_that_were_paid_for_are_kept_when_no_more_are_asked(tmp_path):
    def answer(request):
        return f"Thought. So the answer is {'yes' if request.purpose == HINT else 'no'}."

    Call(tmp_path, examples(3), Teacher(answer), hint_wrong=True).run()
    later = Call(tmp_path, examples(4), Teacher(answer))
    later.run()
    assert [r.purpose for r in later.teacher.asked] == [ANSWER]
    kept = later.kept()
    assert [kept[example_id].hinted for example_id in "0123"] == [True, True, True, False]


def test_no_hint_without_a_gold_label(tmp_path):
    call = Call(tmp_path, examples(3, label=None), Teacher(lambda r: "no idea"), hint_wrong=True)
    call.run()
    assert len(call.teacher.asked) == 3


def test_equal_questions_are_paid_for_once(tmp_path):
    rows = [dataclasses.replace(example, input="the same") for example in examples(20)]
    teacher = Teacher(seconds=0.01)
    call = Call(tmp_path / "a", rows, teacher, cache=tmp_path / "cache")
    assert call.run() == Ending.DONE
    assert len(teacher.asked) == 1
    assert call.extractor.counts.cached == 19
    lines = logged(tmp_path / "a")
    assert [line.cached for line in lines] == [False] + [True] * 19
    assert sum(line.charged.prompt for line in lines) == 30
    # In another folder, by another row's id.
    other = Call(tmp_path / "b", examples(21)[20:] + rows[:1], Teacher(), cache=tmp_path / "cache")
    other.run()
    assert [request.example_id for request in other.teacher.asked] == ["20"]
    unshared = Call(tmp_path / "c", rows, Teacher())
    unshared.run()
    assert len(unshared.teacher.asked) == 20


@pytest.mark.parametrize(
    "damage", [b"", b"{", b"[]", b'{"key": "other"}', b'{"text": "x"}', b"\xff\xfe"]
)
def test_a_damaged_cache_entry_is_asked_again_and_mended(tmp_path, damage):
    cache = tmp_path / "cache"
    Call(tmp_path / "a", examples(1), Teacher(), cache=cache).run()
    (entry,) = cache.rglob("*.json")
    whole = entry.read_bytes()
    entry.write_bytes(damage)
    call = Call(tmp_path / "b", examples(1), Teacher(), cache=cache)
    assert call.run() == Ending.DONE
    assert len(call.teacher.asked) == 1
    assert entry.read_bytes() == whole


def test_samples_of_one_row_are_not_one_question(tmp_path):
    call = Call(tmp_path, examples(1), Teacher(), cache=tmp_path / "c", samples=3, temperature=1.0)
    call.run()
    assert len(call.teacher.asked) == 3


def test_a_failed_endpoint_ends_it_with_all_answers_saved_and_nothing_charged(tmp_path):
    def answer(request):
        if int(request.example_id) >= 20:
            return EndpointError("the key has expired")
        return "x. So the answer is no."

    call = Call(tmp_path, examples(100), Teacher(answer, seconds=0.001), **PRICES)
    assert call.run() == Ending.FAILED
    assert call.extractor.failure == "the key has expired"
    assert {answer.id for answer in logged(tmp_path)} == {str(i) for i in range(20)}
    assert call.extractor.budget.spent == (600, 200)
    again = Call(tmp_path, examples(100), Teacher(), **PRICES)
    assert again.progress.unanswered == []
    assert again.run() == Ending.DONE
    assert len(again.teacher.asked) == 80


def test_what_may_have_been_paid_for_is_charged_at_its_bound(tmp_path):
    def answer(request):
        if request.example_id == "0":
            return RequestError("no answer", "no answer within TIMEOUT=1 s", None, None)
        return EndpointError("gone", may_be_paid=request.example_id == "1")

    call = Call(tmp_path, examples(3), Teacher(answer), **PRICES)
    assert call.run() == Ending.FAILED
    # Rows 0 and 1, 30 + 10 tokens each; of row 2 the endpoint took nothing.
    assert call.extractor.budget.spent == (60, 20)
    again = Call(tmp_path, examples(3), Teacher(), **PRICES)
    assert again.extractor.budget.spent == (60, 20)
    assert again.run() == Ending.DONE
    assert again.extractor.budget.spent == (150, 50)


def test_an_answer_is_on_disk_before_the_cache_has_answered_all_others(tmp_path):
    Call(tmp_path / "a", examples(200)[1:], Teacher(), cache=tmp_path / "c").run()
    seen = []

    def watch(counts):
        seen.append(counts.received)

    class Quick(Teacher):
        async def complete(self, request):
            return Completion("x. So the answer is no.", "stop", 30, 10, "m", 0.0)

    call = Call(tmp_path / "b", examples(200), Quick(), cache=tmp_path / "c", watch=watch)
    assert call.run() == Ending.DONE
    assert call.extractor.counts.cached == 199
    # The first row is asked about, and is logged long before the last comes from the cache.
    assert seen.index(1) < 10


def test_rows_that_fail_are_counted_and_those_that_may_pass_are_asked_again(tmp_path):
    def answer(request):
        return {
            "1": RequestError("content filter", "flagged", 30, 0),
            "2": RequestError("no answer", "HTTP 500"),
        }.get(request.example_id, "x. So the answer is no.")

    call = Call(tmp_path, examples(4), Teacher(answer), **PRICES)
    assert call.run() == Ending.DONE
    assert (call.extractor.counts.errors, call.extractor.counts.parsed) == (2, 2)
    assert call.extractor.budget.spent == (90, 20)
    assert call.kept()["1"].outcome == ParseFailure("1", "content filter", "", "")
    again = Call(tmp_path, examples(4), Teacher(), **PRICES)
    assert again.progress.transient == 1
    again.run()
    assert [request.example_id for request in again.teacher.asked] == ["2"]
    assert again.kept()["2"].outcome == Annotation("2", "It is so.", "yes")


def test_a_stop_waits_for_what_is_in_flight(tmp_path):
    async def stopped(call):
        asyncio.get_running_loop().call_later(0.05, call.extractor.stop)
        return await call.run_async()

    call = Call(tmp_path, examples(100), Teacher(seconds=0.2))
    assert asyncio.run(stopped(call)) == Ending.STOPPED
    assert len(call.teacher.asked) == len(logged(tmp_path)) == 16
    assert call.extractor.counts.lost == 0


@pytest.mark.parametrize(("timeout", "stops"), [(0.2, 1), (60.0, 2)])
def test_what_does_not_come_in_time_is_given_up_and_counted(tmp_path, timeout, stops):
    async def stopped(call):
        for number in range(stops):
            asyncio.get_running_loop().call_later(0.05 + number / 10, call.extractor.stop)
        return await call.run_async()

    call = Call(tmp_path, examples(100), Teacher(seconds=60), timeout=timeout)
    assert asyncio.run(stopped(call)) == Ending.STOPPED
    assert call.extractor.counts.lost == 16
    again = Call(tmp_path, examples(100), Teacher(), **PRICES)
    # They may have been paid for, up to 30 + 10 tokens each.
    assert len(again.progress.unanswered) == 16
    assert again.extractor.budget.spent == (480, 160)
    assert again.run() == Ending.DONE
    assert len(again.teacher.asked) == 100
    assert again.extractor.budget.spent == (480 + 3000, 160 + 1000)


def test_what_was_lost_in_flight_counts_everywhere_and_is_said_until_it_is_answered(tmp_path):
    def answer(request):
        return (
            RequestError("no answer", "gone", None, None)
            if request.example_id == "0"
            else "no idea"
        )

    first = Call(tmp_path, examples(5), Teacher(answer), **PRICES)
    assert first.run() == Ending.DONE

    async def lose(call):
        asyncio.get_running_loop().call_later(0.03, call.extractor.stop)
        asyncio.get_running_loop().call_later(0.06, call.extractor.stop)
        return await call.run_async()

    second = Call(tmp_path, examples(8), Teacher(seconds=60), **PRICES)
    assert asyncio.run(lose(second)) == Ending.STOPPED
    # Row 0 again, and rows 5 to 7: what the bar shows is what the next start counts.
    assert second.extractor.budget.spent == (9 * 30, 9 * 10)
    third = Call(tmp_path, examples(8), Teacher(), **PRICES)
    assert third.progress.repeated == 4
    assert third.run() == Ending.DONE
    last = Call(tmp_path, examples(8), Teacher(), **PRICES)
    last.store.close()
    assert (last.progress.repeated, len(last.progress.unanswered)) == (0, 4)
    extract = last.annotator.extract
    paid = resume.read_paid(tmp_path, extract)
    sums = summary.totals(paid, Prices.of(extract))
    spent = third.extractor.budget.spent
    assert spent == last.extractor.budget.spent == (13 * 30, 13 * 10)
    assert sums["total"] == {
        "requests": 13,
        "prompt_tokens": spent.prompt,
        "completion_tokens": spent.written,
        "cost": float(third.extractor.budget.cost),
    }
    rows = last.progress.states
    unit = summary.write_unit(tmp_path, "train", last.annotator, rows, paid.responses["train"])
    # The failure of the first call was paid for, though it was asked again.
    assert (unit["requests"], unit["prompt_tokens"]) == (9, 270)
    assert summary.describe_totals(sums)[0] == (
        "4 requests lost in flight, counted at their worst case: 160 tokens, cost 0.0003"
    )


def test_a_defect_of_the_client_is_raised_when_the_answers_are_safe(tmp_path):
    def answer(request):
        return KeyError("defect") if request.example_id == "3" else "x. So the answer is no."

    call = Call(tmp_path, examples(10), Teacher(answer), concurrency=10)
    with pytest.raises(KeyError, match="defect"):
        call.run()
    assert len(logged(tmp_path)) == 9
    assert call.teacher.closed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"teacher_model": "n"}, r"rows/train\.jsonl:1: .*TEACHER_MODEL 'm', now 'n'\. Repeat"),
        ({"temperature": 0.5}, r"decoding .*temperature=0\.0.*now .*temperature=0\.5"),
    ],
)
def test_a_folder_of_another_extraction_is_refused(tmp_path, change, message):
    Call(tmp_path, examples(2), Teacher()).run()
    extract = ExtractConfig(
        **{"extract_dir": str(tmp_path), "teacher_model": "m", "max_new_tokens": 10, **change}
    )
    with pytest.raises(InputError, match=message):
        resume.load(tmp_path, {"train": examples(2)}, Annotator(extract, Ask(), "exact"), ALONE)


def test_a_row_that_has_changed_is_refused(tmp_path):
    Call(tmp_path, examples(2), Teacher()).run()
    changed = [examples(1)[0], dataclasses.replace(examples(2)[1], input="another")]
    with pytest.raises(InputError, match=r"example 1 of train had another text .*f:1"):
        Call(tmp_path, changed, Teacher())
    other = Annotator(
        ExtractConfig("x", teacher_model="m", max_new_tokens=10), Ask(hash="e"), "exact"
    )
    with pytest.raises(InputError, match=r"prompt 'ffffffffffff', now 'e'"):
        resume.load(tmp_path, {"train": examples(2)}, other, ALONE)


class Batch(Teacher):
    """Offline batches whose completions are there when the loop waits."""

    keeps_requests = True


def test_what_waits_in_a_batch_is_collected_though_nothing_else_fits(tmp_path):
    other = [dataclasses.replace(e, input=f"another {e.input}") for e in examples(4)]
    units = {"train": examples(4), "test": other}
    # Ids are unique within a unit alone.
    first = Call(tmp_path, units, Batch(), **PRICES)
    for row in first.progress.states:
        if row.example.id != "0":
            request = first.annotator.request(row, ANSWER, 0)
            first.store.sending(request, Tokens(30, 10), batch=True)
    first.store.close()
    # All that is paid for fits, and not one more.
    call = Call(tmp_path, units, Batch(), **PRICES, max_cost=round(6 * 0.00007, 6))
    assert call.run() == Ending.COST
    answers = [answer for unit in units for answer in store.read_responses(tmp_path, unit)]
    assert [answer.id for answer in answers] == ["1", "2", "3"] * 2
    assert store.unanswered(tmp_path, answers) == []
    assert call.extractor.budget.spent == (180, 60)
    assert call.extractor.budget.reserved == (0, 0)


def test_a_stop_at_the_delivery_of_a_batch_leaves_it_collected(tmp_path):
    class Noting(Batch):
        lines_at_flush = None

        def flush(self):
            self.lines_at_flush = len(logged(tmp_path))

    def stop(counts):
        call.extractor.stop()

    teacher = Noting(lambda request: RequestError("batch expired", "batch b has no line for it"))
    call = Call(tmp_path, examples(3), teacher, watch=stop)
    assert call.run() == Ending.DONE
    # Else the next process would get the failures again, and log them a second time.
    assert teacher.lines_at_flush == 3


def test_what_was_lost_on_the_way_to_an_endpoint_stays_paid_when_batches_go_on(tmp_path):
    first = Call(tmp_path, examples(2), Batch(), **PRICES)
    for row, batch in zip(first.progress.states, (False, True), strict=True):
        first.store.sending(first.annotator.request(row, ANSWER, 0), Tokens(30, 10), batch)
    first.store.close()
    call = Call(tmp_path, examples(2), Batch(), **PRICES, client="batch")
    assert call.progress.repeated == 1
    # What waits in a batch is paid for when it is answered; without batches it is lost.
    extract = call.annotator.extract
    held = summary.totals(resume.read_paid(tmp_path, extract), Prices.of(extract))
    assert [held[name]["requests"] for name in ("total", "lost", "waiting")] == [1, 1, 1]
    assert len(resume.read_paid(tmp_path, first.annotator.extract).lost) == 2
    assert call.run() == Ending.DONE
    # Both answers, and the one that was lost.
    assert call.extractor.budget.spent == (90, 30)


def test_the_journal_is_written_before_the_request_is_sent(tmp_path):
    seen = []

    def answer(request):
        lines = (tmp_path / "rows" / "sent.jsonl").read_text().splitlines()
        seen.append(request.example_id in {json.loads(line)["id"] for line in lines})
        return "x. So the answer is no."

    Call(tmp_path, examples(5), Teacher(answer)).run()
    assert seen == [True] * 5
