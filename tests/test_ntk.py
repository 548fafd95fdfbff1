"""Neural tangent kernels, against integrals and real networks."""

import math

import pytest
import torch
import torch.nn.functional as F

from ddpp import Error
from ddpp.baselines.ntk import KERNELS, bytes_needed
from ddpp.foundation.seeds import generator

KINDS = list(KERNELS)


def images(n, *path, size=4, channels=2, dtype=torch.float64):
    return torch.randn(n, channels, size, size, generator=generator(0, n, *path), dtype=dtype)


def differentiates(function, *inputs):
    """Its gradients are those of finite differences; these step over a cusp evenly, to both
    sides.
    """
    return torch.autograd.gradcheck(
        function, [t.clone().requires_grad_() for t in inputs], eps=1e-5, atol=1e-4
    )


def expectations(q, c, p):
    """E relu(u) relu(v) and P(u, v > 0) for Gaussians with covariance [[q, c], [c, p]]: an integral
    over the circle.
    """
    turn = torch.arange(20_000, dtype=torch.float64) * (2 * math.pi / 20_000)
    u = math.sqrt(q) * turn.cos()
    v = c / math.sqrt(q) * turn.cos() + math.sqrt(max(p - c * c / q, 0)) * turn.sin()
    both = ((u > 0) & (v > 0)).double()  # the squared radius is 2 on average
    return 2 * float((u * v * both).mean()), float(both.mean())


def by_hand(x, y, depth, neighbours):
    """The kernel of two images (C, P) with P places; neighbours[i]: what the unit at place i sees,
    out of how many.
    """
    places = range(x.shape[1])
    products = lambda a, b: [float(a[:, i] @ b[:, i]) / len(a) for i in places]
    weigh = lambda t: [2 * sum(t[j] for j in seen) / count + 0.01 for seen, count in neighbours]
    q, c, p = products(x, x), products(x, y), products(y, y)
    kernel = c
    for _ in range(depth):
        q, c, p, kernel = weigh(q), weigh(c), weigh(p), weigh(kernel)
        found = [expectations(q[i], c[i], p[i]) for i in places]
        kernel = [mean + both * k for (mean, both), k in zip(found, kernel, strict=True)]
        q, c, p = [v / 2 for v in q], [mean for mean, _ in found], [v / 2 for v in p]
    return 2 * sum(kernel) / len(kernel) + 0.01


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_the_kernels_are_integrals_over_relu_units(depth):
    x, y = images(3, "x", size=3), images(3, "y", size=3)
    y[0], y[1] = x[0], -0.5 * x[1]
    places = [(i, j) for i in range(3) for j in range(3)]
    around = [
        [k for k, (r, c) in enumerate(places) if max(abs(r - i), abs(c - j)) < 2] for i, j in places
    ]
    for n in range(3):
        dense = by_hand(x[n].reshape(-1, 1), y[n].reshape(-1, 1), depth, [([0], 1)])
        assert KERNELS["fc"](x, y, depth)[n, n].item() == pytest.approx(dense, rel=1e-3)
        conv = by_hand(x[n].flatten(1), y[n].flatten(1), depth, [(seen, 9) for seen in around])
        assert KERNELS["conv"](x, y, depth)[n, n].item() == pytest.approx(conv, rel=1e-3)


def test_one_hidden_layer_is_the_closed_form():
    x, y = images(5, "x"), images(4, "y")
    flat = lambda t: t.flatten(1) / math.sqrt(t[0].numel())
    covariance = 2 * flat(x) @ flat(y).T + 0.01
    q, p = (2 * flat(t).square().sum(1) + 0.01 for t in (x, y))
    size = (q[:, None] * p).sqrt()
    angle = (covariance / size).acos()
    units = size / (2 * math.pi) * (angle.sin() + (math.pi - angle) * angle.cos())
    expected = 2 * units + 0.01 + 2 * covariance * (math.pi - angle) / (2 * math.pi)
    assert torch.allclose(KERNELS["fc"](x, y, 1), expected, rtol=1e-12)


def network(kind, x, depth, width, rng):
    """Outputs (n,) of a finite network in the NTK parameterization, and its parameters."""
    parameters, h = [], x.flatten(1) if kind == "fc" else x
    for layer in range(depth + 1):
        last = layer == depth
        h = h.flatten(1) if last else h
        shape = (1 if last else width, h.shape[1], *([3, 3] if kind == "conv" and not last else []))
        w, b = (
            torch.randn(shape, generator=rng).requires_grad_(),
            torch.randn(shape[0], generator=rng).requires_grad_(),
        )
        apply = F.conv2d if w.ndim == 4 else F.linear
        options = {"padding": 1} if w.ndim == 4 else {}
        h = apply(h, w * math.sqrt(2 / w[0].numel()), 0.1 * b, **options)
        h = h if last else h.relu()
        parameters += [w, b]
    return h.flatten(), parameters


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind, depth, width, size, inits",
    [("fc", 1, 4000, 4, 10), ("fc", 2, 1000, 4, 20), ("conv", 2, 300, 6, 8)],
)
def test_a_wide_network_has_this_tangent_kernel(kind, depth, width, size, inits):
    x = images(4, kind, size=size, dtype=torch.float32)
    x[1] = 0.5 * x[0] + 0.1
    total = torch.zeros(4, 4)
    for init in range(inits):
        out, parameters = network(kind, x, depth, width, generator(init, "network"))
        rows = [
            torch.cat([g.flatten() for g in torch.autograd.grad(o, parameters, retain_graph=True)])
            for o in out
        ]
        total += torch.stack(rows) @ torch.stack(rows).T
    exact = KERNELS[kind](x, x, depth)
    scale = exact.diagonal().sqrt()
    error = (total / inits - exact) / scale / scale[:, None]
    assert error.abs().max() < 4 / math.sqrt(width * inits)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_kernel_is_symmetric_and_positive(kind, dtype):
    x = images(12, dtype=dtype)
    kernel = KERNELS[kind](x, x, 3)
    assert torch.allclose(kernel, kernel.T, rtol=1e-5 if dtype == torch.float32 else 1e-12)
    assert torch.linalg.eigvalsh(kernel).min() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_image_with_itself_has_no_angle(dtype):
    x = images(20, size=8, dtype=dtype)
    q = x.flatten(1).square().mean(1)
    for depth in (1, 2, 3):
        expected = sum(2 * q + 0.01 * layer for layer in range(1, depth + 2))
        assert torch.allclose(
            KERNELS["fc"](x, x, depth).diagonal(), expected, rtol=20 * torch.finfo(dtype).eps
        )
    one = torch.cat([KERNELS["conv"](t, t, 2)[0] for t in x.split(1)])
    assert torch.allclose(
        KERNELS["conv"](x, x.clone(), 2).diagonal(), one, rtol=20 * torch.finfo(dtype).eps
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("depth", [1, 3])
def test_the_gradient_is_right_also_at_equal_and_at_black_images(kind, depth):
    x, y = images(2, "x", size=3, channels=1), images(3, "y", size=3, channels=1)
    y[0], y[1] = x[0], 0
    assert differentiates(lambda a, b: KERNELS[kind](a, b, depth), x, y)
    assert differentiates(lambda a: KERNELS[kind](a, a, depth), x)
    assert differentiates(lambda a: KERNELS[kind](a, a, depth), torch.zeros_like(x))


@pytest.mark.parametrize("kind", KINDS)
def test_float32_has_the_gradients_of_float64(kind):
    x, noise = (
        images(2, size=8, dtype=torch.float32),
        images(2, "noise", size=8, dtype=torch.float32),
    )
    for other, close in [
        (x.clone(), 1e-4),
        (-x, 1e-4),
        (0 * x, 1e-4),
        (1e3 * x, 1e-2),
        (x + 0.1 * noise, 1e-4),
    ]:
        exact, single = (other.to(t).requires_grad_() for t in (torch.float64, torch.float32))
        for t in (exact, single):
            KERNELS[kind](t, x.to(t.dtype), 3).sum().backward()
        assert torch.allclose(single.grad.double(), exact.grad, atol=close * exact.grad.abs().max())
    almost = (x + 1e-4 * noise).requires_grad_()  # less than what float32 tells apart
    KERNELS[kind](almost, x, 3).sum().backward()
    assert almost.grad.isfinite().all()
    assert almost.grad.abs().max() < 1


@pytest.mark.parametrize("kind", KINDS)
def test_the_memory_covers_what_the_graph_holds(kind):
    x, y = (
        images(3, size=8, dtype=torch.float32).requires_grad_(),
        images(50, size=8, dtype=torch.float32),
    )
    held = {}
    keep = lambda t: (
        held.__setitem__(t.untyped_storage().data_ptr(), t.untyped_storage().nbytes()) or t
    )
    for depth in (1, 3):
        held.clear()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            kernel = KERNELS[kind](x, y, depth)
        assert (
            sum(held.values())
            < bytes_needed(kind, 3, 50, (2, 8, 8), depth)
            < 20 * sum(held.values())
        )
        del kernel


def test_a_kernel_of_ones_own_is_counted_like_the_larger_one(monkeypatch):
    monkeypatch.setitem(KERNELS, "mine", KERNELS["fc"])
    shape = (1, 3, 3)
    assert bytes_needed("mine", 2, 3, shape, 1) == bytes_needed("conv", 2, 3, shape, 1)


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(Error, match="of one shape"):
        KERNELS["fc"](images(1, size=3), images(1, size=4), 1)
    with pytest.raises(Error, match="at least 1"):
        KERNELS["conv"](images(1), images(1), 0)
    with pytest.raises(Error, match="did you mean 'conv'"):
        bytes_needed("convnet", 1, 1, (1, 3, 3), 1)
