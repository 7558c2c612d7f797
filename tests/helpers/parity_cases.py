"""Whole detectors on inputs made by arithmetic: what ours and the public code both run.

Nothing here knows which of the two it runs, and nothing imports `aqr_model`, whose types the public
code registers too. `scripts/parity/model.py` runs it on both sides; the tests run it on ours and
compare with the numbers that the public side gave (tests/data/parity).

A case is named by its size, its input and what is done: `r50.crowded.train`. Small cases compute in
float64, where a rounding decides no edge of a ReLU and no matching: what differs is a defect, on
any machine. Cases with `float32` or `keyframe` in the name compute as a training does, unless
`double` is in it too.
"""

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cmt_fill import fill
from mmcv.parallel import DataContainer
from torch import Tensor, nn

GOLDEN = Path(__file__).parents[1] / "data" / "parity"
CONFIGS = {
    "r50": "cmt_voxel0100_r50_800x320_cbgs.py",
    "vov": "cmt_voxel0075_vov_1600x640_cbgs.py",
    "nano": "cmt_nano.py",
    "lidar": "cmt_lidar_voxel0075_cbgs.py",
    "camera": "cmt_camera_vov_1600x640_cbgs.py",
}
_SAMPLES = 24  # values kept of a tensor


def _coarse(voxel: float, cells: int) -> dict[str, Any]:
    """Settings of a detector on a coarse grid: the same layers on 64 times fewer cells."""
    size = [voxel, voxel, 0.2]
    return {
        "model.pts_voxel_layer.voxel_size": size,
        "model.pts_voxel_layer.max_voxels": (3000, 3500),
        "model.pts_middle_encoder.sparse_shape": [41, cells, cells],
        "model.pts_bbox_head.bbox_coder.voxel_size": size,
        "model.pts_bbox_head.num_query": 300,
        "model.train_cfg.pts.voxel_size": size,
        "model.train_cfg.pts.grid_size": [cells, cells, 40],
        "model.test_cfg.pts.grid_size": [cells, cells, 40],
    }


COARSE = {
    "r50": _coarse(0.8, 128),  # 108 m are 135 voxels, of which 128 count: R50's quirk
    "vov": _coarse(0.675, 160),
    "nano": {},
    "lidar": _coarse(0.675, 160),
    "camera": {"model.pts_bbox_head.num_query": 300},
}
RANGES = {"nano": 40.96}  # others: 54
IMAGES = {"nano": (128, 320), "camera": (32, 96)}  # others: 64 x 160


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Inputs of a detector. B samples, six views.

    Attributes:
        points: x, y, z, intensity, age; none for cameras alone. B of [N, 5]
        images: Normalised and padded; None for LiDAR alone. [B, 6, 3, H, W]
        lidar2img: [B, 6, 4, 4]
        boxes: Bottom centres. B of [G, 9]
        labels: B of [G]
    """

    points: Sequence[np.ndarray]
    images: np.ndarray | None
    lidar2img: np.ndarray
    boxes: Sequence[np.ndarray]
    labels: Sequence[np.ndarray]

    def save(self, path: Path) -> None:
        """Write it, for the other side."""
        arrays = {"lidar2img": self.lidar2img}
        if self.images is not None:
            arrays["images"] = self.images
        for name in ("points", "boxes", "labels"):
            arrays |= {f"{name}_{i}": value for i, value in enumerate(getattr(self, name))}
        np.savez(path, **arrays)

    @classmethod
    def load(cls, path: Path) -> "Batch":
        """Read what `save` wrote."""
        with np.load(path) as file:
            content = dict(file)
        lists = {
            name: [content[key] for i in range(10) if (key := f"{name}_{i}") in content]
            for name in ("points", "boxes", "labels")
        }
        return cls(images=content.get("images"), lidar2img=content["lidar2img"], **lists)

    @classmethod
    def join(cls, batches: Sequence["Batch"]) -> "Batch":
        """Put the samples of several into one."""
        return cls(
            points=[cloud for one in batches for cloud in one.points],
            images=np.concatenate([one.images for one in batches if one.images is not None]),
            lidar2img=np.concatenate([one.lidar2img for one in batches]),
            boxes=[boxes for one in batches for boxes in one.boxes],
            labels=[labels for one in batches for labels in one.labels],
        )


def cameras(height: int, width: int, shift: float) -> np.ndarray:
    """Projections of six cameras that look around, each 70 degrees wide. [6, 4, 4]."""
    focal = width / 2 / np.tan(np.radians(35))
    inner = np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])
    matrices = []
    for view in range(6):
        angle = np.radians(60 * view) + shift
        cos, sin = np.cos(angle), np.sin(angle)
        axes = np.array([[sin, -cos, 0], [0, 0, -1], [cos, sin, 0]])  # right, down, forward
        place = np.array([0.8 * cos, 0.8 * sin, -0.3])
        matrix = np.eye(4)
        matrix[:3, :3], matrix[:3, 3] = inner @ axes, -inner @ axes @ place
        matrices.append(matrix)
    return np.stack(matrices)


def batch(size: str, counts: Sequence[int], *, num_points: int = 2500, seed: int = 0) -> Batch:
    """A batch whose samples have so many boxes each."""
    draw = np.random.RandomState(seed)
    height, width = IMAGES.get(size, (64, 160))
    far = RANGES.get(size, 54.0)
    points, boxes, labels = [], [], []
    for count in counts:
        cloud = draw.uniform(-1, 1, (num_points, 5)) * [far, far, 4, 127, 0.25]
        cloud += [0, 0, -1, 127, 0.25]
        crowd = num_points // 4  # stands in few voxels, more points than these hold
        cloud[:crowd, :3] = draw.normal(0, [1.5, 1.5, 0.3], (crowd, 3)) + np.array([12, -7, -1])
        points.append(cloud.astype(np.float32))
        box = draw.uniform(-1, 1, (count, 9)) * [0.8 * far, 0.8 * far, 1.5, 2, 1, 1, np.pi, 6, 6]
        boxes.append((box + np.array([0, 0, -1, 3, 1.6, 1.5, 0, 0, 0])).astype(np.float32))
        labels.append(draw.randint(0, 10, count))
    images = draw.normal(0, 1, (len(counts), 6, 3, height, width))
    return Batch(
        points=[] if size == "camera" else points,
        images=None if size == "lidar" else images.astype(np.float32),
        lidar2img=np.stack([cameras(height, width, 0.02 * i) for i in range(len(counts))]),
        boxes=boxes,
        labels=labels,
    )


def inputs(case: str) -> Batch:
    """The batch of a small case."""
    size, *words = case.split(".")
    if "empty" in words:
        return batch(size, (0, 0))
    if "full" in words:
        return batch(size, (150, 2))  # more boxes than nano's 144 queries
    counts = (0, 0) if "evaluate" in words else (7, 0, 3)  # unequal; a sample without boxes
    # Crowded: more voxels than the detector takes, in training and in evaluation.
    return batch(size, counts, num_points=6000 if "crowded" in words else 2500)


def is_double(case: str) -> bool:
    """Whether a case computes in float64."""
    return "double" in case or ("float32" not in case and "keyframe" not in case)


def use_double_precision() -> None:
    """Let all that follows in this process compute in float64, on either side."""
    from spconv.pytorch.utils import PointToVoxel

    torch.set_default_dtype(torch.float64)
    Tensor.float = Tensor.double
    for name in ("arange", "as_tensor"):  # position encodings and boxes ask for float32
        setattr(torch, name, _widened(getattr(torch, name)))
    voxelize = PointToVoxel.__call__

    def with_float32(self: PointToVoxel, cloud: Tensor) -> tuple[Tensor, ...]:
        voxels, *rest = voxelize(self, cloud.to(torch.float32))
        return voxels.double(), *rest

    PointToVoxel.__call__ = with_float32


def _widened(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def wide(*given: Any, dtype: torch.dtype | None = None, **named: Any) -> Tensor:
        return make(*given, dtype=torch.float64 if dtype == torch.float32 else dtype, **named)

    return wide


def settings(cfg: Any, case: str) -> Any:
    """The config of a case: without GridMask, which draws, and small unless it is the keyframe."""
    cfg.merge_from_dict({"model.use_grid_mask": False})
    if "keyframe" not in case:
        cfg.merge_from_dict(COARSE[case.split(".")[0]])
    return cfg


def detector(build: Callable[[Any], nn.Module], cfg: Any) -> nn.Module:
    """Build the detector of a config; weights follow from names, nothing drops out."""
    model = fill(build(cfg.model)).to(torch.get_default_dtype())
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("dropout", "attn_drop"):  # torch's and our attention
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    return model


def arguments(data: Batch) -> dict[str, Any]:
    """What both detectors take, with meta data as pipelines make it."""
    from mmdet3d.core.bbox import LiDARInstance3DBoxes

    dtype = torch.get_default_dtype()
    images = None if data.images is None else torch.from_numpy(data.images.copy()).to(dtype)
    height, width = (0, 0) if images is None else images.shape[-2:]
    metas = [
        {
            "lidar2img": list(matrices),
            "pad_shape": [(height, width, 3)] * 6,
            "box_type_3d": LiDARInstance3DBoxes,
            "gt_bboxes_3d": DataContainer(
                LiDARInstance3DBoxes(torch.from_numpy(boxes).to(dtype), box_dim=9), cpu_only=True
            ),
            "gt_labels_3d": DataContainer(torch.from_numpy(labels)),
        }
        for matrices, boxes, labels in zip(data.lidar2img, data.boxes, data.labels, strict=True)
    ]
    return {
        "points": [torch.from_numpy(cloud).to(dtype) for cloud in data.points] or None,
        "img_metas": metas,
        "img": images,
    }


def training_arguments(data: Batch) -> dict[str, Any]:
    """`arguments` and the ground truth."""
    given = arguments(data)
    return given | {
        name: [meta[name].data for meta in given["img_metas"]]
        for name in ("gt_bboxes_3d", "gt_labels_3d")
    }


@contextlib.contextmanager
def watched(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Record what leaves the parts of a detector."""
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, given: Any, out: Any) -> None:
            levels = out if isinstance(out, list | tuple) else [out]
            if name == "decoder":
                levels = levels[:1]  # the public transformer returns its memory too
            for i, level in enumerate(levels):
                seen[f"{name}.{i}"] = level.detach()

        return hook

    names = {
        "pts_voxel_encoder": "voxels",
        "pts_middle_encoder": "sparse",
        "img_neck": "image",
        "pts_neck": "bev",
        "pts_bbox_head.shared_conv": "shared",
        "pts_bbox_head.transformer": "decoder",
    }
    handles = [
        part.register_forward_hook(keep(names[path]))
        for path, part in model.named_modules()
        if path in names
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def evaluate(model: nn.Module, data: Batch) -> dict[str, np.ndarray]:
    """All that a detector computes from images and points to boxes."""
    model.eval()
    given = arguments(data)
    with watched(model) as found:
        results = model.simple_test(given["points"], given["img_metas"], given["img"])
    for i, result in enumerate(results):
        boxes = result["pts_bbox"]["boxes_3d"].tensor
        # Roundings swap boxes of nearly equal scores; from left to right their order is plain.
        order = boxes[:, 0].argsort()
        found[f"boxes.{i}"] = boxes[order]
        found[f"scores.{i}"] = result["pts_bbox"]["scores_3d"]
        found[f"labels.{i}"] = result["pts_bbox"]["labels_3d"][order]
    return {name: value.numpy() for name, value in found.items()}


@contextlib.contextmanager
def noise_tape(seed: int = 11) -> Iterator[None]:
    """Let denoising take its draws from a tape: both sides ask `torch.rand_like` once a batch."""
    original = torch.rand_like

    def replay(like: Tensor, **_: Any) -> Tensor:
        draws = np.random.RandomState(seed).uniform(0, 1, tuple(like.shape))
        return torch.from_numpy(draws).to(like)

    torch.rand_like = replay
    try:
        yield
    finally:
        torch.rand_like = original


def train(model: nn.Module, data: Batch) -> dict[str, np.ndarray]:
    """Losses, gradients and moved statistics of one training batch."""
    model.train()
    with watched(model) as seen, noise_tape():
        terms = model.forward_train(**training_arguments(data))
    torch.stack(list(terms.values())).sum().backward()
    found = {**seen, **{f"loss.{name}": value.detach() for name, value in terms.items()}}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            found[f"gradient.{name}"] = parameter.grad
    found |= {f"norm.{n}": value for n, value in model.named_buffers() if "running" in n}
    return {name: value.numpy() for name, value in found.items()}


def run(case: str, build: Callable[[Any], nn.Module], cfg: Any, data: Batch) -> dict[str, Any]:
    """Run one side of a case; an error takes the place of what it found."""
    model = detector(build, settings(cfg, case))
    try:
        return evaluate(model, data) if case.endswith("evaluate") else train(model, data)
    except (ZeroDivisionError, RuntimeError, ValueError) as error:
        return {"error": np.array(f"{type(error).__name__}: {error}")}


def relative(name: str, got: np.ndarray, want: np.ndarray, *, floor: float = 0.0) -> float:
    """Largest difference over largest value.

    Args:
        name: Of the value.
        got: Ours.
        want: The public code's.
        floor: Least size of a gradient. The first decoder layer's queries and keys meet values that
            are all equal: their gradient is zero but for roundings.
    """
    if got.shape != want.shape:
        return float("inf")
    if not want.size or np.array_equal(got, want):
        return 0.0
    got, want = got.astype(np.float64), want.astype(np.float64)
    largest = max(np.abs(want).max(), floor if name.startswith("gradient.") else 0.0)
    return float(np.abs(got - want).max() / max(largest, 1e-12))


def compare(
    ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]
) -> dict[str, tuple[float, str]]:
    """For each part the largest relative difference, and where it is."""
    gradients = [np.abs(v).max() for name, v in theirs.items() if name.startswith("gradient.")]
    floor = 1e-6 * max(gradients, default=0.0)
    worst: dict[str, tuple[float, str]] = {}
    for name in sorted(ours.keys() | theirs.keys()):
        part = name.split(".")[0]
        both = name in ours and name in theirs
        found = relative(name, ours[name], theirs[name], floor=floor) if both else float("inf")
        worst[part] = max(worst.get(part, (0.0, "")), (found, name))
    return worst


def sampled(found: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Few numbers of many: of gradients and weights the norm, of others size and some entries."""
    kept: dict[str, np.ndarray] = {}
    for name, value in found.items():
        if name == "error":
            kept[name] = value
            continue
        value = value.astype(np.float64)
        if name.startswith(("gradient.", "weight.", "norm.")):
            kept[name] = np.linalg.norm(value)
        elif value.size <= _SAMPLES:
            kept[name] = value
        else:
            places = np.linspace(0, value.size - 1, _SAMPLES).astype(int)
            whole = [value.mean(), np.sqrt((value**2).mean())]
            kept[name] = np.concatenate([whole, value.ravel()[places]])
    return kept


def save_golden(case: str, found: Mapping[str, np.ndarray]) -> None:
    """Keep some of the public side's numbers, as one array: a file of many is mostly headers."""
    kept = sampled(found)
    index = json.dumps({name: list(np.shape(value)) for name, value in kept.items()})
    values = np.concatenate([np.ravel(value) for value in kept.values()])
    GOLDEN.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(GOLDEN / f"{case}.npz", index=np.array(index), values=values)


def golden(case: str) -> dict[str, np.ndarray]:
    """What `save_golden` kept."""
    with np.load(GOLDEN / f"{case}.npz") as file:
        shapes, values = json.loads(str(file["index"])), file["values"]
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes.values()])
    parts = np.split(values, ends[:-1])
    return {name: part.reshape(shapes[name]) for name, part in zip(shapes, parts, strict=True)}
