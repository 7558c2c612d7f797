"""Whole detectors on inputs made by arithmetic: what ours and the public code both run.

Nothing here knows which of the two it runs, and nothing imports `aqr_model`, whose types the public
code registers too. `scripts/parity/model.py` runs it on both sides; the tests run it on ours and
compare with the numbers that the public side gave (tests/data/parity).

A case is named by its size, its input and what is done: `r50.crowded.train`. Small cases compute in
float64, where a rounding decides no edge of a ReLU and no matching: what differs is a defect, on
any machine. Cases with `float32` or `keyframe` in the name compute as a training does.
"""

import contextlib
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
}
RANGES = {"r50": 54.0, "vov": 54.0, "nano": 40.96}
IMAGES = {"r50": (64, 160), "vov": (64, 160), "nano": (128, 320)}


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Inputs of a detector. B samples, six views.

    Attributes:
        points: x, y, z, intensity, age. B of [N, 5]
        images: Normalised and padded. [B, 6, 3, H, W]
        lidar2img: [B, 6, 4, 4]
        boxes: Bottom centres. B of [G, 9]
        labels: B of [G]
    """

    points: Sequence[np.ndarray]
    images: np.ndarray
    lidar2img: np.ndarray
    boxes: Sequence[np.ndarray]
    labels: Sequence[np.ndarray]

    def save(self, path: Path) -> None:
        """Write it, for the other side."""
        arrays = {"images": self.images, "lidar2img": self.lidar2img}
        for name in ("points", "boxes", "labels"):
            arrays |= {f"{name}_{i}": value for i, value in enumerate(getattr(self, name))}
        np.savez(path, **arrays)

    @classmethod
    def load(cls, path: Path) -> "Batch":
        """Read what `save` wrote."""
        with np.load(path) as file:
            content = dict(file)
        lists = {
            name: [content[f"{name}_{i}"] for i in range(len(content["images"]))]
            for name in ("points", "boxes", "labels")
        }
        return cls(images=content["images"], lidar2img=content["lidar2img"], **lists)

    @classmethod
    def join(cls, batches: Sequence["Batch"]) -> "Batch":
        """Put the samples of several into one."""
        return cls(
            points=[cloud for one in batches for cloud in one.points],
            images=np.concatenate([one.images for one in batches]),
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
    height, width = IMAGES[size]
    far = RANGES[size]
    points, boxes, labels = [], [], []
    for count in counts:
        cloud = draw.uniform(-1, 1, (num_points, 5)) * [far, far, 4, 127, 0.25]
        cloud += [0, 0, -1, 127, 0.25]
        crowd = num_points // 4  # stands in few voxels, more points than these hold
        cloud[:crowd, :3] = draw.normal(0, [1.5, 1.5, 0.3], (crowd, 3)) + [12, -7, -1]
        points.append(cloud.astype(np.float32))
        box = draw.uniform(-1, 1, (count, 9)) * [0.8 * far, 0.8 * far, 1.5, 2, 1, 1, np.pi, 6, 6]
        boxes.append((box + [0, 0, -1, 3, 1.6, 1.5, 0, 0, 0]).astype(np.float32))
        labels.append(draw.randint(0, 10, count))
    return Batch(
        points=points,
        images=draw.normal(0, 1, (len(counts), 6, 3, height, width)).astype(np.float32),
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
    # Unequal numbers of boxes, and a sample without any.
    counts = (0, 0) if "evaluate" in words else (7, 0, 3)
    # Crowded: more voxels than the detector takes, in training and in evaluation.
    return batch(size, counts, num_points=6000 if "crowded" in words else 2500)


def is_double(case: str) -> bool:
    """Whether a case computes in float64."""
    return "double" in case or not ("float32" in case or "keyframe" in case)


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
        elif isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
    return model


def arguments(data: Batch) -> dict[str, Any]:
    """What both detectors take, with meta data as pipelines make it."""
    from mmdet3d.core.bbox import LiDARInstance3DBoxes

    dtype = torch.get_default_dtype()
    height, width = data.images.shape[-2:]
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
        "points": [torch.from_numpy(cloud).to(dtype) for cloud in data.points],
        "img_metas": metas,
        "img": torch.from_numpy(data.images.copy()).to(dtype),
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

    parts = {
        "voxels": model.pts_voxel_encoder,
        "sparse": model.pts_middle_encoder,
        "image": model.img_neck,
        "bev": model.pts_neck,
        "shared": model.pts_bbox_head.shared_conv,
        "decoder": model.pts_bbox_head.transformer,
    }
    handles = [part.register_forward_hook(keep(name)) for name, part in parts.items()]
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


def relative(got: np.ndarray, want: np.ndarray, *, least: float = 0.0) -> float:
    """Largest difference over largest value, or over `least` if that is larger."""
    if got.shape != want.shape:
        return float("inf")
    if not want.size or np.array_equal(got, want):
        return 0.0
    got, want = got.astype(np.float64), want.astype(np.float64)
    return float(np.abs(got - want).max() / max(np.abs(want).max(), least, 1e-12))


def compare(
    ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]
) -> dict[str, tuple[float, str]]:
    """For each part the largest relative difference, and where it is."""
    gradients = [np.abs(v).max() for name, v in theirs.items() if name.startswith("gradient.")]
    # The first decoder layer's queries and keys meet values that are all equal: their gradient is
    # zero but for roundings, which are compared with nothing.
    least = {"gradient": 1e-6 * max(gradients, default=0.0)}
    worst: dict[str, tuple[float, str]] = {}
    for name in sorted(ours.keys() | theirs.keys()):
        part = name.split(".")[0]
        found = float("inf")
        if name in ours and name in theirs:
            found = relative(ours[name], theirs[name], least=least.get(part, 0.0))
        worst[part] = max(worst.get(part, (0.0, "")), (found, name))
    return worst


_NORMS = ("gradient", "weight", "norm")


def sampled(found: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Few numbers of many.

    Of gradients, weights and statistics the norms, each kind in one array, by name; of all else the
    mean, the size and some entries.
    """
    kept: dict[str, np.ndarray] = {}
    for kind in _NORMS:
        names = sorted(name for name in found if name.startswith(kind + "."))
        if names:
            kept[kind] = np.array([np.linalg.norm(found[n].astype(np.float64)) for n in names])
    for name, value in found.items():
        if name.split(".")[0] in _NORMS:
            continue
        if value.size > _SAMPLES:
            value = value.astype(np.float64)
            places = np.linspace(0, value.size - 1, _SAMPLES).astype(int)
            whole = [value.mean(), np.sqrt((value**2).mean())]
            value = np.concatenate([whole, value.ravel()[places]])
        kept[name] = value
    return kept


def distance(name: str, got: np.ndarray, want: np.ndarray) -> float:
    """Relative difference of what `sampled` kept: norms each by itself, others by the largest."""
    if name not in _NORMS:
        return relative(got, want)
    if got.shape != want.shape:
        return float("inf")
    return float((np.abs(got - want) / np.maximum(want, 1e-6 * want.max())).max())
