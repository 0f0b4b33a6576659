"""Finds the attribute phrases of a caption with a small grammar over word classes and a lexicon (`wardrobe`).

Each word and mark gets a class, one letter, and the grammar is a regular expression over these letters:

    word      = adverb | modifier | colour | participle [particle] | unknown | gerund before a noun
    describes = modifier | colour | participle [particle]
    joined    = {item ","} {item "and"}, up to nine each, an item being {word} describes
    headed    = [joined word {word}] noun {noun}                          black, white and red shirt
    bare      = [joined] word {word}                                      blue thingamajig; tall and slim
    predicate = one item or several joined, before no word or noun        long and black
    statement = (headed | unknown) [["that"] "is"] predicate              hair is long and black
    negated   = negation {determiner | verb} (headed | bare) {"or" headed}    without a hat or glasses
    scenery   = [negation {determiner | verb}] [joined word {word}] scene {scene} ["is" predicate]    a white pole

- Determiners, phrases like "pair of", prepositions, pronouns, auxiliaries and verbs end a phrase and are not in it.
- "and" and a comma join modifiers before one noun ("black and white shoes"); after a noun they separate two phrases, as
  does a modifier: "shirt black pants" is two phrases.
- A statement gives predicate and subject: "her hair is tied back" gives "tied back hair". If the subject is a pronoun,
  it gives the predicate only: "she is tall" gives "tall".
- A negation and the words after it belong to the phrase: "without a hat".
- Scenery is not a phrase, nor is a statement about it: "the wall is white". Before a noun it is a modifier: "street
  clothes", "a palm tree print".
- Neighbours decide the class of some words: "black spandex, red flats", but "black spandex shorts"; "he held a bag",
  but "a hand held bag"; "a long sleeve", but "a long sleeve black shirt".
- A comma before the noun is ignored if the items before it can only belong to the noun: "a dark, short, hair".
- A lone "s" after a word is "'s".
- Only phrases with a word of the lexicon count. If there is none, all phrases count, also scenery; if there is no
  phrase, the whole caption is one.
- Quotes, a few adverbs ("also", "all"), and characters that are not Latin letters, digits or punctuation, such as
  emoji, are ignored like white space.
"""

import functools
import re

from input_pipeline import wardrobe

# Letters of the closed classes. Classes of the lexicon are upper case.
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
_TWO_WORDS = {words.strip(): letter for letter, listed in wardrobe.TWO_WORDS.items() for words in listed.split("|")}
_FIRST_OF_TWO = {words.split()[0] for words in _TWO_WORDS}
_CLASSES = {
    **dict.fromkeys(wardrobe.NOUNS, "N"),
    **dict.fromkeys(wardrobe.PARTS, "P"),
    **dict.fromkeys(wardrobe.SCENERY, "S"),
    **dict.fromkeys(wardrobe.VERBS, "v"),
    **dict.fromkeys(wardrobe.VERBS_IN_NAMES, "V"),
    **dict.fromkeys(wardrobe.MODIFIERS, "M"),
    **dict.fromkeys(wardrobe.STAND_INS, "F"),
    **dict.fromkeys(wardrobe.COLOURS, "C"),
    **dict.fromkeys(wardrobe.PARTICIPLES, "T"),
    **dict.fromkeys(wardrobe.GERUNDS, "g"),
    **{word: letter for letter, words in _CLOSED.items() for word in words.split()},
    **_TWO_WORDS,
    "it's": "r", "on top of": "p", "w/": "p", "w/o": "n",
}  # fmt: skip
# Classes of marks by first character; the others of _MARK only end a phrase. Includes marks of Chinese keyboards.
_COMMAS, _STOPS = ",\uff0c\u3001", ".;!?\u2026\u3002\uff1b\uff01\uff1f"
_MARKS = {**dict.fromkeys(_COMMAS, ","), **dict.fromkeys(_STOPS + "<\\", "."), "&": "s"}
_MARK = rf"[{_COMMAS}]+|[{_STOPS}]+|[-&+/:()\[\]{{}}<>|\\_=#@%$\u2013\u2014\u2022\u00b7\uff08\uff09\uff1a]"
_LETTER = "A-Za-z0-9\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u0300-\u036f"
_TOKEN = re.compile(
    rf"on top of(?![{_LETTER}])|(?:(?:wo)?men|children)['\u2019]s(?![{_LETTER}])|w/o(?![{_LETTER}])|w/"
    rf"|\d+(?:[.,/]\d+)+(?:-[{_LETTER}]+)?"
    rf"|[{_LETTER}]+(?:[-'\u2019](?!s(?![{_LETTER}]))[{_LETTER}]+)*"
    rf"|(?<=[{_LETTER}])['\u2019,]s(?![{_LETTER}])"
    rf"|<[^<>]{{1,40}}>|&#?[A-Za-z0-9]{{1,8}};|\\[nrt]|{_MARK}",
    re.IGNORECASE,
)

_WORD = "(?:[aMCx]|Tu?|g(?=N))"
_DESCRIBES = "(?:[MC]|Tu?)"
_JOINED = f"{_WORD}*{_DESCRIBES}"

# Words of two classes: (where, class there); elsewhere their class is in _ELSEWHERE. The bounds keep this linear.
_IN_PLACE = [
    # A part names a whole garment, unless the colours of two things are around it: "white long sleeve black pants".
    (re.compile("P(?<=[Mx]P)(?=[aFMTVx]{0,4}N|(?<!C[Mx]P)[aCFMTVx]{0,4}N)"), "M"),
    # A modifier stands for a garment between the colours of two things.
    (re.compile("F(?:(?<=CF)|(?<=C[aFMTx]F)|(?<=C[aFMTx]{2}F))(?=,&?[aM]{0,2}C|&C{1,2}N)"), "N"),
    # A verb names its noun after a determiner, a preposition, a verb or a modifier.
    (re.compile("V(?<=[adhipvxCFMT]V)(?=u?[agxCFMSTV]{0,4}[NP])"), "T"),
    # Scenery names the noun that follows.
    (re.compile("S(?=[xFMTS]{0,3}[NP])"), "x"),
]
_ELSEWHERE = str.maketrans("FPV", "MNv")
# The word before the items decides whether they belong to the noun after a stray comma: in "her long, black, hair" they
# do, in "she is tall, slim, glasses" they do not. At the start of a sentence they do if one is a colour.
_OF_NOUN = "(?:(?<=[dnpv&])|(?<![^.])(?=[aMT,]*C))"
_STRAY_COMMA = re.compile(
    f"((?<=h)(?:{_JOINED},){{1,9}}{_JOINED}|(?:(?<=d)|{_OF_NOUN}(?:{_JOINED},){{1,9}}){_JOINED}(?!,N+[tw]?b)),(?=N)"
)

# The grammar. `text_levels` uses parts of it for clauses.
_AND = "(?:,?[&o])"
_LISTED = f"(?:{_JOINED},){{0,9}}"  # bounded: a caption of thousands would take seconds
HEADED = f"(?:{_LISTED}(?:{_JOINED}{_AND}){{0,9}}{_WORD}+)?N+"
BARE = f"(?:{_LISTED}{_JOINED}{_AND})?{_WORD}+"
CLAD = f"(?<=i)M*C+(?=,{_WORD}*[NS])"  # "in black, white shoes": no list of modifiers
_ITEM = f"(?:a*{_DESCRIBES})+(?!{_WORD}|[NS])"
PREDICATE = f"{_ITEM}(?:(?:,{_ITEM}){{0,9}}{_AND}{_ITEM})?"
# No list of modifiers begins after "in" or a verb: "wearing black, white car behind". A statement is about scenery
# without a preposition before it: "the wall behind her is white", but "the man on the street is tall".
_SCENE = f"(?:(?:(?<![iv]){_LISTED}|)(?:{_JOINED}{_AND}){{0,9}}{_WORD}+)?S+"
_OWN = "(?<![ip])(?<![ip][dh])"
_SCENERY = f"(?:{_SCENE}tb|{_OWN}{_SCENE}(?:[ip][dh]*[rxS]?){{0,2}}b){PREDICATE}|(?:n[bdhv]*)?{_SCENE}"
_RULES = rf"""(?P<negated>n[dhvb]*(?:{HEADED}|{BARE})(?:o[dh]*{HEADED})*)
    |(?P<subject>{HEADED}|{_WORD}*x(?=[tw]?b))(?:[tw]?b)?(?P<predicate>{PREDICATE})
    |b(?P<pronouns>{PREDICATE})
    |(?P<clad>{CLAD})
    |(?P<plain>{HEADED}|{BARE})"""
_PHRASE = re.compile(_RULES, re.VERBOSE)
_PHRASE_OR_SCENERY = re.compile(f"(?P<scenery>{_SCENERY})|{_RULES}", re.VERBOSE)  # slower
_KNOWN = re.compile("[MCTN]")
_BEFORE_LONE_S = "rtwxNPS"  # not "a", "the" and modifiers: "an S", "a large S shirt"

Span = tuple[int, int]


def attribute_phrases(caption: str, scenery: bool = False) -> list[str]:
    """Returns the phrases that describe a person, in the order and spelling of the caption, none twice.

    scenery: also those of the surroundings. Empty only if the caption has no letter and no digit.

        "The tall man is wearing a grey coat, and his shoes are black and white."
        -> ["tall man", "grey coat", "black and white shoes"]
    """
    return recognised_phrases(caption, scenery) or _phrases(caption, known=False, scenery=True) or _whole(caption)


def recognised_phrases(caption: str, scenery: bool = False) -> list[str]:
    """Returns the phrases that have a word of the lexicon, possibly none.

    scenery: also those of the surroundings, which are always returned if there are no others.
    """
    return _phrases(caption, True, scenery) or _phrases(caption, True, scenery=True)


def tag(caption: str) -> tuple[str, list[Span]]:
    """Returns the classes of the caption's words and marks, a letter each, and their (start, stop) in the caption.

    Scenery has the class of unknown words.
    """
    letters, spans = _tag(caption)
    return letters.replace("S", "x"), spans


def _tag(caption: str) -> tuple[str, list[Span]]:
    letters: list[str] = []
    spans: list[Span] = []
    before, last = ".", ""
    for match in _TOKEN.finditer(caption):
        word = match[0].lower()
        start, stop = match.span()
        if last in _FIRST_OF_TWO and caption[spans[-1][1] : start] == " " and _is_two_words(f"{last} {word}"):
            word = f"{last} {word}"
            start, _ = spans.pop()
            letters.pop()
        letter = _CLASSES.get(word) or _unlisted(word)
        if letter == "s":
            continue
        if letter == "'" or (word == "s" and before in _BEFORE_LONE_S):
            letter = "b" if before in "rtw" else "d"
        elif letter == "x" and before not in "dhMCTFna" and word.endswith("ing"):
            letter = "V"  # "the man crossing the street", but "a striking dress", "an eye catching dress"
        letters.append(letter)
        spans.append((start, stop))
        before, last = letter, word
    return _settle("".join(letters)), spans


def _is_two_words(words: str) -> bool:
    return words in _TWO_WORDS or words.removesuffix("s") in _TWO_WORDS


def _settle(letters: str) -> str:
    """Decides the class of each word of two classes by its neighbours."""
    for pattern, letter in _IN_PLACE:
        letters = pattern.sub(letter, letters)
    letters = letters.translate(_ELSEWHERE)
    return _STRAY_COMMA.sub(r"\1a", letters) if ",N" in letters else letters  # the stray comma becomes an adverb


def _phrases(caption: str, known: bool, scenery: bool) -> list[str]:
    letters, spans = tag(caption) if scenery else _tag(caption)
    phrases: dict[str, str] = {}
    pattern = _PHRASE_OR_SCENERY if "S" in letters else _PHRASE
    for match in pattern.finditer(letters):
        if match.lastgroup == "scenery" or (known and not _KNOWN.search(match[0])):
            continue
        if match["subject"]:
            text = " ".join(_text(caption, spans, *match.span(group)) for group in ("predicate", "subject"))
        else:
            text = _text(caption, spans, *match.span(match.lastgroup or 0))
        phrases.setdefault(text.lower(), text)
    return list(phrases.values())


def _text(caption: str, spans: list[Span], first: int, end: int) -> str:
    """Joins words number `first` to `end`, with a space if the caption has any text between two of them."""
    pieces, reached = [], spans[first][0]
    for start, stop in spans[first:end]:
        pieces += [" " * (start > reached), caption[start:stop]]
        reached = stop
    return "".join(pieces)


def _whole(caption: str) -> list[str]:
    return [" ".join(caption.split())] if any(c.isalnum() for c in caption) else []


@functools.lru_cache(maxsize=2**14)
def _unlisted(word: str) -> str:
    """Returns the class of a word or mark that is not listed in this form: inflected, hyphenated or unknown."""
    if "\u2019" in word:
        word = word.replace("\u2019", "'")
        return _CLASSES.get(word) or _unlisted(word)
    if word in ("'s", ",s"):
        return "'"
    if not word[0].isalnum():
        return _MARKS.get(word[0], ":")
    plural = {word.removesuffix("s"), word.removesuffix("es")} if word.endswith("s") else set()
    for stem in (word, *sorted(plural)):
        letter = _CLASSES.get(stem, "x")
        if letter in "NMCSv":
            return letter
        if letter in "FPV":
            return "v" if letter == "V" else "N"  # "stands", "slip-ons", "sleeves"
    for ending in ("ing", "ed"):
        stem = word.removesuffix(ending)
        if stem != word and {stem, stem + "e", stem[:-1]} & wardrobe.VERBS:
            return "v"
    first, hyphen, last = word.rpartition("-")
    if hyphen:
        letter = _CLASSES.get(last) or _unlisted(last)
        if letter == "u" and _CLASSES.get(first) == "T":
            return "M"
        return "M" if letter == "P" else letter if letter in "NMCTFS" else "x"
    return "M" if len(word) > 5 and word.endswith("ish") else "a" if len(word) > 4 and word.endswith("ly") else "x"
