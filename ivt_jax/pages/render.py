"""Rendering of the HTML pages: Jinja templates, inline images, and the intended use that every page states."""

import base64
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image

TEMPLATES = Path(__file__).parent
INTENDED_USE = (  # README.md has more
    "Research, with pictures of people who consented to it or that are licensed for it. A score is a similarity and no "
    "proof of identity; errors are more frequent for people and clothes that are rare in the training data. Not for "
    "covert surveillance, not for identifying or following people, not for decisions about them."
)


def render(template: Path, **values: Any) -> str:
    """Renders a Jinja template with these values and `intended_use`; escapes them in .html."""
    import jinja2

    environment = jinja2.Environment(autoescape=template.suffix == ".html", trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(template.read_text(encoding="utf-8"))
    return page.render(intended_use=INTENDED_USE, **values)


def data_uri(picture: "Image | bytes", quality: int = 82) -> str:
    """Encodes a picture, or the bytes of a JPEG, as a data URI of a JPEG."""
    if not isinstance(picture, bytes):
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=quality)
        picture = buffer.getvalue()
    return "data:image/jpeg;base64," + base64.b64encode(picture).decode()
