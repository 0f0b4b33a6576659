"""Attribute phrases of a caption, by a small grammar over closed classes of words and a lexicon (`wardrobe`).

Each word and mark is put in a class, one letter, and the grammar is a regular expression over those letters:

    word      = adverb | modifier | colour | participle [particle] | unknown | gerund before a noun
    describes = modifier | colour | participle [particle]
    joined    = {item ","} {item "and"}, up to nine each, an item being {word} describes
    headed    = [joined word {word}] noun {noun}                          black, white and red shirt
    bare      = [joined] word {word}                                      blue thingamajig; tall and slim
    predicate = one item or several joined, before no word or noun        long and black
    statement = (headed | unknown) [["that"] "is"] predicate              hair is long and black
    negated   = negation {determiner | verb} (headed | bare) {"or" headed}    without a hat or glasses

- Determiners, "pair of" and its like, prepositions, pronouns, auxiliaries and verbs end a phrase and are not in it.
- "and" and a comma join modifiers before one noun ("black and white shoes"); after a noun they part two phrases. So
  does a modifier after a noun: "shirt black pants" is two phrases.
- A statement gives the predicate before what it is about: "her hair is tied back" gives "tied back hair". Where that
  is a pronoun, the predicate stands alone: "she is tall" gives "tall".
- A negation stays with its phrase, and so does all between them: "without a hat".
- A phrase counts where the lexicon knows one word of it. Where none counts, all of them do, and where there is none,
  the whole caption is the phrase.
- What is neither Latin letters, digits nor punctuation (stray characters, emoji), quotes and a few adverbs ("also",
  "all") are passed over like white space.
"""

import functools
import re

from input_pipeline import wardrobe

# The letters of the classes. Those of the lexicon are upper case.
_CLOSED = {
    "d": """a an some any each every another other several many few pair pairs set sets couple kind kinds sort
        type types piece pieces lot lots bunch bit""",
    "h": "the this these those his her hers their theirs its it's my your our",
    "i": "in",
    "p": """of with on at by to into onto upon over under underneath above below beneath from for about around across
        along alongside through behind beside besides near between against toward towards inside within outside past
        before after during until than like as per via if so because since though although together yes""",
    "r": """he she it they i we you him them himself herself itself themselves there here what how someone
        somebody something anyone anything everyone everything nothing others whatever""",
    "t": "that which",
    "w": "who whom whose while whilst whereas but when where",
    "&": "and & + / plus n &amp;",
    "o": "or nor",
    "b": "is are was were be been being am",
    "n": "no not without never isn't aren't wasn't weren't doesn't don't didn't hasn't haven't isnt doesnt dont",
    "u": "up back down off out",
    "a": """very quite rather fairly pretty really extremely slightly somewhat mostly mainly partly partially fully
        almost entirely nearly well too more less""",
    "s": "also then just only still now all both either neither currently",
}
_CLASSES = {
    **dict.fromkeys(wardrobe.NOUNS, "N"),
    **dict.fromkeys(wardrobe.VERBS, "v"),
    **dict.fromkeys(wardrobe.MODIFIERS, "M"),
    **dict.fromkeys(wardrobe.COLOURS, "C"),
    **dict.fromkeys(wardrobe.PARTICIPLES, "T"),
    **dict.fromkeys(wardrobe.GERUNDS, "g"),
    **{word: letter for letter, words in _CLOSED.items() for word in words.split()},
    "it's": "r", "t shirt": "N", "t shirts": "N", "back pack": "N", "down coat": "N", "down jacket": "N",
    "down vest": "N", "heavy set": "M", "off white": "C", "on top of": "p", "w/": "p", "w/o": "n",
}  # fmt: skip
# Marks, by their first character; the others of _MARK end a phrase, and no more. Some captions were typed on Chinese
# keyboards.
_COMMAS, _STOPS = ",\uff0c\u3001", ".;!?\u2026\u3002\uff1b\uff01\uff1f"
_MARKS = {**dict.fromkeys(_COMMAS, ","), **dict.fromkeys(_STOPS + "<\\", "."), "&": "s"}
_MARK = rf"[{_COMMAS}]+|[{_STOPS}]+|[-&+/:()\[\]{{}}<>|\\_=#@%$\u2013\u2014\u2022\u00b7\uff08\uff09\uff1a]"
_LETTER = "A-Za-z0-9\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u0300-\u036f"
_TOKEN = re.compile(
    rf"(?:t shirts?|back pack|down (?:coat|jacket|vest)s?|heavy set|off white|on top of)(?![{_LETTER}])"
    rf"|(?:(?:wo)?men|children)['\u2019]s(?![{_LETTER}])|w/o(?![{_LETTER}])|w/"
    r"|\d+(?:[.,/]\d+)+"
    rf"|[{_LETTER}]+(?:[-'\u2019](?!s(?![{_LETTER}]))[{_LETTER}]+)*"
    rf"|(?<=[{_LETTER}])['\u2019]s(?![{_LETTER}])"
    rf"|<[^<>]{{1,40}}>|&#?[A-Za-z0-9]{{1,8}};|\\[nrt]|{_MARK}",
    re.IGNORECASE,
)

# The grammar, of which `text_levels` uses parts for clauses.
_WORD = "(?:[aMCx]|Tu?|g(?=N))"
_DESCRIBES = "(?:[MC]|Tu?)"
_AND = "(?:,?[&o])"
_LISTED = f"(?:{_WORD}*{_DESCRIBES},){{0,9}}"  # a bound, lest a caption of thousands take seconds
HEADED = f"(?:{_LISTED}(?:{_WORD}*{_DESCRIBES}{_AND}){{0,9}}{_WORD}+)?N+"
BARE = f"(?:{_LISTED}{_WORD}*{_DESCRIBES}{_AND})?{_WORD}+"
CLAD = f"(?<=i)M*C+(?=,{_WORD}*N)"  # "in black, white shoes": no list of modifiers
_ITEM = f"(?:a*{_DESCRIBES})+(?!{_WORD}|N)"
PREDICATE = f"{_ITEM}(?:(?:,{_ITEM}){{0,9}}{_AND}{_ITEM})?"
_PHRASE = re.compile(
    rf"""(?P<negated>n[dhvb]*(?:{HEADED}|{BARE})(?:o[dh]*{HEADED})*)
    |(?P<subject>{HEADED}|{_WORD}*x(?=[tw]?b))(?:[tw]?b)?(?P<predicate>{PREDICATE})
    |b(?P<pronouns>{PREDICATE})
    |(?P<clad>{CLAD})
    |(?P<plain>{HEADED}|{BARE})""",
    re.VERBOSE,
)
_KNOWN = re.compile("[MCTN]")

Span = tuple[int, int]


def attribute_phrases(caption: str) -> list[str]:
    """What the caption says of a person, phrase by phrase, in its order and spelling, none twice.

    Empty only where the caption has no letter and no digit.

        "The tall man is wearing a grey coat, and his shoes are black and white."
        -> ["tall man", "grey coat", "black and white shoes"]
    """
    return recognised_phrases(caption) or _phrases(caption, known=False) or _whole(caption)


def recognised_phrases(caption: str) -> list[str]:
    """Those of the caption's phrases of which the lexicon knows a word; maybe none."""
    return _phrases(caption, known=True)


def tag(caption: str) -> tuple[str, list[Span]]:
    """The caption's words and marks: a string of their classes, a letter each, and where each stands in the caption."""
    letters, spans, before = [], [], "."
    for match in _TOKEN.finditer(caption):
        word = match[0].lower()
        letter = _CLASSES.get(word) or _unlisted(word)
        if letter == "s":
            continue
        if letter == "'":
            letter = "b" if before in "rtw" else "d"
        elif letter == "x" and before not in "dhMCTna" and word.endswith("ing"):
            letter = "v"  # "the man crossing the street", but "a striking dress"
        letters.append(letter)
        spans.append(match.span())
        before = letter
    return "".join(letters), spans


def _phrases(caption: str, known: bool) -> list[str]:
    letters, spans = tag(caption)
    phrases: dict[str, str] = {}
    for match in _PHRASE.finditer(letters):
        if known and not _KNOWN.search(match[0]):
            continue
        if match["subject"]:
            text = " ".join(_text(caption, spans, *match.span(group)) for group in ("predicate", "subject"))
        else:
            text = _text(caption, spans, *match.span(match.lastgroup or 0))
        phrases.setdefault(text.lower(), text)
    return list(phrases.values())


def _text(caption: str, spans: list[Span], first: int, end: int) -> str:
    """Words number `first` to `end`, with a space wherever anything stands between two of them."""
    pieces, reached = [], spans[first][0]
    for start, stop in spans[first:end]:
        pieces += [" " * (start > reached), caption[start:stop]]
        reached = stop
    return "".join(pieces)


def _whole(caption: str) -> list[str]:
    return [" ".join(caption.split())] if any(c.isalnum() for c in caption) else []


@functools.lru_cache(maxsize=2**14)
def _unlisted(word: str) -> str:
    """The class of a word or mark that is not listed as it stands: inflected, hyphenated, or else unknown."""
    word = word.replace("\u2019", "'")
    if word == "'s":
        return "'"
    if not word[0].isalnum():
        return _MARKS.get(word[0], ":")
    plural = {word.removesuffix("s"), word.removesuffix("es")} if word.endswith("s") else set()
    for stem in (word, *sorted(plural)):
        letter = _CLASSES.get(stem, "x")
        if letter in "NMCv":
            return letter
    for ending in ("ing", "ed"):
        stem = word.removesuffix(ending)
        if stem != word and {stem, stem + "e", stem[:-1]} & wardrobe.VERBS:
            return "v"
    first, hyphen, last = word.rpartition("-")
    if hyphen:
        letter = _CLASSES.get(last) or _unlisted(last)
        if letter == "u" and _CLASSES.get(first) == "T":
            return "M"
        return letter if letter in "NMCT" else "x"
    return "M" if len(word) > 5 and word.endswith("ish") else "a" if len(word) > 4 and word.endswith("ly") else "x"
