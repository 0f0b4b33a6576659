import pytest

from ivt_jax.cost.hlo import Shape, called, parse, trips

TEXT = """HloModule jit_f, is_scheduled=true

%body (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  ROOT %p.1 = (s32[]{:T(128)}, f32[4]{0:T(128)S(1)}) parameter(0)
}

%condition.2 (p: (s32[], f32[4])) -> pred[] {
  %limit = s32[]{:T(128)} constant(12)
  %p.2 = (s32[]{:T(128)}, f32[4]{0:T(128)S(1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p.2), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %limit), direction=LT
}

ENTRY %main.3 (x: f32[4]) -> f32[4] {
  %x = f32[4]{0:T(128)} parameter(0), metadata={op_name="x"}
  %zero = s32[]{:T(128)} constant(0)
  %start = (s32[]{:T(128)}, /*index=1*/f32[4]{0:T(128)S(1)}) tuple(%zero, %x)
  %loop = (s32[]{:T(128)}, f32[4]{0:T(128)S(1)}) while(%start), condition=%condition.2, body=%body
  %known = (s32[]{:T(128)}, f32[4]{0:T(128)S(1)}) while(%start), condition=%condition.2, body=%body, backend_config={"known_trip_count":{"n":"7"},"known_init_step":{"init":"0","step":"1"}}
  ROOT %y = f32[4]{0:T(128)} get-tuple-element(%loop), index=1
}
"""  # noqa: E501


def test_instructions_are_read():
    entry, computations = parse(TEXT)
    assert entry == "main.3" and list(computations) == ["body", "condition.2", "main.3"]
    main = computations["main.3"]
    assert (main["y"].op, main["y"].operands, main["y"].root) == ("get-tuple-element", ("loop",), True)
    assert main["zero"].rest == main["x"].rest == "0" and not main["x"].operands
    assert main["start"].shapes == (Shape("s32", (), ":T(128)"), Shape("f32", (4,), "0:T(128)S(1)"))
    assert [*called(main["loop"])] == ["condition.2", "body"] and not [*called(main["y"])]


def test_a_loop_runs_as_often_as_its_trip_count_or_its_condition_says():
    _, computations = parse(TEXT)
    main = computations["main.3"]
    assert (trips(main["known"], computations), trips(main["loop"], computations)) == (7, 12)


@pytest.mark.parametrize(
    ("text", "size", "memory"),
    [
        ("f32[3,5]{1,0}", 60, 60),
        ("bf16[3,5]{1,0:T(8,128)(2,1)}", 30, 2 * 8 * 128),  # 3 rows fill 8, 5 columns 128
        ("f32[12,100,1]{1,0,2:T(8,128)}", 4800, 4 * 16 * 128),  # innermost: the axis of 100, then the one of 12
        ("f32[311]{0:T(512)}", 1244, 4 * 512),
        ("f32[3,5]{1,0:T(8,128)S(1)}", 60, 0),  # in a TPU's fast memory
        ("s32[]{:T(128)}", 4, 4 * 128),
        ("pred[7]{0}", 7, 7),
        ("u8[0]{0}", 0, 0),
        ("f8e4m3fn[6]{0}", 6, 6),
        ("token[]", 0, 0),
    ],
)
def test_bytes_of_an_array(text, size, memory):
    _, computations = parse(f"ENTRY %e () -> () {{\n  ROOT %x = {text} add(%y, %z)\n}}\n")
    [shape] = computations["e"]["x"].shapes
    assert (shape.size, shape.memory) == (size, memory)
