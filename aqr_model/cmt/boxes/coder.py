"""From the last decoder layer to scored boxes: no threshold on scores, no NMS."""

from collections.abc import Sequence

import torch
from mmdet.core.bbox.builder import BBOX_CODERS
from torch import Tensor

from aqr_model.aqr.crossings import constant
from aqr_model.cmt.boxes.box_codec import decode_boxes, join_branches


@BBOX_CODERS.register_module()
class MultiTaskBBoxCoder:
    """Keep the best (query, class) pairs of all tasks.

    B batch, Q queries, T tasks, K classes of all tasks.
    """

    def __init__(
        self,
        pc_range: Sequence[float],
        post_center_range: Sequence[float],
        voxel_size: Sequence[float] | None = None,
        max_num: int = 100,
        score_threshold: float | None = None,
        num_classes: int = 10,
    ) -> None:
        """Take the limits.

        Args:
            pc_range: Range of the point cloud, metres; low then high.
            post_center_range: Boxes with a centre outside are dropped, metres.
            voxel_size: Kept for whoever needs the voxel size of the model, metres.
            max_num: Most boxes of a sample.
            score_threshold: Boxes must score higher, if given.
            num_classes: K.
        """
        self.pc_range = list(pc_range)
        self.post_center_range = list(post_center_range)
        self.voxel_size = voxel_size
        self.max_num = max_num
        self.score_threshold = score_threshold
        self.num_classes = num_classes

    def decode(self, preds_dicts: Sequence[Sequence[dict[str, Tensor]]]) -> list[dict[str, Tensor]]:
        """Decode a batch.

        Args:
            preds_dicts: For each task, a list of one dict of branches. [N, B, Q, channels]

        Returns:
            For each sample: `bboxes` (gravity centres) [M, 9], `scores` [M], `labels` [M].
        """
        outputs = [
            {name: out[-1] for name, out in task[0].items() if isinstance(out, Tensor)}
            for task in preds_dicts
        ]
        logits = torch.cat([out["cls_logits"] for out in outputs], dim=-1)  # [B, Q, K]
        boxes = torch.cat([join_branches(out) for out in outputs], dim=1)  # [B, T * Q, 10]
        num_queries, num_classes = logits.shape[1:]
        if num_classes != self.num_classes:
            raise ValueError(
                f"`num_classes` must be the number of classes of all tasks ({num_classes}), but"
                f" got {self.num_classes}. Set it in `bbox_coder`."
            )
        task_of_class = torch.cat(
            [
                torch.full((out["cls_logits"].shape[-1],), task, device=logits.device)
                for task, out in enumerate(outputs)
            ]
        )
        flat = logits.sigmoid().flatten(1)
        scores, best = flat.topk(min(self.max_num, flat.shape[1]))
        labels = best % num_classes
        rows = task_of_class[labels] * num_queries + best // num_classes
        kept = decode_boxes(boxes.gather(1, rows[..., None].expand(-1, -1, boxes.shape[-1])))
        inside = self._inside(kept[..., :3])
        if self.score_threshold is not None:
            inside &= scores > self.score_threshold
        return [
            {"bboxes": sample[keep], "scores": score[keep], "labels": label[keep]}
            for sample, score, label, keep in zip(kept, scores, labels, inside, strict=True)
        ]

    def _inside(self, centres: Tensor) -> Tensor:
        """Whether centres lie in `post_center_range`. [..., 3] to [...]."""
        low, high = constant(self.post_center_range, centres).split(3)
        return ((centres >= low) & (centres <= high)).all(dim=-1)
