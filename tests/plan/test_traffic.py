"""HBM traffic of instructions whose bytes are worked by hand, as the TPU compiler writes them."""

import pytest

from stepdistill_jax.plan.work import work

ONE = {"replica": 1, "fsdp": 1, "tensor": 1}
KIB = 1024  # bytes of f32[16,16]
CHIP = "{1,0:T(8,128)S(1)}"  # the layout of what lies on the chip


def traffic(entry, *computations):
    """Bytes of a program of these lines."""
    inside = "\n\n".join(computations)
    lines = "\n".join(f"  {line}" for line in entry)
    text = f"HloModule m\n\n{inside}\n\nENTRY %main () -> f32[] {{\n{lines}\n}}\n"
    return work(text, ONE).hbm_bytes


def fusion(name, *lines):
    return f"%{name} (p: f32[]) -> f32[] {{\n" + "\n".join(f"  {x}" for x in lines) + "\n}"


TABLE = "%t = f32[64,16]{1,0} parameter(0)"
ROW = "%r = f32[1,16]{1,0} parameter(1)"
AT = "%i = s32[]{:S(2)} parameter(2)"


@pytest.mark.parametrize(
    ("entry", "moved"),
    [
        # A slice is read and written; on the chip, only read; from the chip, only written.
        ([TABLE, AT, "ROOT %s = f32[16,16]{1,0} dynamic-slice(%t, %i, %i)"], 2 * KIB),
        ([TABLE, AT, f"ROOT %s = f32[16,16]{CHIP} dynamic-slice(%t, %i, %i)"], KIB),
        (
            [
                TABLE.replace("{1,0}", CHIP),
                "ROOT %s = f32[16,16]{1,0} slice(%t), slice={[0:16], [0:16]}",
            ],
            KIB,
        ),
        # The beginning of a slice has its source in its type, of which it takes a part.
        (
            [
                TABLE,
                f"%s = ((f32[64,16]{{1,0}}), f32[16,16]{CHIP}, s32[]{{:S(2)}}) slice-start(%t), "
                "slice={[0:16], [0:16]}",
                f"ROOT %d = f32[16,16]{CHIP} slice-done(%s)",
            ],
            KIB,
        ),
        # An update in place reads and writes the update alone; from the chip, only writes it.
        ([TABLE, ROW, AT, "ROOT %u = f32[64,16]{1,0} dynamic-update-slice(%t, %r, %i, %i)"], 128),
        (
            [
                TABLE,
                ROW.replace("{1,0}", CHIP),
                AT,
                "ROOT %u = f32[64,16]{1,0} dynamic-update-slice(%t, %r, %i, %i)",
            ],
            64,
        ),
        # A buffer that is only laid out.
        (['ROOT %b = f32[64,16]{1,0} custom-call(), custom_call_target="AllocateBuffer"'], 0),
        (['ROOT %c = f32[64,16]{1,0} custom-call(), custom_call_target="Other"'], 4 * KIB),
        # What goes to the hosts is read once.
        (
            [
                TABLE,
                "%k = token[] after-all()",
                "%s = (f32[64,16]{1,0}, u32[], token[]) send(%t, %k), is_host_transfer=true",
                "ROOT %d = token[] send-done(%s)",
            ],
            4 * KIB,
        ),
    ],
)
def test_instructions_outside_fusions(entry, moved):
    assert traffic(entry) == moved


CALL = "ROOT %f = f32[64,16]{1,0} fusion(%t, %r, %i), kind=kLoop, calls=%inside"


@pytest.mark.parametrize(
    ("lines", "moved"),
    [
        # All of both is read, all of the result written.
        (["ROOT %o = f32[64,16]{1,0} add(%t, %r)"], 4 * KIB + 64 + 4 * KIB),
        # Of the table one row is used.
        (
            [
                "%s = f32[1,16]{1,0} dynamic-slice(%t, %i, %i)",
                "ROOT %o = f32[64,16]{1,0} add(%s, %r)",
            ],
            64 + 64 + 4 * KIB,
        ),
        # In place: the update is read once and written once, through another name too.
        (
            [
                "%b = f32[64,16]{1,0} bitcast(%t)",
                "%u = f32[64,16]{1,0} dynamic-update-slice(%b, %r, %i, %i)",
                "ROOT %o = f32[64,16]{1,0} bitcast(%u)",
            ],
            128,
        ),
        # In place, but of what was read before.
        (
            [
                "%n = f32[64,16]{1,0} negate(%t)",
                "%s = f32[1,16]{1,0} slice(%n), slice={[0:1], [0:16]}",
                "ROOT %u = f32[64,16]{1,0} dynamic-update-slice(%t, %s, %i, %i)",
            ],
            4 * KIB + 64,
        ),
    ],
)
def test_a_fusion_reads_what_it_uses_and_writes_what_changes(lines, moved):
    assert traffic([TABLE, ROW, AT, CALL], fusion("inside", TABLE, ROW, AT, *lines)) == moved


def test_a_collective_in_several_fusions_moves_its_bytes_once():
    """Its operand and result pass through all of them, beside what they compute."""
    part, whole = "f32[16,16]{1,0}", "f32[64,16]{1,0}"
    lines = (
        f"%p = {part} parameter(0)",
        f"%w = {whole} parameter(1)",
        f"%x = {part} parameter(2)",
        f"%y = {part} negate(%x)",
        f"%g = {whole} all-gather(%p), replica_groups={{{{0}}}}, dimensions={{0}}, "
        'frontend_attributes={chain_id="7"}',
        f"ROOT %o = ({part}, {part}, {whole}, {whole}) tuple(%y, %p, %w, %g)",
    )
    made = f"({part}, {part}, {whole}, {whole})"
    entry = [
        f"%p = {part} parameter(0)",
        f"%w = {whole} parameter(1)",
        f"%one = {made} fusion(%p, %w, %p), kind=kOutput, calls=%first",
        f"%a = {part} get-tuple-element(%one), index=0",
        f"%b = {whole} get-tuple-element(%one), index=3",
        f"ROOT %two = {made} fusion(%a, %b, %a), kind=kOutput, calls=%second",
    ]
    computed = 2 * (KIB + KIB)  # each negates a part
    gathered = KIB + 4 * KIB
    assert traffic(entry, fusion("first", *lines), fusion("second", *lines)) == computed + gathered
