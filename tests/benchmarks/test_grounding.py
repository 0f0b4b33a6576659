"""The measures by hand; the command on a tiny untrained tower."""

import json
import re
import shutil

import numpy as np
import pytest

from input_pipeline.synthetic.canvas import PARTS
from input_pipeline.synthetic.persons import Attributes
from ivt_jax.benchmarks import grounding
from ivt_jax.benchmarks.grounding import (
    Crop,
    Phrase,
    covered,
    pair_up,
    pointing,
    read_crops,
    recolour,
    score_table,
    shares,
    true_phrases,
)
from ivt_jax.evaluation.calibration import area

RED, BLUE, GREEN = (Phrase(colour, "hat") for colour in ("red", "blue", "green"))
BLUE_CAP = Phrase("blue", "cap")


def crop(hat=None, seen=True):
    """Ten by ten pixels, of which one shows the hat."""
    labels = np.zeros((10, 10), np.uint8)
    labels[0, 0] = PARTS.index("hat") if hat and seen else 0
    return Crop(np.zeros((10, 10, 3), np.uint8), labels, {"hat": hat} if hat else {})


def test_the_area_counts_pairs_and_half_of_the_equal_ones():
    # 3 > 1, 3 = 3, 5 > 1, 5 > 3: three and a half of four
    assert area(np.array([3.0, 5.0]), np.array([1.0, 3.0])) == 3.5 / 4
    assert np.isnan(area(np.array([1.0]), np.array([])))


def test_the_share_is_of_the_crops_that_fit_less_well():
    scores = np.array([[0.1, 0.4, 0.2, 0.4], [9.0, 7.0, 8.0, 6.0]])
    # the two of 0.4 are above two crops and share the place of two
    np.testing.assert_array_equal(shares(scores), [[0.125, 0.75, 0.375, 0.75], [0.875, 0.375, 0.625, 0.125]])


def test_a_hidden_part_makes_a_phrase_neither_true_nor_false():
    crops = [crop(RED), crop(BLUE), crop(RED, seen=False), crop()]
    phrases, true, false = pair_up(crops, "hat")
    assert phrases == [BLUE, RED]
    np.testing.assert_array_equal(true, [[0, 1, 0, 0], [1, 0, 0, 0]])
    np.testing.assert_array_equal(false, [[1, 0, 1, 1], [0, 1, 0, 1]])


@pytest.mark.parametrize(("width", "shown"), [(25, True), (26, False)])
def test_a_part_is_shown_from_two_pixels_of_a_thousand_on(width, shown):
    labels = np.zeros((20, width), np.uint8)
    labels[3, 4] = PARTS.index("hat")  # one pixel of 500, of 520
    assert Crop(np.zeros((20, width, 3), np.uint8), labels, {"hat": RED}).shows("hat") is shown


def test_a_phrase_is_compared_with_the_same_thing_in_other_colours():
    true = np.array([[True, False], [False, True], [False, False], [False, False]])
    values = np.array([[2.0, 5.0], [1.0, 5.0], [3.0, 1.0], [9.0, 9.0]])
    # crop 0, blue hat: above red, below green. Crop 1, red hat: like blue, above green. The cap is another thing.
    assert recolour(values, [BLUE, RED, GREEN, BLUE_CAP], true) == [0.5, 0.75]


def test_the_table_of_a_reader_who_knows_hats_but_no_colours():
    crops = [crop(RED), crop(BLUE), crop(), crop()]
    table = score_table(crops, lambda texts: np.array([[1.0, 1.0, 0.0, 0.0] for _ in texts]))
    # true pairs score 1; of the six false ones two score 1 and four 0: (4 + 2 / 2) / 6
    assert table.splitlines()[2:] == [
        "| hat | 2 | 0.833 | 0.833 | 0.500 | 0.500 |",
        "| all | 2 | 0.833 | 0.833 | 0.500 | 0.500 |",
    ]


def test_a_patch_is_covered_where_some_of_the_mask_lies_in_it():
    mask = np.zeros((14, 10), bool)
    mask[5, 4] = True
    # rows of patches begin at 0, 4 and 8 and are 6 high, columns at 0 and 4: row 5 lies in two, column 4 in both
    np.testing.assert_array_equal(covered(mask, 6, 4), [True, True, True, True, False, False])


def test_pointing_beside_a_random_and_a_fixed_patch():
    lies = [[1, 1, 0, 0], [0, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]]
    hits = [(True, False), (True, True), (False, False), (True, False)]
    assert pointing(hits, np.array(lies, bool)) == [75.0, 25.0, 31.25, 75.0]


# --- on PEDES-Synth


def test_crops_are_at_the_size_of_the_model_and_evenly_spaced(root):
    crops = read_crops(root, (48, 24), 100)
    assert len(crops) == 8 and crops[0].pixels.shape == (48, 24, 3) and crops[0].labels.shape == (48, 24)
    persons = list(json.loads((root / "attributes.json").read_text())["persons"].values())[-4:]
    for number, crop in enumerate(crops):
        who = Attributes(**persons[number // 2])
        assert crop.phrases == true_phrases(who) and crop.shows("upper")
        assert (crop.mask("bag").any(), crop.mask("hat").any()) == (who.bag != "none", who.hat != "none")
    few = read_crops(root, (48, 24), 3)  # numbers 0, 4 and 7 of 0 to 7: of 3.5 the even neighbour
    for crop, number in zip(few, (0, 4, 7), strict=True):
        np.testing.assert_array_equal(crop.pixels, crops[number].pixels)


def test_a_part_that_the_person_does_not_have_has_no_phrase():
    who = Attributes(
        gender="man", hair_style="short", hair_colour="grey", hat="none", hat_colour="none", glasses="no",
        upper_type="T-shirt", upper_colour="dark blue", upper_pattern="plain", sleeves="short", lower_type="jeans",
        lower_colour="black", shoes_type="boots", shoes_colour="brown", bag="handbag", bag_colour="red",
        holding="umbrella",
    )  # fmt: skip
    assert {part: str(phrase) for part, phrase in true_phrases(who).items()} == {
        "hair": "grey hair", "upper": "dark blue T-shirt", "lower": "black jeans", "shoes": "brown boots",
        "bag": "red handbag", "held": "umbrella",
    }  # fmt: skip


def test_the_command_prints_both_tables(workdir, root, capsys):
    assert grounding.main([f"--workdir={workdir}", f"--root={root}", "--crops=5"]) == 0
    scores, heat = capsys.readouterr().out.strip().split("\n\n")
    for table, last in ((scores, "all"), (heat, "mean")):
        rows = {line.split(" | ")[0].removeprefix("| "): line for line in table.splitlines()[2:]}
        assert "upper" in rows and list(rows)[-1] == last
        assert re.match(r"\| upper \| 5 \| \d", rows["upper"])


def test_a_mistake_is_one_line(workdir, root, tmp_path, capsys):
    assert grounding.main([f"--workdir={workdir}", f"--root={tmp_path}"]) == 2
    message = "is missing or damaged: choose a folder of PEDES-Synth as generated"
    assert capsys.readouterr().err == f"error: {tmp_path}/attributes.json {message}\n"
    shutil.copytree(root, tmp_path / "data")
    first, second, *_ = sorted((tmp_path / "data" / "imgs").glob("*/*_0.jpg"), key=lambda path: path.name)[-4:]
    shutil.copy(second, first)
    assert grounding.main([f"--workdir={workdir}", f"--root={tmp_path / 'data'}"]) == 2
    assert f"error: {first} is not the image that its seed draws" in capsys.readouterr().err
