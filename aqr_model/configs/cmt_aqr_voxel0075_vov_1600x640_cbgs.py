# CMT with VoVNet-99, 1600x640 images and 0.075 m voxels, with AQR: one epoch of fine-tuning from
# the public checkpoint. Backbones and necks keep their weights; the decoder and the heads follow
# gently, AQR quickly. As in the users' runs, without object sampling and GridMask. The control of
# such a run is this file with enable_aqr=False.
_base_ = ["./cmt_voxel0075_vov_1600x640_cbgs.py"]

class_names = [
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
]
point_cloud_range = [-54.0, -54.0, -5.0, 54.0, 54.0, 3.0]
model = dict(
    use_grid_mask=False,
    # Frozen through and through; the other frozen parts have lr_mult 0 below.
    img_backbone=dict(frozen_stages=4, norm_eval=True, with_cp=False),
    pts_bbox_head=dict(
        enable_aqr=True,
        use_simple_modulation=False,
        debug_mode=False,
        visualization_interval=1000,
        aqr_config=dict(
            embed_dims=256,
            window_sizes=[15, 5],  # camera, BEV
            bev_feature_shape=(180, 180),
            pers_feature_shape=(6, 40, 100),
            encoder_config=dict(
                type="PETRTransformerDecoder",
                return_intermediate=True,
                num_layers=1,
                transformerlayers=dict(
                    type="PETRTransformerDecoderLayer",
                    with_cp=False,
                    attn_cfgs=[
                        dict(type="MultiheadAttention", embed_dims=256, num_heads=4, dropout=0.0)
                    ],
                    ffn_cfgs=dict(
                        type="FFN",
                        embed_dims=256,
                        feedforward_channels=1024,
                        num_fcs=2,
                        ffn_drop=0.0,
                        act_cfg=dict(type="ReLU", inplace=True),
                    ),
                    feedforward_channels=1024,
                    operation_order=("cross_attn", "norm", "ffn", "norm"),
                ),
            ),
            predictor_bias=None,  # 0, or what semantics.predictor says
            # None: as the preset has it. docs/aqr.md lists what each field changes.
            semantics=dict(
                preset="right",
                queries=None,
                kernel=None,
                background=None,
                residual=None,
                views=None,
                bev_grid=None,
                camera_scale=None,
                cells=None,
                unseen=None,
                gradient=None,
                clamped=None,
                predictor=None,
            ),
        ),
        renderer_config=dict(
            type="WeightRenderer",
            render_method="gaussian",
            gaussian_sigma=1.0,
            bilinear_radius=1.5,
            distance_decay=0.8,
            max_weight_clamp=1.5,
            clamp_schedule=None,
            clamp_quantile=1.0,
            bev_feature_shape=(180, 180),
            pers_feature_shape=(6, 40, 100),
        ),
        modulator_config=dict(
            type="FeatureModulator",
            modulation_type="element_wise",
            normalize_weights=False,
            residual_connection=True,
            residual_weight=0.7,
            residual_schedule=None,
            learnable_modulation=False,
            activation="none",
        ),
    ),
)
img_norm_cfg = dict(mean=[103.530, 116.280, 123.675], std=[57.375, 57.120, 58.395], to_rgb=False)
ida_aug_conf = dict(
    resize_lim=(0.94, 1.25),
    final_dim=(640, 1600),
    bot_pct_lim=(0.0, 0.0),
    rot_lim=(0.0, 0.0),
    H=900,
    W=1600,
    rand_flip=True,
)
meta_keys = ("sample_idx", "lidar2img", "pad_shape", "img_shape", "box_type_3d", "box_mode_3d")
train_pipeline = [
    dict(type="LoadPointsFromFile", coord_type="LIDAR", load_dim=5, use_dim=[0, 1, 2, 3, 4]),
    dict(type="LoadPointsFromMultiSweeps", sweeps_num=10, use_dim=[0, 1, 2, 3, 4]),
    dict(type="LoadMultiViewImageFromFiles"),
    dict(type="LoadAnnotations3D", with_bbox_3d=True, with_label_3d=True, with_attr_label=False),
    dict(type="ModalMask3D", mode="train"),
    dict(
        type="GlobalRotScaleTransAll",
        rot_range=[-0.785, 0.785],
        scale_ratio_range=[0.9, 1.1],
        translation_std=[0.5, 0.5, 0.5],
    ),
    dict(
        type="CustomRandomFlip3D",
        sync_2d=False,
        flip_ratio_bev_horizontal=0.5,
        flip_ratio_bev_vertical=0.5,
    ),
    dict(type="PointsRangeFilter", point_cloud_range=point_cloud_range),
    dict(type="ObjectRangeFilter", point_cloud_range=point_cloud_range),
    dict(type="ObjectNameFilter", classes=class_names),
    dict(type="PointShuffle"),
    dict(type="ResizeCropFlipImage", data_aug_conf=ida_aug_conf, training=True),
    dict(type="NormalizeMultiviewImage", **img_norm_cfg),
    dict(type="PadMultiViewImage", size_divisor=32),
    dict(type="DefaultFormatBundle3D", class_names=class_names),
    dict(
        type="Collect3D",
        keys=["points", "img", "gt_bboxes_3d", "gt_labels_3d"],
        meta_keys=(*meta_keys, "gt_bboxes_3d", "gt_labels_3d"),
    ),
]
data = dict(train=dict(dataset=dict(pipeline=train_pipeline)))

optimizer = dict(
    lr=1e-5,
    paramwise_cfg=dict(
        custom_keys=dict(
            img_backbone=dict(lr_mult=0.0),
            img_neck=dict(lr_mult=0.0),
            pts_middle_encoder=dict(lr_mult=0.0),
            pts_backbone=dict(lr_mult=0.0),
            pts_neck=dict(lr_mult=0.0),
            shared_conv=dict(lr_mult=0.8),
            transformer=dict(lr_mult=0.8),
            reference_points=dict(lr_mult=0.5),
            task_heads=dict(lr_mult=0.8),
            aqr_weight_generator=dict(lr_mult=8.0),
        )
    ),
)
lr_config = dict(policy="cyclic", target_ratio=(6, 0.001), cyclic_times=1, step_ratio_up=0.3)
momentum_config = dict(step_ratio_up=0.1)
total_epochs = 1
object_sampling_until_epoch = None
load_from = "ckpts/cmt_vov.pth"
work_dir = "work_dirs/cmt_aqr_voxel0075_vov_1600x640_cbgs"
