"""A set in the forms that it can be stored in: what comes back, what it takes, what is refused."""

import io
import json
from dataclasses import asdict, replace

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from small import NETWORK, refused, untouched

import ddpp
from ddpp import cli
from ddpp.baselines import selection
from ddpp.book.tables import forms
from ddpp.data import load_data
from ddpp.distilled.bare import write_set
from ddpp.judging import (
    FORMS,
    Networks,
    Stored,
    open_set,
    picture_bytes,
    read_sheet,
    storing,
    write_sheet,
)
from ddpp.judging.opening import load_set
from ddpp.judging.storing import store
from tools import storage
from tools.commands import resumed

TINY = ddpp.Protocol(epochs=3)


@pytest.fixture
def own(npz):
    """Data of three classes, 12 x 12 pixels in colour, whitened, and where it is."""
    path = npz(channels=3)
    return load_data(path, zca=True, device="cpu"), path


def made(data, ipc=2, reach=1.0, **changes):
    """A set of photographs; with a reach above 1 their colours are no longer of 8 bits, and leave
    [0, 1] on both sides.
    """
    images, labels = data.draw(ipc, 0)
    pixels = 0.5 + reach * (data.whitening.invert(images) - 0.5)
    if reach > 1:
        pixels += 0.01 * torch.rand(pixels.shape, generator=torch.Generator().manual_seed(0))
    images = data.whitening.apply(pixels)
    set_ = ddpp.DistilledDataset.from_tensors(images, labels, 0.0234, data, network=NETWORK)
    return replace(set_, **changes)


def natural(distilled):
    return distilled.whitening.invert(distilled.images)


def test_a_sheet_keeps_colours_beyond_white_and_black_to_half_a_step(own, tmp_path):
    data, path = own
    distilled = made(data, reach=2)
    pixels = natural(distilled)
    assert pixels.min() < -0.3 and pixels.max() > 1.3
    write_sheet(distilled, tmp_path / "a.webp")
    back = open_set(tmp_path / "a.webp", path, device="cpu").distilled
    step = (pixels.max() - pixels.min()) / 255
    far = (natural(back) - pixels).abs().max()
    assert step / 4 < far < step / 2 * 1.001
    assert torch.equal(back.labels, distilled.labels)
    assert torch.equal(back.alpha, distilled.alpha)
    assert back.network == distilled.network and back.classes == distilled.classes


@pytest.mark.parametrize("count", [1, 2, 7, 10])  # the square is not always full
@pytest.mark.parametrize("channels", [1, 3])
def test_photographs_come_back_exactly(npz, tmp_path, channels, count):
    path = npz(channels=channels)
    data = load_data(path, zca=False, device="cpu")
    distilled = made(data, ipc=4)
    distilled = replace(distilled, images=distilled.images[:count], labels=distilled.labels[:count])
    write_sheet(distilled, tmp_path / "a.webp")
    back = open_set(tmp_path / "a.webp", path, device="cpu").distilled
    assert torch.equal((natural(back) * 255).round(), (natural(distilled) * 255).round())
    assert back.images.shape == distilled.images.shape


def test_soft_labels_and_formation_come_back(own, tmp_path):
    data, path = own
    labels = torch.rand(6, 3, generator=torch.Generator().manual_seed(0))
    soft = made(data, labels=labels, loss="squared error", formation=2)
    ddpp.export(soft, "webp", tmp_path)
    back = open_set(tmp_path / "distilled.webp", path, device="cpu").distilled
    assert torch.equal(back.labels, labels)
    assert back.loss == "squared error" and back.formation == 2


def test_lossy_sheets_are_smaller_and_less_exact(own, tmp_path):
    data, path = own
    distilled = made(data, ipc=10)
    found = {}
    for quality in (None, 90, 30):
        write_sheet(distilled, tmp_path / "a.webp", quality)
        back = open_set(tmp_path / "a.webp", path, device="cpu").distilled
        far = float((back.images - distilled.images).square().mean())
        found[quality] = (tmp_path / "a.webp").stat().st_size, far
    sizes, errors = zip(*found.values(), strict=True)
    assert sorted(sizes, reverse=True) == [*sizes] and sorted(errors) == [*errors]
    assert len({*sizes}) == len({*errors}) == 3


def test_what_cannot_become_a_sheet_is_refused(own, npz, tmp_path):
    data, _ = own
    with refused("must end in .webp"):
        write_sheet(made(data), tmp_path / "a.png")
    with refused("does not say what data it stands for", "from_tensors"):
        write_sheet(made(data, provenance={}), tmp_path / "a.webp")
    two = load_data(npz(channels=2, name="two"), zca=False, device="cpu")
    with refused("images of 2 channels are no pictures", "compact"):
        write_sheet(made(two), tmp_path / "a.webp")
    assert not (tmp_path / "a.webp").exists()


def saved(picture, path, text=None):
    exif = Image.Exif()
    if text is not None:
        exif[270] = text
    picture.save(path, "WEBP", lossless=True, exif=exif)
    return path


def test_a_picture_that_holds_no_set_is_refused(own, tmp_path):
    data, path = own
    good = tmp_path / "good.webp"
    write_sheet(made(data), good)
    with Image.open(good) as picture:
        text, picture = picture.getexif()[270], picture.copy()
    bad = tmp_path / "bad.webp"
    one_less = json.loads(text)
    one_less["labels"] = one_less["labels"][1:]
    for other in (None, "a holiday", "[]", text[:-1], json.dumps(one_less)):
        with refused("bad.webp is a picture, but holds no set", "ddpp export --for webp"):
            read_sheet(saved(picture, bad, other))
    with refused("holds no set", "was changed"):
        read_sheet(saved(picture.crop((0, 0, 24, 12)), bad, text))
    bad.write_bytes(good.read_bytes()[:200])
    with refused("bad.webp cannot be read", "damaged"):
        read_sheet(bad)
    with refused("there is no file", "no.webp"):
        read_sheet(tmp_path / "no.webp")
    with refused("say where it is with --data"):
        open_set(good, device="cpu")
    other = load_data(path, zca=True, validation=0.2, device="cpu")
    with refused("good.webp was made from mine", "load that data"):
        read_sheet(good).join(other)


def test_the_command_exports_a_sheet_and_the_others_open_it(tmp_path, capsys):
    data = load_data("cifar10-sample", device="cpu")
    distilled = made(data, ipc=1, reach=1.5)
    distilled.save(tmp_path / "a.safetensors")
    words = ["export", str(tmp_path / "a.safetensors"), "--for", "webp", "--out", str(tmp_path)]
    assert cli.main(words) == 0
    assert "distilled.webp" in (said := capsys.readouterr().out) and "8 bits" in said
    assert (tmp_path / "distilled.webp").stat().st_size < 40_000
    back = load_set(tmp_path / "distilled.webp")
    assert torch.allclose(back.images, distilled.images, atol=0.05)
    assert back.whitening.equals(data.whitening)


def test_every_form_comes_back_and_takes_what_its_files_take(own, tmp_path):
    data, path = own
    start = made(data).images, torch.tensor(0.0234)
    about = data.provenance | {"network": asdict(NETWORK)}  # as a run says it
    distilled = made(data, reach=1.5, iterates={0: start, 4: start}, provenance=about)
    found = {form: store(distilled, form, tmp_path / form, path) for form in FORMS}
    for form, stored in found.items():
        files = [p for p in (tmp_path / form).rglob("*") if p.is_file()]
        assert stored.bytes == sum(len(p.read_bytes()) for p in files) > 0
        assert torch.equal(stored.distilled.labels, distilled.labels)
        assert float(stored.distilled.alpha) == pytest.approx(0.0234)
        assert stored.distilled.network == distilled.network
        assert not stored.distilled.iterates
        assert len(stored.data.test.labels) == 60
        kind = "channels" if form == "png, not whitened" else "zca"
        assert stored.data.whitening.kind == stored.distilled.whitening.kind == kind
    exact = ("file", "bare file", "compact", "result")
    error = {form: found[form].error(distilled) for form in FORMS}
    assert {form for form in FORMS if error[form] == 0} == {*exact}
    assert 0 < error["half"] < 1e-3 < error["webp"] < 0.05 < error["webp 90"] < error["webp 50"]
    assert error["webp"] < error["png"]  # which cuts what is not in [0, 1]
    taken = [found[form].bytes for form in (*exact, "half")]
    assert sorted(taken, reverse=True) == taken
    assert torch.equal(found["file"].data.test.images, data.test.images)
    assert not torch.equal(found["compact"].data.test.images, data.test.images)


def test_pictures_of_photographs_lose_nothing(own, tmp_path):
    data, path = own
    assert store(made(data), "png", tmp_path / "png", path).error(made(data)) < 1e-4


def test_a_folder_in_use_and_a_form_that_is_none_are_refused(own, tmp_path):
    data, path = own
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    with refused("used has files", "choose an empty folder"):
        store(made(data), "webp", tmp_path / "used", path)
    with refused("unknown form 'gif'", "file, bare file, compact"):
        store(made(data), "gif", tmp_path / "new", path)
    assert not (tmp_path / "new").exists()


def test_networks_are_those_of_evaluate_and_are_trained_once(own, tmp_path, monkeypatch):
    data, path = own
    distilled = made(data)
    networks, calls = Networks(TINY, 2), []
    whole = storing.train
    monkeypatch.setattr(storing, "train", lambda *a: calls.append(a) or whole(*a))
    stored = Stored(0, distilled, data)
    scores, seconds = networks.test(stored, 3)
    expected = ddpp.evaluate(distilled, data, repeats=2, protocol=TINY, seed=3, progress=False)
    assert scores == expected.final and seconds > 0
    same = store(distilled, "compact", tmp_path / "compact", path)
    assert networks.test(same, 3)[1] == seconds and len(calls) == 2
    networks.test(stored, 4)
    networks.test(replace(stored, distilled=replace(distilled, alpha=0.01)), 3)
    assert len(calls) == 6


def test_bytes_of_pictures_are_those_of_their_files(own, tmp_path):
    data, _ = own
    images = natural(made(data))
    made(data).export_png(tmp_path)
    assert picture_bytes(images) == sum(p.stat().st_size for p in tmp_path.rglob("*.png"))
    one = io.BytesIO()
    array = images[0].mul(255).round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
    Image.fromarray(array).save(one, "JPEG", quality=50)
    assert picture_bytes(images[:1], "JPEG", quality=50) == len(one.getvalue())


@storage.fitted_once()
def test_the_tool_measures_each_thing_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(storage, "SEEDS", (0,))
    monkeypatch.setattr(storage, "measurements", lambda: iter(todo))
    monkeypatch.setattr(storage, "OWN", {1: Networks(ddpp.Protocol(epochs=1), 1)})
    monkeypatch.setattr(storage, "LONG", Networks(ddpp.Protocol(epochs=1), 1))
    out = tmp_path / "forms.json"
    line = ["--out", str(out), "--work", str(tmp_path / "work")]
    todo = [("result", 1, 0), ("photographs", 1, 0)]
    assert storage.main(line) == 0
    first = json.loads(out.read_text())["rows"]
    todo += [("same bytes", 1, 0)]
    assert storage.main(line) == 0
    rows = json.loads(out.read_text())["rows"]
    assert rows[:2] == first and len(rows) == 3
    capsys.readouterr()
    assert storage.main(line) == 0 and capsys.readouterr().out == ""
    result, same, more = rows
    assert result["error"] == 0 and len(result["accuracies"]) == 1
    assert len(same["accuracies"]) == 5  # of the report
    assert more["images"] > same["images"] == result["images"] == 10
    sheet = store(
        open_set(storage.SETS[1].format(0)).distilled, "webp", tmp_path / "w", "cifar10-sample"
    )
    assert more["bytes"] <= sheet.bytes


def test_the_list_begins_with_the_set_as_it_is():
    todo = list(storage.measurements())
    assert todo[0] == ("file", 1, 0) and len({*todo}) == len(todo)
    assert {what for what, *_ in todo} == {*FORMS, "photographs", "same bytes", "all photographs"}


def test_the_table_pairs_each_form_with_the_file_of_its_seed():
    def row(form, seed, accuracies, **more):
        return {"form": form, "ipc": 10, "seed": seed, "accuracies": accuracies, **more}

    sizes = {"images": 100, "bytes": 40_000_000, "seconds": 5.0}
    small = sizes | {"bytes": 166_000 + 4_000}
    rows = [row("file", seed, [40.0 + seed, 42.0 + seed], **sizes) for seed in (0, 1, 2)]
    rows += [row("webp", seed, [40.0 + seed, 41.0 + seed], **small) for seed in (2, 1)]
    rows += [row("webp", 0, [40.5, 41.5], **small)]
    rows += [row("photographs", 0, [25.0], images=100, bytes=168_400)]
    rows += [row("all photographs", 0, [60.0], **sizes) | {"ipc": 0, "bytes": 10_200_000}]
    names = {"webp": "8 bits", "file": "the file", "photographs": "real", "nothing": "no"}
    text = forms(rows, 10, names | {"all photographs": "all"}).replace("\N{NO-BREAK SPACE}", " ")
    head, _, *lines = text.splitlines()
    assert head.startswith("|  | images | kB | accuracy (%) | difference (points)")
    assert lines == [
        "| 8 bits | 100 | 170 | 41.7 ± 0.8 | -0.33 (-1.05 to +0.38) | 5 | 3 |",
        "| the file | 100 | 40,000 | 42.0 ± 1.0 |  | 5 | 3 |",
        "| real | 100 | 168 | 25.0 ± 0.0 | -16.00 |  | 1 |",
        "| all | 100 | 10,200 | 60.0 ± 0.0 |  | 5 | 1 |",
    ]


def test_networks_of_another_kind_are_trained_anew(own, monkeypatch):
    data, _ = own
    one, networks, calls = made(data), Networks(TINY, 1), []
    whole = storing.train
    monkeypatch.setattr(storing, "train", lambda *a: calls.append(a) or whole(*a))
    wider = replace(one, network=asdict(replace(NETWORK, width=8)))
    soft = replace(one, labels=torch.eye(3)[one.labels])
    for distilled in (one, wider, soft, replace(soft, loss="squared error")):
        scores, _ = networks.test(Stored(0, distilled, data), 0)
        expected = ddpp.evaluate(distilled, data, repeats=1, protocol=TINY, progress=False)
        assert scores == expected.final
    assert len(calls) == 4


def test_a_quality_that_is_none_and_a_sheet_that_says_too_little_are_refused(own, tmp_path):
    data, path = own
    for quality in (-1, 101):
        with refused(f"the quality is {quality}: it must be at least 0 and at most 100"):
            write_sheet(made(data), tmp_path / "a.webp", quality)
    write_sheet(made(data), tmp_path / "a.webp")
    with Image.open(tmp_path / "a.webp") as picture:
        known, picture = json.loads(picture.getexif()[270]), picture.copy()
    for missing in known:
        less = json.dumps({key: value for key, value in known.items() if key != missing})
        with refused("is a picture, but holds no set"):
            open_set(saved(picture, tmp_path / "b.webp", less), path, device="cpu")


def test_measurements_are_not_mixed_and_nothing_of_a_users_is_deleted(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(storage, "SEEDS", (0,))
    monkeypatch.setattr(storage, "measurements", lambda: iter([("result", 1, 0)]))
    monkeypatch.setattr(storage, "OWN", {1: Networks(ddpp.Protocol(epochs=1), 1)})
    (tmp_path / "form").mkdir()
    (tmp_path / "form" / "mine").write_text("hours of work")
    out, fit = tmp_path / "forms.json", storage.loading.fit_zca
    line = ["--out", str(out), "--work", str(tmp_path)]
    assert storage.main(line) == 0
    assert storage.loading.fit_zca is fit  # as for everybody else
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["form", "forms.json", "mine"]
    for change, words in (
        ({"data": "cifar10"}, "data was 'cifar10' and is"),
        ({"rows": 3}, "holds no"),
    ):
        out.write_text(json.dumps(json.loads(out.read_text()) | change))
        with untouched(out):
            assert storage.main(line) == 1
        assert words in capsys.readouterr().err


def test_two_calls_do_not_write_into_one_file_of_measurements(tmp_path):
    out = tmp_path / "measured.json"
    with resumed(out, "rows", {}) as rows:
        assert rows == []
        with refused("another process is writing"), resumed(out, "rows", {}):
            pass


def test_a_form_that_cannot_say_what_a_set_is_does_not_take_it(tmp_path):
    data = ddpp.load_data("cifar10-sample", zca=False, device="cpu")
    real = selection.random(data, ipc=1, network={"width": 8})
    for form in ("half", "png"):
        with refused(f"the form {form} says neither", "choose file"):
            store(replace(real, formation=2), form, tmp_path / form, "cifar10-sample")
        assert not (tmp_path / form).exists()
    soft = F.one_hot(real.labels, 10).float()
    with refused("the form png has folders for labels, which are classes", "choose file"):
        store(replace(real, labels=soft), "png", tmp_path / "png", "cifar10-sample")


def test_a_whitening_that_was_given_is_not_left_to_the_data(own, tmp_path):
    data, path = own
    halved = replace(data.whitening, matrix=data.whitening.matrix / 2)
    given = load_data(path, whitening=halved, device="cpu")
    mine = ddpp.DistilledDataset.from_tensors(*given.draw(1, 0), 0.02, given, network=NETWORK)
    with refused("the set's whitening is not the one of its data", "compact"):
        write_sheet(mine, tmp_path / "a.webp")
    with refused("the form png has no whitening"):
        store(mine, "png", tmp_path / "png", path)
    assert not any((tmp_path / name).exists() for name in ("a.webp", "png"))


def test_the_error_of_pictures_is_that_of_the_same_pictures(npz, tmp_path):
    path = npz(classes=12, channels=3)
    data = load_data(path, zca=False, device="cpu")
    images, labels = data.draw(1, 0)
    order = torch.arange(len(labels)).flip(0)
    made = ddpp.DistilledDataset.from_tensors(
        images[order], labels[order], 0.02, data, network=NETWORK
    )
    assert store(made, "png", tmp_path / "png", path).error(made) < 0.01


def test_pictures_of_another_codes_set_come_back(npz, tmp_path):
    """Of which nobody knows which images were held out. Of so few, none are."""
    path = npz(per_class=4, channels=3)
    pixels = torch.rand(3, 3, 12, 12)
    torch.save({"images": pixels, "labels": torch.arange(3), "lr": 0.02}, tmp_path / "theirs.pt")
    theirs = ddpp.open_set(tmp_path / "theirs.pt", path, "raw", device="cpu").distilled
    assert store(theirs, "png", tmp_path / "png", path).error(theirs) < 0.01


@pytest.mark.parametrize("name", ["a.webp", "a.safetensors"])
def test_a_sheet_or_a_result_of_ones_own_data_is_shown_and_exported(own, tmp_path, capsys, name):
    data, path = own
    distilled, file = made(data, reach=1.5), tmp_path / name
    if file.suffix == ".webp":
        write_sheet(distilled, file)
    else:
        write_set(file, distilled)
    about = ["--data", str(path)]
    assert cli.main(["show", str(file)]) == 1
    assert "a file of your own: say where it is with --data" in capsys.readouterr().err
    assert cli.main(["show", str(file), *about]) == 0
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert cli.main(["export", str(file), "--for", "compact"]) == 1
    assert "say where it is with --data" in capsys.readouterr().err
    assert cli.main(["export", str(file), "--for", "compact", *about]) == 0
    back = ddpp.DistilledDataset.load(tmp_path / "a-compact" / "distilled.safetensors")
    assert torch.allclose(back.images, load_set(file, path).images)
    assert torch.allclose(back.images, distilled.images, atol=0.1)


def test_soft_labels_of_a_sheet_do_not_depend_on_the_default_type(own, tmp_path):
    data, _ = own
    labels = torch.rand(6, 3, generator=torch.Generator().manual_seed(0)).softmax(1)
    for name, given in (("soft.webp", {"labels": labels, "loss": None}), ("hard.webp", {})):
        write_sheet(written := made(data, **given), tmp_path / name)
        torch.set_default_dtype(torch.float64)
        try:
            back = read_sheet(tmp_path / name).join(data)
        finally:
            torch.set_default_dtype(torch.float32)
        assert torch.equal(back.labels, written.labels)


def test_pictures_of_more_than_a_thousand_images_are_read_in_their_order(npz, tmp_path):
    path = npz(channels=3, classes=2, size=8)
    data = load_data(path, zca=False, device="cpu")
    images = torch.rand(1012, *data.shape, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0] * 1010 + [1] * 2)
    many = ddpp.DistilledDataset.from_tensors(images, labels, 0.02, data, network=NETWORK, raw=True)
    assert store(many, "png", tmp_path / "png", path).error(many) < 0.01
    names = sorted(one.name for one in (tmp_path / "png" / "0_0").iterdir())
    assert names[0] == "0000.png" and names[-1] == "1009.png"
    few = replace(many, images=many.images[10:], labels=labels[10:])
    few.export_png(tmp_path / "few")
    assert sorted(one.name for one in (tmp_path / "few" / "0_0").iterdir())[-1] == "999.png"
