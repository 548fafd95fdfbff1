"""Random numbers are a function of a seed and a path of names."""

import torch

from ddpp.foundation.seeds import derive, generator


def test_random_numbers_depend_on_seed_and_path_alone():
    first = torch.rand(3, generator=generator(0, "step", 1))
    torch.manual_seed(5)
    assert torch.equal(first, torch.rand(3, generator=generator(0, "step", 1)))
    assert len({derive(s, "step", t) for s in range(10) for t in range(10)}) == 100
