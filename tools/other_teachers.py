"""Do the images of the long runs fit their ten teachers alone? `python -m tools.other_teachers`.

From 1,500 to 2,000 steps their accuracy falls, though their loss does not rise. Here the last 500
steps are made again with ten teachers that the images have not met, everything else being equal.
And the loss before and after is measured on both groups of teachers. Last, the mean of the five
sets on the way is tested: it would be better than each of them if they only moved to and fro. A
stopped call resumes.
"""

import sys
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch

from ddpp.baselines.bptt import train
from ddpp.data import ImageData
from ddpp.distilled import DistilledDataset
from ddpp.distilled.bare import write_set
from ddpp.distilling import DistillConfig, distill, draw_piece
from ddpp.evaluating import evaluate
from ddpp.experiments.lists import Run
from ddpp.experiments.places import teachers_in
from ddpp.experiments.queues import read_queue
from ddpp.experiments.results import read_result, read_set, summary
from ddpp.foundation import files
from ddpp.foundation.errors import Error, choose
from ddpp.foundation.identity import of_run
from ddpp.foundation.provenance import commit, provenance
from ddpp.pruning import masked_loss
from ddpp.teachers import Teachers, train_teachers
from tools.commands import resumed, run

QUEUE = Path("results/cpu/queue.toml")
FROM, TO, EVERY = 1500, 2000, 100  # steps: of the set to begin with, of the last one, between sets
OWN = 6  # of the own teachers, that the losses are measured on
DRAWS = 20  # of a teacher, a start epoch and augmentations, over which a loss is averaged


def long_run(rule: str, steps: int) -> Run:
    """Find the run of one image per class in the queue. Error if it has none with so many steps."""
    name = f"long/cifar10-ipc1-{rule}-{steps}-seed0"
    if not (found := [each for each in read_queue(QUEUE) if each.name == name]):
        raise Error(f"the queue {QUEUE} has no {name}")
    return found[0]


def read_long(rule: str, steps: int, data: ImageData) -> DistilledDataset:
    """Read the set of a run in the queue. Error if it has no result yet."""
    one, results = long_run(rule, steps), Path("results")
    if not (row := read_result(one, results)) or not row.get("set"):
        raise Error(f"{one.name} has no result: first run 'ddpp reproduce --queue {QUEUE}'")
    return read_set(one.report_path(results), row, data)


def go_on(
    start: DistilledDataset, data: ImageData, others: Teachers, config: DistillConfig, path: Path
) -> DistilledDataset:
    """Distil on from a finished set with other teachers, and keep the sets on the way.

    - start: the set, with the state that its run ended in.
    - others: their identity says what the run began with.
    - path: the checkpoint.
    """
    if not path.exists():
        name = others.config.network.name
        start.save_checkpoint(path, of_run("ddpp", config, others.made_from, name))
    return distill(data, others, config, checkpoint=path)


def mean(made: DistilledDataset) -> DistilledDataset:
    """Average the images and alpha of all sets on the way."""
    images, rates = zip(*made.iterates.values(), strict=True)
    middle = {"images": torch.stack(images).mean(0), "alpha": torch.stack(rates).mean()}
    about = made.provenance | {"mean_of": sorted(made.iterates)}
    return replace(made, **middle, provenance=about, iterates={}, state={})


def losses(made: DistilledDataset, teachers: Teachers, config: DistillConfig) -> list[float]:
    """Measure the loss over all parameters in each of the next steps, without making them."""
    found, images = [], made.images
    for draw in range(DRAWS):
        _, _, start, goal, updates = draw_piece(TO + draw, len(images), teachers, config)
        student = train(teachers.network, start, images, made.labels, made.alpha, updates)
        everything = torch.ones_like(student, dtype=torch.bool)
        found.append(float(masked_loss(student, goal, start, everything)))
    return found


def command(
    rule: str = "signed",
    out: Path = Path("results/others"),
    work: Path = Path("runs/others"),
    root: Path = Path("data"),
) -> None:
    """Make the steps and measure the losses, for one of the two long runs.

    Args:
        rule: signed, the paper's, or none, which is MTT
        out: the folder for a report and the set
        work: folder of teachers, checkpoint and accuracies
        root: folder of the data
    """
    commit()
    choose("rule", rule, ("signed", "none"))
    recipe = long_run(rule, TO).recipe
    data = recipe.load(root, "cpu")
    start = read_long(rule, FROM, data)
    asked = recipe.stored_teachers()
    own = replace(asked, count=min(OWN, asked.count))
    groups = {"own": own, "others": replace(asked, seed=asked.seed + 1)}
    groups = {k: train_teachers(data, c, teachers_in(work, c, data)) for k, c in groups.items()}
    began = {"steps": FROM, "images": files.fingerprint(start.images)}
    one = groups["others"]  # its runs must not pass for some that had these teachers from the start
    others = Teachers(one.trajectories, one.identity | {"after": began}, one.config, one.network)

    config = replace(recipe.distill, iterates=TO // EVERY)
    assert isinstance(config, DistillConfig)
    made = go_on(start, data, others, config, work / f"{rule}.checkpoint")
    made = replace(made, iterates={at: one for at, one in made.iterates.items() if at > FROM})

    test = partial(
        evaluate,
        data=data,
        repeats=recipe.repeats,
        protocol=recipe.protocol,
        seed=recipe.distill.seed,
        scores=work / "scores.json",
    )
    found = test(made)

    sets = {("own", at): read_long(rule, at, data) for at in (FROM, TO)} | {("others", TO): made}
    counts = {k: len(teachers) for k, teachers in groups.items()}
    about = {"rule": rule, "draws": DRAWS, "teachers": counts, "after": began}
    with resumed(work / f"{rule}.json", "losses", about) as rows:
        there = [(row["last"], row["steps"]) for row in rows]
        for (last, at), each in sets.items():
            if (last, at) not in there:
                measured = {k: losses(each, teachers, config) for k, teachers in groups.items()}
                rows.append({"last": last, "steps": at} | measured)
                files.write_json(work / f"{rule}.json", {"losses": rows} | about)

    report = {"distilled": found.to_dict(), "mean": test(mean(made)).to_dict()}
    trained_by = replace(recipe.teachers, seed=others.config.seed)
    used = replace(recipe, teachers=trained_by, distill=config)
    row = {"name": f"others/{rule}", "losses": rows} | about | {"recipe": asdict(used)}
    row |= report | summary(made, report)
    row["set"] = write_set(out / f"{rule}.safetensors", made)
    files.write_json(out / f"{rule}.json", row | provenance(data.device))
    print("\n".join(found.lines()))


main = partial(run, command, "other_teachers")


if __name__ == "__main__":
    sys.exit(main())
