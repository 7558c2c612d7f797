"""Command line of the synthetic dataset writer."""

import time
from pathlib import Path
from typing import Annotated

import typer

from .config import SyntheticConfig
from .domain import DOMAINS
from .manifest import Manifest
from .writer import DatasetConflictError, write_dataset

_DEFAULTS = SyntheticConfig()

app = typer.Typer(add_completion=False)


@app.command()
def main(
    root: Annotated[Path, typer.Option(help="Folder to write, e.g. data/synthetic/shifted.")],
    domain: Annotated[
        str, typer.Option(help=f"Kind of world: {', '.join(DOMAINS)}.")
    ] = _DEFAULTS.domain,
    train_scenes: Annotated[
        int, typer.Option(help="Scenes of the split synth_train.")
    ] = _DEFAULTS.train_scenes,
    val_scenes: Annotated[
        int, typer.Option(help="Scenes of the split synth_val.")
    ] = _DEFAULTS.val_scenes,
    keyframes: Annotated[int, typer.Option(help="Keyframes a scene.")] = _DEFAULTS.keyframes,
    seed: Annotated[int, typer.Option(help="The same seed gives the same bytes.")] = _DEFAULTS.seed,
    image_size: Annotated[
        tuple[int, int], typer.Option(help="Width and height, pixels.")
    ] = _DEFAULTS.image_size,
    azimuths: Annotated[int, typer.Option(help="LiDAR columns a turn.")] = _DEFAULTS.azimuths,
    sweep_offset: Annotated[
        list[float] | None,
        typer.Option(
            help="Seconds before each keyframe of an extra LiDAR sweep; repeat for several "
            f"(default: {_DEFAULTS.sweep_offsets_s[0]})."
        ),
    ] = None,
    no_sweeps: Annotated[
        bool, typer.Option("--no-sweeps", help="Keyframes only, no extra LiDAR sweeps.")
    ] = False,
    workers: Annotated[int, typer.Option(help="Processes; the data do not depend on it.")] = 1,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a dataset with other settings.")
    ] = False,
) -> None:
    """Write a synthetic dataset in nuScenes format (does nothing if it is already there).

    Example: python -m aqr_model.data.synthetic --root data/synthetic/shifted --domain shifted
    --train-scenes 45 --val-scenes 12 --seed 1 --workers 2
    """
    started = time.monotonic()
    try:
        config = SyntheticConfig(
            domain=domain,
            train_scenes=train_scenes,
            val_scenes=val_scenes,
            keyframes=keyframes,
            seed=seed,
            image_size=image_size,
            azimuths=azimuths,
            sweep_offsets_s=_sweep_offsets(sweep_offset, no_sweeps),
        )
        manifest = write_dataset(
            root, config, workers=workers, overwrite=overwrite, show_progress=True
        )
    except (ValueError, DatasetConflictError) as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(2) from error
    typer.echo(_summary(root, manifest, time.monotonic() - started))


def _sweep_offsets(given: list[float] | None, no_sweeps: bool) -> tuple[float, ...]:
    if no_sweeps and given:
        raise ValueError("--no-sweeps and --sweep-offset must not come together; drop one.")
    if no_sweeps:
        return ()
    return tuple(given) if given else _DEFAULTS.sweep_offsets_s


def _summary(root: Path, manifest: Manifest, seconds: float) -> str:
    counts = manifest.counts
    return (
        f"{root}: {counts['scene']} scenes, {counts['sample']} keyframes, "
        f"{counts['sample_annotation']} boxes, {manifest.num_bytes / 1e6:.0f} MB "
        f"({seconds:.1f} s)"
    )


if __name__ == "__main__":
    app()
