"""A distilled set stored bare: without its preprocessing, which the data brings."""

from dataclasses import replace
from pathlib import Path

from ddpp.data import ImageData
from ddpp.distilled.dataset import DistilledDataset
from ddpp.distilled.format import contents, parts_in
from ddpp.foundation import files
from ddpp.foundation.errors import Error

RESULT = "result"  # the kind of its file
# bytes of images that such a file may hold; larger sets stay where they were distilled
LARGEST = 16 * 2**20


def write_set(path: Path, distilled: DistilledDataset) -> dict | None:
    """Write the final images, labels, alpha and the history, and return their file and its SHA-256.

    Returns None, and writes nothing, if the images take more than 16 MiB.
    """
    images = distilled.images
    if images.numel() * images.element_size() > LARGEST:
        return None
    files.write(path, RESULT, *contents(replace(distilled, iterates={})))
    return {"file": path.name, "sha256": files.sha256(path)}


def rejoin(file: files.Lazy, data: ImageData, network: dict) -> DistilledDataset:
    """Join the images of a result with their preprocessing, as a set on the CPU.

    - file: of the images.
    - data: the images they were made from.
    - network: the fields of the NetworkConfig that they were distilled with.

    Raises Error for other data or other preprocessing.
    """
    tensors, meta = dict(file), file.meta
    check_source(file.path, meta["provenance"], data)
    return DistilledDataset(
        **parts_in(tensors, meta),
        whitening=data.whitening.to("cpu"),
        classes=data.classes,
        network=network,
    )


def check_source(path: Path, provenance: dict, data: ImageData) -> None:
    """Raise an Error if a file without preprocessing was not made from this data.

    - path, provenance: of the file.
    """
    made_from = provenance["data"]
    keys = {*data.identity, "given"}  # which is there only where a whitening was given
    if any(made_from.get(key) != data.identity.get(key) for key in keys):
        raise Error(
            f"{path} was made from {made_from['name']}, or from other preprocessing: load that data"
        )
