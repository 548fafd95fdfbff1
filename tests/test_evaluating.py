"""An evaluation of a set on other data, or of no network, is refused."""

import numpy as np
from small import arrays, load, refused, save

from ddpp.evaluating import Protocol, evaluate


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
    with refused("the evaluation's epochs is 0", "at least 1"):
        Protocol(epochs=0)
    with refused("the evaluation's momentum is 1", "at least 0 and below 1"):
        Protocol(momentum=1)
