"""A set and its file: what belongs to a set, and how files name it.

Names here are part of the file format.
"""

import dataclasses
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ddpp.data import ImageData
from ddpp.data.whitening import Whitening
from ddpp.distilled.checks import CROSS_ENTROPY, SQUARED_ERROR
from ddpp.foundation.loop import Beside
from ddpp.networks import ARCHITECTURES, NetworkConfig

if TYPE_CHECKING:  # which is made of what is here
    from ddpp.distilled.dataset import DistilledDataset


def beside(data: ImageData, labels: Tensor, network: NetworkConfig, formation: int = 1) -> Beside:
    """Return what belongs to a set and does not change in its run.

    - data: what is distilled.
    - labels: (N,), of the images.
    - network: of the run.
    - formation: of the set.
    """
    tensors = {"labels": labels} | data.whitening.tensors()
    own = {"name": ARCHITECTURES.own_name(str(network.name))}  # see `from_file`
    meta = {"classes": list(data.classes), "network": dataclasses.asdict(network) | own}
    meta |= {"formation": formation} if formation > 1 else {}
    return Beside(tensors, meta | {"data": data.provenance})


def in_file(network: dict, made_from: dict) -> dict:
    """Return the fields of a NetworkConfig with the name that the network has in its code, if the
    set says which network that is.

    In one session, two classes of one name have two names.

    - made_from: what the set was made from, in which its network has a fingerprint.
    """
    name = network.get("name", "")
    own = ARCHITECTURES.own_name(name)
    known = marks_in(made_from, own) & {*ARCHITECTURES.marks(name).values()}
    return network | {"name": own} if known else network


def from_file(network: dict, made_from: dict) -> dict:
    """Return the fields of a NetworkConfig with the name that the network has in this session.

    - network: as `in_file` returned it.
    - made_from: what the set was made from, in which its network has a fingerprint.
    """
    own = network.get("name", "")
    names = [ARCHITECTURES.name_here(own, mark) for mark in marks_in(made_from, own)]
    return network | {"name": names[0]} if names else network


def marks_in(made_from: dict, network: str) -> set[str]:
    """Return the fingerprints of a network in what a set was made from, at most one as a rule."""
    parts = made_from, made_from.get("teachers", {})
    found = (part.get("custom", {}).get(f"network {network}") for part in parts)
    return {mark for mark in found if mark}


def parts_of(values: dict, beside: Beside, whitening: Whitening, identity: dict) -> dict[str, Any]:
    """Return what a set is made of, from the values of a state, what belongs beside it, and the
    identity of the run.
    """
    own = {"images", "labels", "alpha"}
    labels = values.get("labels", beside.tensors["labels"])
    loss = SQUARED_ERROR if labels.is_floating_point() else None
    if (logits := values.get("logits")) is not None:
        labels, loss = logits.softmax(1), CROSS_ENTROPY
    return {
        "images": values["images"],
        "labels": labels,
        "loss": loss,
        "alpha": values["alpha"],
        "whitening": whitening,
        "classes": tuple(beside.meta["classes"]),
        "network": from_file(beside.meta["network"], identity),
        "formation": beside.meta.get("formation", 1),
        "state": {k: v for k, v in values.items() if k not in own and v is not None},
    }


def how_to_read(distilled: "DistilledDataset") -> dict:
    """Name for a file what its images and labels mean, where it is not the usual."""
    meta: dict[str, Any] = {"loss": distilled.loss} if distilled.labels.is_floating_point() else {}
    return meta | ({"formation": distilled.formation} if distilled.formation > 1 else {})


def state_parts(distilled: "DistilledDataset") -> tuple[dict[str, Tensor], dict]:
    """Name the tensors of a set's state for a file, and its numbers for the metadata."""
    state = distilled.state.items()
    numbers = {name: value for name, value in state if not isinstance(value, Tensor)}
    tensors = {f"state.{name}": value for name, value in state if isinstance(value, Tensor)}
    return tensors, {"state": numbers} if numbers else {}


def state_in(tensors: dict[str, Tensor], meta: dict) -> dict[str, Tensor | int]:
    """Read the state that `state_parts` named. It is empty in files of earlier versions."""
    named = {k.removeprefix("state."): v for k, v in tensors.items() if k.startswith("state.")}
    return named | meta.get("state", {})


def loss_in(tensors: dict[str, Tensor], meta: dict) -> str:
    """Read the loss that goes with a file's labels.

    The first files did not name it. Their learned labels are all targets of regressions.
    """
    learned = tensors["labels"].is_floating_point()
    return meta.get("loss", SQUARED_ERROR if learned else CROSS_ENTROPY)
