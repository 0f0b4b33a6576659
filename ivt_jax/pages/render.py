"""What all pages have in common: how they are made and hold pictures, and what they say the models are for."""

import base64
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image

TEMPLATES = Path(__file__).parent
QUALITY = 82  # of the JPEGs that a page holds
INTENDED_USE = (  # README.md has more
    "Research, with pictures of people who consented to it or that are licensed for it. A score is a similarity and no "
    "proof of identity; errors fall unevenly on people and on clothes that training saw seldom. Not for covert "
    "surveillance, not for identifying or following people, not for decisions about them."
)


def render(template: Path, **values: Any) -> str:
    """The page of a Jinja template with these values; `intended_use` every template has."""
    import jinja2

    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(template.read_text(encoding="utf-8"))
    return page.render(intended_use=INTENDED_USE, **values)


def data_uri(picture: "Image | bytes", quality: int = QUALITY) -> str:
    """A picture, or the bytes of a JPEG, for a page to hold."""
    if not isinstance(picture, bytes):
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=quality)
        picture = buffer.getvalue()
    return "data:image/jpeg;base64," + base64.b64encode(picture).decode()
