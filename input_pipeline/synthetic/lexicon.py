"""Words of the captions. Code that analyses captions must not import them: its scores would be too good."""

from input_pipeline.synthetic.persons import NONE

# Ways to say a value; common ones are repeated. Half of the time the first is taken.
COLOURS = {
    "black": ("black", "black", "jet black"),
    "white": ("white", "white", "off-white"),
    "grey": ("grey", "gray"),
    "dark blue": ("dark blue", "navy blue", "navy"),
    "blue": ("blue", "blue", "bright blue"),
    "light blue": ("light blue", "pale blue", "sky blue"),
    "red": ("red", "red", "bright red"),
    "dark red": ("dark red", "burgundy", "maroon"),
    "pink": ("pink", "pink", "light pink", "rose"),
    "orange": ("orange", "orange", "bright orange"),
    "yellow": ("yellow", "yellow", "bright yellow"),
    "green": ("green", "green", "dark green"),
    "purple": ("purple", "violet"),
    "brown": ("brown", "brown", "dark brown"),
    "beige": ("beige", "tan", "cream colored", "khaki"),
    "blond": ("blond", "blonde", "light"),
}
NOUNS = {
    "T-shirt": ("t-shirt", "T-shirt", "tee shirt", "tee"),
    "shirt": ("shirt", "button-up shirt", "collared shirt"),
    "sweater": ("sweater", "pullover", "jumper"),
    "hoodie": ("hoodie", "hooded sweatshirt", "hooded sweater"),
    "jacket": ("jacket", "open jacket", "zip-up jacket"),
    "coat": ("coat", "long coat", "overcoat"),
    "trousers": ("pants", "trousers", "slacks"),
    "jeans": ("jeans", "jeans", "denim pants"),
    "shorts": ("shorts", "short pants"),
    "skirt": ("skirt", "short skirt", "knee-length skirt"),
    "long skirt": ("long skirt", "maxi skirt", "ankle-length skirt"),
    "shoes": ("shoes", "sneakers", "trainers"),
    "boots": ("boots", "high boots"),
    "cap": ("cap", "baseball cap", "hat with a brim"),
    "beanie": ("beanie", "knit hat", "woolen cap"),
    "backpack": ("backpack", "rucksack"),
    "shoulder bag": ("shoulder bag", "crossbody bag", "messenger bag"),
    "handbag": ("handbag", "purse", "hand bag"),
    "suitcase": ("suitcase", "rolling suitcase", "trolley case"),
}
HAIRCUTS = {"short": ("short", "short cut", "cropped"), "long": ("long", "shoulder-length")}
PATTERNS = {
    "plain": ("plain", "solid"),
    "striped": ("striped", "horizontally striped"),
    "checked": ("checked", "plaid", "checkered"),
    "dotted": ("dotted", "polka dot", "spotted"),
    "graphic": ("printed", "graphic"),
}
SUFFIXES = {
    "striped": ("with stripes", "with horizontal stripes"),
    "checked": ("with a checked pattern", "with a plaid pattern"),
    "dotted": ("with dots", "with spots on it"),
    "graphic": ("with a print on it", "with a large printed picture"),
}
VERBS = {
    "wear": ("wears", "is wearing", "is wearing", "has on"),
    "have": ("has",),
    "carry": ("carries", "is carrying", "has"),
}
PEOPLE = {
    "man": ("man", "man", "male", "guy", "gentleman"),
    "woman": ("woman", "woman", "lady", "female"),
    NONE: ("person", "pedestrian"),
}
PRONOUNS = {"man": ("he", "his"), "woman": ("she", "her")}
PLURAL = ("trousers", "jeans", "shorts", "shoes", "boots", NONE)
CONFUSED = {
    "black": ("dark blue", "grey"), "white": ("beige", "light blue"), "grey": ("black", "light blue"),
    "dark blue": ("black", "blue"), "blue": ("dark blue", "light blue"), "light blue": ("blue", "white"),
    "red": ("dark red", "orange"), "dark red": ("brown", "red"), "pink": ("red", "purple"), "orange": ("red", "yellow"),
    "yellow": ("orange", "beige"), "green": ("blue", "black"), "purple": ("pink", "dark blue"),
    "brown": ("black", "dark red"), "beige": ("white", "brown"), "blond": ("brown", "grey"),
}  # fmt: skip
