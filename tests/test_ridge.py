"""The kernel ridge regression of KIP, and its loss."""

import pytest
import torch

from ddpp import Error
from ddpp.baselines import kip
from ddpp.baselines.ntk import KERNELS, predict
from ddpp.foundation.seeds import generator

KINDS = list(KERNELS)


def images(n, name):
    return torch.randn(n, 1, 3, 3, generator=generator(0, name), dtype=torch.float64)


def regression(support=6, target=9, classes=3):
    labels = lambda n: kip.centred(torch.arange(n) % classes, classes).double()
    return images(support, "support"), labels(support), images(target, "target"), labels(target)


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_kips_formula(kind):
    x, y, target_x, target_y = regression()
    own, across = KERNELS[kind](x, x, 2), KERNELS[kind](target_x, x, 2)
    inverse = torch.linalg.inv(own + 0.1 * own.trace() / 6 * torch.eye(6, dtype=torch.float64))
    expected = 0.5 * ((target_y - across @ inverse @ y) ** 2).mean()
    assert kip.loss(x, y, target_x, target_y, kind, 2, 0.1).item() == pytest.approx(
        expected.item(), rel=1e-10
    )
    single = kip.loss(*(t.float() for t in (x, y, target_x, target_y)), kind, 2, 0.1)
    assert single.dtype == torch.float32
    assert single.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_regression_interpolates_its_support(kind):
    x, y, *_ = regression()
    assert torch.allclose(predict(x, y, x, kind, 2, 1e-10), y, atol=1e-8)
    assert kip.loss(x, y, x, y, kind, 2) < 1e-10
    shrunk = predict(x, y, x, kind, 2, 1e6)
    assert shrunk.abs().max() < 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_descends_in_images_and_labels(kind):
    x, y, target_x, target_y = (t[:4] for t in regression())
    target_x[0] = x[0]  # a cusp, which finite differences step over evenly
    of = lambda images, labels: kip.loss(images, labels, target_x, target_y, kind, 2, 1e-3)
    assert torch.autograd.gradcheck(
        of, (x.requires_grad_(), y.requires_grad_()), eps=1e-5, atol=1e-6
    )


def test_a_repeated_image_needs_the_regularizer():
    x, y, target_x, target_y = regression()
    x[1] = x[0]
    with pytest.raises(Error, match="raise reg"):
        kip.loss(x, y, target_x, target_y, "fc", 1, -1e-6)
    x = x.float().requires_grad_()
    kip.loss(x, y, target_x.float(), target_y, "fc", 1).backward()
    assert x.grad.isfinite().all()


def test_labels_are_centred():
    y = kip.centred(torch.tensor([2, 0]), 4)
    assert y.tolist() == [[-0.25, -0.25, 0.75, -0.25], [0.75, -0.25, -0.25, -0.25]]


def test_an_unknown_kernel_is_refused():
    with pytest.raises(Error, match="did you mean 'conv'"):
        predict(*regression()[:3], "convnet")
