"""The differentiable augmentation A of Eq. (2): DSA (Zhao & Bilen, ICML 2021).

Its strategy color_crop_cutout_flip_scale_rotate, the `dsa_strategy` of MTT's code, has six
operations. One of them is drawn per batch, its strength per image. A config chooses others with
`augment`: ("color", "crop", "cutout", "scale", "rotate") for digits, which must not be mirrored.
Drawing (`draw`) and applying (`augment`) are separate, so that the backward pass can repeat a
student's update exactly.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import grad

from ddpp.foundation.errors import Error, choose, described, first_line
from ddpp.foundation.identity import Table
from ddpp.foundation.seeds import drawn, generator

# DSA's published strengths
BRIGHTNESS, SATURATION, CONTRAST = 1.0, 2.0, 0.5
CROP, CUTOUT = 0.125, 0.5  # share of the side
SCALE = 1.2  # factor
ROTATE = 15.0  # degrees


Operation = Callable[[Tensor, Tensor], Tensor]
# True: the six; False: off; else those of these names, of which one is drawn per batch
Augmentation = bool | tuple[str | Operation, ...]


class Draw(NamedTuple):
    """The randomness of one augmented batch: an operation, and three numbers per image."""

    operation: str  # a name in OPERATIONS
    u: Tensor  # (n, 3), in [0, 1)


def draw(n: int, generator: torch.Generator, augment: Augmentation = True) -> Draw:
    """Draw the augmentation of a batch of n images.

    - n: images in the batch.
    - generator: on the CPU. It advances by one operation and (n, 3) numbers.
    - augment: the operations to draw from. Default: DSA's six, whatever else is in OPERATIONS.

    >>> from ddpp.data.augmentation import draw
    >>> from ddpp.foundation.seeds import generator
    >>> how = draw(2, generator(0, "example"))
    >>> how.operation, tuple(how.u.shape)
    ('scale', (2, 3))
    """
    names = tuple(OPERATIONS.built_in) if augment is True else augment or ()
    operation = names[int(torch.randint(len(names), (), generator=generator))]
    return Draw(str(operation), torch.rand(n, 3, generator=generator, dtype=torch.float64))


def draw_epoch(
    batches: Sequence[Tensor], generator: torch.Generator, augment: Augmentation, to: Tensor
) -> Sequence[Draw | None]:
    """Draw the augmentation of each batch of an epoch, and move all numbers at once.

    - batches: the indices (n,) of each.
    - generator, augment: as in `draw`. Without augmentation all draws are None.
    - to: the images. On a GPU, each move to them waits for all that was started before.
    """
    if not augment:
        return [None] * len(batches)
    draws = [draw(len(index), generator, augment) for index in batches]
    numbers = torch.cat([how.u for how in draws]).to(to).split([len(how.u) for how in draws])
    return [how._replace(u=u) for how, u in zip(draws, numbers, strict=True)]


def augment(images: Tensor, draw: Draw) -> Tensor:
    """Apply a draw to a batch of images; differentiable in the images.

    - images: (n, C, H, W), square, preprocessed; any floating-point type, on any device.
    - draw: of a batch of n images, by `draw` or made by hand.

    Returns the augmented images (n, C, H, W). Equal draws give equal images.

    >>> import torch
    >>> from ddpp.data.augmentation import Draw, augment
    >>> image = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    >>> augment(image, Draw("flip", torch.zeros(1, 3))).tolist()
    [[[[2.0, 1.0], [4.0, 3.0]]]]
    """
    return OPERATIONS[draw.operation](images, draw.u.to(images))


def color(x: Tensor, u: Tensor) -> Tensor:
    """Change the brightness, then the saturation, then the contrast."""
    brightness, saturation, contrast = u.view(-1, 3, 1, 1, 1).unbind(1)
    x = x + (brightness - 0.5) * BRIGHTNESS
    grey = x.mean(1, keepdim=True)
    x = grey + (x - grey) * (saturation * SATURATION)
    level = x.mean((1, 2, 3), keepdim=True)
    return level + (x - level) * (contrast + CONTRAST)


def crop(x: Tensor, u: Tensor) -> Tensor:
    """Shift by up to an eighth of the side in each direction. Zeros fill the gap."""
    side = x.shape[-1]
    reach = int(side * CROP + 0.5)
    shift = _integers(u, 2 * reach + 1)  # an offset into the padded image
    at = shift.unsqueeze(-1) + torch.arange(side, device=x.device)
    image = torch.arange(len(x), device=x.device).view(-1, 1, 1)
    padded = F.pad(x, [reach] * 4).permute(0, 2, 3, 1)
    return padded[image, at[:, 0, :, None], at[:, 1, None, :]].permute(0, 3, 1, 2)


def cutout(x: Tensor, u: Tensor) -> Tensor:
    """Blank a square of half the side, centred anywhere. It may leave the image."""
    side = x.shape[-1]
    hole = int(side * CUTOUT + 0.5)
    centre = _integers(u, side + (1 - hole % 2))
    first = (centre - hole // 2).unsqueeze(-1)
    position = torch.arange(side, device=x.device)
    inside = (position >= first) & (position < first + hole)
    return x * ~(inside[:, 0, :, None] & inside[:, 1, None, :]).unsqueeze(1)


def flip(x: Tensor, u: Tensor) -> Tensor:
    """Mirror left and right with probability one half."""
    return torch.where(u[:, 0].view(-1, 1, 1, 1) < 0.5, x.flip(3), x)


def scale(x: Tensor, u: Tensor) -> Tensor:
    """Zoom each axis by its own factor between 1/1.2 and 1.2."""
    factor = u[:, :2] * (SCALE - 1 / SCALE) + 1 / SCALE
    return _resample(x, torch.diag_embed(factor))


def rotate(x: Tensor, u: Tensor) -> Tensor:
    """Rotate by up to 15 degrees either way."""
    angle = (u[:, 0] - 0.5) * 2 * math.radians(ROTATE)
    cos, sin = angle.cos(), angle.sin()
    return _resample(x, torch.stack([cos, -sin, sin, cos], 1).view(-1, 2, 2))


def _integers(u: Tensor, n: int) -> Tensor:
    """Turn the first two numbers of each image into integers below n."""
    return (u[:, :2] * n).long().clamp(max=n - 1)  # in float32, u just below 1 may round to 1


def _resample(x: Tensor, linear: Tensor) -> Tensor:
    """Resample bilinearly under a linear map (n, 2, 2) of the coordinates, with zeros outside."""
    grid = F.affine_grid(F.pad(linear, [0, 1]), list(x.shape), align_corners=True)
    return F.grid_sample(x, grid, align_corners=True)


def check_operations(
    augment: Augmentation, shape: tuple[int, ...], device: torch.device | str
) -> None:
    """Raise an Error for an operation of one's own that is not what a run needs.

    - augment: what a config says of its augmentation.
    - shape: of an image, (C, H, W).
    - device: where the images are.

    An operation must be a differentiable function of the images and the numbers alone: it gives
    equal results for equal arguments, keeps their shape and type, and leaves them as they are. Else
    engines would disagree silently, or runs end late.
    """
    for name in _brought(augment):
        before = OPERATIONS.marks(name)
        if problem := _problem(OPERATIONS[name], shape, device):
            raise Error(f"the augmentation {name} {problem}")
        OPERATIONS.check_unchanged(before)


def check_alone(augment: Augmentation, shape: tuple[int, ...], device: torch.device | str) -> None:
    """Raise an Error for an operation of one's own that mixes the images of a batch.

    Arguments as in `check_operations`. Only a guarantee for each image needs this.
    """
    images, u = _probe(shape, device)
    for name in _brought(augment):
        operation, parts = OPERATIONS[name], zip(images.split(1), u.split(1), strict=True)
        try:
            alone = torch.cat([operation(x.clone(), n.clone()) for x, n in parts])
        except Exception as e:
            raise Error(
                f"the augmentation {name} cannot take an image alone: {first_line(e)}"
            ) from e
        together = operation(images.clone(), u.clone())
        alike = partial(torch.allclose, rtol=1e-3, atol=1e-4, equal_nan=True)
        if together.shape != alone.shape or not alike(together, alone):
            raise Error(
                f"the augmentation {name} makes an image depend on the others of its batch, so "
                "nothing can be guaranteed for each image: leave it out"
            )


def _brought(augment: Augmentation) -> list[str]:
    """The names of operations that are not ddpp's own."""
    names = (OPERATIONS.built_in if augment else ()) if isinstance(augment, bool) else augment
    return [str(name) for name in names if OPERATIONS.is_brought(name)]


def _probe(shape: tuple[int, ...], device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Draw images (4, C, H, W) and numbers (4, 3) to try an operation with."""
    rng = generator(0, "probe")
    images = torch.randn(4, *shape, generator=rng, dtype=torch.float32).to(device)
    return images, torch.rand(4, 3, generator=rng, dtype=torch.float32).to(device)


def _problem(operation: Operation, shape: tuple[int, ...], device: torch.device | str) -> str:
    """Say why an operation cannot be used. Empty if it can."""
    images, u = _probe(shape, device)
    images.requires_grad_()
    given, numbers = images.clone(), u.clone()
    try:
        made, draws = drawn(lambda: operation(given, numbers))
        again, _ = drawn(lambda: operation(images.clone(), u.clone()))
    except Exception as e:
        size = " x ".join(map(str, given.shape))
        return f"cannot take images of {size} and numbers of 4 x 3: {first_line(e)}"
    if not (torch.equal(given, images) and torch.equal(numbers, u)):
        return "changes the images or numbers that it is given: make a new tensor instead"
    if not isinstance(made, Tensor) or (made.shape, made.dtype) != (images.shape, images.dtype):
        return f"returns {described(made)}: it must return images of the same shape and type"
    # on a GPU, equal calls may differ in the last bits
    bounds = {} if made.is_cuda else {"rtol": 0, "atol": 0}
    if draws or not torch.allclose(made, again, **bounds, equal_nan=True):
        return (
            "gives the same images another result each time: take what is random from the numbers "
            "that it is given, (n, 3) in [0, 1)"
        )
    if not made.requires_grad:
        return "is not differentiable: the gradient must reach the images (no detach, no numpy)"
    try:
        reached = _reached(operation, images, u)
    except Exception as e:
        return f"cannot be differentiated: {first_line(e)}"
    if not reached.all():
        return (
            "has no gradient for some of the images, so they could not be distilled: it must not "
            "round them, nor detach them from the graph"
        )
    return ""


def _reached(operation: Operation, images: Tensor, u: Tensor) -> Tensor:
    """Find out which of the images (n, C, H, W) have a gradient: (n,), bool. One that is blanked
    for some numbers has it for others.
    """
    rng = generator(0, "probe")
    weights = torch.randn(images.shape, generator=rng, dtype=torch.float32).to(images)
    reached = torch.zeros_like(u[:, 0], dtype=torch.bool)
    for numbers in (u, *torch.rand(63, *u.shape, generator=rng, dtype=torch.float32).to(u)):
        made = operation(images.clone(), numbers.clone())
        # of a sum with the images, as with these numbers it may not depend on them
        (found,) = grad((made * weights).sum() + 0 * images.sum(), images)
        reached |= found.flatten(1).ne(0).any(1)
        if reached.all():
            break
    return reached


OPERATIONS = Table(
    "augmentation", {f.__name__: f for f in (color, crop, cutout, flip, scale, rotate)}
)


def as_augmentation(augment: bool | str | Iterable[str | Operation]) -> Augmentation:
    """Return what a config says of its augmentation, in the form that files know.

    - augment: True for DSA's six, False or () for none, or some: names in OPERATIONS,
      functions of your own of images (n, C, H, W) and numbers (n, 3) in [0, 1), or
      "package.module:name".

    Returns True, False or the names. Raises Error for a name that is in none of these.
    """
    if isinstance(augment, bool):
        return augment
    if not isinstance(augment, (str, Iterable)):
        raise Error(f"augment is {augment!r}: it must be True, False, or a list of operations")
    chosen = [augment] if isinstance(augment, str) else list(augment)
    names = tuple(OPERATIONS.name_of(one) for one in chosen)
    for name in names:
        choose("augmentation", name, OPERATIONS)
    if names == tuple(OPERATIONS.built_in):
        return True
    return names or False
