"""Images as pictures and files of pictures."""

import re
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

PNG, END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"  # its first and its last bytes


def as_folder(name: str) -> str:
    """Write the name of a class as a folder may be called."""
    return re.sub(r"[^\w.-]", "_", name)


def grid(images: Tensor, columns: int, line: int) -> Tensor:
    """Lay images (N, C, H, W) in rows with white lines around each. A single image gets none.

    Grey images become RGB.
    """
    images = images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images
    n, channels, height, width = images.shape
    if n == 1:
        return images[0]
    columns = min(columns, n)
    rows = -(-n // columns)
    tall, wide = height + line, width + line
    grid = images.new_ones(channels, rows * tall + line, columns * wide + line)
    for i, image in enumerate(images):
        top, left = i // columns * tall + line, i % columns * wide + line
        grid[:, top : top + height, left : left + width] = image
    return grid


def shows(path: Path, picture: Image.Image | None) -> bool:
    """Whether the file at `path` is this picture, pixel for pixel, or is of no use to anybody."""
    try:
        with Image.open(path) as there:
            return picture is not None and np.array_equal(np.asarray(there), np.asarray(picture))
    except Exception:  # of damaged bytes, whatever they happen to mean
        return picture is not None and _is_cut_short(path)


def _is_cut_short(path: Path) -> bool:
    """Whether a file is the beginning of a PNG, as a kill leaves it that came while it was written.

    It may be empty.
    """
    try:
        content = path.read_bytes()
    except OSError:
        return False
    return PNG.startswith(content[: len(PNG)]) and not content.endswith(END)


def pil(image: Tensor) -> Image.Image:
    """Make a PIL image of (C, H, W) in [0, 1]: grey, RGB, or the first three channels."""
    pixels = (image[:3] if len(image) >= 3 else image[:1]).mul(255).round().byte()
    return Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy().squeeze()))
