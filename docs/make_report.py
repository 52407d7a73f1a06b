"""Write docs/report of the runs in bench/results/experiments: python docs/make_report.py.

`pyguide train all` draws it in a copy of the folders of which all final runs are done. The text
above the report's first table stays; the pictures get 64 colours.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from PIL import Image

from pyguide.cli import main
from pyguide.experiments import find_experiments
from pyguide.files import read_json, write_json

ROOT = Path(__file__).resolve().parent.parent
RUNS = ROOT / "bench" / "results" / "experiments"
REPORT = ROOT / "docs" / "report"


def is_complete(folder: Path) -> bool:
    """Whether the folder has every final run, which would be run here otherwise."""
    config = read_json(folder / "config.json")["config"]
    keys = [f"{arm}-seed{seed}" for arm in config["arms"] for seed in config["seeds"]]
    return all((folder / "jobs" / f"{key}.jsonl").is_file() for key in keys)


def write(out: Path) -> None:
    """Copy the report of `out` and its pictures."""
    report = REPORT / "report.md"
    head = report.read_text(encoding="utf-8").partition("\n| experiment")[0]
    body = (out / "report.md").read_text(encoding="utf-8").partition("\n| experiment")[2]
    report.write_text(f"{head}\n| experiment{body}", encoding="utf-8")
    for picture in out.glob("*/*.png"):
        target = REPORT / picture.relative_to(out)
        target.parent.mkdir(exist_ok=True)
        Image.open(picture).convert("RGB").quantize(64).save(target, optimize=True)


def make() -> None:
    known = find_experiments()
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary)
        for folder in RUNS.iterdir():
            if folder.name in known and is_complete(folder):
                shutil.copytree(folder, out / folder.name)
            else:
                print(f"left out, as not all of its runs are done: {folder.name}", file=sys.stderr)
        names = [folder.name for folder in out.iterdir()]
        write_json(out / "all.json", {"names": names, "options": {"protocol": True}})
        if main(["train", "all", "--resume", str(out)]) != 0:
            sys.exit("pyguide train all failed")
        write(out)


if __name__ == "__main__":
    make()
