"""Writes captions like a hurried witness: two or three sentences, with omissions, synonyms and a few mistakes.

A caption states only attributes that are visible in the image.
"""

import random
from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

from input_pipeline.synthetic.lexicon import (
    COLOURS,
    CONFUSED,
    HAIRCUTS,
    NOUNS,
    PATTERNS,
    PEOPLE,
    PLURAL,
    PRONOUNS,
    SUFFIXES,
    VERBS,
)
from input_pipeline.synthetic.persons import FIELDS, NONE, VALUES, Attributes
from input_pipeline.synthetic.scenery import Scene

MISTAKES = 0.03  # share of the stated attributes that are wrong
SHORTEST, LONGEST = 20, 45  # words in a caption


class Item(NamedTuple):
    """A thing that the person wears, has or carries. alone: a whole sentence with the same meaning, or ""."""

    kind: str
    phrase: str
    alone: str = ""


def describe(who: Attributes, scene: Scene, rng: random.Random) -> tuple[str, dict[str, str]]:
    """Returns a caption for an image of `who` in `scene`, and what it states: attribute -> value, with mistakes."""
    while True:
        stated = _misremember(_notice(who, scene, rng), rng)
        caption = _compose(stated, scene, rng)
        if SHORTEST <= len(caption.split()) <= LONGEST:
            return caption, stated


def _notice(who: Attributes, scene: Scene, rng: random.Random) -> dict[str, str]:
    """Draws which attributes are stated; returns their true values."""
    plain = who.upper_pattern == "plain"
    tops_with_either_sleeve = who.upper_type in ("T-shirt", "shirt")
    shares = {
        "gender": 0.93, "upper_colour": 0.96, "upper_type": 0.92, "upper_pattern": 0.06 if plain else 0.85,
        "sleeves": 0.45 if tops_with_either_sleeve else 0.12, "lower_colour": 0.94, "lower_type": 0.94, "glasses": 0.65,
        "bag": 0.88, "holding": 0.75, "hat": 0.9,
    }  # fmt: skip
    if rng.random() < (0.4 if who.hat != NONE else 0.68):
        shares |= {"hair_style": 0.8, "hair_colour": 0.85}
    if rng.random() < 0.68:
        shares |= {"shoes_type": 1.0, "shoes_colour": 1.0}
    noticed = {}
    for name, value in who.as_dict().items():
        present = value not in (NONE, "no") and name not in scene.hidden
        if present and rng.random() < shares.get(name, 0.0):
            noticed[name] = value
    for thing, colour in (("bag", "bag_colour"), ("hat", "hat_colour")):
        if thing in noticed and rng.random() < 0.85:
            noticed[colour] = getattr(who, colour)
    return {name: noticed[name] for name in FIELDS if name in noticed}


def _misremember(noticed: dict[str, str], rng: random.Random) -> dict[str, str]:
    """Replaces some values by similar ones."""
    stated = dict(noticed)
    for name, value in noticed.items():
        similar = [v for v in CONFUSED.get(value, ()) if v in VALUES[name]]
        others = similar or [v for v in VALUES[name] if v != value]
        if others and rng.random() < MISTAKES:
            stated[name] = rng.choice(others)
    return stated


def _compose(stated: dict[str, str], scene: Scene, rng: random.Random) -> str:
    """Writes two or three sentences with the stated attributes and the person's motion."""
    gender = stated.get("gender", NONE)
    noun = rng.choice(PEOPLE[gender])
    pronoun, possessive = PRONOUNS.get(gender, (f"the {noun}", "their"))
    first, rest = _arrange(_clothes(stated, rng), _details(stated, possessive, rng), rng)
    motion = _motion(scene, rng)
    moves_first = bool(rest) and rng.random() < 0.3
    sentences = [_opening(noun, first, motion if moves_first else "", rng)]
    for items in _split(rest, rng):
        if len(items) == 1 and items[0].alone and rng.random() < 0.5:
            sentences.append(items[0].alone)
        else:
            sentences.append(f"{pronoun if rng.random() < 0.8 else f'the {noun}'} {_predicate(items, rng)}")
    if not moves_first and (len(sentences) == 1 or (len(sentences) == 2 and rng.random() < 0.35)):
        sentences.append(f"{pronoun} is {motion}")
    return " ".join(f"{s[0].upper()}{s[1:]}." for s in sentences)


def _arrange(clothes: list[Item], details: list[Item], rng: random.Random) -> tuple[list[Item], list[Item]]:
    """Divides the items into those of the first sentence, mostly clothes, and the rest."""
    rng.shuffle(details)
    if rng.random() < 0.25 or not clothes:
        pool = [*clothes, *details]
        rng.shuffle(pool)
        cut = max(1, len(pool) // 2)
        return pool[:cut], pool[cut:]
    cut = rng.randint(0, min(1, len(details)))
    first = [*clothes, *details[:cut]] if rng.random() < 0.6 else [*details[:cut], *clothes]
    return first, details[cut:]


def _split(items: list[Item], rng: random.Random) -> list[list[Item]]:
    if len(items) >= 3 or (len(items) == 2 and rng.random() < 0.4):
        return [items[: len(items) // 2], items[len(items) // 2 :]]
    return [items] if items else []


def _opening(noun: str, items: list[Item], motion: str, rng: random.Random) -> str:
    """Writes the first sentence, with `motion` unless it is ""."""
    subject = f"{rng.choice(('the', 'the', 'a', 'this'))} {noun}"
    had = [item for item in items if item.kind == "have"]
    others = [item for item in items if item.kind != "have"]
    worn = [item.phrase for item in items if item.kind == "wear"]
    if had and others and rng.random() < 0.6:
        subject, items = f"{subject} with {had[0].phrase}", others
    if not motion:
        return f"{subject} {_predicate(items, rng)}"
    if len(worn) == len(items) and rng.random() < 0.5:
        return f"{subject} {rng.choice(('in', 'dressed in'))} {_join(worn, rng)} is {motion}"
    return f"{subject}, {motion}, {_predicate(items, rng)}"


def _predicate(items: Sequence[Item], rng: random.Random) -> str:
    """ "is wearing a, b and c, and carries d": neighbours of one kind share a verb."""
    clauses = []
    for kind, group in groupby(items, key=lambda item: item.kind):
        clauses.append(f"{rng.choice(VERBS[kind])} {_join([item.phrase for item in group], rng)}")
    if len(clauses) == 1:
        return clauses[0]
    return ", ".join(clauses[:-1]) + rng.choice((", and ", ", and also ", " and ")) + clauses[-1]


def _join(parts: list[str], rng: random.Random) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + rng.choice((" and ", " and ", ", and ")) + parts[-1]


def _article(phrase: str) -> str:
    return f"an {phrase}" if phrase[0] in "aeiou" else f"a {phrase}"


def _clothes(stated: dict[str, str], rng: random.Random) -> list[Item]:
    """Returns the stated garments, upper and lower."""
    items: list[Item] = []
    if any(name in stated for name in ("upper_colour", "upper_type", "upper_pattern", "sleeves")):
        items.append(Item("wear", _article(_upper(stated, rng))))
    if "lower_colour" in stated or "lower_type" in stated:
        kind = stated.get("lower_type", NONE)
        noun = _say(NOUNS[kind], rng) if kind != NONE else "bottoms"
        phrase = " ".join([*_colour(stated, "lower_colour", rng), noun])
        if kind not in PLURAL:
            phrase = _article(phrase)
        elif rng.random() < 0.25:
            phrase = f"a pair of {phrase}"
        items.append(Item("wear", phrase))
    return items


def _upper(stated: dict[str, str], rng: random.Random) -> str:
    noun = _say(NOUNS[stated["upper_type"]], rng) if "upper_type" in stated else "top"
    words, tails = [], []
    if (sleeves := stated.get("sleeves")) is not None:
        if rng.random() < 0.5:
            words.append(rng.choice((f"{sleeves}-sleeved", f"{sleeves} sleeve")))
        else:
            tails.append(f"with {sleeves} sleeves")
    words += _colour(stated, "upper_colour", rng)
    if (pattern := stated.get("upper_pattern")) is not None:
        if pattern == "plain" or tails or rng.random() < 0.6:
            words.append(_say(PATTERNS[pattern], rng))
        else:
            tails.append(_say(SUFFIXES[pattern], rng))
    if len(words) == 2 and rng.random() < 0.3:
        words.reverse()
    return " ".join([*words, noun, *tails])


def _details(stated: dict[str, str], possessive: str, rng: random.Random) -> list[Item]:
    """Returns the stated hair, hat, glasses, shoes, bag and held thing."""
    items: list[Item] = []
    if "hair_style" in stated or "hair_colour" in stated:
        items.append(_hair(stated, possessive, rng))
    if "hat" in stated:
        phrase = " ".join([*_colour(stated, "hat_colour", rng), _say(NOUNS[stated["hat"]], rng)])
        items.append(Item("wear", _article(phrase) + rng.choice(("", "", f" on {possessive} head"))))
    if "glasses" in stated:
        items.append(Item("wear", rng.choice(("glasses", "a pair of glasses", "dark glasses"))))
    if "shoes_type" in stated:
        colour, noun = _colour(stated, "shoes_colour", rng), _say(NOUNS[stated["shoes_type"]], rng)
        alone = f"{possessive} {noun} are {colour[0]}" if colour else ""
        items.append(Item("wear", rng.choice(("", "", "a pair of ")) + " ".join([*colour, noun]), alone))
    if "bag" in stated:
        phrase = " ".join([*_colour(stated, "bag_colour", rng), _say(NOUNS[stated["bag"]], rng)])
        items.append(Item("carry", _article(phrase) + rng.choice(_places(stated["bag"], possessive))))
    if "holding" in stated:
        phone = ("a phone", "a cell phone", "a mobile phone held to the ear")
        umbrella = ("an umbrella", "an open umbrella", f"an umbrella above {possessive} head")
        items.append(Item("carry", rng.choice(phone if stated["holding"] == "phone" else umbrella)))
    return items


def _hair(stated: dict[str, str], possessive: str, rng: random.Random) -> Item:
    style, colour = stated.get("hair_style"), _colour(stated, "hair_colour", rng)
    if style == "ponytail":
        tied = ("hair in a ponytail", "hair tied back", f"hair pulled back in a ponytail behind {possessive} head")
        return Item("have", " ".join([*colour, _say(tied, rng)]))
    words = [] if style is None else [_say(HAIRCUTS[style], rng)]
    return Item("have", " ".join([*words, *colour, "hair"]), f"{possessive} hair is {' and '.join([*words, *colour])}")


def _places(bag: str, possessive: str) -> tuple[str, ...]:
    places = {
        "backpack": (f" on {possessive} back", " over both shoulders"),
        "shoulder bag": (f" across {possessive} body", " over one shoulder", f" at {possessive} side"),
        "handbag": (f" in {possessive} hand", " in one hand"),
        "suitcase": (" on wheels", f" beside {possessive} leg", " by the handle"),
    }
    return ("", *places[bag])


def _say(words: Sequence[str], rng: random.Random) -> str:
    return words[0] if rng.random() < 0.5 else rng.choice(words[1:])


def _colour(stated: dict[str, str], name: str, rng: random.Random) -> list[str]:
    return [_say(COLOURS[stated[name]], rng)] if name in stated else []


def _motion(scene: Scene, rng: random.Random) -> str:
    """Describes the person's motion, which depends on the image and is not an attribute."""
    walking = {"front": ("towards the camera", "forward"), "back": ("away from the camera", "away")}
    standing = {"front": ("and facing the camera", "still"), "back": ("with the back to the camera", "still")}
    if scene.stride > 0.3:
        return f"walking {rng.choice(walking.get(scene.view, (f'to the {scene.view}', 'past the camera')))}"
    return f"standing {rng.choice(standing.get(scene.view, (f'and looking to the {scene.view}', 'still')))}"
