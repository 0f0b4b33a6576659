"""What each pixel of PEDES-Synth shows of a person: its images drawn once more, from their seeds."""

import copy
import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

from input_pipeline.synthetic.renderer import render_parts
from input_pipeline.synthetic.writer import QUALITY, VERSION, Arguments, Job, Shot, list_jobs, shots
from ivt_jax.common.errors import DataError

_MOST = 2.0  # levels of 255, mean of all pixels: what another JPEG library may make; two images differ by 20 and more


def list_shots(root: Path, split: str) -> list[tuple[Job, Shot]]:
    """The images of a split of the dataset in the folder `root`, in the order of the annotations.

    Raises DataError where that is no PEDES-Synth of this version.
    """
    path = root / "attributes.json"
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        version, arguments = told["version"], {**told["arguments"], "size": tuple(told["arguments"]["size"])}
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(f"{path} is missing or damaged: name the folder of a PEDES-Synth as it was generated") from None
    if version != VERSION:
        raise DataError(f"{path} tells version {version}, not {VERSION}, which is drawn now: generate the data anew")
    jobs = list_jobs(root, Arguments(**arguments))
    return [(job, shot) for job in jobs if job.split == split for shot in shots(job)]


def label_parts(job: Job, shot: Shot, image: Image.Image) -> np.ndarray:
    """What is seen where in `image`, the file's, decoded: (H, W) uint8, places in `canvas.PARTS`.

    Raises DataError where the file shows something else than what its seed draws.
    """
    drawn, labels = render_parts(job.who, shot.build, shot.scene, job.arguments.size, copy.copy(shot.paint))
    file = io.BytesIO()
    drawn.save(file, "JPEG", quality=QUALITY)
    written = Image.open(file)
    if image.size == written.size:
        difference = np.abs(np.asarray(image, np.float32) - np.asarray(written, np.float32)).mean()
        if difference <= _MOST:
            return np.asarray(labels)
    raise DataError(f"{job.root / 'imgs' / shot.path} is not the image that its seed draws: generate the data anew")
