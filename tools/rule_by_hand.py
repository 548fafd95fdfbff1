"""The data and the picture of the page "The rule by hand": `python -m tools.rule_by_hand`.

A student and its teacher at the first step of a run of the smoke profile, and what each rule does
to the gradient of the images at each position of the page's slider. Minutes on one core.
"""

import base64
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from ddpp.book import figures
from ddpp.data import ImageData, load_data
from ddpp.distilling import DistillConfig
from ddpp.experiments.recipes import recipe
from ddpp.foundation import files
from ddpp.foundation.provenance import commit, provenance
from ddpp.networks import Flat
from ddpp.studies.turning import mask_of, turns
from ddpp.teachers import Teachers, train_teachers
from tools.commands import run

EPSILONS = tuple(i / 100 for i in range(100))  # the positions of the slider
RULES = {  # the positions at which each is measured; `sign` and `none` have no threshold
    "signed": EPSILONS,
    "magnitude": EPSILONS,
    "sign": (0.0,),
    "largest": EPSILONS,
    "none": (0.0,),
}
PARTS = {  # how the names of a layer's parameters begin
    "convolution 1": ("0.",),
    "convolution 2": ("4.",),
    "convolution 3": ("8.",),
    "scales": ("1.weight", "5.weight", "9.weight"),
    "shifts": ("1.bias", "5.bias", "9.bias"),
    "last layer": ("13.",),
}
BEFORE, AFTER = '<script type="application/json" id="by-hand-data">\n', "</script>\n"


def layers(network: Flat) -> dict[str, list[list[int]]]:
    """The spans [from, to) of each layer in a flat vector, and of all together."""
    ends, end = {}, 0
    for name, shape in network.shapes.items():
        ends[name] = [end, end := end + shape.numel()]
    parts = {
        part: [span for name, span in ends.items() if name.startswith(begin)]
        for part, begin in PARTS.items()
    }
    return {"all layers": [[0, end]]} | parts


def measure(
    data: ImageData,
    teachers: Teachers,
    config: DistillConfig,
    rules: Mapping[str, Sequence[float]],
) -> dict:
    """The vectors of a run's first step, and the turn by each rule at each of its epsilons."""
    vectors = {}

    def nothing(student: Tensor, teacher: Tensor) -> Tensor:
        vectors.update(student=student, teacher=teacher, start=teachers.snapshot(0, 0))
        return torch.ones_like(student, dtype=torch.bool)

    turns(data, teachers, config, {"none": nothing})
    count, found = len(vectors["student"]), {}
    for rule, epsilons in rules.items():
        masks = {f"{epsilon}": mask_of(rule, epsilon) for epsilon in epsilons}
        each = turns(data, teachers, config, masks).values()
        found[rule] = {
            "pruned": [round(count * (1 - turn.kept)) for turn in each],
            "angle": [round(turn.angle, 2) for turn in each],
            "length": [round(turn.length, 4) for turn in each],
        }
        print(f"{rule}: turned by {min(found[rule]['angle'])} to {max(found[rule]['angle'])} °")
    return {"layers": layers(teachers.network), "rules": found} | {
        name: base64.b64encode(vector.numpy().astype("<f4").tobytes()).decode()
        for name, vector in vectors.items()
    }


def read(path: Path) -> dict:
    """The data in a file that `write` has written, with the vectors as tensors (p,)."""
    found = json.loads(path.read_text().removeprefix(BEFORE).removesuffix(AFTER))
    for name in ("student", "teacher", "start"):
        found[name] = torch.frombuffer(
            bytearray(base64.b64decode(found[name])), dtype=torch.float32
        )
    return found


def write(path: Path, content: Mapping) -> None:
    """Write the data as a piece of HTML: a page that is opened as a file cannot load any other."""
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(content[key])}" for key in content)
    files.write_bytes(path, f"{BEFORE}{{\n{lines}\n}}\n{AFTER}".encode())


def command(
    out: Path = Path("book/rule_by_hand"), work: Path = Path("runs/rule_by_hand"), seed: int = 0
) -> None:
    """Measure, and write data.html and picture.png.

    Args:
        out: the folder that the page takes them from
        work: folder of the teacher
        seed: of the teacher, the first images and the draws of the step
    """
    commit()
    smoke = recipe("smoke")
    config = replace(smoke.distill, seed=seed)
    assert isinstance(config, DistillConfig)
    asked = replace(smoke.teachers, count=1, epochs=config.expert_epochs, seed=seed)
    data = load_data(smoke.data, device="cpu")
    teachers = train_teachers(data, asked, work)
    found = measure(data, teachers, config, RULES)
    made = {
        "command": "python -m tools.rule_by_hand",
        "recipe": {"data": smoke.data, "teachers": asdict(asked), "distill": asdict(config)},
    }
    write(out / "data.html", made | provenance(data.device) | found)
    figures.use_style()
    figure = picture(read(out / "data.html"))
    figure.savefig(out / "picture.png")


def picture(found: Mapping) -> Figure:
    """Draw what the page shows, for those who cannot move its slider."""
    curves = {
        rule: found["rules"][rule] | {"epsilon": RULES[rule]}
        for rule in ("signed", "magnitude", "largest")
    }
    return figures.by_hand(found["student"], found["teacher"], curves)


main = partial(run, command, "rule_by_hand")

if __name__ == "__main__":
    sys.exit(main())
