"""Fine-tune the nano detector without AQR, with legacy AQR and with right AQR, and compare the NDS.

``python scripts/compare_semantics.py`` needs the shifted dataset (``make data``) and prints a
Markdown table: one row a variant, one column a seed, then mean, standard deviation and the paired
difference to the control. Every run starts from the same checkpoint, with the config's own budget
and learning rates. Finished runs under ``--out`` are kept and not run again.
"""

import json
import multiprocessing
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import fmean, stdev
from typing import Annotated, Any

import typer

CONFIG = Path("aqr_model/configs/cmt_aqr_nano.py")
SCORES = "metrics.jsonl"
_AQR = "model.pts_bbox_head.aqr_config"
_LEGACY = {f"{_AQR}.semantics.preset": "legacy", f"{_AQR}.predictor_bias": 1.5}
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "control (AQR off)": {"model.pts_bbox_head.enable_aqr": False},
    "legacy AQR": _LEGACY,
    "legacy AQR, cameras not clamped": {**_LEGACY, f"{_AQR}.semantics.clamped": "bev"},
    "right AQR": {},
}


def run(name: str, seed: int, folder: Path) -> float:
    """Train one variant with one seed; its NDS at the end."""
    os.environ["OMP_NUM_THREADS"] = "1"
    from aqr_model.preflight.reading import load_config
    from aqr_model.report.reports import ConsoleReport
    from aqr_model.train import train

    workdir = folder / name.replace(" ", "_") / f"seed{seed}"
    if (found := final_score(workdir)) is None:
        cfg = load_config(CONFIG)
        cfg.merge_from_dict({**VARIANTS[name], "seed": seed, "num_threads": 1})
        (workdir / SCORES).unlink(missing_ok=True)
        train(cfg, workdir=workdir, report=ConsoleReport(workdir))
        found = final_score(workdir)
    if found is None:
        raise RuntimeError(f"{workdir / SCORES} must hold a full-budget score, but holds none")
    return found


def final_score(workdir: Path) -> float | None:
    """The full-budget NDS of a run, if it came to its end."""
    path = workdir / SCORES
    lines = path.read_text().splitlines() if path.is_file() else []
    ends = [record for record in map(json.loads, lines) if record.get("fraction") == 1.0]
    return ends[-1]["val/nds"] if ends else None


def table(scores: Mapping[str, Sequence[float]], seeds: Sequence[int]) -> str:
    """Scores as Markdown, each variant against the first, seed by seed."""
    control = next(iter(scores.values()))
    columns = ["variant", *(f"seed {seed}" for seed in seeds), "mean", "sd", "to control", "sd"]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for name, values in scores.items():
        gaps = [value - base for value, base in zip(values, control, strict=True)]
        cells = [name, *(f"{value:.4f}" for value in values)]
        cells += [f"{fmean(values):.4f}", f"{stdev(values):.4f}"]
        cells += ["", ""] if values is control else [f"{fmean(gaps):+.4f}", f"{stdev(gaps):.4f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(
    out: Annotated[Path, typer.Option(help="Folder of the runs.")] = Path("work_dirs/semantics"),
    seeds: Annotated[int, typer.Option(min=2, help="Seeds of each variant.")] = 3,
    workers: Annotated[int, typer.Option(help="Runs at a time, one thread each.")] = 2,
) -> None:
    """Run what is missing and print the table."""
    jobs = [(name, seed) for seed in range(seeds) for name in VARIANTS]
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=fresh) as pool:
        done = list(pool.map(run, *zip(*jobs, strict=True), [out] * len(jobs)))
    by_job = dict(zip(jobs, done, strict=True))
    scores = {name: [by_job[name, seed] for seed in range(seeds)] for name in VARIANTS}
    typer.echo(table(scores, range(seeds)))


if __name__ == "__main__":
    typer.run(main)
