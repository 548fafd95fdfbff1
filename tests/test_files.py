"""Files are read into memory of their own, and nothing is left of a check that was killed."""

import os
import signal
import subprocess
import sys
import time

import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from small import refused, untouched

from ddpp import Error, NetworkConfig, TeacherConfig, load_data, train_teachers
from ddpp.distilled import DistilledDataset
from ddpp.foundation import files
from ddpp.foundation.seeds import generator
from ddpp.unrolling import draw_updates, unroll

ALIGNED = 64  # bytes; how PyTorch allocates on a CPU


def address(tensor):
    return tensor.data_ptr() % ALIGNED


def at_alignments(path, tensors):
    """The file of these tensors, written so that they begin at different places; their addresses in
    the file.
    """
    found = set()
    for length in range(0, 64, 4):
        files.write(path, "test", tensors, {"padding": "x" * length})
        with safe_open(path, "pt") as file:
            found.add(tuple(address(file.get_tensor(name)) for name in tensors))
        yield
    assert len(found) > 1  # or the test would show nothing


def test_what_is_read_is_aligned_as_a_new_tensor_is_wherever_it_lies_in_its_file(tmp_path):
    tensors = {"a": torch.randn(5), "b": torch.randn(37, 11), "c": torch.arange(9)}
    for _ in at_alignments(tmp_path / "file", tensors):
        lazy, (whole, _) = (
            files.Lazy(tmp_path / "file", "test"),
            files.read(tmp_path / "file", "test"),
        )
        for name, tensor in tensors.items():
            for found in (lazy[name], whole[name]):
                assert torch.equal(found, tensor)
                assert address(found) == 0


def test_what_is_read_can_be_changed_without_changing_the_file(tmp_path):
    files.write(tmp_path / "file", "test", {"a": torch.ones(3)}, {})
    lazy = files.Lazy(tmp_path / "file", "test")
    lazy["a"].zero_()
    assert torch.equal(lazy["a"], torch.ones(3))


def test_teachers_and_sets_come_from_their_files_as_new_tensors(npz, tmp_path):
    data = load_data(npz(), device="cpu")
    config = TeacherConfig(count=1, epochs=2, batch=20, network=NetworkConfig(width=5, depth=2))
    train_teachers(data, config, tmp_path / "teachers", progress=False)
    teachers = train_teachers(data, config, tmp_path / "teachers", progress=False)
    assert [address(teachers.snapshot(0, epoch)) for epoch in range(3)] == [0, 0, 0]
    images, labels = data.draw(1, 0)
    made = DistilledDataset(
        images, labels, 0.01, data.whitening, data.classes, NetworkConfig(width=5)
    )
    made.save(tmp_path / "set.safetensors")
    read = DistilledDataset.load(tmp_path / "set.safetensors")
    assert [address(t) for t in (read.images, read.labels, read.alpha, read.whitening.matrix)] == [
        0
    ] * 4
    for split in (data.train, data.validation, data.test):
        assert address(split.images) == 0


def test_the_students_path_comes_back_as_new_tensors(monkeypatch):
    network, seen = NetworkConfig(width=3, depth=1).build(1, 2, 4), []
    call = type(network).__call__
    monkeypatch.setattr(
        type(network),
        "__call__",
        lambda self, theta, x: seen.append(address(theta)) or call(self, theta, x),
    )
    images, start = torch.randn(2, 1, 4, 4, generator=generator(0)), network.initial(0)
    updates = draw_updates(2, None, 5, generator(1))
    unroll(
        network, start, images, torch.arange(2), torch.tensor(0.1), updates, torch.sum, "adjoint"
    )
    assert set(seen) == {0}


@pytest.mark.skipif(
    not sys.platform.startswith("linux"),
    reason="elsewhere a temporary file has a name for a moment",
)
def test_a_check_that_is_killed_leaves_nothing(tmp_path):
    code = (
        "import sys\nfrom ddpp.foundation import files\nprint(1, flush=True)\nwhile True: "
        "files.check_writable(sys.argv[1])"
    )
    for i in range(5):
        with subprocess.Popen(
            [sys.executable, "-c", code, tmp_path / "out"], stdout=subprocess.PIPE
        ) as process:
            process.stdout.read(1)
            time.sleep(0.02 + 0.01 * i)
            process.send_signal(signal.SIGKILL)
    assert list(tmp_path.iterdir()) == []


def test_what_earlier_versions_left_of_a_check_is_swept_once_its_process_is_gone(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    mine = tmp_path / f"out.{os.getpid()}.probe.part"
    others = [tmp_path / name for name in ("out.probe", "out.x.probe", f"other.{gone.pid}.probe")]
    for path in (
        *others,
        mine,
        tmp_path / f"out.{gone.pid}.probe",
        tmp_path / f"out.{gone.pid}.probe.part",
    ):
        path.touch()
    files.check_writable(tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == sorted([*others, mine])


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    for path in (tmp_path / "folder", tmp_path / "file" / "out", tmp_path / ("x" * 252)):
        with pytest.raises(Error, match=r"cannot write .*choose another place"):
            files.check_writable(path)
    assert files.check_writable(tmp_path / ("x" * 250)) is None


def test_equal_content_is_equal_bytes(file):
    again = file.with_name("again.safetensors")
    files.write(
        again, "thing", {"b": torch.tensor(7), "a": torch.arange(3.0)}, {"number": 0.1, "name": "x"}
    )
    assert again.read_bytes() == file.read_bytes()


def test_every_truncation_is_noticed(file):
    content = file.read_bytes()
    for kept in range(len(content)):
        file.write_bytes(content[:kept])
        with refused("thing.safetensors", "damaged", "cut short or altered"):
            files.read(file, "thing")


def test_every_flipped_byte_is_noticed(file):
    content = file.read_bytes()
    data_begins = 8 + int.from_bytes(content[:8], "little")
    for at in range(len(content)):
        file.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        with pytest.raises(Error, match=r"damaged|not written by ddpp") as caught:
            files.read(file, "thing")
        assert at < data_begins or "altered" in str(caught.value)


def test_a_file_of_another_kind_is_named_as_what_it_is(file, run):
    with untouched(file), refused("holds a thing, not a distilled dataset", "choose another file"):
        DistilledDataset.load(file)
    with untouched(file), refused("holds a thing, not a checkpoint", "choose another file"):
        run(checkpoint=file)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"ddpp": "5"}, {"ddpp": "{}"}])
def test_a_safetensors_file_from_elsewhere_is_refused(file, metadata):
    file.write_bytes(safetensors.torch.save({"a": torch.ones(2)}, metadata))
    with untouched(file), refused("was not written by ddpp", "choose another file"):
        files.read(file, "thing")


def test_another_programs_file_is_not_to_be_deleted(file):
    file.write_bytes(b"a year of measurements")
    with untouched(file), refused("not a file of ddpp", "move it away"):
        files.read(file, "thing")


def test_a_missing_file_is_not_called_damaged(file, tmp_path):
    for path in (file.with_name("nowhere"), tmp_path):
        with refused("there is no file", "check the path"):
            files.read(path, "thing")
