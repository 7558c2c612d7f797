"""nuScenes as the detector reads it: six cameras with their geometry, LiDAR with sweeps, boxes."""

import copy
import os
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from mmdet3d.core.bbox import LiDARInstance3DBoxes
from mmdet3d.datasets import DATASETS, NuScenesDataset

from aqr_model.data.errors import DataError, SampleFileError
from aqr_model.data.nuscenes.infos import CAMERAS, camera_matrices, sensor_files
from aqr_model.data.nuscenes.results import format_results
from aqr_model.data.nuscenes.scenes import scene_subset
from aqr_model.data.nuscenes.score import score_predictions, write_results
from aqr_model.data.nuscenes.tables import require_samples
from aqr_model.data.pipelines.formatting import leave_to_device

CLASS_NAMES = (
    "car",
    "truck",
    "construction_vehicle",
    "bus",
    "trailer",
    "barrier",
    "motorcycle",
    "bicycle",
    "pedestrian",
    "traffic_cone",
)


@DATASETS.register_module()
class CustomNuScenesDataset(NuScenesDataset):
    """mmdet3d's NuScenesDataset with camera geometry, shares of scenes and scores by the devkit.

    Its results carry, in the order of :data:`aqr_model.data.nuscenes.infos.CAMERAS`: ``img_filename``,
    ``lidar2img``, ``lidar2cam`` and ``cam_intrinsic``, lists of [4, 4] float64 matrices with
    lidar2img = cam_intrinsic x lidar2cam.

    Args:
        scene_share: Share of the scenes to keep, always the same ones (see
            :func:`aqr_model.data.nuscenes.scenes.scene_subset`).
        ann_file: Info file, from :mod:`aqr_model.data.prepare` or mmdet3d 1.0's converter.
        kwargs: Those of NuScenesDataset.
    """

    CLASSES = CLASS_NAMES

    def __init__(self, *, ann_file: str, scene_share: float = 1.0, **kwargs: Any) -> None:
        if not os.path.isfile(ann_file):
            raise DataError(
                f"ann_file must be an info file, but there is no {ann_file}; build it with "
                "python -m aqr_model.data.prepare --dataroot DATAROOT --version VERSION."
            )
        super().__init__(ann_file=ann_file, **kwargs)
        leave_to_device(self.pipeline.transforms)
        if scene_share != 1.0:
            self._keep_share(scene_share)
        if not self.test_mode and self.filter_empty_gt and not self._has_objects():
            raise DataError(
                f"{self.ann_file} must hold samples with objects of {list(self.CLASSES)} to "
                "train on, but holds none."
            )

    def with_share(self, scene_share: float) -> "CustomNuScenesDataset":
        """Return this dataset on a share of its scenes; pipeline and infos are shared with it."""
        subset = copy.copy(self)
        subset._keep_share(scene_share)
        return subset

    def load_annotations(self, ann_file: IO[bytes]) -> list[dict[str, Any]]:
        """Load the infos, sorted by time."""
        with ann_file:
            try:
                return super().load_annotations(ann_file)
            except (KeyError, TypeError, EOFError, pickle.UnpicklingError) as error:
                raise DataError(
                    f"{self.ann_file} must be an info file in the form of mmdet3d 1.0, but cannot "
                    f"be read as one ({error!r}); build it with python -m aqr_model.data.prepare."
                ) from error

    def get_data_info(self, index: int) -> dict[str, Any]:
        """Collect what the pipeline starts from."""
        info = self.data_infos[index]
        data = {
            "sample_idx": info["token"],
            "pts_filename": self._path(info["lidar_path"]),
            "sweeps": [
                {**sweep, "data_path": self._path(sweep["data_path"])} for sweep in info["sweeps"]
            ],
            "timestamp": info["timestamp"] / 1e6,
        }
        if self.modality["use_camera"]:
            names = [info["cams"][camera]["data_path"] for camera in CAMERAS]
            data["img_filename"] = [self._path(name) for name in names]
            data |= camera_matrices(info)
        if not self.test_mode:
            data["ann_info"] = self.get_ann_info(index)
        return data

    def get_ann_info(self, index: int) -> dict[str, Any]:
        """Boxes, labels (-1 for other classes) and names of the objects that sensors have seen."""
        info = self.data_infos[index]
        seen = info["valid_flag"] if self.use_valid_flag else info["num_lidar_pts"] > 0
        names = info["gt_names"][seen]
        boxes = info["gt_boxes"][seen].reshape(-1, 7)
        if self.with_velocity:
            # An object annotated once has no velocity; mmdet3d and CMT train it as standing.
            velocity = np.nan_to_num(info["gt_velocity"][seen].reshape(-1, 2), nan=0.0)
            boxes = np.concatenate([boxes, velocity], axis=1)
        boxes_3d = LiDARInstance3DBoxes(
            boxes.astype(np.float32), box_dim=boxes.shape[1], origin=(0.5, 0.5, 0.5)
        )
        labels = np.array([self.cat2id.get(name, -1) for name in names], dtype=np.int64)
        return {
            "gt_bboxes_3d": boxes_3d.convert_to(self.box_mode_3d),
            "gt_labels_3d": labels,
            "gt_names": names,
        }

    def prepare_train_data(self, index: int) -> dict[str, Any] | None:
        """Run the pipeline; None for a sample that is left without objects, which is replaced."""
        return self._named_errors(index, super().prepare_train_data)

    def prepare_test_data(self, index: int) -> dict[str, Any]:
        """Run the pipeline."""
        return self._named_errors(index, super().prepare_test_data)

    def evaluate(  # pyright: ignore[reportIncompatibleMethodOverride]  # fewer, named options
        self,
        results: Sequence[Mapping[str, Any]],
        metric: str = "bbox",
        logger: Any = None,
        jsonfile_prefix: str | Path | None = None,
        keep_results: bool = True,
        bootstrap: int = 0,
    ) -> dict[str, float]:
        """Score detections of all samples of this dataset, in its order.

        Args:
            results: What the detector returns, a sample each.
            metric: Only ``bbox``; kept for mmdet3d's evaluation hooks.
            logger: Unused; kept for mmdet3d's evaluation hooks.
            jsonfile_prefix: Folder for the results and the devkit's summary; none by default.
            keep_results: Write the results there, too, not the summary alone.
            bootstrap: Draws of scenes for the standard error of NDS; 0 for none.

        Returns:
            Metrics as :func:`aqr_model.data.nuscenes.score.score_predictions` names them.
        """
        if metric != "bbox":
            raise DataError(f"metric must be 'bbox', but is {metric!r}.")
        predictions = self._formatted(results)
        if jsonfile_prefix is not None and keep_results:
            write_results(Path(jsonfile_prefix), predictions, self.modality)
        return score_predictions(
            self.data_root,
            self.version,
            [info["token"] for info in self.data_infos],
            predictions,
            out_dir=jsonfile_prefix,
            bootstrap=bootstrap,
        )

    def format_results(  # pyright: ignore[reportIncompatibleMethodOverride]  # fewer options
        self, results: Sequence[Mapping[str, Any]], jsonfile_prefix: str | Path
    ) -> Path:
        """Write detections as nuScenes' server reads them; no ground truth is needed.

        Args:
            results: What the detector returns, a sample each, in the order of this dataset.
            jsonfile_prefix: Folder for ``results_nusc.json``.
        """
        return write_results(Path(jsonfile_prefix), self._formatted(results), self.modality)

    def require_readable(self) -> None:
        """Check what would fail at the first sample, or after the last one.

        Raises:
            DataError: If there are no samples, the tables lack one, or the first one's files are
                missing.
        """
        if not self.data_infos:
            raise DataError(f"{self.ann_file} must hold samples, but holds none.")
        tokens = [info["token"] for info in self.data_infos]
        require_samples(self.data_root, self.version, tokens, source=self.ann_file)
        names = sensor_files(
            self.data_infos[0],
            lidar=self.modality["use_lidar"],
            cameras=self.modality["use_camera"],
        )
        missing = [name for name in names if not os.path.isfile(self._path(name))]
        if missing:
            raise DataError(
                f"{self.ann_file} must name files under {self.data_root}, but {missing[0]} is not "
                "there; correct data_root, or build the info file from this dataset."
            )

    def require_objects(self) -> None:
        """Check that there is something to score detections on.

        Raises:
            DataError: If no sample has an object of the detection classes.
        """
        if not any(np.isin(info["gt_names"], self.CLASSES).any() for info in self.data_infos):
            raise DataError(
                f"The {len(self.data_infos)} samples of {self.ann_file} must hold objects to score "
                "on, but hold none. Score on more scenes; of a split without annotations, "
                "python -m aqr_model.evaluate --format-only writes a file for nuScenes' server."
            )

    def _formatted(
        self, results: Sequence[Mapping[str, Any]]
    ) -> dict[str, list[dict[str, Any]]]:
        if len(results) != len(self.data_infos):
            raise DataError(
                f"There must be results for all {len(self.data_infos)} samples, but there are "
                f"{len(results)}."
            )
        return format_results(results, self.data_infos, self.CLASSES)

    def _path(self, path: str) -> str:
        """Our infos are relative to the dataroot; those of mmdet3d's converter name it too."""
        if path.startswith(("samples/", "sweeps/")):
            return os.path.join(self.data_root, path)
        return path

    def _keep_share(self, share: float) -> None:
        if any("scene_name" not in info for info in self.data_infos):
            raise DataError(
                f"{self.ann_file} must name each sample's scene for a share of scenes to be "
                "chosen; build it with python -m aqr_model.data.prepare."
            )
        kept = set(scene_subset((info["scene_name"] for info in self.data_infos), share))
        self.data_infos = [info for info in self.data_infos if info["scene_name"] in kept]
        if not self.test_mode:
            self._set_group_flag()

    def _has_objects(self) -> bool:
        return any(
            (self.get_ann_info(i)["gt_labels_3d"] >= 0).any() for i in range(len(self.data_infos))
        )

    def _named_errors(self, index: int, prepare: Any) -> Any:
        try:
            return prepare(index)
        except SampleFileError as error:
            token = self.data_infos[index]["token"]
            raise SampleFileError(f"Sample {token}: {error}") from error
