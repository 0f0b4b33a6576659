"""Draws the head: face, hair, glasses, hat."""

from input_pipeline.synthetic.canvas import mix, shade
from input_pipeline.synthetic.figure import HAIR, PALETTE, Figure
from input_pipeline.synthetic.persons import NONE


def draw_hair_behind(f: Figure) -> None:
    """Draws long hair seen from the front, before the shoulders, which hide part of it."""
    if f.who.hair_style == "long" and f.scene.view == "front":
        f.canvas.box((-0.068, 0.03), (0.068, 0.235), HAIR[f.who.hair_colour], 0.05)


def draw_head(f: Figure) -> None:
    """Draws face and hair, then glasses and hat."""
    if f.back:
        _from_behind(f)
    elif f.side:
        _from_the_side(f)
    else:
        _from_the_front(f)
    if f.who.glasses == "yes" and not f.back:
        _glasses(f.of("glasses"))
    if f.who.hat != NONE:
        _hat(f.of("hat"))


def _from_behind(f: Figure) -> None:
    canvas, skin, hair, style = f.canvas, f.build.skin, HAIR[f.who.hair_colour], f.who.hair_style
    canvas.of("skin").ellipse((0, 0.075), (0.053, 0.072), shade(skin, 0.9))
    canvas.ellipse((0, 0.064), (0.056, 0.066), hair)
    if style == "long":
        canvas.box((-0.066, 0.05), (0.066, 0.27), hair, 0.045)
        canvas.line([(0.01, 0.1), (0.0, 0.26)], mix(hair, (255, 255, 255), 0.12), 0.01)
    elif style == "ponytail":
        canvas.limb([(0, 0.07), (0.012, 0.16), (0.004, 0.25)], [0.018, 0.028, 0.012], shade(hair, 1.15))


def _from_the_side(f: Figure) -> None:
    canvas, skin, hair, style = f.canvas, f.build.skin, HAIR[f.who.hair_colour], f.who.hair_style
    face = canvas.of("skin")
    if style == "long":
        canvas.box((-0.078, 0.04), (0.005, 0.25), hair, 0.04)
    elif style == "ponytail":
        canvas.limb([(-0.045, 0.055), (-0.09, 0.1), (-0.085, 0.2)], [0.02, 0.026, 0.01], hair)
    canvas.ellipse((0.002, 0.062), (0.058, 0.06), hair)
    face.ellipse((0.012, 0.088), (0.044, 0.056), skin)
    face.polygon([(0.05, 0.075), (0.068, 0.098), (0.05, 0.103)], skin)
    canvas.polygon([(-0.056, 0.05), (0.004, 0.056), (-0.002, 0.085), (-0.012, 0.115), (-0.044, 0.118)], hair)
    canvas.polygon([(-0.05, 0.04), (0.046, 0.03), (0.05, 0.052), (0.0, 0.062)], hair)
    face.ellipse((0.042, 0.078), (0.006, 0.006), (40, 30, 30))
    face.line([(0.034, 0.122), (0.05, 0.12)], shade(skin, 0.65), 0.006)


def _from_the_front(f: Figure) -> None:
    canvas, skin, hair, style = f.canvas, f.build.skin, HAIR[f.who.hair_colour], f.who.hair_style
    face = canvas.of("skin")
    canvas.ellipse((0, 0.062), (0.057, 0.064), hair)
    face.ellipse((0, 0.082), (0.047, 0.064), skin)
    canvas.dome((0, 0.052), (0.052, 0.05), hair)
    if style != "short":
        for which in (-1, 1):
            tip = 0.012 if style == "long" else 0.005
            canvas.limb([(0.05 * which, 0.05), (0.052 * which, 0.12)], [0.012, tip], hair)
    if style == "ponytail":
        canvas.limb([(0.04, 0.12), (0.062, 0.17), (0.06, 0.23)], [0.012, 0.022, 0.01], hair)
    for x in (-0.02, 0.02):
        face.ellipse((x, 0.078), (0.007, 0.006), (40, 30, 30))
    face.line([(-0.014, 0.117), (0.014, 0.117)], shade(skin, 0.65), 0.006)


def _glasses(f: Figure) -> None:
    frame = (22, 22, 26)
    if f.side:
        f.canvas.line([(-0.01, 0.072), (0.06, 0.072)], frame, 0.009)
        f.canvas.ellipse((0.042, 0.075), (0.015, 0.015), frame)
        return
    f.canvas.line([(-0.048, 0.074), (0.048, 0.074)], frame, 0.009)
    for x in (-0.022, 0.022):
        f.canvas.ellipse((x, 0.078), (0.018, 0.016), frame)
        f.canvas.ellipse((x, 0.078), (0.009, 0.008), (96, 104, 112))


def _hat(f: Figure) -> None:
    colour, canvas = PALETTE[f.who.hat_colour], f.canvas
    if f.who.hat == "beanie":
        canvas.dome((-0.004, 0.058), (0.064, 0.078), colour)
        canvas.box((-0.066, 0.036), (0.062, 0.064), shade(colour, 0.78), 0.01)
        return
    canvas.dome((-0.004, 0.054), (0.062, 0.066), colour)
    if f.side:
        canvas.polygon([(0.02, 0.04), (0.11, 0.05), (0.11, 0.062), (0.02, 0.058)], shade(colour, 0.75))
    elif not f.back:
        canvas.ellipse((0, 0.054), (0.064, 0.016), shade(colour, 0.72))
