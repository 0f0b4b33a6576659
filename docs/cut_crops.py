"""Cut the persons out of full frames, and write the list of the crops for `ivt index`. An example to change.

    pip install 'opencv-python-headless<5'
    python docs/cut_crops.py --frames=FRAMES --out=CROPS
    ivt index --workdir=RUN --list=CROPS/crops.csv --index=DIR

A frame is FRAMES/CAMERA/TIME.jpg (or .png), such as gate/2024-05-01T143005.jpg; TIME is ISO 8601. A crop is
CROPS/CAMERA/TIME_NUMBER.jpg, and crops.csv has its image, camera, time, track and box. A track is a person in
consecutive frames of one camera: a box that overlaps one of the frame before has its number.

The detector is OpenCV's HOG, with the weights inside OpenCV up to version 4 (Dalal and Triggs, CVPR 2005). It finds
upright persons of about 100 pixels or more, misses many, and sees some where nobody is. To use another one, call `cut`
with it.
"""

import argparse
import collections
import csv
import datetime
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

try:
    import cv2
except ModuleNotFoundError:
    sys.exit("error: OpenCV is not installed: pip install 'opencv-python-headless<5'")

Box = tuple[int, int, int, int]  # left, top, width and height in pixels
Detector = Callable[[np.ndarray], Sequence[Box]]  # frame (H, W, 3) uint8, BGR -> the persons in it
LEAST_SCORE = 0.5  # of a detection
LEAST_OVERLAP = 0.3  # intersection over union of the boxes of a person in consecutive frames


def detect(frame: np.ndarray) -> list[Box]:
    """Returns the persons that OpenCV's detector finds."""
    hog = cv2.HOGDescriptor()
    hog.setSVMDetector(cv2.HOGDescriptor_getDefaultPeopleDetector())
    found, scores = hog.detectMultiScale(frame, winStride=(8, 8), padding=(16, 16), scale=1.05)
    # It was trained on windows of 64 x 128 with 16 pixels around the person. Half of these margins are cut off.
    return [
        (x + w // 8, y + h // 16, w - w // 4, h - h // 8)
        for (x, y, w, h), score in zip(np.reshape(found, (-1, 4)).tolist(), np.ravel(scores), strict=True)
        if score >= LEAST_SCORE
    ]


def cut(frames: Path, out: Path, detector: Detector = detect) -> tuple[int, list[str]]:
    """Writes the crops and crops.csv into a new folder; returns their number, and a line for each unreadable frame."""
    found, unreadable, numbers = list_frames(frames), list[str](), itertools.count()
    out.mkdir(parents=True)
    rows: list[list[object]] = []
    for camera, of_camera in itertools.groupby(found, lambda frame: frame[0]):
        before: list[tuple[Box, int]] = []
        for _, time, path in of_camera:
            frame = cv2.imread(str(path))
            if frame is None:
                unreadable.append(f"{path}: not a readable image")
                continue
            boxes = [box for box in (clip(box, frame) for box in detector(frame)) if box[2] > 0 and box[3] > 0]
            before = [*follow(boxes, before, numbers)]
            for number, (box, track) in enumerate(before):
                name = f"{camera}/{path.stem}_{number}.jpg"
                write_crop(out / name, frame, box)
                rows.append([name, camera, time.isoformat(), track, " ".join(map(str, box))])
    with (out / "crops.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["image", "camera", "time", "track", "box"], *rows])
    return len(rows), unreadable


def list_frames(frames: Path) -> list[tuple[str, datetime.datetime, Path]]:
    """Returns camera, time and path of each frame, in this order. Ends the program if a name is no time or taken."""
    found = []
    for path in sorted(frames.glob("*/*")):
        hidden = any(part.startswith((".", "@")) for part in path.parts[-2:])
        if path.suffix.lower() in (".jpg", ".jpeg", ".png") and not hidden:
            try:
                found.append((path.parent.name, datetime.datetime.fromisoformat(path.stem), path))
            except ValueError:
                sys.exit(f"error: {path}: its name is no time; name frames as gate/2024-05-01T143005.jpg")
    if not found:
        sys.exit(f"error: {frames} has no frames CAMERA/TIME.jpg")
    names = collections.Counter(path.with_suffix("") for *_, path in found)
    if twice := [name for name, count in names.items() if count > 1]:
        sys.exit(f"error: {twice[0]} is the name of two frames; their crops would be one file")
    return sorted(found, key=lambda frame: (frame[0], _in_utc(frame[1])))


def _in_utc(time: datetime.datetime) -> datetime.datetime:
    """Returns a time to sort by; one without an offset counts as UTC."""
    return time if time.tzinfo else time.replace(tzinfo=datetime.UTC)


def follow(
    boxes: Sequence[Box], before: Sequence[tuple[Box, int]], numbers: Iterator[int]
) -> Iterator[tuple[Box, int]]:
    """Yields each box with its track: that of the previous frame's box with the largest overlap, or a new number."""
    left = [*before]
    for box in boxes:
        best = max(left, key=lambda other: overlap(box, other[0]), default=None)
        if best and overlap(box, best[0]) >= LEAST_OVERLAP:
            left.remove(best)
            yield box, best[1]
        else:
            yield box, next(numbers)


def overlap(one: Box, other: Box) -> float:
    """Returns intersection over union."""
    width = min(one[0] + one[2], other[0] + other[2]) - max(one[0], other[0])
    height = min(one[1] + one[3], other[1] + other[3]) - max(one[1], other[1])
    common = max(width, 0) * max(height, 0)
    return common / (one[2] * one[3] + other[2] * other[3] - common)


def clip(box: Box, frame: np.ndarray) -> Box:
    """Returns the part of a box that lies in the frame; its width or height may be 0 or less."""
    x, y, width, height = box
    left, top = max(x, 0), max(y, 0)
    return left, top, min(x + width, frame.shape[1]) - left, min(y + height, frame.shape[0]) - top


def write_crop(path: Path, frame: np.ndarray, box: Box) -> None:
    """Writes the part of a frame as JPEG."""
    x, y, width, height = box
    path.parent.mkdir(exist_ok=True)
    if not cv2.imwrite(str(path), frame[y : y + height, x : x + width], [cv2.IMWRITE_JPEG_QUALITY, 95]):
        sys.exit(f"error: {path} cannot be written; remove the folder before you try again")


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns 1 if a frame cannot be read."""
    parser = argparse.ArgumentParser(description="Cut the persons out of full frames.")
    parser.add_argument("--frames", type=Path, required=True, help="folder of the frames CAMERA/TIME.jpg")
    parser.add_argument("--out", type=Path, required=True, help="a new folder for the crops and crops.csv")
    args = parser.parse_args(argv)
    if args.out.exists():
        parser.error(f"--out: {args.out} exists: name a new folder")
    count, unreadable = cut(args.frames, args.out)
    for line in unreadable:
        print(f"skipped {line}", file=sys.stderr)
    print(f"{args.out}: {count} crops, listed in crops.csv")
    return 1 if unreadable else 0


if __name__ == "__main__":
    sys.exit(main())
