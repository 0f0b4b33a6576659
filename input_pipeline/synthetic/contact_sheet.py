"""Draws images beside their captions, to check them by eye."""

import json
import random
import textwrap
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

_CELL = (430, 300)  # width, height of one image with its captions
_COLUMNS = 4


def contact_sheet(root: Path, count: int, seed: int) -> Image.Image:
    """Returns one RGB image of `count` random images of the dataset with their captions, four to a row."""
    records = json.loads((root / "reid_raw.json").read_text(encoding="utf-8"))
    chosen = random.Random(seed).sample(records, min(count, len(records)))
    width, height = _CELL
    rows = -(-len(chosen) // _COLUMNS)
    sheet = Image.new("RGB", (_COLUMNS * width, rows * height), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for i, record in enumerate(chosen):
        left, top = i % _COLUMNS * width, i // _COLUMNS * height
        with Image.open(root / "imgs" / record["file_path"]) as crop:
            zoom = (height - 12) / crop.height
            enlarged = crop.resize((round(crop.width * zoom), height - 12), Image.Resampling.NEAREST)
        sheet.paste(enlarged, (left + 6, top + 6))
        text_left = left + 16 + enlarged.width
        columns = int((left + width - text_left) / 6.8)
        lines = [f"person {record['id']}, {record['split']}"]
        for caption in record["captions"]:
            lines += ["", *textwrap.wrap(caption, columns)]
        draw.multiline_text((text_left, top + 6), "\n".join(lines), fill="black", font=font, spacing=3)
    return sheet
