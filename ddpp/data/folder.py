"""A folder of pictures -> the .npz that `load_data` reads: square images of one size, to train on
and to test on.
"""

import io
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


def pack_folder(
    folder: str | Path, out: str | Path, size: int = 32, test: float = 0.2, *, progress: bool = True
) -> dict[str, tuple[int, int]]:
    """Pack a folder of pictures into the .npz file `out`; returns {class: (images to train on,
    images to test on)}.

    The layout is FOLDER/CLASS/PICTURE, and the share `test` of each class, spread evenly over its
    pictures by name, becomes test images; or FOLDER/train/CLASS/PICTURE and
    FOLDER/test/CLASS/PICTURE, and stays as it is. Each picture is turned upright, put on white
    where it is transparent, cropped to the square in its middle and resized to `size` x `size`; all
    are RGB, unless every one of them is grey. Equal folders give equal bytes. Raises Error for a
    folder, a picture or an output that cannot be used; nothing is overwritten.
    """
    folder, out = Path(folder), Path(out)
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
    classes = _find(folder, test)
    files.check_writable(out)
    found = [
        (label, path)
        for part in (0, 1)
        for label, pair in enumerate(classes.values())
        for path in pair[part]
    ]
    with tqdm(found, "pack", unit="picture", disable=not progress) as bar:
        images = np.stack([read_picture(path, size) for _, path in bar])
    if (images == images[..., :1]).all():
        images = images[..., 0]
    labels = [label for label, _ in found]
    n, file = sum(len(train) for train, _ in classes.values()), io.BytesIO()
    np.savez(
        file,
        x_train=images[:n],
        y_train=labels[:n],
        x_test=images[n:],
        y_test=labels[n:],
        classes=list(classes),
    )
    files.write_bytes(out, file.getvalue())
    return {name: (len(train), len(held_out)) for name, (train, held_out) in classes.items()}


def _find(folder: Path, test: float) -> dict[str, tuple[list[Path], list[Path]]]:
    """Each class's pictures to train on, and those to test on: at least one of each."""
    if {path.name for path in _inside(folder)[0]} == {"train", "test"}:
        train, held_out = _classes(folder / "train"), _classes(folder / "test")
        if different := train.keys() ^ held_out.keys():
            raise Error(
                f"class '{min(different)}' is not in both {folder}/train and {folder}/test: add "
                "or remove it"
            )
        classes = {name: (train[name], held_out[name]) for name in train}
    else:
        classes = {name: _split(pictures, test) for name, pictures in _classes(folder).items()}
    for name, (train, held_out) in classes.items():
        if not train or not held_out:
            raise Error(
                f"class '{name}' has too few pictures, {len(train)} to train on and "
                f"{len(held_out)} to test on: "
                "add some until there is one of each, or remove the class"
            )
    return classes


def _classes(folder: Path) -> dict[str, list[Path]]:
    """Each class's pictures."""
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
    """The folders in a folder, and what may be pictures, by name; what is hidden is left out."""
    try:
        visible = sorted(
            path for path in folder.iterdir() if not path.name.startswith((".", "__MACOSX"))
        )
        folders = [path for path in visible if path.is_dir()]
    except OSError as e:
        raise Error(
            f"the folder {folder} cannot be read ({e.strerror}): check the path and its permissions"
        ) from e
    return folders, [
        path for path in visible if path not in folders and path.suffix.lower() not in NO_PICTURES
    ]


def _split(pictures: list[Path], test: float) -> tuple[list[Path], list[Path]]:
    count = min(max(1, round(test * len(pictures))), len(pictures) - 1)
    chosen = {int((i + 0.5) * len(pictures) / count) for i in range(count)}
    return [p for i, p in enumerate(pictures) if i not in chosen], [
        pictures[i] for i in sorted(chosen)
    ]


def read_picture(path: Path, size: int) -> np.ndarray:
    """A picture as `pack_folder` packs it: RGB, (size, size, 3), uint8."""
    try:
        with Image.open(path) as picture:
            mode = picture.mode
            # decodes a large JPEG at a fraction of its size: much faster
            picture.draft(None, (4 * size, 4 * size))
            upright = ImageOps.exif_transpose(picture).convert("RGBA")
    except Exception as e:
        reason = (
            getattr(e, "strerror", None) or "it is damaged, or of a kind that Pillow does not know"
        )
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
