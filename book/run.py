"""Run the notebooks from top to bottom and store their outputs in them: python book/run.py [NOTEBOOK ...]

They run in a fresh runs/ folder, so that what the stored outputs say was computed was computed. Progress bars and
sliders are dropped from what is stored: without a kernel they would be dead. Ends with the seconds of each notebook.
"""

import shutil
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
WIDGET = "application/vnd.jupyter.widget-view+json"
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def run(path: Path) -> None:
    notebook = nbformat.read(path, 4)
    notebook.metadata = {key: notebook.metadata[key] for key in ("accelerator", "colab") if key in notebook.metadata}
    notebook.metadata |= {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    client = NotebookClient(notebook, timeout=900, record_timing=False, resources={"metadata": {"path": path.parent}})
    client.execute()
    notebook.metadata |= {"language_info": {"name": "python"}}  # not this machine's version
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if keep(output)]
    nbformat.validate(notebook)
    nbformat.write(notebook, path)


def keep(output) -> bool:
    return WIDGET not in output.get("data", {}) and output.get("name") != "stderr"


if __name__ == "__main__":
    shutil.rmtree(NOTEBOOKS / "runs", ignore_errors=True)
    for path in [Path(name) for name in sys.argv[1:]] or sorted(NOTEBOOKS.glob("*.ipynb")):
        began = time.monotonic()
        run(path)
        print(f"{path.name}: {time.monotonic() - began:.0f} s", flush=True)
