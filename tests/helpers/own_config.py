"""Config files as users write them: a shipped config, and a few lines of their own."""

import pickle
from pathlib import Path

ROOT = Path(__file__).parents[2]
NUM_SAMPLES = 100
_DATA = """
data = dict(
    train=dict(ann_file="data/train.pkl", data_root="data/"),
    val=dict(ann_file="data/val.pkl", data_root="data/"),
)
load_from = None
"""


def write_config(
    folder: Path, text: str = "", *, base: str = "cmt_aqr_nano.py", name: str = "own.py"
) -> Path:
    """Write a config that inherits a shipped one; its info files are there, and all but empty.

    Args:
        folder: Where the config goes, and where its relative paths lead.
        text: More lines.
        base: The shipped config.
        name: Of the file.
    """
    (folder / "data").mkdir(exist_ok=True)
    for split in ("train", "val"):
        with (folder / "data" / f"{split}.pkl").open("wb") as file:
            pickle.dump({"infos": [{}] * NUM_SAMPLES}, file)
    (folder / "nano.py").write_text(f"_base_ = ['{ROOT}/aqr_model/configs/{base}']\n{_DATA}")
    path = folder / name
    path.write_text(f"_base_ = ['./nano.py']\n{text}")
    return path
