"""Write and read the result of a run: a report, and beside it the distilled images.

The images are stored without their preprocessing, which the data brings.
"""

import json
import statistics
from dataclasses import asdict
from pathlib import Path

from ddpp.data import ImageData
from ddpp.distilled import DistilledDataset
from ddpp.distilled.bare import RESULT, rejoin
from ddpp.distilled.format import from_file
from ddpp.experiments.lists import Run, ablation_settings, home, runs
from ddpp.experiments.methods import METHODS
from ddpp.experiments.recipes import from_dict
from ddpp.foundation import files
from ddpp.foundation.errors import Error, differences
from ddpp.foundation.identity import as_in_files
from ddpp.networks import NetworkConfig

LAST = 20  # distillation steps over which the final loss is averaged


def summary(distilled: DistilledDataset, report: dict) -> dict:
    """Take from a run the numbers that tables and figures are made of."""
    column, accuracies = distilled.history, report["distilled"]
    found = {
        "accuracy": statistics.fmean(accuracies["final"]),
        "selected": statistics.fmean(accuracies["selected"] or accuracies["final"]),
        "alpha": float(distilled.alpha),
    }
    if "kept" in column:  # trajectories were matched
        taken = column["skipped"] == 0
        found |= {
            "kept": float(column["kept"][taken].mean()),
            "unmasked": float(column["unmasked"][taken][-LAST:].mean()),
            "skipped": int(column["skipped"].sum()),
        }
    return found


def read_set(path: Path, row: dict, data: ImageData) -> DistilledDataset:
    """Read the images beside a report, and join them with their preprocessing.

    - path: of the report.
    - row: the report, from `read_row`.
    - data: the images they were made from.

    Raises Error for other data or other preprocessing.
    """
    file = files.Lazy(path.with_name(row["set"]["file"]), RESULT)
    network = from_file(row["recipe"]["teachers"]["network"], row)
    return rejoin(file, data, network).to(data.device)


def read_row(path: Path) -> dict:
    """Read the report at `path`, and check it together with the file of images that it names.

    - name, method, seed, error: of every run; trajectories also have rule and epsilon.
    - accuracy: percent, mean over the final iterate's networks; selected: the same of the iterate
      chosen on held-out images; alpha.
    - kept: share of parameters, mean over the steps that were not skipped; unmasked: MTT's loss,
      mean over the last of them; skipped: number of steps.
    - distilled, random: all accuracies, see Evaluation.
    - of, network: where another run's set was evaluated.
    - recipe, seconds, device, versions, commit, finished: how it was made.

    Raises Error for a file that is damaged, or not the result of a run.
    """
    try:
        row = json.loads(path.read_text())
        row = {"method": "ddpp"} | row  # the first reports do not say it
        needed = {"name", "seed", "error", "recipe", "device", "versions", "commit", "finished"}
        if row["method"] in ("ddpp", "mtt"):
            needed |= {"rule", "epsilon"}
        if not row["error"]:
            needed |= {"accuracy", "distilled", "seconds"}
            if "rule" in row and "of" not in row:
                needed |= {"selected", "kept", "unmasked", "skipped"}
        if missing := needed - row.keys():
            raise KeyError(missing)
        intact = True
        if kept := row.get("set"):
            found = files.sha256(path.parent / kept["file"])
            intact = found == kept["sha256"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise Error(
            f"{path}, or the file of images beside it, is not the result of a run: move both away"
        ) from None
    if not intact:
        raise Error(
            f"the images beside {path} are not those that it reports on: move both away, then "
            "run it again"
        )
    return row


def describe(row: dict) -> str:
    """Say what came out of a run, in a few words."""
    if row["error"]:
        return f"stopped: {row['error']}"
    kept = f", kept {row['kept']:.1%}, skipped {row['skipped']}" if "kept" in row else ""
    return f"{row['accuracy']:.1f} %{kept}"


def read_result(run: Run, results: str | Path) -> dict | None:
    """Read a run's result, or return None if there is none.

    - run: see `runs`.
    - results: the folder of reports.

    Raises Error for a result that is damaged, or that belongs to other settings.
    """
    path = run.report_path(results)
    if not path.exists():
        return None
    row = read_row(path)
    if run.of and "of_sha256" in row:
        _check_origin(path, row, Path(results) / run.recipe.profile / f"{run.of}.json")
    now = {"recipe": asdict(run.recipe)} | marks_of_run(run)
    if run.of:
        now |= {"of": run.of, "network": asdict(network_of(run))}
    try:
        then = {"recipe": asdict(from_dict(row["recipe"]))}
        then |= {key: row[key] for key in ("of", "custom") if key in row}
        if "network" in row:
            then["network"] = asdict(NetworkConfig(**row["network"]))
        other = differences(as_in_files(then), as_in_files(now))
    except (Error, TypeError):
        other = "which this version of ddpp cannot read"
    if other:
        raise Error(
            f"{path} is the result of other settings ({other}): move it away, or choose another "
            "folder for results"
        )
    return _with_names_here(row, {key: now[key] for key in ("recipe", "network") if key in now})


def _with_names_here(row: dict, now: dict) -> dict:
    """The row, which calls by its name here what was written anew in this session.

    - now: the settings of its run.
    """
    here = json.loads(json.dumps(now))
    if here == as_in_files(here):
        return row
    return row | here | ({"rule": here["recipe"]["distill"]["rule"]} if "rule" in row else {})


def _check_origin(path: Path, row: dict, origin: Path) -> None:
    """Raise an Error for the evaluation of a set that has been made anew since."""
    made = read_row(origin).get("set") if origin.exists() else None
    if made and made["sha256"] != row["of_sha256"]:
        raise Error(f"{path} tested a set that {origin} has no more: move it away, and test again")


def marks_of_run(run: Run) -> dict:
    """Mark what a run names that is not ddpp's own, see `marks` in foundation/identity.py."""
    return run.recipe.marks(network_of(run).name)


def network_of(run: Run) -> NetworkConfig:
    """Return the network that a run evaluates a set in."""
    return run.network or run.recipe.teachers.network


def read(results: str | Path, profile: str, experiment: str) -> list[dict]:
    """Read the rows (see `read_row`) of an experiment's finished runs, in the order of its table.

    - results: the folder of reports.
    - profile: smoke, cpu, colab or paper.
    - experiment: table1, table2, table3 or epsilon.

    The ablation shares with Table I the runs of its data and size: MTT, and the paper's rule at the
    paper's threshold. Table III shares them, too: they are both sets in the network they were
    distilled with.

    Raises Error for a result that is damaged, or that belongs to other settings.
    """
    chosen = [run for run in runs(profile) if _belongs(run, profile, experiment)]
    rows = [row for run in chosen if (row := read_result(run, results))]
    rules, methods = ablation_settings(profile), list(METHODS)

    def order(row: dict) -> tuple[int, int]:
        if "rule" in row:
            return rules.index((row["rule"], row["epsilon"])), row["seed"]
        return len(rules) + methods.index(row["method"]), row["seed"]

    return sorted(rows, key=order)


def _belongs(run: Run, profile: str, experiment: str) -> bool:
    if run.name.startswith(f"{experiment}/"):
        return True
    at_home = (run.recipe.data, run.recipe.distill.ipc) == home(profile)
    in_table_1 = run.name.startswith("table1/") and run.recipe.method == "ddpp"
    return experiment in ("epsilon", "table3") and in_table_1 and at_home
