"""Run notebooks where a GPU is pretended (see pretending.py), as on Colab, and say which cells
fail: python tests/on_gpu.py [NOTEBOOK ...]

Each notebook runs twice, in a folder that is empty at first: the second time it finds its files.
It takes about three minutes on one core, and all take most of an hour. What they print is not
compared.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


def run(path: Path) -> int:
    """Run the cells of one notebook in this process, and return how many fail."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt
    import nbformat
    import pytest
    from IPython.core.interactiveshell import InteractiveShell
    from pretending import gpu, tapes

    cells = [c for c in nbformat.read(path, 4).cells if c.cell_type == "code"]
    shell, failed = InteractiveShell.instance(), 0
    with pytest.MonkeyPatch.context() as patch, tapes(patch), gpu(patch):
        for number, cell in enumerate(cells, 1):
            if not shell.run_cell(cell.source).success:
                failed += 1
                print(f"{path.name}: code cell {number} ({cell.get('id')}) fails", flush=True)
            plt.close("all")
    return failed


def main(paths: list[str]) -> int:
    if paths[:1] == ["--here"]:
        return min(run(Path(paths[1])), 1)
    failed = []
    for path in map(Path, paths or sorted(map(str, NOTEBOOKS.glob("*.ipynb")))):
        print(path.name, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            here = [sys.executable, __file__, "--here", str(path.resolve())]
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            for _ in range(2):
                found = subprocess.run(
                    here, cwd=folder, env=environment, capture_output=True, text=True
                )
                if found.returncode:
                    failed.append(path.name)
                    print(found.stdout, found.stderr, flush=True)
                    break
    print(f"these fail: {', '.join(failed)}" if failed else "all cells run")
    return len(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
