"""What a plan says, to readers and to programs."""

import dataclasses
import json
import math

from plans import CHIP, planned

from stepdistill_jax.parallel.chips import GIB
from stepdistill_jax.plan import tables
from stepdistill_jax.plan.program import DECODE, Memory
from stepdistill_jax.plan.work import Collective, Work

WORK = Work(
    flops=2e12,
    hbm_bytes=1e9,
    collectives=(
        Collective("all-gather", "fsdp", False, 3, 4e9, 2**20),
        Collective("all-reduce", "replica", True, 1, 1e9, 2**20),
    ),
    open_loops=0,
)


def failed(**more):
    program = dataclasses.replace(planned().program, fits=False, work=None, **more)
    return planned(program=program)


def test_a_train_step_in_words():
    output = tables.text(planned(rows=64, total=GIB, work=WORK, pairs=640.0, model_flops=6e12))
    assert "64 rows (640 pairs) of 8 inputs and 4 + 4 targets" in output
    assert "1.00 GiB of 16.00 GiB: fits" in output
    assert "model FLOPs         75.0%" in output
    assert "all-gather          fsdp: 3 times, 4.000 GB sent, largest array 1.0 MiB" in output
    assert "all-reduce          replica between slices: 1 times, 1.000 GB sent" in output
    # 1 GB over 3.125 GB/s.
    assert "lower bound         320.00 ms, by dcn: 2,000 pairs/s" in output
    assert "200 rows/s" in tables.text(planned(rows=64, work=WORK))


def test_what_is_neither_state_nor_activations_is_told():
    memory = Memory(1.0 * GIB, 2.0 * GIB, 3.0 * GIB, 6.5 * GIB)
    program = dataclasses.replace(planned(total=GIB, work=WORK).program, memory=memory)
    assert "batch and program   0.50 GiB" in tables.text(planned(program=program))


def test_decoding_has_the_optimizer_beside_it_while_training():
    program = dataclasses.replace(planned(total=GIB, work=WORK).program, name=DECODE)
    assert "while training      3.00 GiB, with the optimizer's state: fits" in tables.text(
        planned(program=program, held=2.0 * GIB)
    )
    output = tables.text(planned(program=program, held=15.5 * GIB))
    assert "16.50 GiB, with the optimizer's state: DOES NOT FIT" in output
    assert "1.00 GiB of 16.00 GiB: fits" in output


def test_loops_that_cannot_be_read_are_told():
    open_loop = dataclasses.replace(WORK, open_loops=1)
    assert "figures too low     1 loops of unknown length" in tables.text(planned(work=open_loop))
    # The loop over an answer's tokens is one that the data ends.
    program = dataclasses.replace(planned(work=open_loop).program, name=DECODE)
    assert "loops" not in tables.text(planned(program=program))


def test_what_does_not_fit_and_what_failed():
    big = planned(total=17.0 * GIB)
    assert "17.00 GiB of 16.00 GiB: DOES NOT FIT" in tables.text(big)
    assert not big.fits
    assert big.bound is None
    output = tables.text(failed(failure="INTERNAL: it broke"))
    assert "NOT COMPILED        INTERNAL: it broke" in output
    assert "HBM per device" not in output
    output = tables.summary([big, failed(failure="INTERNAL: it broke")]).splitlines()
    assert [line.split()[7:9] for line in output[1:]] == [["17.00", "NO"], ["-", "failed"]]


def test_a_summary_has_a_cell_for_each_heading():
    heading, row = tables.summary([planned(total=GIB, work=WORK)]).splitlines()
    cells = [row[heading.index(name) :].split()[0] for name in ("HBM GiB", "TFLOP", "sent GB")]
    assert cells == ["1.00", "2.00", "5.00"]


def test_json_is_of_all_plans_without_text_and_endless_amounts():
    document = json.loads(
        tables.as_json({"model": "m"}, [planned(work=WORK), planned(total=math.inf)])
    )
    fitting, endless = document["plans"]
    assert document["model"] == "m"
    assert fitting["fits"]
    assert fitting["bound"]["limit"] == "dcn"
    assert fitting["program"]["work"]["collectives"][1]["between_slices"]
    assert "text" not in fitting["program"]
    assert fitting["chip"]["flops"] == CHIP.flops
    assert not endless["fits"]
    assert endless["program"]["memory"]["total"] is None
    assert endless["bound"] is None
