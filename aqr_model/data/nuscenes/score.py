"""NDS and its parts by nuscenes-devkit alone, quick enough for every rung of a sweep."""

import contextlib
import functools
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nuscenes.eval.common.data_classes import EvalBoxes
from nuscenes.eval.common.loaders import (
    add_center_dist,
    filter_eval_boxes,
    load_gt_of_sample_tokens,
    load_prediction,
)
from nuscenes.eval.detection.data_classes import DetectionBox
from nuscenes.eval.detection.evaluate import DetectionEval

from aqr_model.data.errors import DataError
from aqr_model.data.nuscenes.bootstrap import standard_error
from aqr_model.data.nuscenes.results import class_ranges, detection_config
from aqr_model.data.nuscenes.tables import fingerprint, open_tables, require_samples

Result = Mapping[str, Any]
_MODALITIES = ("use_camera", "use_lidar", "use_radar", "use_map", "use_external")
_ERRORS = {
    "trans_err": "val/mate",
    "scale_err": "val/mase",
    "orient_err": "val/maoe",
    "vel_err": "val/mave",
    "attr_err": "val/maae",
}


def score_predictions(
    dataroot: str | Path,
    version: str,
    sample_tokens: Sequence[str],
    predictions: Mapping[str, Sequence[Result]],
    *,
    out_dir: str | Path | None = None,
    bootstrap: int = 0,
) -> dict[str, float]:
    """Score predictions on some samples.

    Tables and ground truth stay in the process, so a second call with the same samples costs the
    matching only.

    Args:
        dataroot: Folder of the dataset.
        version: Its version.
        sample_tokens: The samples to score on.
        predictions: Results by sample token, in nuScenes' form; an entry for every sample, empty
            where nothing was found, and for no other.
        out_dir: Folder for the devkit's summary; none by default.
        bootstrap: Draws of scenes for the standard error of NDS, each as dear as the scoring; 0 for
            none.

    Returns:
        ``val/nds``, ``val/map``, ``val/mate``, ``val/mase``, ``val/maoe``, ``val/mave``,
        ``val/maae`` and ``val/ap/<class>``; with ``bootstrap`` also ``val/nds_standard_error``.

    Raises:
        DataError: If samples are missing, unknown or too full, or hold no ground truth.
        FloatingPointError: If a prediction holds NaN or infinity.
    """
    _check(sample_tokens, predictions)
    tokens = tuple(sample_tokens)
    truth = _ground_truth(str(dataroot), version, fingerprint(dataroot, version), tokens)
    found = _predicted_boxes(str(dataroot), version, tokens, predictions)
    summary = _InMemoryEval(truth, found).evaluate()[0].serialize()
    if out_dir is not None:
        folder = Path(out_dir)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "metrics_summary.json").write_text(json.dumps(summary, indent=2))
    metrics = _named(summary)
    if bootstrap:
        tables = open_tables(dataroot, version)
        scenes = {token: tables.get("sample", token)["scene_token"] for token in tokens}
        metrics["val/nds_standard_error"] = standard_error(
            lambda *drawn: _InMemoryEval(*drawn).evaluate()[0].nd_score,
            truth,
            found,
            scenes,
            draws=bootstrap,
        )
    return metrics


class _InMemoryEval(DetectionEval):
    """The devkit's evaluation of boxes that are already loaded and filtered."""

    def __init__(self, truth: EvalBoxes, found: EvalBoxes) -> None:
        self.verbose = False
        self.cfg = detection_config()
        self.gt_boxes = truth
        self.pred_boxes = found


@functools.lru_cache(maxsize=16)
def _ground_truth(dataroot: str, version: str, _state: str, tokens: tuple[str, ...]) -> EvalBoxes:
    require_samples(dataroot, version, tokens, source="What is scored")
    tables = open_tables(dataroot, version)
    with contextlib.redirect_stderr(io.StringIO()):  # a progress bar without a switch
        boxes = load_gt_of_sample_tokens(tables, list(tokens), DetectionBox, verbose=False)
    if not any(boxes[token] for token in tokens):
        raise DataError(
            f"The {len(tokens)} samples to score on must hold objects of the detection classes, "
            "but hold none; score on more scenes."
        )
    boxes = add_center_dist(tables, boxes)
    return filter_eval_boxes(tables, boxes, class_ranges())


def _predicted_boxes(
    dataroot: str, version: str, tokens: Sequence[str], predictions: Mapping[str, Sequence[Result]]
) -> EvalBoxes:
    boxes = EvalBoxes()
    for token in tokens:
        boxes.add_boxes(token, [DetectionBox.deserialize(dict(r)) for r in predictions[token]])
    if not any(predictions.values()):
        # A detector that finds nothing is an honest outcome, early in training for example. The
        # devkit's filter fails on it (it reads the type of box off the first one), its metrics do
        # not: every class gets AP 0 and errors 1, which is NDS 0.
        return boxes
    tables = open_tables(dataroot, version)
    boxes = add_center_dist(tables, boxes)
    return filter_eval_boxes(tables, boxes, class_ranges())


def _check(tokens: Sequence[str], predictions: Mapping[str, Sequence[Result]]) -> None:
    if not tokens:
        raise DataError("There must be samples to score on, but there are none.")
    missing = [token for token in tokens if token not in predictions]
    extra = set(predictions) - set(tokens)
    if missing or extra:
        raise DataError(
            "Predictions must have one entry for each sample that is scored, but "
            f"{len(missing)} samples lack one (first: {next(iter(missing), '-')}) and "
            f"{len(extra)} entries are for other samples (first: {next(iter(extra), '-')})."
        )
    limit = detection_config().max_boxes_per_sample
    for token, results in predictions.items():
        if len(results) > limit:
            raise DataError(
                f"At most {limit} boxes a sample may be scored, but sample {token} has "
                f"{len(results)}; keep those with the highest scores."
            )
        if not all(_is_finite(result) for result in results):
            raise FloatingPointError(f"Predictions of sample {token} must be finite, but are not.")


def _is_finite(result: Result) -> bool:
    numbers = (*result["translation"], *result["size"], *result["rotation"], *result["velocity"])
    return math.isfinite(math.fsum(map(abs, numbers)) + abs(result["detection_score"]))


def _named(summary: Mapping[str, Any]) -> dict[str, float]:
    metrics = {"val/nds": summary["nd_score"], "val/map": summary["mean_ap"]}
    metrics |= {name: summary["tp_errors"][key] for key, name in _ERRORS.items()}
    metrics |= {f"val/ap/{name}": ap for name, ap in summary["mean_dist_aps"].items()}
    return {name: float(value) for name, value in metrics.items()}


def write_results(
    folder: Path, predictions: Mapping[str, Sequence[Result]], modality: Mapping[str, bool]
) -> Path:
    """Write predictions as nuScenes' server reads them, and let the devkit check the file.

    Args:
        folder: Where ``results_nusc.json`` is put.
        predictions: Results by sample token, in nuScenes' form.
        modality: ``use_camera``, ``use_lidar``, ``use_radar``, ``use_map``, ``use_external``.

    Raises:
        DataError: If the devkit refuses the results.
        FloatingPointError: If a prediction holds NaN or infinity.
    """
    _check(list(predictions), predictions)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "results_nusc.json"
    meta = {name: bool(modality.get(name)) for name in _MODALITIES}
    path.write_text(json.dumps({"meta": meta, "results": dict(predictions)}))
    try:
        load_prediction(str(path), detection_config().max_boxes_per_sample, DetectionBox)
    except AssertionError as error:
        raise DataError(f"nuscenes-devkit refuses {path}: {error}") from error
    return path
