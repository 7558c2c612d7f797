"""A checkout with the real sweep engine and command line, and a training that takes no time."""

import shutil
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
TOY = Path(__file__).parent / "toy"
IGNORED = shutil.ignore_patterns("__pycache__")


def set_pace(checkout: Path, step_s: float) -> None:
    """Let each step of the toy's trainings, also of those that run, take so many seconds."""
    written = checkout / "data" / "step_s.tmp"
    written.write_text(str(step_s))
    written.replace(checkout / "data" / "step_s")


def make_toy_checkout(folder: Path) -> Path:
    """Lay the real `launch`, `sweeps` and knobs beside a toy detector."""
    for package in ("launch", "sweeps"):
        shutil.copytree(REPOSITORY / package, folder / package, ignore=IGNORED)
    shutil.copytree(TOY / "aqr_model", folder / "aqr_model", ignore=IGNORED)
    shutil.copy(REPOSITORY / "aqr_model" / "knobs.py", folder / "aqr_model")
    shutil.copy(TOY / "toy.yaml", folder)
    shutil.copy(REPOSITORY / "pyproject.toml", folder)
    for name in ("base.pth", "train.pkl", "val.pkl"):
        (folder / "data").mkdir(exist_ok=True)
        (folder / "data" / name).touch()
    return folder
