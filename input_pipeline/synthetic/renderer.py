"""Draws a person with given attributes in a given scene, like a crop of a surveillance camera."""

import copy
import math
import random

from PIL import Image, ImageDraw

from input_pipeline.synthetic.belongings import draw_bag_behind, draw_bag_in_hand, draw_bag_on_torso, draw_held
from input_pipeline.synthetic.canvas import Canvas, Colour, Fabric, mix
from input_pipeline.synthetic.clothes import draw_arm, draw_lower_body, draw_torso
from input_pipeline.synthetic.figure import DENIM, LIGHT_COLOURS, PALETTE, Build, Figure
from input_pipeline.synthetic.head import draw_hair_behind, draw_head
from input_pipeline.synthetic.persons import Attributes
from input_pipeline.synthetic.scenery import Scene, paint_background, paint_occluder, photograph

_DRAWN_HEIGHT = 300  # pixels; small images are drawn at about this height, larger ones at twice their size


def render(who: Attributes, build: Build, scene: Scene, size: tuple[int, int], rng: random.Random) -> Image.Image:
    """Draws one RGB image. size: (height, width) in pixels. rng: for background, light, tint, blur and noise."""
    return _render(who, build, scene, size, rng, None)


def render_parts(
    who: Attributes, build: Build, scene: Scene, size: tuple[int, int], rng: random.Random
) -> tuple[Image.Image, Image.Image]:
    """Draws the image of `render`, and an 8-bit image of the part at each pixel, as index into PARTS."""
    labels = Image.new("L", _drawn_size(size))
    image = _render(who, build, scene, size, rng, labels)
    return image, labels.resize(image.size, Image.Resampling.NEAREST)


def _render(
    who: Attributes, build: Build, scene: Scene, size: tuple[int, int], rng: random.Random, labels: Image.Image | None
) -> Image.Image:
    image = paint_background(_drawn_size(size), rng)
    _draw_person(_place(image, labels, who, build, scene))
    if labels is not None:
        _take_away_hidden(labels, scene.occlusion, copy.copy(rng))
    paint_occluder(image, scene.occlusion, rng)
    return photograph(image, size[::-1], scene.camera, rng)


def _drawn_size(size: tuple[int, int]) -> tuple[int, int]:
    """Returns the (width, height) at which an image of `size` (height, width) is drawn."""
    height, width = size
    finer = max(2, round(_DRAWN_HEIGHT / height))
    return width * finer, height * finer


def _take_away_hidden(labels: Image.Image, occlusion: str, rng: random.Random) -> None:
    """Labels pixels that the occluder hides as background, in place. The occluder is never black."""
    occluder = Image.new("RGB", labels.size)
    paint_occluder(occluder, occlusion, rng)
    labels.paste(0, mask=occluder.convert("L").point(lambda level: 255 * (level > 0)))


def _place(image: Image.Image, labels: Image.Image | None, who: Attributes, build: Build, scene: Scene) -> Figure:
    width, height = image.size
    unit_y = height * scene.scale * (0.9 if who.holding == "umbrella" else 1.0)
    # Crops of another shape than 36:100 are stretched half-way, like resized pedestrian crops.
    unit_x = math.sqrt(unit_y * width * scene.scale / 0.36) * (-1 if scene.view == "left" else 1)
    room = height * (0.985 + scene.shift[1] * 0.5) - unit_y
    canvas = Canvas(image, width * (0.5 + scene.shift[0]), room, unit_x, unit_y, scene.lean, labels)
    upper = _patterned(PALETTE[who.upper_colour], who, canvas)
    lower = Fabric((DENIM if who.lower_type == "jeans" else PALETTE)[who.lower_colour])
    return Figure(canvas, who, build, scene, upper, lower)


def _patterned(colour: Colour, who: Attributes, canvas: Canvas) -> Fabric:
    """Returns the fabric of the upper garment. Stripes and checks are wide enough to be visible at 96 x 48 pixels."""
    if who.upper_pattern in ("plain", "graphic"):
        return Fabric(colour)
    second = (40, 44, 70) if who.upper_colour in LIGHT_COLOURS else (232, 232, 228)
    texture = Image.new("RGB", canvas.image.size, colour)
    draw = ImageDraw.Draw(texture)
    step, (width, height) = canvas.unit_y * 0.05, texture.size
    rows = [canvas.top + i * step for i in range(2, int(0.8 / 0.05))]
    columns = [i * step for i in range(int(width / step) + 1)]
    if who.upper_pattern == "striped":
        for y in rows:
            draw.rectangle((0, y, width, y + step * 0.42), fill=second)
    elif who.upper_pattern == "checked":
        half = mix(colour, second, 0.5)
        for x in columns:
            draw.rectangle((x, 0, x + step * 0.4, height), fill=half)
        for y in rows:
            draw.rectangle((0, y, width, y + step * 0.4), fill=half)
            for x in columns:
                draw.rectangle((x, y, x + step * 0.4, y + step * 0.4), fill=second)
    else:
        radius = step * 0.24
        for row, y in enumerate(rows):
            for x in columns:
                cx = x + (row % 2) * step / 2
                draw.ellipse((cx - radius, y - radius, cx + radius, y + radius), fill=second)
    return Fabric(colour, texture)


def _draw_person(f: Figure) -> None:
    """Draws the parts from far to near."""
    f.canvas.ellipse((0, 0.985), (0.16, 0.02), (70, 70, 70))
    hair, upper, bag = f.of("hair"), f.of("upper"), f.of("bag")
    draw_bag_behind(bag)
    draw_hair_behind(hair)
    if f.side:
        draw_arm(upper, -1)
    draw_lower_body(f.of("lower"))
    draw_torso(upper)
    draw_bag_on_torso(bag)
    if f.side:
        draw_head(hair)
        draw_arm(upper, 1)
    else:
        draw_arm(upper, -1)
        draw_arm(upper, 1)
        draw_head(hair)
    draw_held(f.of("held"))
    draw_bag_in_hand(bag)
