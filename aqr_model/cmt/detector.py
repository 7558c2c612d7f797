"""CMT: images and points, or one of them, through their backbones into the head's transformer."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmdet3d.core import bbox3d2result
from mmdet3d.models import DETECTORS
from mmdet3d.models.detectors import MVXTwoStageDetector
from torch import Tensor

from aqr_model.aqr.formats import autocast
from aqr_model.cmt.images.grid_mask import GridMask
from aqr_model.cmt.images.pixels import normalised
from aqr_model.cmt.loss.step_totals import StepTotals, counted_over
from aqr_model.cmt.voxelize import SpconvVoxelizer


@DETECTORS.register_module()
class CmtDetector(MVXTwoStageDetector):
    """The detector of CMT (ICCV 2023): cameras and LiDAR, with or without AQR, or one sensor.

    Args:
        use_grid_mask: Hide a grid of squares in the images while training.
        pts_voxel_layer: Arguments of :class:`SpconvVoxelizer`.
        kwargs: Parts of ``MVXTwoStageDetector``: backbones, necks, ``pts_bbox_head``,
            ``train_cfg``, ``test_cfg``.

    Raises:
        ValueError: If the backbones are not those of the sensors that the head reads.

    Attributes:
        image_dtype: What the image branch computes in where autocast allows, None for float32.
        bev_dtype: Likewise, backbone and neck of the LiDAR branch.

    Features leave both branches in float32.
    """

    image_dtype: torch.dtype | None = None
    bev_dtype: torch.dtype | None = None

    def __init__(
        self, use_grid_mask: bool = False, pts_voxel_layer: dict | None = None, **kwargs
    ) -> None:
        super().__init__(**kwargs)
        built = {"lidar": self.with_pts_backbone, "camera": self.with_img_backbone}
        if self.with_pts_bbox and built != {s: s in self.pts_bbox_head.sensors for s in built}:
            head = self.pts_bbox_head
            raise ValueError(
                f"{type(head).__name__} reads {' and '.join(head.sensors)}, and the detector must"
                f" have the backbones of just these, but has those of"
                f" {' and '.join(s for s in built if built[s]) or 'none'}. Give it `pts_backbone`"
                " for lidar and `img_backbone` for camera, or take another head."
            )
        self.grid_mask = GridMask() if use_grid_mask else None
        if pts_voxel_layer is not None:
            self.pts_voxel_layer = SpconvVoxelizer(**pts_voxel_layer)

    def extract_img_feat(self, img: Tensor | None, img_metas: Sequence[dict]) -> list:
        """Image features of every view.

        B batch, V views.

        Args:
            img: Padded; normalised floats, or uint8. [B, V, 3, H, W]
            img_metas: With uint8, ``img_norm_cfg`` says how to normalise.

        Returns:
            One map a level, ``[None]`` without a camera branch; float32. Each [B * V, C, H_i, W_i]
        """
        if img is None or not self.with_img_backbone:
            return [None]
        images = normalised(img, img_metas)
        images = images.flatten(0, 1) if images.dim() == 5 else images
        if self.grid_mask is not None:
            images = self.grid_mask(images)
        with autocast(images.device, self.image_dtype):
            features = self.img_backbone(images)
            if self.with_img_neck:
                features = self.img_neck(features)
        return [level.float() for level in features]

    def extract_pts_feat(
        self, pts: Sequence[Tensor] | None, img_feats=None, img_metas=None
    ) -> list:
        """BEV features of the point clouds.

        Args:
            pts: One cloud a sample. Each [N_i, C]
            img_feats: Unused; part of mmdet3d's call.
            img_metas: Unused; part of mmdet3d's call.

        Returns:
            One map a level, ``[None]`` without a LiDAR branch. Each [B, C, H, W]
        """
        if pts is None or not self.with_pts_backbone:
            return [None]
        device = pts[0].device
        # Sums over points and sparse kernels lose too much in half precision.
        with autocast(device, None):
            voxels, counts, coordinates = self.voxelize(pts)
            features = self.pts_voxel_encoder(voxels, counts, coordinates)
            x = self.pts_middle_encoder(features, coordinates, len(pts))
        with autocast(device, self.bev_dtype):
            x = self.pts_backbone(x)
            levels = self.pts_neck(x) if self.with_pts_neck else x
        return [level.float() for level in levels]

    @torch.no_grad()
    def voxelize(self, points: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Voxelise a batch of clouds.

        Args:
            points: One cloud a sample. Each [N_i, C]

        Returns:
            voxels: [M, K, C]
            counts: Points of each voxel. [M]
            coordinates: Sample, z, y, x. [M, 4]
        """
        parts = [self.pts_voxel_layer(cloud) for cloud in points]
        voxels = torch.cat([voxel for voxel, _, _ in parts])
        coordinates = torch.cat(
            [F.pad(zyx, (1, 0), value=i) for i, (_, zyx, _) in enumerate(parts)]
        )
        counts = torch.cat([count for _, _, count in parts])
        return voxels, counts, coordinates

    def extract_feat(self, points, img, img_metas) -> tuple[list, list]:
        """Features of both branches: (image maps, BEV maps)."""
        return self.extract_img_feat(img, img_metas), self.extract_pts_feat(points)

    # mmdet3d calls it by keyword; its 2D arguments have no use here.
    def forward_train(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        points: Sequence[Tensor] | None = None,
        img_metas: Sequence[dict] = (),
        gt_bboxes_3d: Sequence | None = None,
        gt_labels_3d: Sequence[Tensor] | None = None,
        img: Tensor | None = None,
        step_totals: StepTotals | None = None,
    ) -> dict[str, Tensor]:
        """Losses of one batch, one scalar a term; see `counted_over` for ``step_totals``."""
        img_feats, pts_feats = self.extract_feat(points, img, img_metas)
        with counted_over(step_totals):
            outs = self.pts_bbox_head(pts_feats, img_feats, img_metas)
            return self.pts_bbox_head.loss(gt_bboxes_3d, gt_labels_3d, outs)

    def simple_test(self, points, img_metas, img=None, rescale=False) -> list[dict]:
        """Boxes of each sample under ``pts_bbox``: ``boxes_3d``, ``scores_3d``, ``labels_3d``."""
        img_feats, pts_feats = self.extract_feat(points, img, img_metas)
        outs = self.pts_bbox_head(pts_feats, img_feats, img_metas)
        found = self.pts_bbox_head.get_bboxes(outs, img_metas)
        return [{"pts_bbox": bbox3d2result(*result)} for result in found]

    def forward_test(self, points=None, img_metas=None, img=None, **kwargs) -> list[dict]:
        """Boxes of each sample; arguments are lists of one entry, as test pipelines give them."""
        if any(arg is not None and len(arg) != 1 for arg in (points, img_metas, img)):
            raise ValueError(
                "test-time augmentation is no part of CMT: one variant of each sample must come "
                "in; use one scale and no flip in the test pipeline"
            )
        first = [arg[0] if arg is not None else None for arg in (points, img_metas, img)]
        return self.simple_test(first[0], first[1], first[2], **kwargs)
