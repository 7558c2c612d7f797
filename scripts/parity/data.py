"""Compare the data side with the public CMT, fed with the same random draws.

``python scripts/parity/data.py --cmt PATH`` runs the public code from a folder outside of this
repository beside ours, prints a Markdown table (part, samples, largest relative difference) and
writes the golden numbers that the tests hold to ``tests/data/parity``. Samples are small seeded
scenes; the real keyframe and the synthetic set are used where they are there.
"""

import copy
import logging
import pickle
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

sys.path.insert(0, str(Path("tests/helpers")))
from public_data import PublicData, on_cpu

# isort: split
import data_parity as cases
import keyframe
import keyframe_objects
import mmcv
from mmcv import Config
from mmdet3d.datasets import build_dataset
from mmdet3d.datasets.dataset_wrappers import CBGSDataset
from mmdet3d.datasets.pipelines import Compose
from tape import Tape, recorded, replayed

from aqr_model.cmt.images.grid_mask import GridMask
from aqr_model.data.nuscenes.tables import open_tables
from aqr_model.data.prepare import prepare
from aqr_model.data.prepare.database import build_database
from aqr_model.data.synthetic import SyntheticConfig, write_dataset
from aqr_model.engine.batches import seed_everything

OUT = Path("tests/data/parity")
CONFIGS = Path("aqr_model/configs")
FUSION = ("cmt_voxel0100_r50_800x320_cbgs.py", "cmt_voxel0075_vov_1600x640_cbgs.py")
NANO = CONFIGS / "cmt_nano.py"
SYNTHETIC = Path("data/synthetic/base")
KEYFRAME_SEEDS = (1, 3)
# What ours notes on purpose where the public step leaves an older value.
DELIBERATE = {"ResizeCropFlipImage": ("img_shape", "pad_shape")}
Steps = Sequence[Callable[[dict], Any]]
Golden = dict[str, tuple[Tape, cases.Outcome]]


class Table:
    """Largest relative difference of each part over its samples."""

    def __init__(self) -> None:
        self.parts: dict[str, list[float]] = {}

    def add(self, part: str, theirs: cases.Outcome, ours: cases.Outcome) -> None:
        """Compare all that the public side has."""
        own = DELIBERATE.get(part, ())
        if "pipeline of" in part:  # a shipped config collects what our detector reads
            own += tuple(set(theirs) - set(ours) - cases.COLLECTED)
        asked = {key: value for key, value in theirs.items() if key not in own}
        found = {key: cases.relative_difference(v, ours[key]) for key, v in asked.items()}
        self.parts.setdefault(part, []).append(max(found.values()))
        for key, value in found.items():
            if value > 1e-4:
                print(f"DIFFERENT {part}: {key} by {value:.2g}", file=sys.stderr)

    def show(self) -> None:
        """Print it as Markdown."""
        print("| part | samples | largest relative difference |\n|---|---|---|")
        for part, found in self.parts.items():
            print(f"| {part} | {len(found)} | {max(found):.1e} |")


@dataclass(frozen=True)
class Sources:
    """Files to read samples from: infos with whole paths and, to paste from, a database."""

    infos: Path
    database: Path | None = None

    def steps(self, pipeline: Sequence[Any]) -> list[Any]:
        """A pipeline with its pasting step on this database."""
        return [
            cases.pasting(self.database, keyframe_objects.GROUPS)
            if step["type"] == "UnifiedObjectSample" and self.database
            else step
            for step in copy.deepcopy(pipeline)
        ]

    def datasets(self, public: PublicData, cfg: Config, *, test_mode: bool) -> tuple[Any, Any]:
        """The public dataset and ours, without a pipeline."""
        options = {"ann_file": str(self.infos), "data_root": "", "pipeline": []}
        options |= {"classes": cfg.class_names, "modality": cfg.input_modality}
        options |= {"test_mode": test_mode, "box_type_3d": "LiDAR"}
        ours = build_dataset({"type": "CustomNuScenesDataset", **options})
        return public.dataset(**options), ours


def small(public: PublicData, table: Table) -> Golden:
    """Every step on seeded scenes."""
    golden: Golden = {}
    with tempfile.TemporaryDirectory() as folder:
        database = cases.write_small_database(Path(folder))
        for name, case, seed in cases.pairs(cases.small_cases(database)):
            theirs = public.pipeline(copy.deepcopy(case.steps))
            ours = Compose(copy.deepcopy(case.steps)).transforms
            samples = cases.small_sample(seed), cases.small_sample(seed)
            tape, expected, found = compared(theirs, ours, samples, seed)
            table.add(f"{name.split(' / ')[0]} (small)", expected, found)
            golden[name] = tape, cases.digest(expected)
    return golden


def compared(
    theirs: Steps, ours: Steps, samples: Sequence[Any], seed: int, *, draws: bool = True
) -> tuple[Tape, cases.Outcome, cases.Outcome]:
    """Run steps of both sides, ours with the public side's draws, or without any.

    (The public test pipelines draw a turn by 0, a scale of 1 and a shift by 0.)
    """
    seed_everything(seed)
    with recorded() as tape:
        expected = run(theirs, samples[0])
    tape = tape if draws else []
    with replayed(tape):
        found = run(ours, samples[1])
    return tape, cases.outcome(expected), cases.outcome(found)


def run(steps: Steps, data: Any) -> Any:
    """One step after the other."""
    for step in steps:
        data = step(data)
    return data


def pipelines(
    public: PublicData, table: Table, name: str, sources: Sources, seeds: Sequence[int]
) -> Golden:
    """A config's training and test pipelines on files: step by step, and as a whole.

    The steps are those of the public config. As a whole they are compared with the pipeline of
    the shipped config of the same name.
    """
    golden: Golden = {}
    shipped = Config.fromfile(CONFIGS / name)
    cfg = shipped if name == NANO.name else public.config(f"fusion/{name}")
    for split in ("train", "test"):
        steps = sources.steps(cfg[f"{split}_pipeline"])
        theirs, same = public.pipeline(copy.deepcopy(steps)), Compose(steps).transforms
        ours = Compose(sources.steps(shipped[f"{split}_pipeline"])).transforms
        datasets = sources.datasets(public, cfg, test_mode=split == "test")
        for seed in seeds:
            begun = [started(dataset, seed) for dataset in datasets]
            table.add("dataset: files, matrices, boxes", *map(cases.outcome, begun))
            step_by_step(table, theirs, same, copy.deepcopy(begun[0]), seed)
            draws = split == "train"
            _, expected, found = compared(theirs, ours, copy.deepcopy(begun), seed, draws=draws)
            table.add(f"whole {split} pipeline of {name}", expected, found)
            # For the golden numbers without the order of 400,000 points, which is long.
            unordered = cases.without_order(theirs), cases.without_order(ours)
            tape, expected, _ = compared(*unordered, begun, seed, draws=draws)
            golden[f"{name} / {split} / {seed}"] = tape, cases.digest(expected)
    return golden


def started(dataset: Any, seed: int) -> Any:
    """A sample before its pipeline."""
    data = copy.deepcopy(dataset.get_data_info(seed % len(dataset)))
    dataset.pre_pipeline(data)
    return data


def step_by_step(table: Table, theirs: Steps, ours: Steps, data: Any, seed: int) -> None:
    """Compare each step on what the public steps before it have made."""
    seed_everything(seed)
    for one, other in zip(theirs, ours, strict=True):
        same = copy.deepcopy(data)
        with recorded() as tape:
            data = one(data)
        with replayed(tape):
            found = other(same)
        table.add(type(one).__name__, cases.outcome(data), cases.outcome(found))


def grid_masks(public: PublicData, table: Table) -> Golden:
    """The mask of images of the three sizes, and of odd ones."""
    golden: Golden = {}
    for seed in range(24):
        height, width = [(320, 800), (640, 1600), (128, 320), (37, 53)][seed % 4]
        images = torch.ones(1, 1, height, width)
        np.random.seed(seed)
        with recorded() as tape, on_cpu():
            expected = public.grid_mask(True, True, 1, False, 0.5, 1, 0.7).train()(images)
        tape = tape[:4]  # without the angle, which is always 0
        with replayed(tape):
            found = GridMask().train()(images)
        table.add("GridMask", {"images": expected.numpy()}, {"images": found.numpy()})
        golden[f"GridMask {height} {width} / {seed}"] = tape, cases.mask_digest(expected)
    return golden


def balanced(public: PublicData, table: Table) -> Golden:
    """Class-balanced sampling: the same samples from the same draws."""
    golden: Golden = {}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(3):
            infos = cases.class_infos(Path(folder) / f"{seed}.pkl", seed)
            sources = Sources(infos).datasets(public, Config.fromfile(NANO), test_mode=False)
            seed_everything(seed)
            with recorded() as tape:
                expected = np.array(CBGSDataset(sources[0]).sample_indices)
            with replayed(tape):
                found = np.array(CBGSDataset(sources[1]).sample_indices)
            table.add("CBGSDataset", {"samples": expected}, {"samples": found})
            golden[f"CBGSDataset / {seed}"] = tape, {"samples": expected}
    return golden


def databases(public: PublicData, table: Table, infos: Path, folder: Path) -> str:
    """Objects cut out of the keyframe by the public tool and by ours; says what differs.

    Their points and boxes are compared, and the pixels of patches from the same camera.
    """
    (info,) = pickle.loads(infos.read_bytes())["infos"]
    theirs = public.database(infos, folder)
    ours = build_database([info], dataroot=Path("/"), folder=folder, num_sweeps=10, stamp={})
    count, other, errors = 0, 0, []
    for name, entries in ours.items():
        for own, public_entry in zip(entries, theirs.get(name, []), strict=True):
            pair = [_object(entry, folder) for entry in (public_entry, own)]
            table.add("object database: boxes, points", *pair)
            count += 1
            if own["image_crop_key"] != public_entry["image_crop_key"]:
                other += 1
            elif own["image_path"]:
                images = [mmcv.imread(folder / e["image_path"]) for e in (public_entry, own)]
                errors.append(np.abs(images[0].astype(np.float64) - images[1]).mean())
    return (
        f"object database: {count} objects, {other} with a patch of another camera; the other "
        f"patches differ by {np.mean(errors):.1f} of 255 grey levels on average"
    )


def info_files(public: PublicData, table: Table, synthetic: Path) -> None:
    """Infos of the public converter and ours, of a synthetic set of two scenes."""
    write_dataset(
        synthetic, SyntheticConfig(domain="base", train_scenes=1, val_scenes=1, keyframes=8)
    )
    ours = {
        info["token"]: info
        for path in prepare(synthetic, "v1.0-synth").values()
        for info in pickle.loads(path.read_bytes())["infos"]
    }
    for theirs in public.infos(open_tables(synthetic, "v1.0-synth")):
        pair = theirs, ours[theirs["token"]]
        table.add("info files", *map(cases.outcome_of_info, pair))


def _object(entry: dict[str, Any], folder: Path) -> cases.Outcome:
    points = np.fromfile(folder / entry["path"], dtype=np.float32).reshape(-1, 5)
    return {"box": entry["box3d_lidar"], "points": points, "count": entry["num_points_in_gt"]}


def synthetic_sources(root: Path, path: Path) -> Sources:
    """Eight keyframes of the synthetic set, with whole paths."""
    content = pickle.loads((root / "nuscenes_infos_synth_train.pkl").read_bytes())
    infos = content["infos"][:: max(1, len(content["infos"]) // 8)][:8]
    for info in infos:
        for record in (*info["cams"].values(), *info["sweeps"]):
            record["data_path"] = str((root / record["data_path"]).resolve())
        info["lidar_path"] = str((root / info["lidar_path"]).resolve())
    path.write_bytes(pickle.dumps({**content, "infos": infos}))
    return Sources(path)


def main(
    cmt: Annotated[Path, typer.Option(help="Folder of the public repository junjie18/CMT.")],
    synthetic: Annotated[Path, typer.Option(help="A synthetic set.")] = SYNTHETIC,
    out: Annotated[Path, typer.Option(help="Folder for the golden numbers.")] = OUT,
) -> None:
    """Compare, print the table, write the golden numbers."""
    logging.disable(logging.INFO)  # the public sampler lists its objects at each start
    public, table, notes = PublicData(cmt), Table(), []
    golden = {
        "steps": small(public, table),
        "samplers": {**balanced(public, table), **grid_masks(public, table)},
    }
    with tempfile.TemporaryDirectory() as folder:
        info_files(public, table, Path(folder) / "two_scenes")
        if keyframe.available():
            infos = keyframe_objects.write_infos(Path(folder) / "keyframe.pkl")
            notes.append(databases(public, table, infos, Path(folder)))
            database = keyframe_objects.write_database(infos, Path(folder))
            golden["keyframe"] = {}
            for name in FUSION:
                golden["keyframe"] |= pipelines(
                    public, table, name, Sources(infos, database), KEYFRAME_SEEDS
                )
        if synthetic.is_dir():
            sources = synthetic_sources(synthetic, Path(folder) / "synthetic.pkl")
            pipelines(public, table, NANO.name, sources, range(8))
    table.show()
    print(*notes, sep="\n")
    out.mkdir(parents=True, exist_ok=True)
    for name, found in golden.items():
        cases.save_golden(out / f"data_{name}.npz", found)


if __name__ == "__main__":
    typer.run(main)
