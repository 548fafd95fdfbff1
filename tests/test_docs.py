"""The numbers that the pages print are those of the committed results."""

import json
import statistics
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_readmes_table_is_what_the_smoke_runs_left():
    show = lambda values: f"{statistics.fmean(values):.1f} ± {statistics.stdev(values):.1f} %"
    reports = sorted((ROOT / "results" / "smoke").glob("seed*.json"))
    assert len(reports) == 3
    for path in reports:
        report = json.loads(path.read_text())
        final, chosen, real = report["distilled"]["final"], report["distilled"]["selected"], report["random"]["final"]
        gain = statistics.fmean(final) - statistics.fmean(real)
        assert gain > 10
        assert not report["resumed"]
        assert sum(report["seconds"].values()) < 180
        seed = report["recipe"]["distill"]["seed"]
        assert f"| {seed} | {show(real)} | {show(final)} | {gain:+.1f} | {show(chosen)} |" in README


def test_the_readmes_bench_is_the_committed_one():
    rows = json.loads((ROOT / "results" / "bench" / "cpu.json").read_text())["rows"]
    for exact, walk in zip(rows[::2], rows[1::2], strict=True):
        assert (exact["engine"], walk["engine"]) == ("autograd", "adjoint")
        line = f"| {walk['J']} | {exact['above']:.0f} MiB | {walk['above']:.0f} MiB | {walk['time_ratio']:.2f} |"
        assert line in README
