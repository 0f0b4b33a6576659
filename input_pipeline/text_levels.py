"""Draws the three text levels of multi-level alignment (IVT section 3.2): sentence, phrase and words.

Each function returns non-empty text for a caption that is not blank, and depends only on the caption and the state of
the generator. This command writes the levels of a whole dataset to a file:

    python -m input_pipeline.text_levels --dataset=cuhk --root=data/CUHK-PEDES --out=data/CUHK-PEDES/levels.json

It has the shape of the IVT release's cuhk_pedes_att.json, one record per caption in an object of splits:

    {"id", "file_path", "captions": "...", "processed_tokens": ["a", ...], "att": {"0": phrase, ...}, "clauses": [...]}

`att` is the dataset's own if it has any, else `attribute_phrases`. Train on the file, beside imgs/, with
`--config.data.root=FILE`. Two records of one image become one. Empty training captions and images in quarantine are
left out, as in training.
"""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from input_pipeline.annotations import DATASETS, Record, read_annotations
from input_pipeline.noun_phrases import BARE, CLAD, HEADED, PREDICATE, attribute_phrases, recognised_phrases, tag
from ivt_jax.common.command import exit_code, filled_path
from ivt_jax.common.errors import UserError
from ivt_jax.common.files import write_text
from ivt_jax.common.progress import progress

LEVELS = ("sentence", "phrase", "word")
PHRASE_RULES = ("released", "clauses")
WORD_RULES = ("attributes", "released")

LONGEST = 10_000  # characters of a caption that are used; real captions have hundreds, and no token is beyond
_SHORTEST_PHRASE = 6  # characters; the release keeps parts longer than 5

# Ends of clauses, over the classes of `noun_phrases.tag`. Noun phrases and predicates match first, so that no list of
# modifiers is cut. A clause ends at "who", "while", "but", and at a comma or "and" before "she", "carrying", "with",
# or "his shoes are".
_SUBJECT = f"[dh]*(?:{HEADED}|{BARE})(?:p[dh]*(?:{HEADED}))?"
_ENDS = f",?&?w|,&?(?=[rtvbipn]|(?!{HEADED})[Tg]|{_SUBJECT}b|h{HEADED}v)|&(?=[rtvbip]|(?!{HEADED})g|h{HEADED}b)"
_CLAUSE_END = re.compile(f"b{PREDICATE}|{CLAD}|{HEADED}|{BARE}|(?P<end>{_ENDS})")
# In a sentence without a verb, each thing of a list is a clause.
_VERBLESS_CLAUSE_END = re.compile(f"b{PREDICATE}|{CLAD}|{HEADED}|{BARE}|(?P<end>{_ENDS}|,&?)")
_CONTENT = re.compile("[MCTNxvg]")


def sentence(caption: str) -> str:
    """Returns the whole caption with white space collapsed."""
    return " ".join(caption.split())


def phrase(caption: str, rng: np.random.Generator, rule: str = "released") -> str:
    """Draws one part of the caption by `rule` (one of PHRASE_RULES); returns the whole caption if there is none."""
    return _one_of({"released": _comma_parts, "clauses": clauses}[rule](caption), caption, rng)


def _one_of(candidates: list[str], caption: str, rng: np.random.Generator) -> str:
    return candidates[rng.integers(len(candidates))] if candidates else sentence(caption)


def _comma_parts(caption: str) -> list[str]:
    """Splits each sentence as the release does: its longest comma part, then all others joined; drops short ones."""
    candidates = []
    for part in sentence(caption).split("."):
        parts = [clause.strip() for clause in part.split(",")]
        longest = max(parts, key=len)
        parts.remove(longest)
        candidates += [longest, ", ".join(parts)]
    return [c for c in candidates if len(c) >= _SHORTEST_PHRASE]


def clauses(caption: str) -> list[str]:
    """Returns the caption's clauses longer than 5 characters in order; the whole caption if there is none.

    A clause ends at a full stop or semicolon; at "who", "while" and "but", which are left out; at a comma or "and"
    before a pronoun, a verb, a preposition or a new subject ("and his shoes are"). It does not end within a list of
    modifiers or of things worn. In a sentence without a verb, it also ends at all other commas.

        "A man who wears a black, white and red shirt, jeans and a cap, and he is carrying a bag on his back."
        -> ["wears a black, white and red shirt, jeans and a cap", "he is carrying a bag on his back"]
    """
    found = []
    letters, spans = tag(caption)
    for match in re.finditer("[^.]+", letters):
        start, end = match.span()
        pattern = _CLAUSE_END if re.search("[vbg]", match[0]) else _VERBLESS_CLAUSE_END
        ends = [m.span("end") for m in pattern.finditer(letters, start, end) if m["end"]]
        for i, j in zip([start, *(after for _, after in ends)], [*(before for before, _ in ends), end], strict=True):
            if i < j and _CONTENT.search(letters, i, j):
                found.append(sentence(caption[spans[i][0] : spans[j - 1][1]]))
    found = [clause for clause in found if len(clause) >= _SHORTEST_PHRASE]
    return found or [sentence(caption)] * bool(caption.strip())


def words(caption: str, rng: np.random.Generator, attributes: Sequence[str] = (), rule: str = "attributes") -> str:
    """Draws a non-empty subset of the attribute phrases, each with probability 1/2, and joins them with commas.

    attributes: the dataset's phrases (`att`). If there are none, rule "attributes" takes those that the grammar finds
    in the caption, because the release's method was never published; rule "released" draws one comma part longer than
    5 characters instead.
    """
    if rule == "released" and not attributes:
        parts = [part.strip() for part in re.split("[.,]", sentence(caption))]
        return _one_of([part for part in parts if len(part) >= _SHORTEST_PHRASE], caption, rng)
    phrases = attributes or attribute_phrases(caption)
    if not phrases:
        return sentence(caption)
    keep = rng.random(len(phrases)) < 0.5
    if not keep.any():
        keep[rng.integers(len(phrases))] = True
    return ", ".join(p for p, kept in zip(phrases, keep, strict=True) if kept)


def draw_levels(
    caption: str,
    rng: np.random.Generator,
    levels: Sequence[str] = LEVELS,
    attributes: Sequence[str] = (),
    phrase_rule: str = "released",
    word_rule: str = "attributes",
) -> dict[str, str]:
    """Returns level -> text of the caption, in the order of `levels`; phrases and words are drawn with `rng`.

    Only the first LONGEST characters of the caption are used.
    """
    caption = caption.lstrip()[:LONGEST]
    draw = {
        "sentence": lambda: sentence(caption),
        "phrase": lambda: phrase(caption, rng, phrase_rule),
        "word": lambda: words(caption, rng, attributes, word_rule),
    }
    return {level: draw[level]() for level in levels}


def level_records(record: Record) -> list[dict[str, Any]]:
    """Returns a record of the file for each caption of an image."""
    return [
        {
            "id": record.person_id,
            "file_path": record.image_path,
            "captions": caption,
            "processed_tokens": re.findall(r"\w+", caption.lower()),
            "att": {str(i): text for i, text in enumerate(attributes or attribute_phrases(caption))},
            "clauses": clauses(caption),
        }
        for caption, attributes in zip(record.captions, record.attributes, strict=True)
    ]


def write_json(document: Any, path: Path) -> None:
    """Writes the file whole or not at all. Raises UserError if it cannot be written."""
    try:
        write_text(path, json.dumps(document, ensure_ascii=False) + "\n")
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from None


def run(args: argparse.Namespace) -> None:
    """Writes the file and prints its counts."""
    if args.out.exists():
        raise UserError(f"{args.out} exists already; remove it, or name another file with --out")
    records = read_annotations(args.root, DATASETS[args.dataset]).records
    splits: dict[str, list[dict[str, Any]]] = {record.split: [] for record in records}
    captions = phrases = unrecognised = 0
    for record in progress(records, len(records)):
        made = level_records(record)
        splits[record.split] += made
        captions += len(made)
        phrases += sum(len(level["att"]) for level in made)
        given = zip(record.captions, record.attributes, strict=True)
        unrecognised += sum(not own and not recognised_phrases(caption) for caption, own in given)
    write_json(splits, args.out)
    print(
        f"{args.out}: {captions:,} captions, {phrases / captions:.1f} phrases each; "
        f"{unrecognised:,} have no word of the lexicon"
    )


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m input_pipeline.text_levels",
        description="Write the attribute phrases and clauses of a dataset's captions.",
    )
    parser.add_argument("--dataset", required=True, choices=DATASETS)
    parser.add_argument(
        "--root", required=True, type=filled_path, help="the dataset's folder, annotation file or table"
    )
    parser.add_argument("--out", required=True, type=filled_path, help="JSON file to write; must not exist")
    args = parser.parse_args(argv)
    return exit_code(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
