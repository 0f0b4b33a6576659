"""Draws persons by their attributes, in crowds where many persons differ in one attribute only."""

import random
from dataclasses import asdict, dataclass, fields, replace

NONE = "none"
_STREET = {
    "black": 17, "white": 13, "grey": 11, "dark blue": 8, "blue": 9, "light blue": 5, "red": 8, "dark red": 4,
    "pink": 5, "orange": 4, "yellow": 5, "green": 6, "purple": 4, "brown": 5, "beige": 5,
}  # fmt: skip
_LEGWEAR = {
    "black": 27, "grey": 13, "dark blue": 12, "beige": 12, "brown": 9, "white": 8, "blue": 6, "green": 6, "red": 4,
    "dark red": 3,
}  # fmt: skip
_DENIM = {"blue": 40, "dark blue": 28, "light blue": 22, "black": 10}
_SKIRTS = {"black": 22, "white": 14, "grey": 9, "red": 12, "pink": 10, "blue": 10, "yellow": 8, "green": 8, "purple": 7}
_SHOES = {"black": 36, "white": 28, "grey": 9, "brown": 12, "red": 8, "blue": 7}
_BAGS = {
    "black": 30, "brown": 14, "grey": 8, "blue": 11, "red": 12, "green": 6, "yellow": 5, "pink": 6, "white": 5,
    "beige": 3,
}  # fmt: skip
_HATS = {"black": 28, "white": 16, "grey": 8, "red": 16, "blue": 14, "green": 6, "yellow": 6, "beige": 6}
_HAIR = {"black": 50, "brown": 25, "blond": 15, "grey": 10}
_UPPER = {"T-shirt": 30, "shirt": 17, "sweater": 13, "hoodie": 11, "jacket": 17, "coat": 12}
_PATTERNS = {"plain": 68, "striped": 13, "checked": 9, "dotted": 4, "graphic": 6}
_BAG_TYPES = {NONE: 42, "backpack": 24, "shoulder bag": 15, "handbag": 12, "suitcase": 7}

# Weight of each attribute to be the one in which a sibling differs from the base of its family.
_CHANGES = {
    "gender": 1, "hair_style": 2, "hair_colour": 2, "hat": 2, "hat_colour": 3, "glasses": 1, "upper_type": 3,
    "upper_colour": 6, "upper_pattern": 4, "sleeves": 2, "lower_type": 4, "lower_colour": 6, "shoes_type": 1,
    "shoes_colour": 4, "bag": 5, "bag_colour": 6, "holding": 2,
}  # fmt: skip
_FAMILIES = 0.27  # share of draws that start a family of 2 to 4: about half of all persons have a sibling


@dataclass(frozen=True)
class Attributes:
    """What a caption may state about a person. Values are plain words; an absent thing is "none"."""

    gender: str
    hair_style: str
    hair_colour: str
    hat: str
    hat_colour: str
    glasses: str
    upper_type: str
    upper_colour: str
    upper_pattern: str
    sleeves: str
    lower_type: str
    lower_colour: str
    shoes_type: str
    shoes_colour: str
    bag: str
    bag_colour: str
    holding: str

    def as_dict(self) -> dict[str, str]:
        """Returns field name -> value, in the order of the fields."""
        return asdict(self)


FIELDS = tuple(field.name for field in fields(Attributes))
VALUES = {
    "gender": ("man", "woman"),
    "hair_style": ("short", "long", "ponytail"),
    "hair_colour": tuple(_HAIR),
    "hat": ("cap", "beanie"),
    "hat_colour": tuple(_HATS),
    "glasses": ("yes",),
    "upper_type": tuple(_UPPER),
    "upper_colour": tuple(_STREET),
    "upper_pattern": tuple(_PATTERNS),
    "sleeves": ("short", "long"),
    "lower_type": ("trousers", "jeans", "shorts", "skirt", "long skirt"),
    "lower_colour": tuple(_STREET),
    "shoes_type": ("shoes", "boots"),
    "shoes_colour": tuple(_SHOES),
    "bag": tuple(_BAG_TYPES)[1:],
    "bag_colour": tuple(_BAGS),
    "holding": ("phone", "umbrella"),
}  # every value a caption can state, per field


def distance(a: Attributes, b: Attributes) -> int:
    """Counts attributes in which two persons differ, without the colour of a thing that only one of them has."""
    different = {name for name in FIELDS if getattr(a, name) != getattr(b, name)}
    for thing, colour in (("bag", "bag_colour"), ("hat", "hat_colour")):
        if NONE in (getattr(a, thing), getattr(b, thing)):
            different.discard(colour)
    return len(different)


def draw_crowd(count: int, rng: random.Random, taken: set[Attributes]) -> list[Attributes]:
    """Draws `count` different persons that are not in `taken`, and adds them to it.

    About half of them are in families: a base and one to three siblings with one attribute changed.
    """
    crowd: list[Attributes] = []
    while len(crowd) < count:
        siblings = rng.randint(1, 3) if rng.random() < _FAMILIES else 0
        base = _draw_new(lambda: draw_attributes(rng), taken)
        family = [base, *(_draw_new(lambda base=base: change_one(base, rng), taken) for _ in range(siblings))]
        crowd.extend(family[: count - len(crowd)])
    return crowd


def draw_attributes(rng: random.Random) -> Attributes:
    """Draws one person with the frequencies and correlations of a city street."""
    gender = rng.choice(VALUES["gender"])
    woman = gender == "woman"
    upper_type = _draw(_UPPER, rng)
    lower_type = _draw(_lower_types(woman, upper_type), rng)
    hat = _draw({NONE: 80, "cap": 13, "beanie": 7}, rng)
    bag = _draw(_BAG_TYPES, rng)
    return Attributes(
        gender=gender,
        hair_style=_draw({"short": 20, "long": 55, "ponytail": 25} if woman else {"short": 92, "long": 8}, rng),
        hair_colour=_draw(_HAIR, rng),
        hat=hat,
        hat_colour=NONE if hat == NONE else _draw(_HATS, rng),
        glasses=_draw({"no": 80, "yes": 20}, rng),
        upper_type=upper_type,
        upper_colour=_draw(_STREET, rng),
        upper_pattern="plain" if upper_type == "coat" else _draw(_PATTERNS, rng),
        sleeves=_draw(_sleeves(upper_type), rng),
        lower_type=lower_type,
        lower_colour=_draw(_lower_colours(lower_type), rng),
        shoes_type=_draw({"shoes": 85, "boots": 15} if woman else {"shoes": 93, "boots": 7}, rng),
        shoes_colour=_draw(_SHOES, rng),
        bag=bag,
        bag_colour=NONE if bag == NONE else _draw(_BAGS, rng),
        holding=_draw({NONE: 84, "phone": 9, "umbrella": 7}, rng),
    )


def _draw(weights: dict[str, int], rng: random.Random) -> str:
    return rng.choices(list(weights), list(weights.values()))[0]


def _draw_new(draw, taken: set[Attributes]) -> Attributes:
    while (attributes := draw()) in taken:
        pass
    taken.add(attributes)
    return attributes


def change_one(base: Attributes, rng: random.Random) -> Attributes:
    """Returns a copy of `base` with one attribute redrawn; a bag or hat changes with its colour."""
    while True:
        field = _draw(_CHANGES, rng)
        donor = draw_attributes(rng)
        changed = replace(base, **{field: getattr(donor, field)})
        for thing, colour in (("bag", "bag_colour"), ("hat", "hat_colour")):
            if field == thing and NONE in (getattr(base, thing), getattr(donor, thing)):
                changed = replace(changed, **{colour: getattr(donor, colour)})
        if _is_sensible(changed) and distance(base, changed) == 1:
            return changed


def _is_sensible(a: Attributes) -> bool:
    return (
        (a.bag == NONE) == (a.bag_colour == NONE)
        and (a.hat == NONE) == (a.hat_colour == NONE)
        and a.lower_type in _lower_types(a.gender == "woman", a.upper_type)
        and a.lower_colour in _lower_colours(a.lower_type)
        and a.sleeves in _sleeves(a.upper_type)
        and not (a.upper_type == "coat" and a.upper_pattern != "plain")
        and not (a.gender == "man" and a.hair_style == "ponytail")
    )


def _sleeves(upper_type: str) -> dict[str, int]:
    if upper_type == "T-shirt":
        return {"short": 85, "long": 15}
    return {"short": 35, "long": 65} if upper_type == "shirt" else {"long": 1}


def _lower_types(woman: bool, upper_type: str) -> dict[str, int]:
    warm = upper_type in ("jacket", "coat", "sweater", "hoodie")
    trousers = {"trousers": 45, "jeans": 35}
    if woman:
        return trousers | {"shorts": 5 if warm else 12, "skirt": 14 if warm else 20, "long skirt": 8}
    return trousers | {"shorts": 6 if warm else 28}


def _lower_colours(lower_type: str) -> dict[str, int]:
    if lower_type == "jeans":
        return _DENIM
    return _SKIRTS if lower_type.endswith("skirt") else _LEGWEAR
