"""Labels each pixel of PEDES-Synth with a part of the person, by drawing the image again from its seed."""

import copy
import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

from input_pipeline.synthetic.renderer import render_parts
from input_pipeline.synthetic.writer import QUALITY, VERSION, Arguments, Job, Shot, list_jobs, shots
from ivt_jax.common.errors import DataError

_MOST = 2.0  # mean difference, of 255, that another JPEG library may cause; different images differ by 20 or more


def list_shots(root: Path, split: str) -> list[tuple[Job, Shot]]:
    """Returns the images of a split of the dataset in `root`, in the order of the annotations.

    Raises DataError if `root` is not PEDES-Synth of this version.
    """
    path = root / "attributes.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        version, arguments = found["version"], {**found["arguments"], "size": tuple(found["arguments"]["size"])}
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(f"{path} is missing or damaged: choose a folder of PEDES-Synth as generated") from None
    if version != VERSION:
        raise DataError(
            f"{path} has version {version}, but this program draws version {VERSION}: generate the data again"
        )
    jobs = list_jobs(root, Arguments(**arguments))
    return [(job, shot) for job in jobs if job.split == split for shot in shots(job)]


def label_parts(job: Job, shot: Shot, image: Image.Image) -> np.ndarray:
    """Returns the part at each pixel of `image`, the decoded file: (H, W) uint8, index into `canvas.PARTS`.

    Raises DataError if the file differs from the image that its seed draws.
    """
    drawn, labels = render_parts(job.who, shot.build, shot.scene, job.arguments.size, copy.copy(shot.paint))
    file = io.BytesIO()
    drawn.save(file, "JPEG", quality=QUALITY)
    written = Image.open(file)
    if image.size == written.size:
        difference = np.abs(np.asarray(image, np.float32) - np.asarray(written, np.float32)).mean()
        if difference <= _MOST:
            return np.asarray(labels)
    raise DataError(f"{job.root / 'imgs' / shot.path} is not the image that its seed draws: generate the data again")
