"""Denoising queries: noisy ground-truth centres that learn to find their boxes again.

They stand before the matching queries, in groups of equal size. Groups do not see each other and
matching queries do not see them, so nothing leaks from the ground truth.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from mmcv.parallel import DataContainer
from torch import Tensor

from aqr_model.aqr.crossings import read, upload
from aqr_model.cmt.decoder.projections import Groups
from aqr_model.cmt.loss.step_totals import StepTotals, current_totals
from aqr_model.cmt.position import PointRange


@dataclass(frozen=True, kw_only=True)
class GroundTruth:
    """Boxes of one sample on the host: gravity centres [G, 9], labels over all tasks [G].

    They stay there: what is made of them is sent to the device in one piece.

    Attributes:
        noise_seed: Seeds the sample's denoising noise, so that it does not depend on the other
            samples of its batch; None draws from torch's global generator.
    """

    boxes: Tensor
    labels: Tensor
    noise_seed: int | None = None

    @classmethod
    def from_instances(
        cls, boxes: Any, labels: Tensor, noise_seed: int | None = None
    ) -> "GroundTruth":
        """Take mmdet3d boxes (or a DataContainer of them) and their labels."""
        boxes, labels = _unpack(boxes), _unpack(labels)
        tensor = torch.cat([boxes.gravity_center, boxes.tensor[:, 3:]], dim=1)
        if tensor.device.type != "cpu" or labels.device.type != "cpu":
            tensor, labels = read([tensor, labels], "ground truth that came on the device")
        return cls(boxes=tensor.float(), labels=labels.long(), noise_seed=noise_seed)

    def of_classes(self, first: int, num_classes: int) -> "GroundTruth":
        """Keep the boxes of a task's classes and count labels from its first class."""
        mask = (self.labels >= first) & (self.labels < first + num_classes)
        return GroundTruth(boxes=self.boxes[mask], labels=self.labels[mask] - first)

    @classmethod
    def from_meta(cls, meta: Mapping[str, Any]) -> "GroundTruth":
        """Read `gt_bboxes_3d` and `gt_labels_3d` of a sample's meta data."""
        missing = [key for key in ("gt_bboxes_3d", "gt_labels_3d") if key not in meta]
        if missing:
            raise ValueError(
                f"`img_metas` must hold {' and '.join(missing)} in training, for the denoising"
                " queries. Add them to `meta_keys` of the pipeline's last Collect3D."
            )
        return cls.from_instances(
            meta["gt_bboxes_3d"], meta["gt_labels_3d"], meta.get("noise_seed")
        )


@dataclass(frozen=True, kw_only=True)
class DenoisingSpec:
    """How denoising queries are made."""

    max_groups: int
    noise_scale: float
    noise_trans: float  # metres
    split: float  # a noise vector longer than this makes the target background

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.max_groups < 0 or self.noise_scale < 0 or self.split < 0:
            raise ValueError(
                f"`scalar`, `noise_scale` and `split` must be >= 0, but got ({self.max_groups},"
                f" {self.noise_scale}, {self.split})."
            )

    def groups(self, largest: int, num_query: int) -> int:
        """Groups of a batch.

        Args:
            largest: Boxes of its fullest sample.
            num_query: Number of matching queries, which bounds that of denoising queries.
        """
        return min(self.max_groups, num_query // max(largest, 1))


@dataclass(frozen=True, kw_only=True)
class DenoisingQueries:
    """Denoising queries of a batch. P slots a sample, R real queries of the whole batch.

    All but the reference points stay on the host, as the ground truth does. Slots that no box
    fills stay at the range's corner, as public checkpoints were trained; they carry no loss.
    """

    reference_points: Tensor  # fractions of the range, on the device. [B, P, 3]
    num_groups: int
    sample: Tensor  # [R]
    slot: Tensor  # [R]
    boxes: Tensor  # targets. [R, 9]
    labels: Tensor  # true classes. [R]
    is_background: Tensor  # the noise was too large to still call it the class. [R]
    num_in_step: int  # real queries of all batches of the optimizer step; R if it has one

    @property
    def groups(self) -> Groups:
        """How the slots fall into groups."""
        return Groups(self.num_groups, self.num_slots // self.num_groups)

    @property
    def num_slots(self) -> int:
        """P."""
        return self.reference_points.shape[1]

    @property
    def num_real(self) -> int:
        """R."""
        return len(self.labels)


def draw_noise(like: Tensor) -> Tensor:
    """Uniform noise in [-1, 1) from torch's global generator."""
    return torch.rand_like(like) * 2 - 1


def draw_seeded_noise(truths: Sequence[GroundTruth], groups: int) -> Tensor:
    """Uniform noise in [-1, 1), of each sample by its own seed.

    Args:
        truths: One for each sample, G boxes in all.
        groups: Draws for each box.

    Returns:
        In the order of `make_queries`: group by group, in it sample by sample. [groups * G, 3]
    """
    drawn = []
    for truth in truths:
        generator = torch.Generator().manual_seed(truth.noise_seed or 0)
        drawn.append(torch.rand(groups, len(truth.labels), 3, generator=generator))
    return torch.cat(drawn, dim=1).flatten(0, 1) * 2 - 1


def make_queries(
    truths: Sequence[GroundTruth],
    *,
    num_query: int,
    spec: DenoisingSpec,
    point_range: PointRange,
    device: torch.device,
) -> DenoisingQueries | None:
    """Make the denoising queries of a batch.

    The number of groups and of slots in a group follows from the sample with most boxes: of the
    batch, or inside `counted_over`, if its totals ask for equal slots, of the whole step.

    Args:
        truths: One for each sample.
        num_query: Number of matching queries, which bounds that of denoising queries.
        spec: Noise and groups.
        point_range: Range of the reference points.
        device: Where the reference points shall stand.

    Returns:
        None if the batch has no ground truth, or a sample has more boxes than queries.
    """
    counts = [len(truth.labels) for truth in truths]
    if not sum(counts):
        return None
    totals = current_totals() or StepTotals.of_batch(
        num_samples=len(truths), boxes=sum(counts), largest=max(counts)
    )
    largest = totals.largest_of(max(counts))
    groups = spec.groups(largest, num_query)
    if not groups:
        return None
    boxes = torch.cat([truth.boxes for truth in truths]).repeat(groups, 1)
    labels = torch.cat([truth.labels for truth in truths]).repeat(groups)
    sample = torch.repeat_interleave(torch.tensor(counts)).repeat(groups)
    within = torch.cat([torch.arange(count) for count in counts])
    slot = (within + largest * torch.arange(groups)[:, None]).flatten()
    if any(truth.noise_seed is None for truth in truths):
        noise = draw_noise(boxes[:, :3])
    else:
        noise = draw_seeded_noise(truths, groups)
    shift = noise * (boxes[:, 3:6] / 2 + spec.noise_trans) * spec.noise_scale
    centres = point_range.normalise(boxes[:, :3] + shift).clamp(0, 1)
    reference_points = boxes.new_zeros(len(truths), groups * largest, 3)
    reference_points[sample, slot] = centres
    (on_device,) = upload([reference_points], device, "denoising queries")
    return DenoisingQueries(
        reference_points=on_device,
        num_groups=groups,
        sample=sample,
        slot=slot,
        boxes=boxes,
        labels=labels,
        is_background=noise.norm(dim=1) > spec.split,
        num_in_step=sum(
            boxes * spec.groups(totals.largest_of(fullest), num_query)
            for boxes, fullest in totals.by_batch
        ),
    )


def _unpack(value: Any) -> Any:
    return value.data if isinstance(value, DataContainer) else value
