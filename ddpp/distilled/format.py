"""A set and its file: what belongs to a set, and how files name it.

Names here are part of the file format.
"""

import dataclasses
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ddpp.data import ImageData
from ddpp.data.whitening import Whitening
from ddpp.distilled.checks import CROSS_ENTROPY, SQUARED_ERROR
from ddpp.foundation.loop import Beside, Run, pack, unpack
from ddpp.networks import ARCHITECTURES, NetworkConfig

if TYPE_CHECKING:  # which is made of what is here
    from ddpp.distilled.dataset import DistilledDataset

IN_EVERY_FILE = ("images", "labels", "alpha")  # of every set, in every file


def beside(
    data: ImageData,
    labels: Tensor,
    network: NetworkConfig,
    formation: int = 1,
    loss: str = SQUARED_ERROR,
) -> Beside:
    """Return what belongs to a set and does not change in its run.

    - data: what is distilled.
    - labels: (N,), of the images.
    - network: of the run.
    - formation: of the set.
    - loss: to train with on soft labels, which are the field `labels` of the run's state, if it has
      one: the squared error, as KIP's, or the cross-entropy. Those in a field `logits` are always
      trained with the cross-entropy.
    """
    own = {"name": ARCHITECTURES.own_name(str(network.name))}  # see `from_file`
    found = _beside(data, labels, dataclasses.asdict(network) | own, formation)
    return found if loss == SQUARED_ERROR else Beside(found.tensors, found.meta | {"loss": loss})


def beside_of(distilled: "DistilledDataset") -> Beside:
    """Return what belongs to a set that a run has left, as `beside` does before the run."""
    network = in_file(distilled.network, distilled.provenance)
    return _beside(distilled, distilled.labels, network, distilled.formation)


def _beside(
    source: "ImageData | DistilledDataset", labels: Tensor, network: dict, formation: int
) -> Beside:
    meta = {"classes": list(source.classes), "network": network}
    meta |= {"data": {"data": source.provenance["data"]}}
    meta |= {"formation": formation} if formation > 1 else {}
    return Beside({"labels": labels} | source.whitening.tensors(), meta)


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


def parts_of(run: Run, beside: Beside, identity: dict) -> dict[str, Any]:
    """Return the fields of a set, from a run, what belongs beside it, and its identity."""
    values, meta = run.values, beside.meta
    labels = values.get("labels", beside.tensors["labels"])
    loss = meta.get("loss", SQUARED_ERROR) if labels.is_floating_point() else None
    if "logits" in values:
        labels, loss = values["logits"].softmax(1), CROSS_ENTROPY
    provenance = identity | meta["data"] | {"made_on": list(run.machines)}
    return {
        "images": values["images"],
        "labels": labels,
        "alpha": values["alpha"],
        "whitening": Whitening.from_tensors(beside.tensors),
        "classes": meta["classes"],
        "network": from_file(meta["network"], identity),
        "iterates": run.iterates,
        "history": run.history,
        "provenance": provenance | ({"stopped_at": run.state.step} if run.stopped else {}),
        "loss": loss,
        "formation": meta.get("formation", 1),
        "state": {name: value for name, value in values.items() if name not in IN_EVERY_FILE},
    }


def contents(distilled: "DistilledDataset") -> tuple[dict[str, Tensor], dict]:
    """Name what every file of a set holds, with or without its preprocessing: tensors and metadata.

    What is as usual is not named: a formation of 1, the loss of classes, no numbers in the state.
    """
    tensors = {name: getattr(distilled, name) for name in IN_EVERY_FILE}
    tensors |= pack(distilled.iterates, distilled.history)
    meta: dict[str, Any] = {"provenance": distilled.provenance}
    meta |= {"loss": distilled.loss} if distilled.labels.is_floating_point() else {}
    meta |= {"formation": distilled.formation} if distilled.formation > 1 else {}
    state = distilled.state.items()
    tensors |= {f"state.{name}": value for name, value in state if isinstance(value, Tensor)}
    numbers = {name: value for name, value in state if not isinstance(value, Tensor)}
    return tensors, meta | ({"state": numbers} if numbers else {})


def parts_in(tensors: dict[str, Tensor], meta: dict) -> dict[str, Any]:
    """Return the fields of a set that `contents` named.

    The first files have no state, and did not name the loss: their learned labels are all targets
    of regressions.
    """
    iterates, history = unpack(tensors)
    state = {k.removeprefix("state."): v for k, v in tensors.items() if k.startswith("state.")}
    learned = tensors["labels"].is_floating_point()
    return {name: tensors[name] for name in IN_EVERY_FILE} | {
        "iterates": iterates,
        "history": history,
        "provenance": meta["provenance"],
        "loss": meta.get("loss", SQUARED_ERROR if learned else CROSS_ENTROPY),
        "formation": meta.get("formation", 1),
        "state": state | meta.get("state", {}),
    }
