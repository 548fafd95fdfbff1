"""Run the notebooks from top to bottom and store their outputs in them.

    python book/run.py [--solutions] [NOTEBOOK ...]

Each starts without a runs/ folder, so that what its outputs say was computed was computed, as for a
reader who opens this chapter first; a runs/ folder that is there is set aside and put back.
Progress bars and sliders are not stored: without a kernel they would be dead. Prints the seconds of
each notebook, and the peak memory of its kernel, for the cards at the chapters' heads.

After the last cell, the code of the solutions is run in the same kernel, one after the other, as by
a reader who does all exercises. What it prints is stored below it in the text. With --solutions
nothing else is stored, for a chapter where only an exercise has changed.
"""

import contextlib
import re
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
WIDGET = "application/vnd.jupyter.widget-view+json"
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
FOLDED = re.compile(r"<summary>(?:Solution|Answer)</summary>.*?</details>", re.DOTALL)
BLOCK = re.compile(r"```python\n(?P<code>.*?)```(?:\n\n```text\n(?P<printed>.*?)```)?", re.DOTALL)


def run(path: Path, only_solutions: bool = False) -> str:
    """Run one notebook and store its outputs; returns seconds and memory in words."""
    notebook = nbformat.read(path, 4)
    notebook.metadata = {
        key: notebook.metadata[key] for key in ("accelerator", "colab") if key in notebook.metadata
    }
    notebook.metadata |= {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    chapter = notebook.cells
    solved = [nbformat.v4.new_code_cell(block["code"]) for block in solutions(chapter)]
    notebook.cells = chapter + solved
    client = NotebookClient(
        notebook, timeout=900, record_timing=False, resources={"metadata": {"path": path.parent}}
    )
    after = []

    def measure(cell_index: int, **_) -> None:
        if cell_index < len(chapter):
            after.append((time.monotonic(), peak(client.km.provisioner.pid)))

    client.on_cell_executed = measure
    began = time.monotonic()
    with without_runs(path.parent):
        client.execute()
    notebook.cells = chapter
    notebook.metadata |= {"language_info": {"name": "python"}}  # not this machine's version
    notebook.metadata.pop("widgets", None)
    for cell in chapter + solved:
        if cell.cell_type == "code":
            cell.outputs = joined(output for output in cell.outputs if keep(output))
    if only_solutions:
        notebook = nbformat.read(path, 4)  # with the outputs that it has
    store_printed(notebook.cells, [cell.outputs[0].text if cell.outputs else "" for cell in solved])
    nbformat.validate(notebook)
    nbformat.write(notebook, path)
    ended, memory = after[-1]
    return f"{ended - began:.0f} s, {memory}"


def solutions(cells: list) -> list[re.Match]:
    """The code in the solutions and answers of these cells, with what it printed the last time."""
    text = [cell.source for cell in cells if cell.cell_type == "markdown"]
    return [m for source in text for part in FOLDED.findall(source) for m in BLOCK.finditer(part)]


def store_printed(cells: list, printed: list[str]) -> None:
    """Write below the code of each solution what it printed, unless it printed nothing."""
    left = iter(printed)

    def block(found: re.Match) -> str:
        text = next(left).strip("\n")
        return f"```python\n{found['code']}```" + (f"\n\n```text\n{text}\n```" if text else "")

    for cell in cells:
        if cell.cell_type == "markdown":
            cell.source = FOLDED.sub(lambda part: BLOCK.sub(block, part[0]), cell.source)


@contextlib.contextmanager
def without_runs(folder: Path) -> Iterator[None]:
    """Set the folder's runs/ aside for the block, and put it back afterwards."""
    runs, aside = folder / "runs", folder / "runs-set-aside"
    if aside.exists():
        raise SystemExit(f"{aside} is left from a stopped call: move it back to {runs} first")
    if runs.exists():
        runs.rename(aside)
    try:
        yield
    finally:
        shutil.rmtree(runs, ignore_errors=True)
        if aside.exists():
            aside.rename(runs)


def named(name: str) -> Path:
    """The notebook of this name. Only those of the book are run, as their outputs are replaced."""
    path = Path(name).resolve()
    if path.parent != NOTEBOOKS or path.suffix != ".ipynb" or not path.is_file():
        raise SystemExit(f"{name} is no notebook in {NOTEBOOKS}: see the head of book/run.py")
    return path


def peak(process: int) -> str:
    status = Path(f"/proc/{process}/status")
    if not status.exists():
        return "memory not known here"
    kilobytes = int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1])
    return f"{kilobytes / 1e6:.1f} GB"


def keep(output) -> bool:
    return WIDGET not in output.get("data", {}) and output.get("name") != "stderr"


def joined(outputs) -> list:
    """The outputs, with text that came in pieces in one piece."""
    found = []
    for output in outputs:
        if found and output.get("name") == found[-1].get("name") == "stdout":
            found[-1].text += output.text
        else:
            found.append(output)
    return found


if __name__ == "__main__":
    names = [name for name in sys.argv[1:] if name != "--solutions"]
    for path in [named(name) for name in names] or sorted(NOTEBOOKS.glob("*.ipynb")):
        print(f"{path.name}: {run(path, '--solutions' in sys.argv)}", flush=True)
