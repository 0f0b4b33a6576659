import datetime
import time

import pytest

from ivt_jax.common.errors import UserError
from ivt_jax.retrieval.stores.where import PATH, Comparison, Contains, Joined, Missing, Not, OneOf, parse

FIELDS = {"camera": "integer", "speed": "number", "time": "time", "track": "text", "indoors": "boolean", "in": "text"}
FIRST, SECOND = Comparison("camera", "=", 1), Comparison("camera", "=", 2)
EITHER = Joined("or", (FIRST, SECOND))
MAY = datetime.datetime(2024, 5, 1, tzinfo=datetime.UTC)


@pytest.mark.parametrize(
    ("text", "condition"),
    [
        ("camera = 3", Comparison("camera", "=", 3)),
        (" camera!=-3 ", Comparison("camera", "!=", -3)),
        ("camera < 9223372036854775807", Comparison("camera", "<", 2**63 - 1)),
        ("camera > -9223372036854775808", Comparison("camera", ">", -(2**63))),
        ("speed >= 1e-3", Comparison("speed", ">=", 0.001)),
        ("speed < 2", Comparison("speed", "<", 2.0)),
        ("indoors = TRUE", Comparison("indoors", "=", True)),
        ("not indoors = false", Not(Comparison("indoors", "=", False))),
        ("time > '2024-05-01'", Comparison("time", ">", MAY)),
        ("time > '2024-05-01T02:00+02:00'", Comparison("time", ">", MAY)),
        ("""track = 'it''s "here"'""", Comparison("track", "=", 'it\'s "here"')),
        ('track = "a ""b"""', Comparison("track", "=", 'a "b"')),
        ("track = '\\'", Comparison("track", "=", "\\")),
        ("track = '; DROP TABLE pictures --\n'", Comparison("track", "=", "; DROP TABLE pictures --\n")),
        ("`in` in ('a', 'b')", OneOf("in", ("a", "b"))),
        ("track is missing", Missing("track")),
        ("track IS NOT MISSING", Not(Missing("track"))),
        ("path contains 'gate'", Contains(PATH, "gate")),
        ("`path` CONTAINS \"it''s\"", Contains(PATH, "it''s")),
        (
            "path = 'a.jpg' and track contains ''",
            Joined("and", (Comparison(PATH, "=", "a.jpg"), Contains("track", ""))),
        ),
        ("path in ('a')", OneOf(PATH, ("a",))),
        ("camera between -1 and 2", Joined("and", (Comparison("camera", ">=", -1), Comparison("camera", "<=", 2)))),
        (
            "not speed between 1 and 1.5 and camera = 1",
            Joined("and", (Not(Joined("and", (Comparison("speed", ">=", 1), Comparison("speed", "<=", 1.5)))), FIRST)),
        ),
        (
            "time BETWEEN '2024-05-01' AND '2024-05-01T02:00+02:00'",  # the same moment
            Joined("and", (Comparison("time", ">=", MAY), Comparison("time", "<=", MAY))),
        ),
        ("not not camera = 1", Not(Not(FIRST))),
        ("camera = 1 or camera = 2 and not camera = 1", Joined("or", (FIRST, Joined("and", (SECOND, Not(FIRST)))))),
        ("(camera = 1 or camera = 2) and track is missing", Joined("and", (EITHER, Missing("track")))),
    ],
)
def test_reads_a_filter(text, condition):
    assert parse(text, FIELDS) == condition


def test_a_field_may_have_any_name_in_backticks():
    name = "the `best\" 'shot'.x"
    assert parse("`the ``best\" 'shot'.x` = 1", {name: "integer"}) == Comparison(name, "=", 1)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "character 1, '': expected a field"),
        ("camera", "character 7, '': expected =, !=, <, <=, >, >=, in, is, between or contains"),
        (
            "kamera = 3",
            "character 1, 'kamera = 3': the index has no such field; it has: camera, speed, time, track, indo",
        ),
        ("camera = 3 camera = 4", "character 12, 'camera = 4': expected and, or, or the end"),
        ("camera = 3; camera = 4", "character 11, '; camera = 4': cannot be read"),
        ("camera == 3", "character 8, '== 3': expected =, !=, <, <=, >, >=, in, is, between or contains"),
        ("camera <> 3", "character 8, '<> 3': expected =, !=, <, <=, >, >=, in, is, between or contains"),
        ("camera = '3'", "character 10, \"'3'\": camera is compared with a whole number"),
        ("camera = 3.5", "camera is compared with a whole number"),
        ("camera = 9223372036854775808", "camera is compared with a whole number"),
        ("speed = 1e999", "speed is compared with a number"),
        ("speed = -1e999", "speed is compared with a number"),
        ("camera = -9223372036854775809", "camera is compared with a whole number"),
        ("track = 'caf\udce9'", "track is compared with text in quotes"),
        ("track = '\ud800'", "track is compared with text in quotes"),
        ("track = '\udfff'", "track is compared with text in quotes"),
        ("speed = track", "speed is compared with a number"),
        ("time > '1 May'", "time is compared with a time in quotes, such as '2024-05-01'"),
        ("indoors > false", "indoors is true or false; expected = or !="),
        ('track = "a', "character 9, '\"a': cannot be read"),
        ("track = 'a\0'", "track is compared with text in quotes"),
        ("track in ()", "character 11, ')': track is compared with text in quotes"),
        ("(camera = 1", "character 12, '': expected )"),
        ("camera = 1 and", "character 15, '': expected a field"),
        ("not", "character 4, '': expected a field"),
        ("track is", "character 9, '': expected missing"),
    ],
)
def test_what_is_malformed_is_told_with_its_place(text, told):
    with pytest.raises(UserError) as error:
        parse(text, FIELDS)
    assert told in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "camera contains '3'",
            "character 8, \"contains '3'\": camera is no text; expected =, !=",
        ),
        ("path contains 3", "character 15, '3': path is compared with text in quotes"),
        ("track between 'a' and 'b'", "character 7, \"between 'a' and 'b'\": track is neither a number nor a time"),
        (
            "path between 'a' and 'b'",
            "path is neither a number nor a time; expected =, !=, <, <=, >, >=, in, is or contains",
        ),
        ("indoors between true and false", "indoors is neither a number nor a time"),
        ("camera between 1", "character 17, '': expected and"),
        ("camera between 1, 2", "character 17, ', 2': expected and"),
        ("camera between 2 and 1", "character 22, '1': the end of between is below its start; exchange them"),
        ("time between '2024-05-01' and 3", "time is compared with a time in quotes"),
    ],
)
def test_a_part_or_a_range_of_the_wrong_kind_is_told_with_its_place(text, told):
    with pytest.raises(UserError) as error:
        parse(text, FIELDS)
    assert told in str(error.value)


def test_without_fields_the_path_is_left():
    assert parse("path contains 'gate'", {}) == Contains(PATH, "gate")
    message = "it has: path alone; --list or --path_fields of python -m ivt_jax.index add fields"
    with pytest.raises(UserError, match=message):
        parse("camera = 3", {})


def test_a_field_of_ones_own_may_be_called_path_or_like_an_operator():
    fields = {"path": "integer", "between": "integer", "contains": "text"}
    assert parse("path = 3", fields) == Comparison("path", "=", 3)
    with pytest.raises(UserError, match="path is no text"):
        parse("path contains 'a'", fields)
    expected = Joined("and", (Comparison("between", ">=", 1), Comparison("between", "<=", 2)))
    assert parse("between between 1 and 2", fields) == expected
    assert parse("contains contains 'a'", fields) == Contains("contains", "a")


def test_a_filter_has_bounds():
    with pytest.raises(UserError, match="2,001 characters"):
        parse("camera = 1".ljust(2001), FIELDS)
    assert parse("camera = 1".ljust(2000), FIELDS) == Comparison("camera", "=", 1)
    deep = "(" * 19 + "camera = 1" + ")" * 19
    assert parse(deep, FIELDS) == Comparison("camera", "=", 1)
    with pytest.raises(UserError, match="more than 20"):
        parse(f"(({deep}))", FIELDS)
    with pytest.raises(UserError, match="more than 20"):
        parse("not " * 100 + "camera = 1", FIELDS)


def test_a_time_without_a_zone_is_in_utc_wherever_the_machine_is(monkeypatch):
    try:
        with monkeypatch.context() as patch:
            patch.setenv("TZ", "UTC-9")  # POSIX: nine hours ahead of UTC
            time.tzset()
            assert datetime.datetime(2024, 5, 1, 9).astimezone(datetime.UTC) == MAY
            assert parse("time = '2024-05-01T00:00'", FIELDS) == Comparison("time", "=", MAY)
    finally:
        time.tzset()
