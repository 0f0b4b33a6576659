"""Draws legs, torso and arms with their clothes."""

from input_pipeline.synthetic.canvas import Point, mix, shade
from input_pipeline.synthetic.figure import LIGHT_COLOURS, PALETTE, Figure, arm_joints, leg_joints

_HEMS = {"T-shirt": 0.545, "shirt": 0.555, "sweater": 0.55, "hoodie": 0.555, "jacket": 0.56, "coat": 0.75}


def draw_lower_body(f: Figure) -> None:
    """Draws legs, shoes and the lower garment."""
    for which, light in ((-1, 0.82), (1, 1.0)):
        _leg(f, leg_joints(f, which), light)
    if f.who.lower_type.endswith("skirt"):
        _skirt(f)


def _leg(f: Figure, joints: list[Point], light: float) -> None:
    (hip, knee, ankle), g = joints, f.build.girth
    radii = [(0.056 if f.woman else 0.061) * g, 0.043 * g, 0.031 * g]
    canvas, kind, lower = f.canvas, f.who.lower_type, f.lower.shaded(light)
    if kind in ("trousers", "jeans"):
        canvas.limb(joints, radii, lower)
        if kind == "jeans":  # faded thighs and turned-up cuffs distinguish denim
            worn, cuff = (mix(lower.colour, (225, 225, 225), share) for share in (0.16, 0.4))
            canvas.limb([(hip[0], hip[1] + 0.045), knee], [0.02, 0.012], worn)
            canvas.limb([(ankle[0], ankle[1] - 0.03), ankle], [radii[2] * 1.12] * 2, cuff)
        else:
            canvas.line([hip, knee, ankle], shade(lower.colour, 0.78), 0.007)
    else:
        canvas.of("skin").limb(joints, [r * 0.74 for r in radii], shade(f.build.skin, light))
    if kind == "shorts":
        canvas.limb([hip, (knee[0], knee[1] - 0.015)], [0.066 * g, 0.062 * g], lower)
    _shoe(f.of("shoes"), ankle, knee, light)


def _shoe(f: Figure, ankle: Point, knee: Point, light: float) -> None:
    colour = shade(PALETTE[f.who.shoes_colour], light)
    x, y = ankle
    if f.who.shoes_type == "boots":
        top = (x + (knee[0] - x) * 0.42, y + (knee[1] - y) * 0.42)
        f.canvas.limb([top, ankle], [0.041, 0.037], colour)
    if f.side:
        f.canvas.box((x - 0.036, y - 0.012), (x + 0.078, y + 0.042), colour, 0.025)
        f.canvas.line([(x - 0.034, y + 0.042), (x + 0.076, y + 0.042)], shade(colour, 0.6), 0.008)
    else:
        long = 0.028 if f.back else 0.04
        f.canvas.box((x - 0.038, y - 0.014), (x + 0.038, y + 0.012 + long), colour, 0.03)


def _skirt(f: Figure) -> None:
    hem = 0.9 if f.who.lower_type == "long skirt" else 0.705
    waist, flare = (0.07, 0.11) if f.side else (0.09, 0.135)
    flare = (flare + 0.045 * abs(f.swing) * f.side) * (0.95 if hem > 0.8 else 1.0)
    f.canvas.polygon([(-waist, 0.46), (waist, 0.46), (flare, hem), (0.0, hem + 0.008), (-flare, hem)], f.lower)
    for x in (-0.6, -0.15, 0.35, 0.75):
        f.canvas.line([(x * waist, 0.56), (x * flare, hem)], shade(f.lower.colour, 0.82), 0.007)


def draw_torso(f: Figure) -> None:
    """Draws the neck and the upper garment without its sleeves."""
    canvas, kind, g = f.canvas, f.who.upper_type, f.build.girth
    if f.side:
        shoulder, chest, waist = 0.05, 0.074 * g, 0.068 * g
    else:
        shoulder, chest, waist = (0.102, 0.106 * g, 0.084 * g) if f.woman else (0.12, 0.122 * g, 0.106 * g)
    hem, bottom = _HEMS[kind], waist * 1.1 + (0.05 if kind == "coat" else 0.01)
    right = [(shoulder * 0.45, 0.15), (shoulder, 0.172), (chest, 0.27), (waist, 0.43), (bottom, hem)]
    canvas.of("skin").box((-0.028, 0.115), (0.028, 0.185), shade(f.build.skin, 0.85))
    canvas.polygon(right + [(-x, y) for x, y in reversed(right)], f.upper)
    if f.upper.texture is None:
        inner = [(-chest * 0.62, 0.3), (-waist * 0.7, 0.45), (-bottom * 0.7, hem)]
        canvas.polygon([(-chest, 0.27), *inner, (-bottom, hem), (-waist, 0.43)], shade(f.upper.colour, 0.87))
        for y in (0.4, 0.45):
            canvas.line([(-waist * 0.3, y), (waist * 0.75, y - 0.035)], shade(f.upper.colour, 0.85), 0.006)
    if kind in ("sweater", "hoodie"):
        canvas.box((-bottom, hem - 0.022), (bottom, hem), shade(f.upper.colour, 0.75), 0.002)
    if f.who.upper_pattern == "graphic":
        _print(f, 0.4 * chest if f.side else 0.0)
    if f.back:
        _back_details(f, hem)
    else:
        _front_details(f, 0.5 * chest if f.side else 0.0, hem)


def _print(f: Figure, middle: float) -> None:
    ink = (40, 44, 70) if f.who.upper_colour in LIGHT_COLOURS else (236, 232, 224)
    f.canvas.box((middle - 0.045, 0.245), (middle + 0.045, 0.35), ink)
    f.canvas.ellipse((middle, 0.297), (0.024, 0.03), (222, 90, 50))


def _back_details(f: Figure, hem: float) -> None:
    dark = shade(f.upper.colour, 0.75)
    if f.who.upper_type == "hoodie":
        f.canvas.ellipse((0.0, 0.175), (0.066, 0.05), dark)
    elif f.who.upper_type == "coat":
        f.canvas.line([(0, 0.58), (0, hem)], dark, 0.01)


def _front_details(f: Figure, middle: float, hem: float) -> None:
    """Draws neckline, collar, buttons and zip, which distinguish garments from the front and the side."""
    canvas, dark = f.canvas, shade(f.upper.colour, 0.75)
    match f.who.upper_type:
        case "jacket":
            opening = [(-0.039, 0.155), (0.039, 0.155), (0.026, hem * 0.98), (-0.026, hem * 0.98)]
            canvas.polygon([(middle + x, y) for x, y in opening], f.build.lining)
        case "coat":
            canvas.polygon([(middle - 0.024, 0.155), (middle + 0.024, 0.155), (middle, 0.33)], f.build.lining)
            canvas.line([(middle, 0.33), (middle, hem)], dark, 0.011)
            for y in (0.38, 0.45, 0.52):
                canvas.ellipse((middle + 0.026, y), (0.009, 0.009), dark)
        case "shirt":
            pale = mix(f.upper.colour, (255, 255, 255) if sum(f.upper.colour) < 380 else (60, 60, 70), 0.45)
            canvas.polygon([(middle - 0.05, 0.15), (middle, 0.205), (middle + 0.05, 0.15), (middle, 0.172)], pale)
            canvas.line([(middle, 0.2), (middle, hem)], pale, 0.009)
        case "T-shirt":
            canvas.of("skin").ellipse((middle * 0.5, 0.155), (0.04, 0.022), shade(f.build.skin, 0.9))
        case "sweater":
            canvas.ellipse((middle * 0.5, 0.152), (0.042, 0.018), dark)
        case "hoodie":
            canvas.ellipse((-0.04 if f.side else 0.0, 0.162), (0.062, 0.034), dark)
            canvas.of("skin").box((-0.028, 0.12), (0.028, 0.15), shade(f.build.skin, 0.85))
            if not f.side:
                canvas.polygon([(-0.05, 0.43), (0.05, 0.43), (0.075, 0.5), (-0.075, 0.5)], dark)
                for x in (-0.018, 0.018):
                    canvas.line([(x, 0.19), (x, 0.27)], (235, 235, 235), 0.007)


def draw_arm(f: Figure, which: int) -> None:
    """Draws an arm with hand and sleeve; `which` = 1: near, or at the right of the image; -1: the other."""
    shoulder, elbow, wrist = arm_joints(f, which)
    g = f.build.girth * (0.9 if f.woman else 1.0)
    light = 0.74 if (which == -1 and f.side) else 0.9
    skin, canvas = shade(f.build.skin, light), f.canvas
    bare = canvas.of("skin")
    sleeve = f.upper.shaded(light)
    thick = 1.15 if f.who.upper_type in ("jacket", "coat", "hoodie", "sweater") else 1.0
    radii = [0.036 * g * thick, 0.03 * g * thick, 0.025 * g * thick]
    bare.ellipse(wrist, (0.022, 0.026), skin)
    bare.limb([shoulder, elbow, wrist], [r * 0.8 for r in radii], skin)
    if f.who.sleeves == "long":
        canvas.limb([shoulder, elbow, wrist], radii, sleeve)
    else:
        cuff = (shoulder[0] + (elbow[0] - shoulder[0]) * 0.68, shoulder[1] + (elbow[1] - shoulder[1]) * 0.68)
        canvas.limb([shoulder, cuff], [radii[0], radii[0] * 1.05], sleeve)
    canvas.ellipse((shoulder[0] * 0.93, shoulder[1] + 0.008), (radii[0], radii[0] * 0.9), sleeve)
