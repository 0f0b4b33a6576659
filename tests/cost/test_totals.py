"""Figures of small programs, as XLA writes them for each platform, worked out by hand."""

import jax
import numpy as np
import pytest

from ivt_jax.cost.totals import Collective, totals


def entry(*lines, before=""):
    return before + "\nENTRY %main (x: f32[1]) -> f32[1] {\n" + "\n".join(f"  {line}" for line in lines) + "\n}\n"


def test_products_of_a_compiled_loop():
    def f(x, w):
        return jax.lax.scan(lambda x, _: (x @ w, None), x, length=5)[0] @ w[:, :2]

    text = jax.jit(f).lower(np.ones((3, 4), np.float32), np.ones((4, 4), np.float32)).compile().as_text()
    assert totals(text).products == 5 * 2 * 3 * 4 * 4 + 2 * 3 * 4 * 2


CALLS = {
    "a product with weights, on a TPU": (
        "%x = bf16[2,5,3]{2,1,0} parameter(0)", "%w = bf16[3,7,1]{1,0,2} parameter(1)",
        "ROOT %y = bf16[2,5,7]{2,1,0} convolution(%x, %w), window={size=1}, dim_labels=b0f_io0->b0f",
        2 * 2 * 5 * 3 * 7,
    ),
    "a gradient of weights: summed over 4 windows": (
        "%x = bf16[4,5,3]{2,1,0} parameter(0)", "%w = bf16[4,5,7]{2,1,0} parameter(1)",
        "ROOT %y = bf16[3,7,1]{1,0,2} convolution(%x, %w), window={size=4}, dim_labels=0fb_0io->bf0",
        2 * 4 * 5 * 3 * 7,
    ),
    "six products at once: spatial axes, dilated": (
        "%x = bf16[2,3,5,4]{3,2,1,0} parameter(0)", "%w = bf16[2,3,4,7]{3,2,1,0} parameter(1)",
        "ROOT %y = f32[2,3,5,7]{3,2,1,0} convolution(%x, %w), window={size=2x3 stride=1x2 lhs_dilate=2x3}, "
        "dim_labels=01bf_01io->01bf",
        2 * 6 * 5 * 4 * 7,
    ),
    "3 windows of 3 over 3 padded elements: 7 pairs": (
        "%x = f32[1,3,2]{2,1,0} parameter(0)", "%w = f32[3,2,5]{2,1,0} parameter(1)",
        "ROOT %y = f32[1,3,5]{2,1,0} convolution(%x, %w), window={size=3 pad=1_1}, dim_labels=b0f_0io->b0f",
        2 * 7 * 2 * 5,
    ),
    "cuBLAS": (
        "%x = bf16[6,5]{1,0} parameter(0)", "%w = bf16[6,7]{1,0} parameter(1)",
        'ROOT %y = (bf16[5,7]{1,0}, s8[33554432]{0}) custom-call(%x, %w), custom_call_target="__cublas$gemm", '
        'backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["0"]}}}',
        2 * 5 * 6 * 7,
    ),
    "cuDNN's attention, forward": (
        "%x = bf16[2,9,3,4]{3,2,1,0} parameter(0)", "%w = bf16[2,9,3,4]{3,2,1,0} parameter(1)",
        'ROOT %y = (bf16[2,3,9,4]{3,1,2,0}, u8[0]{0}) custom-call(%x, %w), custom_call_target="__cudnn$fmhaSoftmax", '
        'backend_config={"x": {"intermediate_tensor_shape": {"type": "BF16", "dimensions": ["2", "3", "9", "9"]}}}',
        2 * 2 * (2 * 3 * 9 * 9) * 4,
    ),
    "cuDNN's attention, backward": (
        "%x = bf16[2,9,3,4]{3,2,1,0} parameter(0)", "%w = bf16[2,9,3,4]{3,2,1,0} parameter(1)",
        'ROOT %y = (bf16[2,3,9,4]{3,1,2,0}) custom-call(%x, %w), custom_call_target="__cudnn$fmhaSoftmaxBackward", '
        'backend_config={"x": {"intermediate_tensor_shape": {"type": "BF16", "dimensions": ["2", "3", "9", "9"]}}}',
        5 * 2 * (2 * 3 * 9 * 9) * 4,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_products_by_hand(name):
    *lines, expected = CALLS[name]
    assert totals(entry(*lines)).products == expected


FUSIONS = """
%update (a: f32[10,8], b: f32[8], i: s32[]) -> f32[10,8] {
  %a = f32[10,8]{1,0} parameter(0)
  %b = f32[8]{0} parameter(1)
  %i = s32[] parameter(2)
  %row = f32[1,8]{1,0} bitcast(%b)
  ROOT %u = f32[10,8]{1,0} dynamic-update-slice(%a, %row, %i, %i)
}

%slice (a.1: f32[10,8], i.1: s32[]) -> (f32[1,8], f32[10,8]) {
  %a.1 = f32[10,8]{1,0} parameter(0)
  %i.1 = s32[] parameter(1)
  %s = f32[1,8]{1,0} dynamic-slice(%a.1, %i.1, %i.1), dynamic_slice_sizes={1,8}
  ROOT %t = (f32[1,8]{1,0}, f32[10,8]{1,0}) tuple(%s, %a.1)
}
"""
INPUTS = "%a = f32[10,8]{1,0} parameter(0)", "%b = f32[8]{0} parameter(1)", "%i = s32[] parameter(2)"
ROW, INDEX = 32, 4
TRAFFIC = {
    "an addition": (["ROOT %y = f32[8]{0} add(%b, %b)"], 2 * ROW),  # the same operand is read once
    "fast memory": (["%c = f32[8]{0:S(1)} copy(%b)", "ROOT %y = f32[8]{0} negate(%c)"], 2 * ROW),
    "asynchronous": (
        ["%c = (f32[8]{0:S(1)}, f32[8]{0}, u32[]{:S(2)}) copy-start(%b)", "ROOT %y = f32[8]{0:S(1)} copy-done(%c)"],
        ROW,
    ),
    "a slice": (["ROOT %y = f32[1,8]{1,0} dynamic-slice(%a, %i, %i)"], 2 * ROW),
    "an update in place": (["ROOT %y = f32[10,8]{1,0} fusion(%a, %b, %i), kind=kLoop, calls=%update"], 2 * ROW + INDEX),
    "an update in place, asynchronous": (
        [
            "%f = ((f32[10,8]{1,0}, f32[8]{0}, s32[]), f32[10,8]{1,0}) fusion-start(%a, %b, %i), calls=%update",
            "ROOT %y = f32[10,8]{1,0} fusion-done(%f)",
        ],
        2 * ROW + INDEX,
    ),
    "a slice in a fusion, which returns the array too": (
        ["ROOT %y = (f32[1,8]{1,0}, f32[10,8]{1,0}) fusion(%a, %i), kind=kLoop, calls=%slice"], 2 * ROW + INDEX,
    ),
    "workspace": (['ROOT %y = (f32[8]{0}, s8[999]{0}) custom-call(%b), custom_call_target="__cublas$x"'], 2 * ROW),
    "nothing moves": (
        [
            "%t = (f32[8]{0}, f32[10,8]{1,0}) tuple(%b, %a)",
            "%g = f32[8]{0} get-tuple-element(%t), index=0",
            'ROOT %y = f32[2,4]{1,0} custom-call(%g), custom_call_target="ConcatBitcast"',
        ],
        0,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TRAFFIC)
def test_traffic_by_hand(name):
    lines, expected = TRAFFIC[name]
    assert totals(entry(*INPUTS, *lines, before=FUSIONS)).traffic == expected


def test_a_loop_and_what_it_calls_count_as_often_as_they_run():
    before = """
%inner (p: f32[4,4]) -> f32[4,4] {
  %p = f32[4,4]{1,0} parameter(0)
  ROOT %d = f32[4,4]{1,0} dot(%p, %p), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%body (q: f32[4,4]) -> f32[4,4] {
  %q = f32[4,4]{1,0} parameter(0)
  %f = f32[4,4]{1,0} fusion(%q), kind=kOutput, calls=%inner
  %g = f32[4,4]{1,0} call(%f), to_apply=%inner
  ROOT %r = f32[4,4]{1,0} all-reduce(%g), replica_groups={{0,1},{2,3}}, to_apply=%sum
}

%condition (c: f32[4,4]) -> pred[] {
  %c = f32[4,4]{1,0} parameter(0)
  ROOT %more = pred[] constant(true)
}
"""
    loop = '"known_trip_count":{"n":"3"}'
    program = entry(
        "%x = f32[4,4]{1,0} parameter(0)",
        f"ROOT %y = f32[4,4]{{1,0}} while(%x), condition=%condition, body=%body, backend_config={{{loop}}}",
        before=before,
    )
    found = totals(program, 4)
    assert found.products == 3 * 2 * 2 * 4**3
    assert found.traffic == 3 * (2 * 64 + 2 * 64 + 2 * 64)  # the fusion, the call's dot, the sum: 64 in, 64 out
    assert found.collectives == (Collective("all-reduce", 2, 3, 3 * 64),)


COLLECTIVES = {
    "gathered, the groups as axes of a mesh": (
        "%g = f32[32]{0} all-gather(%b), replica_groups=mesh['a'=2,'b'=4] {'b'}, dimensions={0}",
        Collective("all-gather", 4, 1, 4 * ROW), 3 * ROW,
    ),
    "a part of an axis": (
        "%g = f32[16]{0} all-gather(%b), replica_groups=mesh['a'=8] {'a':(1)2}, dimensions={0}",
        Collective("all-gather", 2, 1, 2 * ROW), ROW,
    ),
    "summed, by all devices": (
        "%g = f32[8]{0} all-reduce(%b), replica_groups={}, to_apply=%add",
        Collective("all-reduce", 8, 1, ROW), 1.75 * ROW,
    ),
    "scattered, groups by number": (
        "%g = f32[2]{0} reduce-scatter(%b), replica_groups=[2,4]<=[8], to_apply=%add",
        Collective("reduce-scatter", 4, 1, ROW), 0.75 * ROW,
    ),
    "permuted, asynchronous": (
        "%g = (f32[8]{0}, f32[8]{0}, u32[]{:S(2)}) collective-permute-start(%b), source_target_pairs={{0,1},{1,0}}",
        Collective("collective-permute", 8, 1, ROW), ROW,
    ),
    "two arrays at once": (
        "%g = (f32[8]{0}, f32[10,8]{1,0}) all-reduce(%b, %a), replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add",
        Collective("all-reduce", 8, 1, 11 * ROW), 1.75 * 11 * ROW,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", COLLECTIVES)
def test_collectives_by_hand(name):
    line, expected, moved = COLLECTIVES[name]
    [found] = totals(entry(*INPUTS, line), 8).collectives
    assert found == expected and found.moved == moved


def test_a_collective_spread_over_fusions_counts_once():
    """A TPU starts it, continues it in fusions that compute something else, even in loops, and ends it."""
    gather = 'all-gather(%p), channel_id=1, replica_groups={}, dimensions={0}, frontend_attributes={chain_id="0"}'

    def fused(name, *lines):
        return f"\n%{name} (p: f32[8]) -> f32[8] {{\n  %p = f32[8]{{0}} parameter(0)\n" + "\n".join(lines) + "\n}\n"

    start = '  ROOT %s = (f32[8]{0}, f32[32]{0}) custom-call(%g), custom_call_target="AsyncCollectiveStart"'
    done = '  ROOT %d = f32[32]{0} custom-call(%p, %g), custom_call_target="AsyncCollectiveDone"'
    before = fused("begin", f"  %g = f32[32]{{0}} {gather}", start)
    before += fused("between", f"  %g = f32[32]{{0}} {gather}", "  ROOT %n = f32[8]{0} negate(%p)")
    before += fused("end", f"  %g = f32[32]{{0}} {gather}", done)
    program = entry(
        "%x = f32[8]{0} parameter(0)",
        "%s = (f32[8]{0}, f32[32]{0}) fusion(%x), kind=kCustom, calls=%begin",
        "%m = f32[8]{0} fusion(%x), kind=kOutput, calls=%between",
        "ROOT %y = f32[32]{0} fusion(%x), kind=kCustom, calls=%end",
        before=before,
    )
    assert totals(program, 4).collectives == (Collective("all-gather", 4, 1, 4 * ROW),)
