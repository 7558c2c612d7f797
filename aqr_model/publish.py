"""Publish trained weights as a base checkpoint: small, scored, and with what produced it.

``python -m aqr_model.publish CONFIG WEIGHTS OUT`` writes OUT with weights in half precision, scores
that file, and writes OUT with the ending ``.json``: config, seeds, data, commands and scores.
"""

import json
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from mmdet3d.models import build_model

from aqr_model.engine.evaluator import Evaluator, set_epoch
from aqr_model.engine.optim.precision import apply_precision, read_precision
from aqr_model.engine.plan import budget_epochs
from aqr_model.engine.weights.files import read_file
from aqr_model.engine.weights.pretrained import Wanted, load_pretrained
from aqr_model.engine.weights.states import save_weights
from aqr_model.preflight.reading import load_config
from aqr_model.user_errors import explained

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def publish(config: Path, weights: Path, out: Path) -> dict[str, Any]:
    """Write a base checkpoint and its record.

    Half precision halves the file; what is scored is the file, not the weights it came from.

    Args:
        config: The training config that produced the weights.
        weights: ``final.pth`` of that training.
        out: The checkpoint to write.

    Returns:
        The record, as written beside the checkpoint.
    """
    cfg = load_config(config)
    model = build_model(cfg.model)
    wanted = Wanted.to_score(cfg)
    load_pretrained(model, weights, wanted)
    meta = read_file(weights, types=wanted.types).get("meta") or {}
    trained = {key: meta.get(key) for key in ("step", "seed", "averaged")}
    save_weights(model.half(), out, **trained)
    model = build_model(cfg.model)
    load_pretrained(model, out)
    set_epoch(model, budget_epochs(cfg), budget_epochs(cfg))
    apply_precision(model, read_precision(cfg))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    scores = Evaluator(cfg, device=device).score(model.to(device))
    record = {
        "commands": [
            f"python -m aqr_model.train {config}",
            f"python -m aqr_model.publish {config} {weights} {out}",
        ],
        "config": str(config),
        "seed": cfg.get("seed"),
        "steps": trained["step"],
        "data": _described(Path(cfg.data.val.data_root)),
        "scores": {name: round(value, 4) for name, value in scores.items()},
    }
    out.with_suffix(".json").write_text(json.dumps(record, indent=2) + "\n")
    return record


def _described(data_root: Path) -> dict[str, Any]:
    """Settings of a synthetic dataset, which bring it back byte for byte; else its place."""
    manifest = data_root / "manifest.json"
    if manifest.is_file():
        return json.loads(manifest.read_text())["settings"]
    return {"data_root": str(data_root)}


@app.command()
@explained()
def main(
    config: Annotated[Path, typer.Argument(help="The training config.")],
    weights: Annotated[Path, typer.Argument(help="final.pth of its training.")],
    out: Annotated[Path, typer.Argument(help="The checkpoint to write.")],
) -> None:
    """Publish trained weights and print their scores."""
    print(json.dumps(publish(config, weights, out), indent=2))


if __name__ == "__main__":
    app()
