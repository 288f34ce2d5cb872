"""FLOPs, traffic and collectives of programs whose figures are worked by hand."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from stepdistill_jax.parallel.chips import CHIPS
from stepdistill_jax.plan.roofline import bound
from stepdistill_jax.plan.work import Collective, Work, _groups, _positions, work

MESH = {"replica": 1, "fsdp": 2, "tensor": 2}

# A loop of 5 rounds, in which f32[8,16] meets f32[16,32] and the product is summed over pairs of
# devices; then one product that a TPU writes as a convolution.
PROGRAM = """
HloModule jit_step, num_partitions=4

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%body (p: (s32[], f32[8,16], f32[16,32])) -> (s32[], f32[8,16], f32[16,32]) {
  %p = (s32[]{:T(128)}, f32[8,16]{1,0:T(8,128)}, /*index=2*/f32[16,32]{1,0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  %x = f32[8,16]{1,0:T(8,128)} get-tuple-element(%p), index=1
  %w = f32[16,32]{1,0} get-tuple-element(%p), index=2
  %y = f32[8,32]{1,0} dot(%x, %w), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %z = f32[8,32]{1,0} all-reduce(%y), replica_groups={{0,2},{1,3}}, to_apply=%add
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one)
  ROOT %t = (s32[], f32[8,16], f32[16,32]) tuple(%next, %x, %w)
}

%condition (p: (s32[], f32[8,16], f32[16,32])) -> pred[] {
  %p.1 = (s32[], f32[8,16], f32[16,32]) parameter(0)
  %n = s32[]{:T(128)} constant(5)
  %i.1 = s32[] get-tuple-element(%p.1), index=0
  ROOT %less = pred[] compare(%i.1, %n), direction=LT
}

ENTRY %main (x: f32[8,16], w: f32[16,32]) -> f32[8,64] {
  %x.2 = f32[8,16]{1,0} parameter(0)
  %w.2 = f32[16,32]{1,0} parameter(1)
  %zero = s32[] constant(0)
  %start = (s32[], f32[8,16], f32[16,32]) tuple(%zero, %x.2, %w.2)
  %loop = (s32[], f32[8,16], f32[16,32]) while(%start), condition=%condition, body=%body
  %whole = f32[16,64]{1,0} all-gather(%w.2), replica_groups=[2,2]<=[4], dimensions={1}
  ROOT %product = f32[8,64]{1,0:T(8,128)S(1)} convolution(%x.2, %whole), dim_labels=bf_io->bf
}
"""


def test_a_loop_counts_as_often_as_it_runs():
    result = work(PROGRAM, MESH)
    assert result.flops == 5 * 2 * 8 * 16 * 32 + 2 * 8 * 16 * 64
    assert result.open_loops == 0


def test_a_loop_may_count_by_two_and_through_a_copy():
    by_two = PROGRAM.replace("%one = s32[] constant(1)", "%one = s32[] constant(2)")
    by_two = by_two.replace("add(%i, %one)", "add(%again, %one)").replace(
        "  %one =", "  %again = s32[] copy(%i)\n  %one ="
    )
    assert work(by_two, MESH).flops == 3 * 2 * 8 * 16 * 32 + 2 * 8 * 16 * 64


def test_traffic_leaves_out_what_stays_on_chip():
    round_bytes = 4 * ((8 * 16 + 16 * 32 + 8 * 32) + 2 * 8 * 32 + 3)
    gather = 4 * (16 * 32 + 16 * 64)
    product = 4 * (8 * 16 + 16 * 64)  # its result lies in memory space 1
    assert work(PROGRAM, MESH).hbm_bytes == 5 * round_bytes + gather + product


def test_collectives_by_kind_axis_and_bytes_sent():
    gather, reduce = work(PROGRAM, MESH).collectives
    assert (gather.kind, gather.axis, gather.count) == ("all-gather", "tensor", 1)
    assert gather.sent == 4 * 16 * 32 * 1
    assert gather.largest == 4 * 16 * 64
    assert (reduce.kind, reduce.axis, reduce.count) == ("all-reduce", "fsdp", 5)
    assert reduce.sent == 5 * 2 * 4 * 8 * 32 / 2


def test_a_loop_counts_from_where_it_starts():
    later = PROGRAM.replace("%zero = s32[] constant(0)", "%zero = s32[] constant(3)")
    assert work(later, MESH).flops == 2 * 2 * 8 * 16 * 32 + 2 * 8 * 16 * 64
    unknown = PROGRAM.replace("%zero = s32[] constant(0)", "%zero = s32[] parameter(2)")
    assert work(unknown, MESH).open_loops == 1


def test_a_loop_that_the_data_ends_counts_the_rounds_given():
    endless = PROGRAM.replace("direction=LT", "direction=NE")
    result = work(endless, MESH, open_loop_rounds=7)
    assert result.open_loops == 1
    assert result.flops == 7 * 2 * 8 * 16 * 32 + 2 * 8 * 16 * 64


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("replica_groups={{0,1},{2,3}}, x", [(0, 1), (2, 3)]),
        ("replica_groups={}, x", [(0, 1, 2, 3)]),
        ("replica_groups=[2,2]<=[4], x", [(0, 1), (2, 3)]),
        ("replica_groups=[2,2]<=[2,2]T(1,0), x", [(0, 2), (1, 3)]),
        ("replica_groups=mesh['a'=2,'b'=2] {'b'}, x", [(0, 1), (2, 3)]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a'}, x", [(0, 2), (1, 3)]),
        ("replica_groups=mesh['a'=4] {'a':(1)2}, x", [(0, 2), (1, 3)]),
        ("source_target_pairs={{0,1},{1,0}}, x", [(0, 1), (1, 0)]),
    ],
)
def test_every_way_of_writing_groups(text, groups):
    assert list(_groups(text, 4)) == groups


def test_products_with_padding_and_holes_do_not_count():
    # Kernel 3 over 4 elements, padded by 1 on each side: 4 * 3 pairs less one at either end.
    assert _positions(4, 3, 4, {"pad": "1_1"}) == 10
    # One hole between elements: of 7 places 4 are real; a kernel of 1 meets each once.
    assert _positions(4, 1, 7, {"lhs_dilate": "2"}) == 4
    assert _positions(8, 2, 4, {"stride": "2"}) == 8


def test_a_compiled_scan_has_the_flops_of_its_rounds():
    """Against the product of sizes, through XLA itself, on one device and on eight."""
    x, w = jnp.ones((64, 32)), jnp.ones((6, 32, 32))

    def layers(x, w):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]

    text = jax.jit(layers).lower(x, w).compile().as_text()
    assert work(text, {"fsdp": 1}).flops == 6 * 2 * 64 * 32 * 32

    mesh = Mesh(jax.devices(), ("fsdp",))
    rows = NamedSharding(mesh, PartitionSpec("fsdp"))
    split = NamedSharding(mesh, PartitionSpec(None, "fsdp"))
    compiled = jax.jit(layers, in_shardings=(rows, split), out_shardings=rows).lower(x, w)
    result = work(compiled.compile().as_text(), {"fsdp": 8})
    assert result.flops == 6 * 2 * 64 * 32 * 32 / 8
    (gather,) = result.collectives
    assert (gather.kind, gather.axis) == ("all-gather", "fsdp")
    # Each layer's [32, 32] in turn, of which a device has an eighth.
    assert gather.sent == 6 * 4 * 32 * 32 / 8 * 7
    assert gather.largest == 4 * 32 * 32


def test_between_slices_the_host_sends():
    """As the TPU compiler writes an all-reduce of f32[16,32] over two slices."""
    sent = (
        "  %gone = (f32[16,32]{1,0}, u32[], token[]) send(%w.2, %token), is_host_transfer=true, "
        'frontend_attributes={_xla_megascale_target="{1,2}x{0:3}",'
        '_xla_megascale_transfer_type="ALL_REDUCE"}\n  ROOT %product'
    )
    program = PROGRAM.replace("  ROOT %product", "  %token = token[] after-all()\n" + sent)
    (result,) = (c for c in work(program, MESH).collectives if c.axis == "replica")
    assert (result.kind, result.count, result.sent) == ("all-reduce", 1, 4 * 16 * 32)
    assert result.between_slices
    # Another transfer, as a permute's, sends what it is given.
    (result,) = (
        c
        for c in work(program.replace("ALL_REDUCE", "ONE_TO_ONE"), MESH).collectives
        if c.between_slices
    )
    assert (result.kind, result.sent) == ("collective-permute", 4 * 16 * 32)


def test_what_replicas_of_one_slice_send_does_not_leave_it():
    """Four replicas on two slices: pairs of them lie in one."""
    program = PROGRAM.replace("replica_groups={{0,2},{1,3}}", "replica_groups={{0,1},{2,3}}")
    result = work(program, {"replica": 4, "fsdp": 1, "tensor": 1})
    assert bound(result, CHIPS["v5e"]).dcn == 0
    assert bound(result, CHIPS["v5e"]).ici > 0


def test_a_bound_is_the_longest_of_its_parts():
    chip = CHIPS["v5e"]
    inside = Collective("all-gather", "fsdp", False, 1, 2e9, 1.0)
    outside = Collective("all-reduce", "replica", True, 1, 1e9, 1.0)
    result = bound(Work(1e12, 1e9, (inside, outside), 0), chip)
    assert result.compute == 1e12 / 197e12
    assert result.memory == 1e9 / 819e9
    assert result.ici == 2e9 / 200e9
    assert result.dcn == 1e9 / 3.125e9 == result.seconds
    assert (result.limit, result.intensity) == ("dcn", 1000)
    # Where nothing is known of the network between slices, it is left out.
    result = bound(Work(1e12, 1e9, (inside, outside), 0), CHIPS["v4"])
    assert (result.dcn, result.limit) == (None, "ici")
