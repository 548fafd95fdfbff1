"""Evaluations train as torch's optimizer does, and are refused on other data or with no network."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small import NETWORK, arrays, load, refused, save
from torch import nn

from ddpp import DistilledDataset, evaluating
from ddpp.data import from_datasets
from ddpp.evaluating import Protocol, evaluate, train
from ddpp.foundation.seeds import derive, generator
from ddpp.networks import ConvNet


@pytest.mark.parametrize("changes", [{}, {"momentum": 0.0}, {"weight_decay": 0.1}])
def test_networks_are_trained_as_by_torchs_sgd(data, distilled, changes):
    protocol = Protocol(epochs=7, batch=1, augment=False, **changes)
    network = data.network(NETWORK)
    theta = train(network, distilled, protocol, 3, "network", 0)

    module = ConvNet(channels=3, classes=2, width=4, depth=1, image_size=8)
    nn.utils.vector_to_parameters(network.initial(derive(3, "network", 0)), module.parameters())
    rate, about = float(distilled.alpha), {"momentum": 0.9, "weight_decay": 5e-4} | changes
    optimizer = torch.optim.SGD(module.parameters(), rate, **about)
    rng = generator(3, "network", 0, "batches")
    for epoch in range(7):
        if epoch == 4:  # half of them are done
            optimizer.param_groups[0]["lr"] = rate / 10
        for index in torch.randperm(len(distilled.labels), generator=rng).split(1):
            optimizer.zero_grad()
            F.cross_entropy(module(distilled.images[index]), distilled.labels[index]).backward()
            optimizer.step()
    expected = nn.utils.parameters_to_vector(module.parameters()).detach()
    assert torch.allclose(theta, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("chosen, best", [(4, 2), (2, 4)])
def test_the_iterate_is_chosen_on_held_out_images_and_not_on_the_test_set(
    data, distilled, monkeypatch, chosen, best
):
    data = replace(data, validation=data.train)
    held_out, test = {chosen: 70.0, best: 60.0}, {chosen: 50.0, best: 55.0}

    def step_of(network, on, *_):
        return torch.tensor(
            next(step for step in test if torch.equal(on.images, distilled.at(step).images))
        )

    def score(network, step, images, labels):
        return (held_out if images is data.validation.images else test)[int(step)]

    # a network's parameters are the step whose images it was trained on
    monkeypatch.setattr(evaluating, "train", step_of)
    monkeypatch.setattr(evaluating, "accuracy", score)
    found = evaluate(distilled, data, repeats=2, best_on_test=True, progress=False)
    assert found.final == [test[4]] * 2
    assert (found.selected_step, found.selected) == (chosen, [50.0] * 2)
    assert (found.best_on_test_step, found.best_on_test) == (best, [55.0] * 2)
    assert found.validation == held_out


@pytest.mark.parametrize("name", ["images", "alpha"])
def test_an_edited_set_is_not_chosen_by_the_iterates_of_the_one_before(data, distilled, name):
    data = replace(data, validation=data.train)
    edited = replace(distilled, **{name: 2 * getattr(distilled, name)})
    how = {"repeats": 1, "protocol": Protocol(epochs=2), "best_on_test": True, "progress": False}
    with pytest.warns(UserWarning, match="not those of the last step.*no iterate is chosen"):
        found = evaluate(edited, data, **how)
    assert found.selected is found.best_on_test is None
    assert found.final == evaluate(replace(edited, iterates={}), data, **how).final


def test_a_distilled_file_is_for_its_own_classes_and_preprocessing(tmp_path, distilled):
    with refused("2 classes, the data 3", "the data set that it was distilled from"):
        evaluate(distilled, load(save(tmp_path / "3.npz", **arrays(classes=3))), progress=False)
    with refused("or other names", "the data set that it was distilled from"):
        evaluate(
            distilled, load(save(tmp_path / "ab.npz", classes=np.array(["a", "b"]))), progress=False
        )
    with refused("preprocessed in another way", "whitening=distilled.whitening"):
        evaluate(distilled, load(save(tmp_path / "mine.npz"), zca=True), progress=False)
    larger = save(tmp_path / "larger.npz", **arrays(side=12))
    with refused("(3, 12, 12)", "(3, 8, 8)", "use the data set that it belongs to"):
        load(larger, whitening=distilled.whitening)


def test_an_evaluation_takes_at_least_one(distilled, data):
    with refused("the evaluation's repeats is 0", "at least 1"):
        evaluate(distilled, data, repeats=0, progress=False)
    with refused("repeats is 2.5", "a whole number"):
        evaluate(distilled, data, repeats=2.5, progress=False)
    with refused("the evaluation's epochs is 0", "at least 1"):
        Protocol(epochs=0)
    with refused("the evaluation's momentum is 1", "at least 0 and below 1"):
        Protocol(momentum=1)


def test_a_network_that_diverges_is_named_each_time(distilled, data, tmp_path, trainings):
    wild = replace(distilled, alpha=torch.tensor(1e30), iterates={})
    for _ in range(2):
        with pytest.warns(UserWarning, match="network 1 diverged at the learning rate 1e"):
            found = evaluate(wild, data, repeats=1, scores=tmp_path / "scores", progress=False)
    assert found.final == [50.0]
    assert len(trainings) == 1  # the second call has read it


def test_scores_that_cannot_be_written_are_noticed_before_training(
    distilled, data, file, trainings
):
    with refused("cannot write"):
        evaluate(distilled, data, repeats=1, scores=file / "scores", progress=False)
    assert not trainings


def test_images_of_other_data_choose_no_iterate_and_are_warned_of(tmp_path, distilled, data):
    path = save(tmp_path / "mine.npz")
    swapped = {name: np.load(path)[f"{a}_{b}"] for a in "xy" for b, name in _swapped(a)}
    other = load(save(tmp_path / "other.npz", **swapped), whitening=distilled.whitening)
    other = replace(other, validation=other.train)
    with pytest.warns(UserWarning, match="made from other images than those of"):
        found = evaluate(distilled, other, repeats=1, protocol=Protocol(epochs=1), progress=False)
    assert found.selected is found.validation is None
    evaluate(distilled, data, repeats=1, protocol=Protocol(epochs=1), progress=False)


def test_images_with_labels_of_another_integer_type_are_no_other_images(tmp_path):
    splits = [(whole["x_train"], whole["y_train"].tolist()) for whole in [arrays()]] * 2
    pairs = [list(zip(*split, strict=True)) for split in splits]
    x, y = splits[0][0], np.uint8(splits[0][1])
    path = save(tmp_path / "mine.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    packed, held_out = load(path), load(path, validation=0.5)
    lists = from_datasets(*pairs, zca=False, validation=0, device="cpu")
    distilled = DistilledDataset.from_tensors(*packed.draw(1, 0), 0.01, packed, network=NETWORK)
    quick = {"repeats": 1, "protocol": Protocol(epochs=1), "progress": False}
    assert evaluate(distilled, lists, **quick).final == evaluate(distilled, packed, **quick).final
    for other in (held_out, replace(lists, held_out=0.5)):
        with refused("made with a validation share of 0, here it is 0.5"):
            evaluate(distilled, replace(other, whitening=packed.whitening), **quick)


def _swapped(a):
    return [("test", f"{a}_train"), ("train", f"{a}_test")]


def test_a_network_that_diverges_is_named(data, distilled):
    fast = replace(distilled, alpha=torch.tensor(1e12), iterates={})
    with pytest.warns(UserWarning, match="network 1 diverged at the learning rate 1e.12"):
        evaluate(fast, data, repeats=1, protocol=Protocol(epochs=5), progress=False)


def test_operations_that_a_set_was_made_without_are_warned_of_whoever_gives_the_protocol(
    data, distilled
):
    config = distilled.provenance["config"] | {"augment": ["color", "crop"]}
    made = replace(distilled, provenance=distilled.provenance | {"config": config})
    quick = Protocol(epochs=1)
    with pytest.warns(UserWarning, match="the operations color, crop alone"):
        evaluate(made, data, repeats=1, protocol=quick, progress=False)
    same = replace(quick, augment=("color", "crop"))
    evaluate(made, data, repeats=1, protocol=same, progress=False)


def test_a_class_without_held_out_images_is_named(tmp_path):
    whole = arrays()
    kept = np.r_[0:6, 6:8]  # six of the first class, two of the second
    few = {k: whole[k][kept] for k in ("x_train", "y_train")}
    with pytest.warns(UserWarning, match="the class '1' has too few images for 0.3 of them"):
        load(save(tmp_path / "few.npz", **few), validation=0.3)
