"""Draws bags, phones and umbrellas."""

from input_pipeline.synthetic.canvas import Colour, mix, shade
from input_pipeline.synthetic.figure import PALETTE, Figure, arm_joints


def draw_bag_behind(f: Figure) -> None:
    """Draws a backpack seen from the side, before the body."""
    if f.who.bag == "backpack" and f.side:
        colour = PALETTE[f.who.bag_colour]
        f.canvas.box((-0.165, 0.18), (-0.04, 0.44), colour, 0.04)
        f.canvas.box((-0.175, 0.32), (-0.12, 0.42), shade(colour, 0.78), 0.02)


def draw_bag_on_torso(f: Figure) -> None:
    """Draws a backpack or its straps, or a bag across the body."""
    if f.who.bag == "backpack":
        _backpack(f, PALETTE[f.who.bag_colour])
    elif f.who.bag == "shoulder bag":
        colour, hip = PALETTE[f.who.bag_colour], 0.0 if f.side else (0.1 if f.back else -0.1)
        f.canvas.line([(-0.6 * hip, 0.16), (hip, 0.47)], colour, 0.022)
        f.canvas.box((hip - 0.062, 0.45), (hip + 0.062, 0.565), _edge(colour), 0.02)
        f.canvas.box((hip - 0.055, 0.456), (hip + 0.055, 0.558), colour, 0.02)
        f.canvas.line([(hip - 0.05, 0.5), (hip + 0.05, 0.5)], _edge(colour), 0.008)


def draw_bag_in_hand(f: Figure) -> None:
    """Draws a handbag or a suitcase, after the body."""
    x, y = arm_joints(f, -1)[2]
    if f.who.bag == "handbag":
        _handbag(f, x, y, PALETTE[f.who.bag_colour])
    elif f.who.bag == "suitcase":
        _suitcase(f, x, y, PALETTE[f.who.bag_colour])


def draw_held(f: Figure) -> None:
    """Draws a phone at the ear, or an open umbrella."""
    x, y = arm_joints(f, 1)[2]
    if f.who.holding == "phone":
        f.canvas.box((x - 0.018, y - 0.045), (x + 0.016, y + 0.03), (18, 18, 20), 0.008)
        f.canvas.box((x - 0.01, y - 0.036), (x + 0.008, y + 0.012), (120, 160, 190), 0.004)
    elif f.who.holding == "umbrella":
        cloth = mix(f.build.lining, (40, 60, 90), 0.6)
        f.canvas.line([(x, y + 0.04), (x, -0.05)], (60, 50, 45), 0.012)
        f.canvas.dome((x * 0.4, 0.0), (0.215, 0.1), cloth)
        for rib in (-0.5, 0.0, 0.5):
            f.canvas.line([(x * 0.4, -0.1), (x * 0.4 + rib * 0.215, 0.0)], shade(cloth, 0.75), 0.006)


def _backpack(f: Figure, colour: Colour) -> None:
    canvas, edge = f.canvas, _edge(colour)
    if f.back:
        canvas.box((-0.094, 0.175), (0.094, 0.455), edge, 0.045)
        canvas.box((-0.086, 0.182), (0.086, 0.448), colour, 0.04)
        canvas.line([(-0.075, 0.26), (0.075, 0.26)], edge, 0.009)
        canvas.box((-0.062, 0.335), (0.062, 0.425), edge, 0.025)
    elif f.side:
        canvas.line([(-0.05, 0.175), (0.025, 0.25), (-0.03, 0.38)], colour, 0.026)
    else:
        for which in (-1, 1):
            strap = [(0.062 * which, 0.158), (0.074 * which, 0.3), (0.09 * which, 0.38)]
            canvas.line(strap, edge, 0.034)
            canvas.line(strap, colour, 0.026)


def _handbag(f: Figure, x: float, y: float, colour: Colour) -> None:
    outline = [(x - 0.044, y + 0.07), (x + 0.044, y + 0.07), (x + 0.062, y + 0.185), (x - 0.062, y + 0.185)]
    f.canvas.line([(x - 0.03, y + 0.08), (x, y + 0.01), (x + 0.03, y + 0.08)], _edge(colour), 0.012)
    f.canvas.polygon(outline, colour)
    f.canvas.line([(x - 0.05, y + 0.11), (x + 0.05, y + 0.11)], _edge(colour), 0.009)


def _suitcase(f: Figure, x: float, y: float, colour: Colour) -> None:
    canvas, edge = f.canvas, _edge(colour)
    x = max(-0.15, min(0.15, x * 1.3 - 0.05 * f.side))  # narrow crops must not cut it off
    canvas.line([(x, y), (x, 0.72)], (90, 90, 94), 0.016)
    canvas.box((x - 0.072, 0.7), (x + 0.072, 0.96), edge, 0.02)
    canvas.box((x - 0.064, 0.708), (x + 0.064, 0.952), colour, 0.02)
    for dx in (-0.03, 0.03):
        canvas.line([(x + dx, 0.73), (x + dx, 0.93)], edge, 0.008)
        canvas.ellipse((x + dx * 1.4, 0.968), (0.014, 0.014), (30, 30, 30))


def _edge(colour: Colour) -> Colour:
    """Returns a colour for seams that is visible on this colour, also on black."""
    return shade(colour, 0.72) if sum(colour) > 160 else (74, 74, 80)
