"""Pack a folder of pictures into the .npz that `load_data` reads: square images of one size, split
into training and test images.
"""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from tqdm.auto import tqdm

from ddpp.foundation import files
from ddpp.foundation.errors import Error

LAYOUT = (
    "lay the pictures as FOLDER/CLASS/PICTURE, or as FOLDER/train/CLASS/PICTURE and "
    "FOLDER/test/CLASS/PICTURE"
)
NO_PICTURES = set(".txt .md .pdf .csv .tsv .json .xml .yaml .yml .html .py .ipynb .db .ini".split())


@dataclass(frozen=True)
class _Pictures:
    """The pictures of one class, in order."""

    train: list[Path]
    test: list[Path]


def pack_folder(
    folder: str | Path, out: str | Path, size: int = 32, test: float = 0.2, *, progress: bool = True
) -> dict[str, tuple[int, int]]:
    """Pack a folder of pictures into an .npz file that `load_data` reads.

    - folder: FOLDER/CLASS/PICTURE, or FOLDER/train/CLASS/PICTURE and FOLDER/test/CLASS/PICTURE.
    - out: the file to write, ending in .npz. An existing file is never overwritten.
    - size: side of the square images, in pixels. At least 8.
    - test: share of each class that becomes test images, above 0 and below 1, spread evenly over
      its pictures in order of name. Ignored where the folder has train and test.
    - progress: whether a progress bar is shown.

    Returns {class: (training images, test images)}. Each picture is turned upright, put on white
    where it is transparent, cropped to the square in its middle and resized. All are RGB, unless
    every one is grey. Equal folders give equal bytes. Raises Error for a folder, a picture or an
    output that cannot be used.

    >>> from pathlib import Path
    >>> import ddpp
    >>> from PIL import Image
    >>> for name in ("cat/a", "cat/b", "dog/a", "dog/b"):
    ...     Path("mine", name).parent.mkdir(parents=True, exist_ok=True)
    ...     Image.new("RGB", (20, 10), "red").save(f"mine/{name}.png")
    >>> ddpp.pack_folder("mine", "mine.npz", size=8, test=0.5, progress=False)
    {'cat': (1, 1), 'dog': (1, 1)}
    """
    folder, out = Path(folder), Path(out)
    _check_request(out, size, test)
    classes = _find(folder, test)
    files.check_writable(out)
    train = [(label, path) for label, c in enumerate(classes.values()) for path in c.train]
    held_out = [(label, path) for label, c in enumerate(classes.values()) for path in c.test]
    with tqdm(train + held_out, "pack", unit="picture", disable=not progress) as bar:
        images = np.stack([read_picture(path, size) for _, path in bar])
    if (images == images[..., :1]).all():
        images = images[..., 0]
    n, file = len(train), io.BytesIO()
    np.savez(
        file,
        x_train=images[:n],
        y_train=[label for label, _ in train],
        x_test=images[n:],
        y_test=[label for label, _ in held_out],
        classes=list(classes),
    )
    files.write_bytes(out, file.getvalue())
    return {name: (len(c.train), len(c.test)) for name, c in classes.items()}


def _check_request(out: Path, size: int, test: float) -> None:
    if out.suffix != ".npz":
        raise Error(f"the output {out} must end in .npz")
    if out.exists():
        raise Error(f"{out} exists already: choose another output, or move that file away")
    if size < 8:
        raise Error(
            f"the size is {size}: it must be at least 8, because the network halves the images "
            "three times"
        )
    if not 0 < test < 1:
        raise Error(f"the share of test images is {test}: it must be above 0 and below 1")


def _find(folder: Path, test: float) -> dict[str, _Pictures]:
    """Find each class's pictures: at least one training and one test image."""
    if {path.name for path in _inside(folder)[0]} == {"train", "test"}:
        train, held_out = read_classes(folder / "train"), read_classes(folder / "test")
        if different := train.keys() ^ held_out.keys():
            raise Error(
                f"class '{min(different)}' is not in both {folder}/train and {folder}/test: add "
                "or remove it"
            )
        classes = {name: _Pictures(train[name], held_out[name]) for name in train}
    else:
        classes = {name: _split(pictures, test) for name, pictures in read_classes(folder).items()}
    for name, found in classes.items():
        if not found.train or not found.test:
            raise Error(
                f"class '{name}' has too few pictures, {len(found.train)} to train on and "
                f"{len(found.test)} to test on: add some until there is one of each, or remove "
                "the class"
            )
    return classes


def read_classes(folder: Path) -> dict[str, list[Path]]:
    """List each class's pictures in FOLDER/CLASS/PICTURE, or raise Error for another layout."""
    inside = {path.name: _inside(path) for path in _inside(folder)[0]}
    for name, (folders, _) in inside.items():
        if folders:
            raise Error(
                f"the class folder {folder / name} holds another folder, '{folders[0].name}': "
                f"{LAYOUT}"
            )
    if len(inside) < 2:
        what = f"only one class folder, '{min(inside)}'" if inside else "no class folders"
        raise Error(f"{folder} holds {what}, but at least 2 classes are needed: {LAYOUT}")
    return {name: pictures for name, (_, pictures) in inside.items()}


def _inside(folder: Path) -> tuple[list[Path], list[Path]]:
    """List the folders in a folder, and the files that may be pictures, by name. Hidden ones are
    left out.
    """
    try:
        visible = sorted(
            path for path in folder.iterdir() if not path.name.startswith((".", "__MACOSX"))
        )
        folders = [path for path in visible if path.is_dir()]
    except OSError as e:
        raise Error(
            f"the folder {folder} cannot be read ({e.strerror}): check the path and its permissions"
        ) from e
    pictures = [
        path for path in visible if path not in folders and path.suffix.lower() not in NO_PICTURES
    ]
    return folders, pictures


def _split(pictures: list[Path], test: float) -> _Pictures:
    """Take a share as test images, evenly spaced."""
    count = min(max(1, round(test * len(pictures))), len(pictures) - 1)
    chosen = {int((i + 0.5) * len(pictures) / count) for i in range(count)}
    train = [path for i, path in enumerate(pictures) if i not in chosen]
    return _Pictures(train, [pictures[i] for i in sorted(chosen)])


def read_picture(path: Path, size: int) -> np.ndarray:
    """Read a picture as `pack_folder` packs it: RGB, (size, size, 3), uint8."""
    try:
        with Image.open(path) as picture:
            mode = picture.mode
            picture.draft(None, (4 * size, 4 * size))  # a large JPEG is decoded smaller: faster
            upright = ImageOps.exif_transpose(picture).convert("RGBA")
    except Exception as e:
        reason = getattr(e, "strerror", None)
        reason = reason or "the file is damaged, or of a kind that Pillow does not know"
        raise Error(
            f"the picture {path} cannot be read ({reason}): save it anew as PNG or JPEG, or "
            "remove it"
        ) from e
    if mode[0] in "IF":
        raise Error(
            f"the picture {path} has more than 8 bits per channel: save it with 8, as PNG or JPEG"
        )
    opaque = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright).convert("RGB")
    return np.asarray(ImageOps.fit(opaque, (size, size), Image.Resampling.LANCZOS))
