"""Draws scenes: view and pose, background, occluders, and the effects of the camera."""

import random
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from input_pipeline.synthetic.canvas import Colour, mix, shade

VIEWS = ("front", "back", "left", "right")
CAMERAS = ("cam_a", "cam_b", "cam_c", "cam_d", "cam_e")
_TINTS = ((1.0, 1.0, 1.0), (1.05, 1.0, 0.93), (0.94, 1.0, 1.06), (1.0, 1.03, 0.96), (1.03, 0.98, 1.02))
_WALLS: tuple[Colour, ...] = (
    (150, 144, 134), (168, 152, 130), (120, 124, 130), (184, 180, 172), (142, 112, 96), (104, 112, 104),
)  # fmt: skip
_FLOORS: tuple[Colour, ...] = ((132, 130, 126), (158, 152, 142), (108, 108, 112), (176, 172, 164))


@dataclass(frozen=True)
class Scene:
    """Properties that differ between two images of a person.

    view: one of VIEWS; "left" faces the left edge of the image. stride: 0 standing, 1 a wide step; phase: moment of the
    step, in [0, 2 pi). occlusion: "none", "pole", "box" or "shoulder".
    """

    camera: int
    view: str
    stride: float
    phase: float
    occlusion: str
    scale: float
    shift: tuple[float, float]
    lean: float

    @property
    def hidden(self) -> frozenset[str]:
        """Attributes that are not visible in this image."""
        hidden = set()
        if self.view == "back":
            hidden.add("glasses")
        if self.occlusion == "box":
            hidden |= {"shoes_type", "shoes_colour"}
        return frozenset(hidden)


def draw_scene(rng: random.Random) -> Scene:
    """Draws a random scene."""
    walking = rng.random() < 0.7
    return Scene(
        camera=rng.randrange(len(CAMERAS)),
        view=rng.choices(VIEWS, (32, 30, 19, 19))[0],
        stride=rng.uniform(0.4, 1.0) if walking else rng.uniform(0.0, 0.15),
        phase=rng.uniform(0, 2 * np.pi),
        occlusion=rng.choices(("none", "pole", "box", "shoulder"), (82, 5, 6, 7))[0],
        scale=rng.uniform(0.84, 0.95),
        shift=(rng.uniform(-0.06, 0.06), rng.uniform(-0.02, 0.02)),
        lean=rng.uniform(-0.03, 0.03),
    )


def paint_background(size: tuple[int, int], rng: random.Random) -> Image.Image:
    """Draws a blurred street, wall, park or hall of `size` (width, height), with clutter, in RGB."""
    width, height = 32, 64
    wall, floor = rng.choice(_WALLS), rng.choice(_FLOORS)
    image = Image.new("RGB", (width, height), shade(wall, rng.uniform(0.75, 1.2)))
    draw = ImageDraw.Draw(image)
    horizon = int(height * rng.uniform(0.35, 0.72))
    rng.choice((_bricks, _windows, _trees, _shop, _plain))(draw, width, horizon, wall, rng)
    draw.rectangle((0, horizon, width, height), fill=shade(floor, rng.uniform(0.75, 1.2)))
    _ground(draw, (width, height), horizon, floor, rng)
    for _ in range(rng.randint(0, 3)):
        _clutter(draw, width, horizon, rng)
    return image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 0.8))).resize(size, Image.Resampling.BICUBIC)


def _bricks(draw: ImageDraw.ImageDraw, width: int, horizon: int, wall: Colour, rng: random.Random) -> None:
    step = rng.randint(3, 7)
    for row, y in enumerate(range(0, horizon, step)):
        draw.line((0, y, width, y), fill=shade(wall, 0.85))
        for x in range((row % 2) * step, width, 2 * step):
            draw.line((x, y, x, y + step), fill=shade(wall, 0.85))


def _windows(draw: ImageDraw.ImageDraw, width: int, horizon: int, wall: Colour, rng: random.Random) -> None:
    pane = mix((70, 84, 100), (170, 190, 205), rng.random())
    step, offset = rng.randint(9, 14), rng.randint(-6, 4)
    for y in range(2, horizon - 8, step):
        for x in range(offset, width, step):
            draw.rectangle((x, y, x + step - 5, y + step - 4), fill=pane, outline=shade(wall, 1.15))


def _trees(draw: ImageDraw.ImageDraw, width: int, horizon: int, wall: Colour, rng: random.Random) -> None:
    for _ in range(14):
        x, y, r = rng.uniform(0, width), rng.uniform(-4, horizon), rng.uniform(3, 9)
        draw.ellipse((x - r, y - r, x + r, y + r), fill=shade((84, 104, 66), rng.uniform(0.5, 1.3)))


def _shop(draw: ImageDraw.ImageDraw, width: int, horizon: int, wall: Colour, rng: random.Random) -> None:
    draw.rectangle((0, 0, width, 5), fill=tuple(rng.randint(70, 150) for _ in range(3)))
    for x in range(rng.randint(-8, 0), width, 11):
        draw.rectangle((x, 7, x + 9, horizon), fill=shade((120, 132, 140), rng.uniform(0.6, 1.3)))


def _plain(draw: ImageDraw.ImageDraw, width: int, horizon: int, wall: Colour, rng: random.Random) -> None:
    light = rng.uniform(0.8, 1.25)
    for y in range(horizon):
        draw.line((0, y, width, y), fill=shade(wall, light + 0.25 * (0.5 - y / horizon)))


def _ground(draw: ImageDraw.ImageDraw, size: tuple[int, int], horizon: int, floor: Colour, rng: random.Random) -> None:
    """Draws joints of paving stones in perspective, or a kerb."""
    (width, height), joint = size, shade(floor, rng.uniform(0.7, 0.9))
    if rng.random() < 0.5:
        vanishing = rng.uniform(0, width)
        for i in range(-4, 5):
            draw.line((vanishing + 4 * i, horizon, vanishing + 18 * i, height), fill=joint)
        y = float(horizon)
        while y < height:
            draw.line((0, y, width, y), fill=joint)
            y += 1.5 + 0.35 * (y - horizon)
    else:
        y = rng.uniform(horizon, height)
        draw.polygon([(0, y), (width, y + rng.uniform(-5, 5)), (width, y + 3), (0, y + 3)], fill=joint)


def _clutter(draw: ImageDraw.ImageDraw, width: int, horizon: int, rng: random.Random) -> None:
    """Draws a post, a bin, a parked car or a distant passer-by, in dull colours unlike those of the person."""
    x = rng.choice((rng.uniform(-3, 6), rng.uniform(width - 7, width)))
    colour: Colour = (rng.randint(65, 140), rng.randint(65, 140), rng.randint(65, 140))
    kind = rng.randrange(4)
    if kind == 0:
        draw.rectangle((x, 0, x + 1, horizon + 4), fill=shade(colour, 0.7))
    elif kind == 1:
        draw.rectangle((x, horizon - 5, x + 5, horizon + 5), fill=colour)
    elif kind == 2:
        draw.rounded_rectangle((x - 9, horizon - 7, x + 10, horizon + 4), 3, fill=colour)
        draw.rectangle((x - 5, horizon - 10, x + 6, horizon - 6), fill=shade((110, 125, 140), 0.8))
    else:
        draw.rectangle((x, horizon - 11, x + 3, horizon - 4), fill=colour)
        draw.rectangle((x, horizon - 4, x + 3, horizon + 5), fill=(62, 62, 70))
        draw.ellipse((x, horizon - 15, x + 3, horizon - 11), fill=(120, 95, 80))


def paint_occluder(image: Image.Image, kind: str, rng: random.Random) -> None:
    """Draws a pole, a box or a passing shoulder in front of the person, in place."""
    width, height = image.size
    draw = ImageDraw.Draw(image)
    side = rng.choice((-1, 1))
    if kind == "pole":
        x, grey = width * (0.5 + side * rng.uniform(0.1, 0.3)), rng.randint(70, 150)
        half = width * rng.uniform(0.03, 0.05)
        draw.rectangle((x - half, 0, x + half, height), fill=(grey, grey, grey))
        draw.rectangle((x, 0, x + half, height), fill=(grey - 25, grey - 25, grey - 22))
    elif kind == "box":
        top, colour = height * rng.uniform(0.82, 0.88), rng.choice(_WALLS)
        draw.rectangle((0, top, width, height), fill=shade(colour, 0.8))
        draw.rectangle((0, top, width, top + height * 0.012), fill=shade(colour, 1.1))
    elif kind == "shoulder":
        x, y, level = width * (0.5 + side * 0.56), height * rng.uniform(0.3, 0.5), rng.randint(35, 110)
        jacket = (level, level + rng.randint(-12, 12), level + rng.randint(-12, 25))
        draw.ellipse((x - width * 0.2, y, x + width * 0.2, y + height * 0.3), fill=jacket)
        draw.rectangle((x - width * 0.2, y + height * 0.15, x + width * 0.2, height), fill=jacket)


def photograph(image: Image.Image, size: tuple[int, int], camera: int, rng: random.Random) -> Image.Image:
    """Applies a camera to a drawn RGB scene: scales it to `size` (width, height), adds light, tint, blur, noise."""
    image = image.resize(size, Image.Resampling.BOX, reducing_gap=None)
    blur = rng.uniform(0.0, 0.55) if rng.random() < 0.6 else 0.0
    if blur > 0.15:
        image = image.filter(ImageFilter.GaussianBlur(blur * size[1] / 96))
    width, height = size
    across, down = (rng.uniform(-0.09, 0.09) for _ in range(2))
    slope = across * np.linspace(-1, 1, width) + down * np.linspace(-1, 1, height)[:, None]
    light = rng.uniform(0.82, 1.12) * (1 + slope.astype(np.float32))
    tint = np.array([t * rng.uniform(0.97, 1.03) for t in _TINTS[camera]], np.float32)
    noise = _noise()
    start = rng.randrange(len(noise) - width * height)
    grain = noise[start : start + width * height].reshape(height, width) * np.float32(rng.uniform(1.0, 4.0))
    lift = rng.uniform(0, 10)
    pixels = np.asarray(image, np.float32) * (light[..., None] * tint) + (grain + np.float32(lift))[..., None]
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


@cache
def _noise() -> np.ndarray:
    """Returns a strip of standard normal noise; images take different pieces of it."""
    return np.random.default_rng(0).standard_normal(1 << 20, dtype=np.float32)
