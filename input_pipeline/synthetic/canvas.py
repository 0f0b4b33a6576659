"""Draws in body units: x = 0 is the axis of the body, y = 0 the top of the head, y = 1 the soles."""

from dataclasses import dataclass, replace
from functools import cached_property

from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
Point = tuple[float, float]

# Parts of an image; the label of a part is its index.
PARTS = ("background", "skin", "hair", "glasses", "hat", "upper", "lower", "shoes", "bag", "held")


def shade(colour: Colour, factor: float) -> Colour:
    """Returns the colour in more (factor > 1) or less light."""
    red, green, blue = (min(255, int(c * factor)) for c in colour)
    return red, green, blue


def mix(a: Colour, b: Colour, share: float) -> Colour:
    """Returns the colour that is `share` of the way from a to b."""
    red, green, blue = (int(x + (y - x) * share) for x, y in zip(a, b, strict=True))
    return red, green, blue


@dataclass(frozen=True)
class Fabric:
    """A garment's colour and, if it has a pattern, a texture of the size of the canvas."""

    colour: Colour
    texture: Image.Image | None = None

    def shaded(self, factor: float) -> "Fabric":
        """Returns the fabric in more (factor > 1) or less light."""
        if self.texture is None:
            return Fabric(shade(self.colour, factor))
        table = [min(255, int(level * factor)) for level in range(256)]
        return Fabric(shade(self.colour, factor), self.texture.point(table * 3))


@dataclass(frozen=True)
class Canvas:
    """Draws shapes in body units on `image`; a negative `unit_x` mirrors them, `lean` moves the head sideways.

    labels: an 8-bit image of the same size, or None; each shape also draws the label of its `part` there.
    """

    image: Image.Image
    centre: float
    top: float
    unit_x: float
    unit_y: float
    lean: float = 0.0
    labels: Image.Image | None = None
    part: str = "background"

    def of(self, part: str) -> "Canvas":
        """Returns the canvas for shapes of this part, one of PARTS."""
        return replace(self, part=part)

    @cached_property
    def _draw(self) -> ImageDraw.ImageDraw:
        return ImageDraw.Draw(self.image)

    def pixel(self, point: Point) -> Point:
        """Returns the pixel of a point in body units."""
        x = point[0] + self.lean * (1 - point[1])
        return self.centre + x * self.unit_x, self.top + point[1] * self.unit_y

    def polygon(self, points: list[Point], fill: Colour | Fabric) -> None:
        """Fills a polygon."""
        pixels = [self.pixel(p) for p in points]
        self._paint(lambda draw, ink: draw.polygon(pixels, fill=ink), fill)

    def ellipse(self, centre: Point, radii: Point, fill: Colour | Fabric) -> None:
        """Fills an ellipse."""
        box = self._box((centre[0] - radii[0], centre[1] - radii[1]), (centre[0] + radii[0], centre[1] + radii[1]))
        self._paint(lambda draw, ink: draw.ellipse(box, fill=ink), fill)

    def dome(self, centre: Point, radii: Point, fill: Colour | Fabric) -> None:
        """Fills the upper half of an ellipse."""
        box = self._box((centre[0] - radii[0], centre[1] - radii[1]), (centre[0] + radii[0], centre[1] + radii[1]))
        self._paint(lambda draw, ink: draw.pieslice(box, 180, 360, fill=ink), fill)

    def box(self, top_left: Point, bottom_right: Point, fill: Colour | Fabric, roundness: float = 0.02) -> None:
        """Fills a rectangle with rounded corners."""
        box = self._box(top_left, bottom_right)
        radius = roundness * self.unit_y
        self._paint(lambda draw, ink: draw.rounded_rectangle(box, radius, fill=ink), fill)

    def line(self, points: list[Point], fill: Colour, width: float) -> None:
        """Draws a line of this width, at least one pixel."""
        pixels, thick = [self.pixel(p) for p in points], max(1, round(width * self.unit_y))
        self._paint(lambda draw, ink: draw.line(pixels, fill=ink, width=thick), fill)

    def limb(self, joints: list[Point], radii: list[float], fill: Colour | Fabric) -> None:
        """Fills a tapered chain of segments with round joints, such as an arm, one side in shadow."""
        shadow = fill.shaded(0.82) if isinstance(fill, Fabric) else shade(fill, 0.82)
        for joint, radius in zip(joints[1:-1], radii[1:-1], strict=True):
            self.ellipse(joint, (radius, radius), fill)
        for a, b, ra, rb in zip(joints, joints[1:], radii, radii[1:], strict=False):
            dx, dy = b[0] - a[0], b[1] - a[1]
            length = (dx * dx + dy * dy) ** 0.5 or 1.0
            nx, ny = -dy / length, dx / length
            for edge, ink in ((-1.0, fill), (0.35, shadow)):
                corners = ((a, ra), (b, rb), (b, rb * edge), (a, ra * edge))
                self.polygon([(p[0] + nx * r, p[1] + ny * r) for p, r in corners], ink)

    def _box(self, a: Point, b: Point) -> tuple[float, float, float, float]:
        (x0, y0), (x1, y1) = self.pixel(a), self.pixel(b)
        return min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)

    def _paint(self, stroke, fill: Colour | Fabric) -> None:
        if self.labels is not None:
            stroke(ImageDraw.Draw(self.labels), PARTS.index(self.part))
        if not isinstance(fill, Fabric):
            stroke(self._draw, fill)
        elif fill.texture is None:
            stroke(self._draw, fill.colour)
        else:
            mask = Image.new("1", self.image.size)
            stroke(ImageDraw.Draw(mask), 1)
            self.image.paste(fill.texture, mask=mask)
