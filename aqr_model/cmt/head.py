"""The CMT head: queries that read BEV and camera tokens and become boxes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from mmcv.cnn import ConvModule
from mmcv.runner import BaseModule, ModuleList
from mmdet.core import build_assigner, build_bbox_coder
from mmdet.models.builder import HEADS, build_head, build_loss
from mmdet.models.utils import build_transformer
from mmdet.models.utils.transformer import inverse_sigmoid
from torch import Tensor, nn

from aqr_model.aqr import BevGrid
from aqr_model.aqr.crossings import places, upload
from aqr_model.aqr.formats import autocast
from aqr_model.cmt import denoising, routing
from aqr_model.cmt.decoder.transformer import memory_tokens
from aqr_model.cmt.denoising import DenoisingQueries, DenoisingSpec, GroundTruth
from aqr_model.cmt.loss.criterion import CmtCriterion, Outputs
from aqr_model.cmt.position import (
    Cameras,
    PointRange,
    grid_encoding,
    pixel_rays,
    point_encoding,
    project,
    ray_depths,
    ray_points,
)
from aqr_model.cmt.routing import RoutingInputs

POINT_SETTINGS = ("assigner", "code_weights", "grid_size", "voxel_size")
"""What the head reads of `train_cfg`, and without it of `test_cfg`; the rest serves other heads."""


@dataclass(frozen=True, kw_only=True)
class DecoderInputs:
    """What the head makes for its transformer.

    B batch, C channels, T memory tokens, P denoising slots, Q matching queries.
    """

    memory: Tensor  # BEV tokens row by row, then cameras, routed. [B, T, C]
    memory_pos: Tensor  # [B, T, C]
    query_pos: Tensor  # [B, P + Q, C]
    reference_points: Tensor  # fractions of the point-cloud range. [B, P + Q, 3]
    denoising: DenoisingQueries | None


@HEADS.register_module()
class CmtHead(BaseModule):
    """CMT's fusion head, optionally with Adaptive Query Routing before its transformer.

    B batch, V views, C hidden channels, Q matching queries, P denoising slots, N decoder layers.

    Attributes:
        sensors: Whose features this head reads.

    Source: Cross Modal Transformer, ICCV 2023; repository junjie18/CMT, commit d3b1d78,
    `cmt_head.py`, for names, formulas and defaults.
    """

    sensors: ClassVar[tuple[str, ...]] = ("lidar", "camera")

    def __init__(
        self,
        in_channels: int,
        tasks: Sequence[Mapping[str, Any]],
        common_heads: Mapping[str, tuple[int, int]],
        separate_head: Mapping[str, Any],
        transformer: dict[str, Any],
        bbox_coder: dict[str, Any],
        loss_cls: dict[str, Any],
        loss_bbox: dict[str, Any],
        loss_heatmap: dict[str, Any] | None = None,
        num_query: int = 900,
        hidden_dim: int = 128,
        depth_num: int = 64,
        downsample_scale: int = 8,
        scalar: int = 10,
        noise_scale: float = 1.0,
        noise_trans: float = 0.0,
        dn_weight: float = 1.0,
        split: float = 0.75,
        reference_init: str = "uniform",
        train_cfg: Mapping[str, Any] | None = None,
        test_cfg: Mapping[str, Any] | None = None,
        enable_aqr: bool = False,
        aqr_config: dict[str, Any] | None = None,
        renderer_config: dict[str, Any] | None = None,
        modulator_config: dict[str, Any] | None = None,
        use_simple_modulation: bool = False,
        debug_mode: bool = False,
        visualization_interval: int = 0,
        init_cfg: dict[str, Any] | None = None,
    ) -> None:
        """Build the head from the keys of public and of the users' configs.

        Args:
            in_channels: Of the BEV features.
            tasks: Each with its `class_names`; labels count through all tasks.
            common_heads: Regression branches: (channels, convolutions).
            separate_head: Config of a task's head.
            transformer: Config of the transformer.
            bbox_coder: Config of the coder; its `pc_range` is the head's.
            loss_cls: Focal loss.
            loss_bbox: L1 loss.
            loss_heatmap: Unused; public configs carry it.
            num_query: Q.
            hidden_dim: C.
            depth_num: Points along a camera ray.
            downsample_scale: Voxels along one side of a BEV cell.
            scalar: Most denoising groups.
            noise_scale: Of denoising centres, in half box sizes.
            noise_trans: Added to half the box size, metres.
            dn_weight: Weight of the denoising losses.
            split: Noise beyond which a denoising query counts as background.
            reference_init: `uniform` in the range (public), or `grid`: the cell centres of a
                square grid at half height.
            train_cfg: `assigner`, `code_weights`, `grid_size`.
            test_cfg: `grid_size`, if there is no `train_cfg`.
            enable_aqr: Route features by query weights before the transformer.
            aqr_config: Of the weight generator; its `semantics` is all parts', see
                `aqr_model.aqr.AqrSemantics`.
            renderer_config: Of the weight renderer.
            modulator_config: Of the feature modulator.
            use_simple_modulation: Scale features by the map alone; `modulator_config` is not read.
            debug_mode: Unused; the users' configs carry it. Statistics: set `collect_aqr`, then
                `aqr_model.aqr.aqr_statistics(**head.last_aqr)` after a forward.
            visualization_interval: Steps between two statistics of AQR, which a training takes; 0
                for none.
            init_cfg: mmcv's initialisation config.

        Raises:
            ValueError: If a setting is out of range, or AQR is asked for with one sensor.
        """
        super().__init__(init_cfg)
        if enable_aqr and len(self.sensors) < 2:
            raise ValueError(
                f"`enable_aqr` must be False for {type(self).__name__}: query routing weighs LiDAR"
                f" against cameras, but this head reads {' '.join(self.sensors)} alone. Use CmtHead"
                " with both sensors, or turn AQR off."
            )
        if reference_init not in ("uniform", "grid"):
            raise ValueError(
                f"`reference_init` must be 'uniform' or 'grid', but got {reference_init!r}."
            )
        if reference_init == "grid":
            _grid_side(num_query)
        if train_cfg is None and test_cfg is None:
            raise ValueError("`train_cfg` or `test_cfg` must be given: they hold `grid_size`.")
        self.visualization_interval = visualization_interval if enable_aqr else 0
        self.num_query = num_query
        self.hidden_dim = hidden_dim
        self.depth_num = depth_num
        self.downsample_scale = downsample_scale
        self.reference_init = reference_init
        self.class_names = [list(task["class_names"]) for task in tasks]
        self._point_cfg: Mapping[str, Any] = train_cfg or test_cfg or {}
        self.denoising = DenoisingSpec(
            max_groups=scalar, noise_scale=noise_scale, noise_trans=noise_trans, split=split
        )
        self.fp16_enabled = False  # mmcv's fp16 hook looks for it

        self.loss_cls = build_loss(
            dict(loss_cls)
            | ({"type": "SigmoidFocalLoss"} if loss_cls["type"] == "FocalLoss" else {})
        )
        self.loss_bbox = build_loss(loss_bbox)
        self.bbox_coder = build_bbox_coder(bbox_coder)
        self.point_range = PointRange.from_list(self.bbox_coder.pc_range)
        self.criterion = None
        if train_cfg is not None:
            self.criterion = CmtCriterion(
                assigner=build_assigner(train_cfg["assigner"]),
                loss_cls=self.loss_cls,
                loss_bbox=self.loss_bbox,
                code_weights=tuple(map(float, train_cfg["code_weights"])),
                num_classes=tuple(map(len, self.class_names)),
                split=split,
                dn_weight=dn_weight,
            )

        self.shared_conv = None
        if "lidar" in self.sensors:
            self.shared_conv = ConvModule(
                in_channels, hidden_dim, kernel_size=3, padding=1, norm_cfg={"type": "BN2d"}
            )
        self.transformer = build_transformer(transformer)
        self.reference_points = nn.Embedding(num_query, 3)
        self.bev_embedding = _mlp(hidden_dim * 2, hidden_dim, hidden_dim)
        self.rv_embedding = None
        if "camera" in self.sensors:
            self.rv_embedding = _mlp(depth_num * 3, hidden_dim * 4, hidden_dim)
        # mmcv's ModuleList: torch's hides its children from `init_weights`, so that in the public
        # code the configured `init_bias` never takes effect.
        self.task_heads = ModuleList(
            build_head(
                dict(separate_head)
                | {
                    "in_channels": hidden_dim,
                    "heads": dict(common_heads) | {"cls_logits": (num, 2)},
                    "groups": self.transformer.decoder.num_layers,
                }
            )
            for num in map(len, self.class_names)
        )

        self.decoder_dtype: torch.dtype | None = None  # None computes in float32
        self.enable_aqr = enable_aqr
        self.collect_aqr = False
        self.last_aqr: dict[str, Any] | None = None
        if enable_aqr:
            parts = routing.build_parts(
                embed_dims=hidden_dim,
                aqr_config=aqr_config,
                renderer_config=renderer_config,
                modulator_config=modulator_config,
                use_simple_modulation=use_simple_modulation,
            )
            self.aqr_weight_generator, self.weight_renderer, self.feature_modulator = parts
            self.aqr_semantics = routing.read_semantics(aqr_config)
            self.bev_grid = self._true_grid()

    def _true_grid(self) -> BevGrid:
        """The BEV features in metres.

        The true cell, which need not divide the range: R50 has 0.8 m cells and ends at 48.4 m.
        """
        voxel_size = self._point_cfg.get("voxel_size") or self.bbox_coder.voxel_size
        if voxel_size is None:
            raise ValueError(
                "`voxel_size` must be given in `train_cfg`, `test_cfg` or `bbox_coder`: query"
                " routing needs the true size of a BEV cell."
            )
        return BevGrid(
            point_cloud_range=self.bbox_coder.pc_range,
            voxel_size=voxel_size,
            stride=self.downsample_scale,
        )

    def set_epoch(self, epoch: float, total_epochs: float) -> None:
        """Take today's values of AQR's schedules; without AQR or schedules nothing changes.

        Args:
            epoch: Epochs trained so far, fractional.
            total_epochs: Length of the training.
        """
        if self.enable_aqr:
            self.weight_renderer.set_epoch(epoch, total_epochs)
            self.feature_modulator.set_epoch(epoch, total_epochs)

    def init_weights(self) -> None:
        """Initialise all parts, then the reference points."""
        super().init_weights()
        with torch.no_grad():
            if self.reference_init == "grid":
                self.reference_points.weight.copy_(_grid_points(self.num_query))
            else:
                self.reference_points.weight.uniform_(0, 1)

    def forward(
        self,
        pts_feats: Sequence[Tensor | None],
        img_feats: Sequence[Tensor | None],
        img_metas: Sequence[Mapping[str, Any]],
    ) -> Outputs:
        """Predict boxes; in training also those of the denoising queries.

        Args:
            pts_feats: BEV features, the first level is used; `[None]` if this head reads none.
                [B, in_channels, H, W]
            img_feats: Camera features, likewise. [B * V, C, h, w]
            img_metas: Of cameras `lidar2img` and `pad_shape`; in training `gt_bboxes_3d` and
                `gt_labels_3d`.

        Returns:
            For each task a list of one dict: `center`, `height`, `dim`, `rot`, `vel` and
            `cls_logits` [N, B, Q, channels]; in training also the same with `dn_` before the name
            [N, B, P, channels] and `dn_queries`, which is None without ground truth.
        """
        x, x_img = pts_feats[0], img_feats[0]
        given = {"lidar": x is not None, "camera": x_img is not None}
        if given != {sensor: sensor in self.sensors for sensor in given}:
            raise ValueError(
                f"{type(self).__name__} must get features of {' and '.join(self.sensors)}, but got"
                f" those of {' and '.join(name for name in given if given[name]) or 'none'}."
                " Simulate a missing sensor by zeroed input."
            )
        with autocast(self.reference_points.weight.device, None):
            return self._forward(x, x_img, img_metas)

    def _forward(
        self, x: Tensor | None, x_img: Tensor | None, img_metas: Sequence[Mapping[str, Any]]
    ) -> Outputs:
        bev = None
        if x is not None and self.shared_conv is not None:
            with autocast(x.device, self.decoder_dtype):
                bev = self.shared_conv(x.float()).float()
        camera = None if x_img is None else x_img.float()
        inputs = self.decoder_inputs(bev, camera, img_metas)
        queries = inputs.denoising
        groups = None if queries is None else queries.groups
        with autocast(inputs.memory.device, self.decoder_dtype):
            decoded = self.transformer(inputs.memory, inputs.memory_pos, inputs.query_pos, groups)
        return [
            [self._predict(head, decoded.float(), inputs.reference_points, queries)]
            for head in self.task_heads
        ]

    def decoder_inputs(
        self, x: Tensor | None, x_img: Tensor | None, img_metas: Sequence[Mapping[str, Any]]
    ) -> DecoderInputs:
        """Make the queries, embed all positions and route the features.

        Args:
            x: BEV features behind `shared_conv`, None without LiDAR. [B, C, H, W]
            x_img: Camera features, None without cameras. [B * V, C, h, w]
            img_metas: See `forward`.

        Returns:
            What the transformer takes. With `collect_aqr`, `last_aqr` is filled.
        """
        batch, device = len(img_metas), self.reference_points.weight.device
        cameras = None if x_img is None else Cameras.from_metas(img_metas, device)
        queries = self._denoising_queries(img_metas, device) if self.training else None
        reference = self.reference_points.weight.expand(batch, -1, -1)
        if queries is not None:
            reference = torch.cat([queries.reference_points, reference], dim=1)
        memory_pos = memory_tokens(self._bev_pos(x), self._camera_pos(x_img, cameras), batch)
        query_pos = self._query_pos(reference, cameras)
        memory = memory_tokens(x, x_img, batch)
        if self.enable_aqr:
            assert x is not None
            assert x_img is not None
            assert cameras is not None
            # The denoising queries stand first.
            first = -self.num_query if self.aqr_semantics.queries == "matching" else 0
            inputs = RoutingInputs(
                bev=x,
                camera=x_img,
                memory=memory,
                memory_pos=memory_pos,
                query_pos=query_pos[:, first:],
                reference_points=reference[:, first:],
                cameras=cameras,
            )
            memory = memory_tokens(*self._route(inputs, img_metas), batch)
        return DecoderInputs(
            memory=memory,
            memory_pos=memory_pos,
            query_pos=query_pos,
            reference_points=reference,
            denoising=queries,
        )

    def _route(
        self, inputs: RoutingInputs, img_metas: Sequence[Mapping[str, Any]]
    ) -> tuple[Tensor, Tensor]:
        """Modulate the features by the queries' weights; see `routing.route`."""
        routed = routing.route(
            inputs,
            generator=self.aqr_weight_generator,
            renderer=self.weight_renderer,
            modulator=self.feature_modulator,
            grid=self.bev_grid,
            semantics=self.aqr_semantics,
        )
        if self.collect_aqr:
            boxes = None
            if all("gt_bboxes_3d" in meta for meta in img_metas):
                boxes = [GroundTruth.from_meta(meta).boxes for meta in img_metas]
                boxes = upload(boxes, inputs.bev.device, "boxes for the statistics")
            self.last_aqr = routing.collected(inputs, routed, gt_boxes=boxes) | {
                "renderer": self.weight_renderer,
                "modulator": self.feature_modulator,
                "grid": self.bev_grid,
            }
        return routed.bev, routed.camera

    def _denoising_queries(
        self, img_metas: Sequence[Mapping[str, Any]], device: torch.device
    ) -> DenoisingQueries | None:
        return denoising.make_queries(
            [GroundTruth.from_meta(meta) for meta in img_metas],
            num_query=self.num_query,
            spec=self.denoising,
            point_range=self.point_range,
            device=device,
        )

    def _bev_pos(self, x: Tensor | None) -> Tensor | None:
        """Position embedding of the BEV tokens, if any. [B, C, H, W]."""
        if x is None:
            return None
        grid_size = self._point_cfg["grid_size"][:2]
        width, height = (int(cells) // self.downsample_scale for cells in grid_size)
        if tuple(x.shape[2:]) != (height, width):
            raise ValueError(
                f"BEV features must be `grid_size` / `downsample_scale` = ({height}, {width})"
                f" cells (rows, columns), but got {tuple(x.shape[2:])}. Make the voxel encoder's"
                " sparse shape, the strides and `grid_size` agree."
            )
        embedded = self.bev_embedding(grid_encoding(height, width, self.hidden_dim, x.device))
        return embedded.T.unflatten(1, (height, width)).expand(len(x), -1, -1, -1)

    def _camera_pos(self, x_img: Tensor | None, cameras: Cameras | None) -> Tensor | None:
        """Position embedding of the camera tokens, if any. [B * V, C, h, w]."""
        if x_img is None or cameras is None or self.rv_embedding is None:
            return None
        height, width = x_img.shape[2:]
        depths = self._depths(x_img.device)
        rays = pixel_rays((height, width), cameras, depths, self.point_range)
        return self.rv_embedding(rays).permute(0, 3, 1, 2)

    def _query_pos(self, reference: Tensor, cameras: Cameras | None) -> Tensor:
        """Position embedding of queries: BEV, plus that of every view that sees the point.

        Args:
            reference: Fractions of the range. [B, P + Q, 3]
            cameras: Geometry of the batch, None without cameras.

        Returns:
            [B, P + Q, C]
        """
        points = inverse_sigmoid(reference).sigmoid()
        bev = self.bev_embedding(point_encoding(points, self.hidden_dim))
        if cameras is None or self.rv_embedding is None:
            return bev
        pixels, visible = project(self.point_range.denormalise(points), cameras)
        # A point is seen by about one view of six: only those rays are embedded.
        seen = places(visible, "views that see a query")
        rays = ray_points(
            pixels[seen], cameras.img2lidar[seen[:2]], self._depths(bev.device), self.point_range
        )
        views = bev.new_zeros(*visible.shape, self.hidden_dim)
        return bev + views.index_put(seen, self.rv_embedding(rays)).sum(dim=1)

    def _depths(self, device: torch.device) -> Tensor:
        return ray_depths(self.depth_num, self.point_range.high[0], device)

    def _predict(
        self,
        task_head: nn.Module,
        decoded: Tensor,
        reference: Tensor,
        queries: DenoisingQueries | None,
    ) -> dict[str, Any]:
        """Run one task's head and place its centres. Decoded: [N, B, P + Q, C]."""
        outputs = task_head(decoded)
        offsets = torch.cat([outputs["center"], outputs["height"]], dim=-1)
        placed = self.point_range.denormalise((offsets + inverse_sigmoid(reference)).sigmoid())
        outputs["center"], outputs["height"] = placed.split([2, 1], dim=-1)
        if not self.training:
            return outputs
        slots = 0 if queries is None else queries.num_slots
        denoised = {f"dn_{name}": out[:, :, :slots] for name, out in outputs.items()}
        matching = {name: out[:, :, slots:] for name, out in outputs.items()}
        return matching | denoised | {"dn_queries": queries}

    def loss(
        self, gt_bboxes_3d: Sequence[Any], gt_labels_3d: Sequence[Tensor], preds_dicts: Outputs
    ) -> dict[str, Tensor]:
        """Losses of every decoder layer, summed over tasks.

        Args:
            gt_bboxes_3d: mmdet3d boxes of each sample.
            gt_labels_3d: Labels of each sample, counted through all tasks. [G]
            preds_dicts: What `forward` returned.

        Returns:
            See `CmtCriterion`; the denoising terms only if `forward` ran in training.
        """
        if self.criterion is None:
            raise ValueError("`train_cfg` must be given to compute losses.")
        device = preds_dicts[0][0]["cls_logits"].device
        truths = [
            GroundTruth.from_instances(boxes, labels)
            for boxes, labels in zip(gt_bboxes_3d, gt_labels_3d, strict=True)
        ]
        with autocast(device, None):
            return self.criterion(preds_dicts, truths)

    def get_bboxes(
        self,
        preds_dicts: Outputs,
        img_metas: Sequence[Mapping[str, Any]],
        img: Any = None,
        rescale: bool = False,
    ) -> list[list[Any]]:
        """Decode the last layer.

        Args:
            preds_dicts: What `forward` returned.
            img_metas: `box_type_3d` of each sample.
            img: Unused, part of mmdet3d's interface.
            rescale: Unused, part of mmdet3d's interface.

        Returns:
            For each sample [mmdet3d boxes, scores [M], labels [M]].
        """
        results = []
        for decoded, meta in zip(self.bbox_coder.decode(preds_dicts), img_metas, strict=True):
            boxes = decoded["bboxes"].clone()
            boxes[:, 2] -= boxes[:, 5] / 2  # mmdet3d counts z from the box's bottom
            boxes = meta["box_type_3d"](boxes, boxes.shape[-1])
            results.append([boxes, decoded["scores"], decoded["labels"]])
        return results


@HEADS.register_module()
class CmtLidarHead(CmtHead):
    """CMT on LiDAR alone; its BEV tokens and queries have no camera embedding.

    Source: as `CmtHead`, of the same name.
    """

    sensors = ("lidar",)


@HEADS.register_module()
class CmtImageHead(CmtHead):
    """CMT on cameras alone; its queries keep the BEV embedding beside the cameras'.

    Source: as `CmtHead`, of the same name.
    """

    sensors = ("camera",)


def _mlp(c_in: int, hidden: int, c_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(c_in, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, c_out))


def _grid_side(num_query: int) -> int:
    side = round(num_query**0.5)
    if side * side != num_query:
        raise ValueError(
            f"`num_query` must be a square for `reference_init='grid'`, but got {num_query}."
            f" Take {side * side}, or 'uniform'."
        )
    return side


def _grid_points(num_query: int) -> Tensor:
    """Cell centres of a square grid at half height. [Q, 3]."""
    side = _grid_side(num_query)
    centres = (torch.arange(side) + 0.5) / side
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    return torch.stack([x, y, torch.full_like(x, 0.5)], dim=-1).flatten(0, 1)
