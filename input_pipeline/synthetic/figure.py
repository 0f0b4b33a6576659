"""Bodies, the joints of a pose, and the colours of clothes and hair."""

import math
import random
from dataclasses import dataclass, replace

from input_pipeline.synthetic.canvas import Canvas, Colour, Fabric, Point
from input_pipeline.synthetic.persons import Attributes
from input_pipeline.synthetic.scenery import Scene

PALETTE: dict[str, Colour] = {
    "black": (28, 28, 31), "white": (236, 236, 234), "grey": (132, 133, 136), "dark blue": (30, 40, 92),
    "blue": (38, 92, 196), "light blue": (142, 190, 232), "red": (208, 34, 40), "dark red": (112, 16, 34),
    "pink": (240, 150, 182), "orange": (238, 126, 28), "yellow": (240, 208, 46), "green": (42, 132, 62),
    "purple": (118, 58, 156), "brown": (104, 66, 38), "beige": (212, 190, 150),
}  # fmt: skip
DENIM: dict[str, Colour] = {
    "blue": (52, 92, 158), "dark blue": (34, 46, 88), "light blue": (138, 172, 208), "black": (36, 37, 42),
}  # fmt: skip
HAIR: dict[str, Colour] = {
    "black": (24, 21, 20), "brown": (92, 56, 30), "blond": (214, 178, 98), "grey": (166, 164, 162),
}  # fmt: skip
LIGHT_COLOURS = {"white", "beige", "yellow", "light blue", "pink"}  # with dark patterns; all others have white ones
_SKINS: tuple[Colour, ...] = ((240, 204, 176), (226, 182, 150), (202, 154, 120), (150, 104, 76), (104, 70, 50))
_LININGS: tuple[Colour, ...] = ((225, 225, 222), (60, 62, 68), (150, 152, 156))


@dataclass(frozen=True)
class Build:
    """Properties of a person that are the same in all images and in no caption."""

    skin: Colour
    girth: float
    lining: Colour

    @staticmethod
    def draw(rng: random.Random) -> "Build":
        """Draws a random body."""
        return Build(rng.choice(_SKINS), rng.uniform(0.92, 1.12), rng.choice(_LININGS))


@dataclass(frozen=True)
class Figure:
    """Everything that is needed to draw a person. Side views are drawn facing right."""

    canvas: Canvas
    who: Attributes
    build: Build
    scene: Scene
    upper: Fabric
    lower: Fabric

    def of(self, part: str) -> "Figure":
        """Returns the figure for drawing this part, one of `canvas.PARTS`."""
        return replace(self, canvas=self.canvas.of(part))

    @property
    def side(self) -> bool:
        return self.scene.view in ("left", "right")

    @property
    def back(self) -> bool:
        return self.scene.view == "back"

    @property
    def woman(self) -> bool:
        return self.who.gender == "woman"

    @property
    def swing(self) -> float:
        """Which leg is in front, and how far: -1 to 1."""
        return self.scene.stride * math.sin(self.scene.phase)


def leg_joints(f: Figure, which: int) -> list[Point]:
    """Returns hip, knee and ankle of a leg; `which` = 1: near, or at the right of the image; -1: the other."""
    swing = f.swing * which
    if f.side:
        bend = max(0.0, -swing) * 0.07
        ankle = (0.20 * swing - bend * 0.6, 0.945 - bend * 0.7)
        return [(0.008 * which, 0.525), (0.10 * swing + bend * 0.3, 0.735), ankle]
    lift, x = max(0.0, swing) * 0.045, 0.045 if f.woman else 0.056
    ankle = ((x - 0.008 * abs(swing)) * which, 0.945 - lift)
    return [(x * which, 0.525), ((x + 0.004) * which, 0.735 - lift * 0.3), ankle]


def arm_joints(f: Figure, which: int) -> list[Point]:
    """Returns shoulder, elbow and wrist of an arm; `which` as in `leg_joints`."""
    swing = -f.swing * which
    if f.who.holding == "phone" and which == 1:
        return [(0.0, 0.19), (0.075, 0.3), (0.045, 0.11)] if f.side else [(0.11, 0.19), (0.178, 0.285), (0.078, 0.105)]
    if f.who.holding == "umbrella" and which == 1:
        return [(0.0, 0.19), (0.06, 0.33), (0.1, 0.23)] if f.side else [(0.11, 0.19), (0.15, 0.33), (0.115, 0.235)]
    if f.side:
        return [(0.0, 0.19), (0.085 * swing - 0.012, 0.335), (0.17 * swing + 0.015, 0.465)]
    shoulder = 0.1 if f.woman else 0.118
    wrist = ((shoulder + 0.032) * which, 0.47 - 0.03 * max(0.0, swing))
    return [(shoulder * which, 0.19), ((shoulder + 0.03) * which, 0.335), wrist]
