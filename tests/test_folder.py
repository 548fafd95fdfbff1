"""A folder of pictures becomes the .npz that load_data reads; a folder that cannot gets a
sentence.
"""

import os
import re

import numpy as np
import pytest
from PIL import Image

from ddpp import cli, load_data, pack_folder
from ddpp.foundation import files
from ddpp.foundation.errors import Error

COLOURS = {"cat": (200, 40, 40), "dog": (40, 200, 40), "eel": (40, 40, 200)}
ORIENTATION = 0x0112  # the EXIF tag


def refused(*words):
    """An Error whose message is one sentence with these words, in this order."""
    return pytest.raises(
        Error, match=r"(?s)\A" + ".*".join(["", *map(re.escape, words)]) + r"[^\n]*\Z"
    )


def save(path, array, mode=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = (
        array if isinstance(array, Image.Image) else Image.fromarray(np.asarray(array, np.uint8))
    )
    (picture.convert(mode) if mode else picture).save(path, **options)
    return path


def noise(colour, rng, height=20, width=20):
    return np.clip(rng.normal(0, 30, (height, width, 3)) + colour, 0, 255)


def halves(height, width, vertical=False):
    """A picture whose left half (or upper, with `vertical`) is red and whose other half is blue."""
    first = (
        np.arange(height)[:, None] < height / 2 if vertical else np.arange(width)[None] < width / 2
    )
    return np.where(np.broadcast_to(first, (height, width))[..., None], (255, 0, 0), (0, 0, 255))


@pytest.fixture
def pictures(tmp_path):
    """Writes `count` PNGs for each class, numbered from 0; returns the folder."""

    def write(count=5, classes=COLOURS, folder="mine"):
        rng = np.random.default_rng(0)
        for name in classes:
            for i in range(count):
                save(tmp_path / folder / name / f"{i:03}.png", noise(COLOURS[name], rng))
        return tmp_path / folder

    return write


@pytest.fixture
def pack(tmp_path):
    """Packs a folder into a fresh file; returns its arrays."""

    def call(folder, size=16, **options):
        out = tmp_path / f"packed{len(list(tmp_path.glob('packed*')))}.npz"
        pack_folder(folder, out, size, progress=False, **options)
        with np.load(out) as file:
            return dict(file)

    return call


@pytest.fixture
def one(tmp_path, pack):
    """Packs a folder of four copies of one picture, of any kind; returns what became of it."""

    def call(array, size=16, ending="png", **options):
        for path in ("a/0", "a/1", "b/0", "b/1"):
            save(tmp_path / "one" / f"{path}.{ending}", array, **options)
        return pack(tmp_path / "one", size)["x_train"][0]

    return call


# what is packed


def test_a_packed_folder_is_data_to_distil(pictures, tmp_path):
    out = tmp_path / "mine.npz"
    assert pack_folder(pictures(10), out, progress=False) == dict.fromkeys(COLOURS, (8, 2))
    data = load_data(out, device="cpu", zca=False)
    assert data.classes == ("cat", "dog", "eel")
    assert data.shape == (3, 32, 32)
    assert len(data.train.labels) == 24
    assert data.test.labels.tolist() == [0, 0, 1, 1, 2, 2]
    natural = data.whitening.invert(data.test.images).mean((2, 3))
    for colour, label in zip(natural, data.test.labels, strict=True):
        assert colour.argmax() == label  # cats are red, dogs green, eels blue


def test_the_test_images_are_spread_evenly_over_a_class_and_in_no_other_part(tmp_path, pack):
    for name in ("a", "b"):
        for i in range(10):
            save(tmp_path / "mine" / name / f"{i}.png", np.full((8, 8), 10 * i))
    arrays = pack(tmp_path / "mine", size=8)
    tens = lambda part: (arrays[f"x_{part}"][arrays[f"y_{part}"] == 1].mean((1, 2)) / 10).tolist()
    assert tens("test") == [2, 7]
    assert tens("train") == [0, 1, 3, 4, 5, 6, 8, 9]


@pytest.mark.parametrize(
    "count, test, held_out", [(2, 0.2, 1), (3, 0.2, 1), (9, 0.2, 2), (2, 0.9, 1), (5, 0.99, 4)]
)
def test_every_class_keeps_an_image_to_train_on_and_one_to_test_on(
    pictures, tmp_path, count, test, held_out
):
    counts = pack_folder(pictures(count), tmp_path / "mine.npz", test=test, progress=False)
    assert counts == dict.fromkeys(COLOURS, (count - held_out, held_out))


def test_a_split_that_is_there_stays_as_it_is(pictures, tmp_path):
    pictures(3, folder="mine/train")
    pictures(1, folder="mine/test")
    out = tmp_path / "mine.npz"
    assert pack_folder(tmp_path / "mine", out, test=0.5, progress=False) == dict.fromkeys(
        COLOURS, (3, 1)
    )
    assert load_data(out, device="cpu", zca=False).classes == ("cat", "dog", "eel")


def test_classes_of_any_size_and_pictures_of_any_format_belong_together(tmp_path, pack):
    rng, folder = np.random.default_rng(0), tmp_path / "mine"
    for i, ending in enumerate(("png", "jpg", "jpeg", "webp", "bmp", "gif", "tif", "tiff", "JPG")):
        save(folder / "cat" / f"{i}.{ending}", noise(COLOURS["cat"], rng, 10 + 7 * i, 90 - 9 * i))
    for i, mode in enumerate(("1", "L", "LA", "P", "RGB", "RGBA", "CMYK")):
        kind = "tif" if mode == "CMYK" else "png"
        save(folder / "dog" / f"{i}.{kind}", noise(COLOURS["dog"], rng, 40, 30), mode)
    arrays = pack(folder)
    assert arrays["x_train"].shape == (13, 16, 16, 3)
    assert arrays["x_test"].shape == (3, 16, 16, 3)
    assert arrays["x_train"].dtype == np.uint8
    assert (arrays["x_train"][arrays["y_train"] == 0].mean((1, 2)).argmax(1) == 0).all()


def test_equal_folders_give_equal_bytes(pictures, tmp_path):
    for name in ("a", "b"):
        pack_folder(pictures(folder=f"mine-{name}"), tmp_path / f"{name}.npz", progress=False)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_what_is_hidden_or_no_picture_is_left_out(pictures, pack):
    folder = pictures()
    before = pack(folder)
    for name in (
        "readme.txt",
        "labels.csv",
        "cat/.DS_Store",
        "cat/Thumbs.db",
        "dog/notes.TXT",
        "dog/._000.png",
    ):
        (folder / name).write_bytes(b"no picture")
    for name in (".ipynb_checkpoints", "cat/.cache", "__MACOSX"):
        (folder / name).mkdir()
    after = pack(folder)
    assert all((before[key] == after[key]).all() for key in before)


# what becomes of a picture


@pytest.mark.parametrize("height, width", [(30, 30), (30, 90), (100, 31)])
def test_a_picture_is_cropped_to_the_square_in_its_middle(one, height, width):
    packed, whole = one(halves(height, width), size=10), halves(10, 10)
    # at the edge between the halves, the resizing rings
    np.testing.assert_allclose(packed, whole, atol=50)
    np.testing.assert_allclose(packed[:, [0, 1, -2, -1]], whole[:, [0, 1, -2, -1]], atol=3)


def test_a_picture_is_shrunk_with_antialiasing(one):
    board = 255 * (np.indices((64, 64)).sum(0) % 2)
    assert np.abs(one(board, size=8).astype(int) - 127.5).max() < 2


def test_a_picture_that_is_too_small_is_enlarged(one):
    np.testing.assert_array_equal(
        one(np.full((1, 5, 3), (9, 99, 199)), size=8), np.full((8, 8, 3), (9, 99, 199))
    )


@pytest.mark.parametrize(
    "orientation, turned", [(1, halves(32, 32)), (6, halves(32, 32, vertical=True))]
)
def test_a_photo_taken_with_the_camera_turned_is_packed_upright(one, orientation, turned):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    packed = one(halves(640, 320), ending="jpg", exif=exif, quality=95, size=32)
    assert np.abs(packed.astype(int) - turned).mean() < 8  # JPEG blurs the edge


def test_a_picture_of_the_right_size_is_packed_as_it_is(one):
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3))
    np.testing.assert_array_equal(one(pixels, size=16), pixels)


def test_what_is_transparent_is_white(one):
    logo = np.zeros((20, 20, 4))
    logo[:10, :, 3] = 255  # an opaque black upper half; the black below cannot be seen
    packed = one(logo, size=20)
    assert (packed[:10] == 0).all() and (packed[10:] == 255).all()


def test_a_transparent_palette_is_read_without_a_warning(one):
    logo = Image.new("P", (16, 16))
    logo.putpalette([0, 0, 0, 200, 0, 0])
    logo.paste(1, (0, 0, 16, 8))
    packed = one(logo, transparency=bytes([0, 255]))
    assert (packed[:8] == (200, 0, 0)).all() and (packed[8:] == 255).all()


def test_images_are_grey_exactly_if_all_of_them_are(pictures, tmp_path, pack):
    for name in ("cat", "dog"):
        for i, mode in enumerate(("L", "LA", "1", "P", "RGB")):
            save(tmp_path / "grey" / name / f"{i}.png", np.full((20, 20), 60 * i), mode)
    arrays = pack(tmp_path / "grey")
    assert arrays["x_train"].shape == (8, 16, 16)
    np.savez(tmp_path / "grey.npz", **arrays)
    assert load_data(tmp_path / "grey.npz", device="cpu", zca=False).shape == (1, 16, 16)
    save(tmp_path / "grey" / "cat" / "9.png", halves(20, 20))
    assert pack(tmp_path / "grey")["x_train"].shape == (9, 16, 16, 3)


# what cannot be packed


def test_a_folder_that_is_not_there_or_not_a_folder_is_refused(tmp_path):
    with refused("nowhere cannot be read (No such file or directory)", "check the path"):
        pack_folder(tmp_path / "nowhere", tmp_path / "mine.npz")
    (tmp_path / "file").write_bytes(b"")
    with refused("file cannot be read (Not a directory)", "check the path"):
        pack_folder(tmp_path / "file", tmp_path / "mine.npz")


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX systems")
@pytest.mark.parametrize("forbidden", ["mine", "mine/cat", "mine/cat/000.png"])
def test_a_folder_or_picture_that_may_not_be_read_is_named(
    pictures, tmp_path, monkeypatch, forbidden
):
    pictures()
    monkeypatch.chdir(tmp_path)  # relative paths need no permissions of the folders above
    tmp_path.chmod(0o777)
    os.chmod(forbidden, 0)
    root = os.geteuid() == 0
    try:
        if root:
            os.seteuid(65534)
        with refused(f"{forbidden} cannot be read (Permission denied)"):
            pack_folder("mine", "mine.npz", progress=False)
    finally:
        if root:
            os.seteuid(0)
        os.chmod(forbidden, 0o755)


def test_a_folder_without_class_folders_is_told_the_layout(tmp_path):
    save(tmp_path / "mine" / "a.png", halves(8, 8))
    with refused("mine holds no class folders", "FOLDER/CLASS/PICTURE", "FOLDER/train/CLASS"):
        pack_folder(tmp_path / "mine", tmp_path / "mine.npz")


def test_one_class_is_not_enough(pictures, tmp_path):
    with refused("only one class folder, 'cat'", "at least 2 classes"):
        pack_folder(pictures(classes=["cat"]), tmp_path / "mine.npz")
    pictures(folder="split/train"), pictures(folder="split/test", classes=["dog"])
    with refused("test holds only one class folder, 'dog'", "at least 2 classes"):
        pack_folder(tmp_path / "split", tmp_path / "mine.npz")


@pytest.mark.parametrize(
    "folders", [("cat", "cat/more"), ("train/cat", "validation/cat"), ("train/cat", "val/cat")]
)
def test_folders_too_deep_are_told_the_layout(pictures, tmp_path, folders):
    for folder in ("eel", *folders):
        save(tmp_path / "mine" / folder / "a.png", halves(8, 8))
    with refused("holds another folder", "FOLDER/CLASS/PICTURE", "FOLDER/train/CLASS"):
        pack_folder(tmp_path / "mine", tmp_path / "mine.npz")


@pytest.mark.parametrize("count", [0, 1])
def test_a_class_needs_two_pictures(pictures, tmp_path, count):
    folder = pictures()
    (folder / "fly").mkdir()
    for i in range(count):
        save(folder / "fly" / f"{i}.png", halves(8, 8))
    with refused(
        "class 'fly' has too few pictures",
        f"{count} to train on and 0 to test on",
        "or remove the class",
    ):
        pack_folder(folder, tmp_path / "mine.npz")


def test_a_split_needs_the_same_classes_in_both_parts_and_pictures_in_each(pictures, tmp_path):
    pictures(folder="mine/train")
    test = pictures(folder="mine/test", classes=["cat", "dog"])
    with refused("class 'eel' is not in both", "train", "test", "add or remove it"):
        pack_folder(tmp_path / "mine", tmp_path / "mine.npz")
    (test / "eel").mkdir()
    with refused("class 'eel' has too few pictures", "5 to train on and 0 to test on"):
        pack_folder(tmp_path / "mine", tmp_path / "mine.npz")


@pytest.mark.parametrize("damage", ["cut short", "empty", "not a picture", "a kind of its own"])
def test_a_picture_that_cannot_be_read_is_named(pictures, tmp_path, damage):
    folder = pictures()
    path = folder / "dog" / ("new.heic" if damage == "a kind of its own" else "003.png")
    whole = (folder / "dog" / "003.png").read_bytes()
    path.write_bytes({"cut short": whole[:200], "empty": b""}.get(damage, b"no picture at all"))
    with refused(
        f"the picture {path} cannot be read", "damaged", "save it anew as PNG or JPEG, or remove it"
    ):
        pack_folder(folder, tmp_path / "mine.npz", progress=False)
    assert not list(tmp_path.glob("mine.npz*"))


@pytest.mark.parametrize("kind", [np.uint16, np.int32, np.float32])
def test_a_picture_with_more_than_8_bits_is_not_cut_to_white(pictures, tmp_path, kind):
    folder = pictures()
    Image.fromarray(np.full((20, 20), 4000, kind)).save(folder / "cat" / "deep.tif")
    with refused("deep.tif has more than 8 bits", "save it with 8"):
        pack_folder(folder, tmp_path / "mine.npz", progress=False)


@pytest.mark.parametrize("size", [7, 0, -32])
def test_the_network_must_be_able_to_halve_the_images_three_times(pictures, tmp_path, size):
    with refused(f"size is {size}", "at least 8"):
        pack_folder(pictures(), tmp_path / "mine.npz", size)
    pack_folder(pictures(), tmp_path / "mine.npz", 8, progress=False)


@pytest.mark.parametrize("test", [0, 1, -0.2, 20, float("nan")])
def test_the_share_of_test_images_must_leave_some_of_both(pictures, tmp_path, test):
    with refused(f"share of test images is {test}", "above 0 and below 1"):
        pack_folder(pictures(), tmp_path / "mine.npz", test=test)


def test_the_output_is_a_new_npz(pictures, tmp_path):
    folder, out = pictures(), tmp_path / "mine.npz"
    with refused("mine.zip must end in .npz"):
        pack_folder(folder, tmp_path / "mine.zip")
    out.write_bytes(b"precious")
    with refused("mine.npz exists already", "choose another output"):
        pack_folder(folder, out)
    assert out.read_bytes() == b"precious"


def test_an_output_that_cannot_be_written_is_noticed_before_a_picture_is_read(
    pictures, tmp_path, monkeypatch
):
    monkeypatch.setattr(
        "ddpp.data.folder.read_picture", lambda *_: pytest.fail("a picture was read in vain")
    )
    (tmp_path / "file").write_bytes(b"")
    with refused("cannot write", "file/mine.npz", "choose another place"):
        pack_folder(pictures(), tmp_path / "file" / "mine.npz")


def test_a_full_disk_leaves_no_half_a_file(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "check_writable", lambda _: None)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with refused("cannot write", "No space left on device"):
        pack_folder(pictures(), tmp_path / "mine.npz", progress=False)
    assert not list(tmp_path.glob("mine.npz*"))


# the command


def test_the_command_says_what_it_packed(pictures, tmp_path, capsys):
    out = tmp_path / "mine.npz"
    assert cli.main(["pack", str(pictures(10)), "--out", str(out), "--size", "24"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "cat: 8 images to train on, 2 to test on"
    assert lines[-1] == f"written: {out} (3 classes, images of 24x24)"
    assert load_data(out, device="cpu", zca=False).shape == (3, 24, 24)


def test_the_command_answers_bad_input_in_one_line(pictures, tmp_path, capsys):
    assert cli.main(["pack", str(pictures()), "--out", str(tmp_path / "mine.zip")]) == 1
    assert capsys.readouterr().err == f"ddpp: the output {tmp_path / 'mine.zip'} must end in .npz\n"
