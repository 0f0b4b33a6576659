"""The measures by hand; the command on a tiny untrained tower."""

import random
import re
from dataclasses import asdict

import numpy as np

from input_pipeline.synthetic.persons import draw_attributes
from ivt_jax.benchmarks import queries
from ivt_jax.benchmarks.queries import Gallery, Measured, Trial, has_moved_down, rank, sentences, tables, unwanted
from ivt_jax.retrieval.queries.query import Query

PHRASES = {1: {"upper": "red coat"}, 2: {"upper": "blue coat", "bag": "bag"}, 3: {"upper": "red coat", "bag": "bag"}}
GALLERY = Gallery(np.array([1, 2, 3, 2]), PHRASES, [[]] * 4, [], {}, [])


def test_the_rank_is_that_of_the_first_right_picture_and_ties_count_against_it():
    right = np.array([False, True, False, True, False])
    scores = np.array([0.9, 0.5, 0.5, 0.1, 0.2])
    assert rank(scores, Trial(Query(), right)) == 3  # after 0.9 and the 0.5 beside it
    assert rank(scores, Trial(Query(), right, (0, 1))) == 4 - 1  # the right one left has 0.1, after 0.5 and 0.2


def test_the_unwanted_phrase_comes_from_another_of_the_first_pictures():
    assert unwanted(GALLERY, 1, np.array([0, 2, 1, 3]), random.Random(0)) in ("bag", "blue coat")
    assert unwanted(GALLERY, 3, np.array([0, 2]), random.Random(0)) == ""


def test_ranks_are_raised_if_their_mean_is():
    """Pictures 1, 2 and 3 have a bag: ranks 0, 1 and 3, then 1, 2 and 3; blue coats: 0 and 3, then 3 and 1."""
    before, after = np.array([0.1, 0.9, 0.8, 0.0]), np.array([0.9, 0.1, 0.2, 0.3])
    assert has_moved_down(GALLERY, "bag", before, after)
    assert not has_moved_down(GALLERY, "red coat", before, after)  # 2 and 1, then 0 and 2
    assert has_moved_down(GALLERY, "blue coat", before, after)


def test_a_recoloured_person_differs_in_the_colour_of_the_phrase_alone():
    rng = random.Random(0)
    for _ in range(30):
        who = draw_attributes(rng)
        other, phrase = queries._recoloured(who, rng)
        (name,) = [name for name, value in asdict(who).items() if asdict(other)[name] != value]
        assert phrase.startswith(getattr(other, name)) and name in queries.COLOURS


def test_kinds_of_a_caption():
    class Reads:
        def unread(self, text, length):
            return [], "", False

    kinds = sentences("A man in a red coat.", random.Random(0), Reads())
    texts = {kind: [term.text for term in query.terms] for kind, query in kinds.items()}
    assert texts["split into its phrases"] == ["man", "red coat"]
    assert texts["the sentence and its phrases"] == ["A man in a red coat.", "man", "red coat"]
    assert [term.weight for term in kinds["the sentence, one phrase at weight 2"].terms] == [1.0, 2.0]
    assert texts['with a final "."'] == ["A man in a red coat."] and texts['with "!!!"'] == ["A man in a red coat.!!!"]
    assert texts["one typo in each word"] != texts["the sentence"]
    assert texts["the same, with the suggestion"] == ["A man in a red coat."]


def test_tables_have_shares_changes_and_negations():
    """Two runs, four queries of two persons. Split: 2 and 1 of 4 at first place, the sentence: 3 and 3 of 4."""
    one = {"the sentence": np.array([1, 1, 1, 20]), "split": np.array([1, 1, 2, 20])}
    two = {"the sentence": np.array([1, 1, 1, 11]), "split": np.array([1, 2, 2, 10])}
    moved_down = [(True, True), (True, False), (False, False)]
    text = tables([Measured(one, moved_down), Measured(two, moved_down[:1])], np.array([1, 1, 2, 2]))
    rows = {line.split(" | ")[0].removeprefix("| "): line for line in text.splitlines()}
    assert rows["the sentence"] == "| the sentence | 75.0, 75.0 | 75.0 (50.0 to 100.0) |  | 75.0 |"
    assert re.match(
        r"\| split \| 50\.0, 25\.0 \| 37\.5 \(.*\) \| -37\.5 \(-50\.0 to -25\.0\) \| 87\.5 \|", rows["split"]
    )
    assert rows["that the model can tell"].endswith("| 3 | 50.0, 100.0 |")
    assert rows["that it cannot tell"].endswith("| 1 | 0.0, - |")


def test_the_command_prints_both_tables(workdir, root, capsys):
    assert queries.main(["--workdir", str(workdir), str(workdir), f"--root={root}", "--pictures=3"]) == 0
    kinds, negations = capsys.readouterr().out.strip().split("\n\n")
    rows = [line.split(" | ") for line in kinds.splitlines()[2:]]
    assert len(rows) == 13 and all(len({*row[1].split(", ")}) == 1 for row in rows)  # the same run twice
    assert len(negations.splitlines()) == 4


def test_a_mistake_is_one_line(workdir, tmp_path, capsys):
    assert queries.main(["--workdir", str(workdir), f"--root={tmp_path}"]) == 2
    message = "is missing or damaged: choose a folder of PEDES-Synth as generated"
    assert capsys.readouterr().err == f"error: {tmp_path}/attributes.json {message}\n"
