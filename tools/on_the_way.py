"""What is the last set of a long run worth, and what the mean of those before it? `python -m
tools.on_the_way`.

From step to step the accuracy moves to and fro. Here every set that the last steps of a run have
kept is scored on held-out images, by one network each, and so is their mean. Then the mean is
tested. A stopped call resumes.
"""

import sys
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from ddpp.distilled import DistilledDataset
from ddpp.distilled.bare import write_set
from ddpp.evaluating import evaluate
from ddpp.experiments.places import out_of
from ddpp.experiments.run import Experiment
from ddpp.foundation import files
from ddpp.foundation.errors import Error, choose
from ddpp.foundation.provenance import commit, provenance
from tools.commands import run
from tools.other_teachers import QUEUE, long_run, mean


def kept(made: DistilledDataset, last: int) -> DistilledDataset:
    """Return a set with the iterates of its last steps alone. Error if it has kept only one."""
    ends = max(made.iterates, default=0)
    sets = {at: one for at, one in made.iterates.items() if at > max(0, ends - last)}
    if len(sets) < 2:
        raise Error(f"of the last {last} steps {len(sets)} sets are kept: no mean can be made")
    return replace(made, iterates=sets)


def command(
    rule: str = "signed",
    steps: int = 3000,
    last: int = 1000,
    out: Path = Path("results/way"),
    work: Path = Path("runs/reproduce"),
    root: Path = Path("data"),
) -> None:
    """Score the sets that a long run has kept, and their mean.

    Args:
        rule: signed, the paper's, or none, which is MTT
        steps: of the run in the queue
        last: so many steps at its end
        out: the folder for a report and the mean
        work: folder that the queue works in, with the run's whole set
        root: folder of the data
    """
    commit()
    choose("rule", rule, ("signed", "none"))
    one = long_run(rule, steps)
    if not (whole := out_of(one, work)).exists():
        raise Error(f"{whole} is not there: first run 'ddpp reproduce --queue {QUEUE}'")
    recipe, run_of_it = one.recipe, Experiment(one.recipe, whole, root=root, device="cpu")
    data, made = run_of_it.data, kept(run_of_it.distilled(), last)
    first = min(made.iterates)

    middle = mean(made)
    beyond = steps + 1  # where the mean stands among the sets: it is the last of them
    candidates = made.iterates | {beyond: (middle.images, middle.alpha)}
    found = evaluate(
        replace(middle, iterates=candidates),
        data,
        repeats=recipe.repeats,
        protocol=recipe.protocol,
        seed=recipe.distill.seed,
        scores=work / f"{recipe.profile}-scores.json",
    )
    held_out = found.validation or {}
    best = "mean" if found.selected_step == beyond else found.selected_step
    report = {
        "name": f"way/{rule}-{first}-{steps}",
        "rule": rule,
        "steps": sorted(made.iterates),
        "held_out": [held_out[at] for at in sorted(made.iterates)],
        "mean": {"held_out": held_out[beyond], "test": found.final},
        "best": {"step": best, "test": found.selected},
        "recipe": asdict(recipe),
        "of": one.name,
    }
    path = out / f"{rule}-{first}-{steps}.json"
    report["set"] = write_set(path.with_suffix(".safetensors"), replace(middle, history={}))
    files.write_json(path, report | provenance(data.device))
    print("\n".join(found.lines()))


main = partial(run, command, "on_the_way")

if __name__ == "__main__":
    sys.exit(main())
