"""Writes tests/data/siglip/: a small sentence-piece model, and ids that transformers' SiglipTokenizer makes with it.

    python -m tests.reference.siglip_tokenizer

It replaces a few characters as SigLIP's own model replaces many (full-width letters, ligatures, odd blanks).
"""

import json
import random
from pathlib import Path

FOLDER = Path(__file__).parent.parent / "data/siglip"
COLOURS = ("red", "blue", "green", "black", "white", "grey", "purple", "orange", "yellow", "brown")
THINGS = ("coat", "jacket", "backpack", "trousers", "jeans", "shoes", "hat", "scarf", "bag", "dress", "shirt", "cap")
PEOPLE = ("woman", "man", "girl", "boy", "lady", "person")
REPLACED = {
    "\uff21": "a", "\uff41": "a", "\uff52": "r", "\uff45": "e", "\uff44": "d", "\uff01": "!", "\ufb01": "fi",
    "\u200b": " ", "\u3000": " ", "\u00a0": " ",
}  # fmt: skip
# Case, punctuation, accents, both small sigmas, blanks of all kinds, unknown letters, special tokens, long, empty.
TEXTS = [
    "a woman in a red coat", "A WOMAN, in a Red-Coat!", "na\u00efve caf\u00e9 stra\u00dfe", "cafe\u0301",
    "\u039f\u0394\u039f\u03a3 \u03a3\u039f\u03a6\u039f\u03a3 \u03a3", "\u0130I", "a \U0001f600 coat",
    "tabs\tand\nlines\x1cx\x85y\u00a0z", "a   black    bag   ", "\uff41\uff52\uff45\uff44 \ufb01 coat",
    "zero\u200bwidth", "[SEP] coat", "coat's and_under", "\uff01bang", "\u6f22\u5b57 coat", "coat " * 100,
    "it's raining .", "coat \u2581 bag", "coat\u2581bag", "a . b", "coat ...", "12 x 3.4",
]  # fmt: skip


def main() -> None:
    import sentencepiece
    from transformers.models.siglip.tokenization_siglip import SiglipTokenizer

    FOLDER.mkdir(exist_ok=True)
    draw = random.Random(1).choice
    lines = [
        f"a {draw(PEOPLE)} wearing a {draw(COLOURS)} {draw(THINGS)} and a {draw(COLOURS)} {draw(THINGS)} carrying a "
        f"{draw(THINGS)} its raining na\u00efve caf\u00e9 stra\u00dfe \u03c3\u03bf\u03c6\u03bf\u03c2"
        for _ in range(3000)
    ]
    text, rules = FOLDER / "text.txt", FOLDER / "rules.tsv"
    text.write_text("\n".join(lines))
    as_code = {key: " ".join(f"{ord(character):04X}" for character in value) for key, value in REPLACED.items()}
    rules.write_text("".join(f"{ord(key):04X}\t{value}\n" for key, value in as_code.items()))
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(FOLDER / "spiece"), vocab_size=200, hard_vocab_limit=False,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, normalization_rule_tsv=str(rules), minloglevel=2,
    )  # fmt: skip
    for path in (text, rules, FOLDER / "spiece.vocab"):
        path.unlink()
    tokenizer = SiglipTokenizer(str(FOLDER / "spiece.model"))
    settings = {
        "tokenizer_class": "SiglipTokenizer", "do_lower_case": True, "pad_token": "</s>", "eos_token": "</s>",
        "unk_token": "<unk>", "model_max_length": 64,
    }  # fmt: skip
    (FOLDER / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    rows = {text: tokenizer(text, padding="max_length", max_length=64, truncation=True)["input_ids"] for text in TEXTS}
    listed = [{"text": text, "ids": ids[: ids.index(1)]} for text, ids in rows.items()]  # all end with </s>, id 1
    assert all(len(ids) == 64 and not set(ids[ids.index(1) :]) - {1} for ids in rows.values())
    (FOLDER / "ids.json").write_text("[\n" + ",\n".join(map(json.dumps, listed)) + "\n]\n")


if __name__ == "__main__":
    main()
