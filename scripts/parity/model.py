"""Compare the detector with the public CMT, part by part, on this machine's CPU.

    python scripts/parity/model.py --cmt PATH [--write] [CASE ...]
    python scripts/parity/model.py --cmt PATH --shapes

PATH is a clone of junjie18/CMT at commit d3b1d78; its code is run from there, in processes of its
own, since both sides register the same type names. Both get the weights that
`tests/helpers/cmt_fill.py` makes of names and shapes, and the same inputs. Prints a table of the
largest relative differences; `--write` puts some of the public side's numbers into
`tests/data/parity`, where the tests find them. Cases are explained in
`tests/helpers/parity_cases.py`; those with `keyframe` need the real keyframe beside the checkout.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts" / "parity"), str(ROOT / "tests" / "helpers")]
# Roundings depend on the number of threads: both sides take one, also when run one by one.
os.environ.setdefault("OMP_NUM_THREADS", "1")

CASES = [
    "r50.evaluate",
    "r50.crowded.evaluate",
    "r50.train",
    "r50.crowded.train",
    "r50.steps",
    "vov.evaluate",
    "vov.train",
    "nano.evaluate",
    "nano.train",
    "nano.empty.train",
    "nano.full.train",
    "nano.steps",
    "lidar.evaluate",
    "lidar.train",
    "camera.evaluate",
    "camera.train",
    "r50.float32.rates",
    "vov.float32.rates",
    "lidar.float32.rates",
    "camera.float32.rates",
    "r50.float32.precision",
    "r50.float32.train",
    "vov.float32.train",
    "nano.float32.train",
    "lidar.float32.train",
    "camera.float32.train",
    "camera.float32.transforms",
    "r50.keyframe.evaluate",
    "r50.keyframe.train",
    "r50.keyframe.double.train",
    "vov.keyframe.evaluate",
    "lidar.keyframe.train",
    "lidar.keyframe.double.evaluate",
    "lidar.keyframe.double.train",
    "camera.keyframe.evaluate",
]


def read_config(case: str, cmt: Path | None) -> Any:
    """Our config, or the public one; the public code builds our nano config too."""
    import parity_cases
    import torch
    from mmcv import Config

    size = case.split(".")[0]
    folder = ROOT / "aqr_model" / "configs"
    if cmt is not None and size != "nano":
        kind = size if size in ("lidar", "camera") else "fusion"
        folder = cmt / "projects" / "configs" / kind
    cfg = Config.fromfile(str(folder / parity_cases.CONFIGS[size]))
    if cmt is not None and "pts_voxel_layer" in cfg.model:
        cfg.model.pts_voxel_layer.device = torch.device("cpu")
    return cfg


def run_side(name: str, cmt: Path | None, cases: Sequence[str], folder: Path) -> None:
    """Run one side's cases and write what they give."""
    if name == "public":
        assert cmt is not None
        import public_cmt

        public_cmt.load(cmt)
    else:
        import aqr_model  # noqa: F401
    import parity_cases
    from mmdet3d.models import build_model

    for case in sorted(cases, key=parity_cases.is_double):  # float64 cannot be left again
        if parity_cases.is_double(case):
            parity_cases.use_double_precision()
        cfg = read_config(case, cmt if name == "public" else None)
        if case.endswith("transforms"):
            import camera_steps

            found = camera_steps.run(name)
        elif case.endswith("steps"):
            import steps

            found = getattr(steps, name)(case, cfg, folder)
        elif case.endswith("rates"):
            import steps

            found = steps.ours_rates(cfg) if name == "ours" else steps.public_rates(cfg, folder)
        elif case.endswith("precision"):
            import precision

            found = precision.formats(name, parity_cases.settings(cfg, case))
        else:
            data = keyframe_inputs(case, name, folder) if "keyframe" in case else None
            found = parity_cases.run(case, build_model, cfg, data or parity_cases.inputs(case))
        np.savez(folder / f"{case}.{name}.npz", **found)
        print(f"{name}: {case} done", file=sys.stderr)


def keyframe_inputs(case: str, name: str, folder: Path) -> Any:
    """The keyframe as our test pipeline and annotations give it; our side writes it down."""
    import parity_cases

    size = case.split(".")[0]
    path = folder / f"{size}.inputs.npz"
    if name == "ours":
        import keyframe

        keyframe.test_batch(parity_cases.CONFIGS[size], folder).save(path)
    return parity_cases.Batch.load(path)


def rows(case: str, folder: Path) -> list[str]:
    """Lines of the table."""
    import parity_cases

    ours, theirs = (dict(np.load(folder / f"{case}.{name}.npz")) for name in ("ours", "public"))
    if "error" in theirs:
        return [f"| {case} | the public code ends in {theirs['error']} | |"]
    if case.endswith("precision"):
        return [
            f"| {case} | {part} | public: {value}; ours: {ours.get(part, '-')} |"
            for part, value in theirs.items()
        ]
    found = parity_cases.compare(ours, theirs)
    return [
        f"| {case} | {part} (at {name}) | {worst:.1e} |" for part, (worst, name) in found.items()
    ]


def write(cases: Sequence[str], folder: Path) -> None:
    """Keep some of the public side's numbers."""
    import parity_cases

    for case in cases:
        parity_cases.save_golden(case, dict(np.load(folder / f"{case}.public.npz")))


def write_shapes(cmt: Path) -> None:
    """Write names and shapes of the weights of the public models of one sensor."""
    import public_cmt

    public_cmt.load(cmt)
    import parity_cases
    from mmdet3d.models import build_model

    for sensor in ("lidar", "camera"):
        state = build_model(read_config(sensor, cmt).model).state_dict()
        lines = [f"{json.dumps(name)}: {list(value.shape)}" for name, value in state.items()]
        name = Path(parity_cases.CONFIGS[sensor]).stem
        path = ROOT / "tests" / "data" / f"{name}.state_dict.json"
        path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def main() -> None:
    """Run both sides, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}")
    parser.add_argument("--cmt", type=Path, help="clone of junjie18/CMT")
    parser.add_argument("--write", action="store_true", help="renew tests/data/parity")
    parser.add_argument("--shapes", action="store_true", help="write names and shapes of weights")
    parser.add_argument("--side", choices=["ours", "public"], help="run this side alone")
    parser.add_argument("--folder", type=Path, help="keep there what the sides gave")
    arguments = parser.parse_args()
    cases = arguments.cases or CASES
    if unknown := set(cases) - set(CASES):
        parser.error(f"cases must be of {', '.join(CASES)}, but got {', '.join(sorted(unknown))}")
    if arguments.cmt is None and arguments.side != "ours":
        parser.error("`--cmt` must name a clone of junjie18/CMT, but is not given")
    if arguments.shapes:
        write_shapes(arguments.cmt)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if arguments.side:
            run_side(arguments.side, arguments.cmt, cases, folder)
            return
        for name in ("ours", "public"):
            command = [sys.executable, __file__, "--cmt", str(arguments.cmt.resolve())]
            command += ["--side", name, "--folder", str(folder.resolve()), *cases]
            subprocess.run(command, check=True, cwd=ROOT)
        print("| case | part | largest relative difference |\n|---|---|---|")
        print("\n".join(line for case in cases for line in rows(case, folder)))
        if arguments.write:
            write(cases, folder)


if __name__ == "__main__":
    main()
