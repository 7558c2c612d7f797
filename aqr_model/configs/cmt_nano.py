# CMT at laptop size: the classes of the R50 and VoV models with smaller numbers. The plain
# detector, without AQR, trained from scratch on the synthetic base domain; its result is
# aqr_model/checkpoints/cmt_nano.pth.
point_cloud_range = [-40.96, -40.96, -5.0, 40.96, 40.96, 3.0]
voxel_size = [0.64, 0.64, 8.0]
grid_size = [128, 128, 1]
out_size_factor = 4
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
code_weights = [2.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.5, 0.5]
input_modality = dict(
    use_lidar=True, use_camera=True, use_radar=False, use_map=False, use_external=False
)

model = dict(
    type="CmtDetector",
    use_grid_mask=False,
    img_backbone=dict(
        type="ResNet",
        depth=18,
        base_channels=16,
        num_stages=4,
        out_indices=(2, 3),
        frozen_stages=-1,
        norm_cfg=dict(type="BN", requires_grad=True),
        norm_eval=False,
        style="pytorch",
    ),
    img_neck=dict(type="CPFPN", in_channels=[64, 128], out_channels=64, num_outs=2),
    pts_voxel_layer=dict(
        num_point_features=5,
        max_num_points=16,
        voxel_size=voxel_size,
        max_voxels=(8000, 8000),
        point_cloud_range=point_cloud_range,
    ),
    pts_voxel_encoder=dict(
        type="PillarFeatureNet",
        in_channels=5,
        feat_channels=[32],
        voxel_size=voxel_size,
        point_cloud_range=point_cloud_range,
        norm_cfg=dict(type="BN1d", eps=1e-3, momentum=0.01),
        legacy=False,
    ),
    pts_middle_encoder=dict(type="PointPillarsScatter", in_channels=32, output_shape=[128, 128]),
    pts_backbone=dict(
        type="SECOND",
        in_channels=32,
        out_channels=[32, 64],
        layer_nums=[1, 2],
        layer_strides=[2, 2],
        norm_cfg=dict(type="BN", eps=1e-3, momentum=0.01),
        conv_cfg=dict(type="Conv2d", bias=False),
    ),
    pts_neck=dict(
        type="SECONDFPN",
        in_channels=[32, 64],
        out_channels=[64, 64],
        upsample_strides=[0.5, 1],
        norm_cfg=dict(type="BN", eps=1e-3, momentum=0.01),
        upsample_cfg=dict(type="deconv", bias=False),
        use_conv_for_no_stride=True,
    ),
    pts_bbox_head=dict(
        type="CmtHead",
        in_channels=128,
        hidden_dim=64,
        num_query=144,
        reference_init="grid",
        downsample_scale=out_size_factor,
        common_heads=dict(center=(2, 2), height=(1, 2), dim=(3, 2), rot=(2, 2), vel=(2, 2)),
        tasks=[dict(num_class=10, class_names=class_names)],
        bbox_coder=dict(
            type="MultiTaskBBoxCoder",
            post_center_range=[-46.0, -46.0, -10.0, 46.0, 46.0, 10.0],
            pc_range=point_cloud_range,
            max_num=144,
            voxel_size=voxel_size,
            num_classes=10,
        ),
        separate_head=dict(type="SeparateTaskHead", init_bias=-2.19, final_kernel=1),
        transformer=dict(
            type="CmtTransformer",
            decoder=dict(
                type="PETRTransformerDecoder",
                return_intermediate=True,
                num_layers=3,
                transformerlayers=dict(
                    type="PETRTransformerDecoderLayer",
                    with_cp=False,
                    attn_cfgs=[
                        dict(
                            type="PETRMultiheadAttention", embed_dims=64, num_heads=4, dropout=0.0
                        ),
                        dict(
                            type="PETRMultiheadFlashAttention",
                            embed_dims=64,
                            num_heads=4,
                            dropout=0.0,
                        ),
                    ],
                    ffn_cfgs=dict(
                        type="FFN",
                        embed_dims=64,
                        feedforward_channels=128,
                        num_fcs=2,
                        ffn_drop=0.0,
                        act_cfg=dict(type="ReLU", inplace=True),
                    ),
                    feedforward_channels=128,
                    operation_order=("self_attn", "norm", "cross_attn", "norm", "ffn", "norm"),
                ),
            ),
        ),
        loss_cls=dict(
            type="FocalLoss",
            use_sigmoid=True,
            gamma=2,
            alpha=0.25,
            reduction="mean",
            loss_weight=2.0,
        ),
        loss_bbox=dict(type="L1Loss", reduction="mean", loss_weight=0.25),
        loss_heatmap=dict(type="GaussianFocalLoss", reduction="mean", loss_weight=1.0),
    ),
    train_cfg=dict(
        pts=dict(
            dataset="nuScenes",
            assigner=dict(
                type="HungarianAssigner3D",
                cls_cost=dict(type="FocalLossCost", weight=2.0),
                reg_cost=dict(type="BBox3DL1Cost", weight=0.25),
                iou_cost=dict(type="IoUCost", weight=0.0),
                pc_range=point_cloud_range,
                code_weights=code_weights,
            ),
            pos_weight=-1,
            gaussian_overlap=0.1,
            min_radius=2,
            grid_size=grid_size,
            voxel_size=voxel_size,
            out_size_factor=out_size_factor,
            code_weights=code_weights,
            point_cloud_range=point_cloud_range,
        )
    ),
    test_cfg=dict(
        pts=dict(
            dataset="nuScenes",
            grid_size=grid_size,
            out_size_factor=out_size_factor,
            pc_range=point_cloud_range,
            voxel_size=voxel_size,
            nms_type=None,
            max_num=144,
        )
    ),
)

img_norm_cfg = dict(mean=[103.530, 116.280, 123.675], std=[57.375, 57.120, 58.395], to_rgb=False)
ida_aug_conf = dict(
    resize_lim=(0.8, 0.84),
    final_dim=(128, 320),
    bot_pct_lim=(0.0, 0.0),
    rot_lim=(0.0, 0.0),
    H=225,
    W=400,
    rand_flip=False,
)
load_points = [
    dict(type="LoadPointsFromFile", coord_type="LIDAR", load_dim=5, use_dim=[0, 1, 2, 3, 4]),
    # The nearest sweep, in training too: without test_mode one of ten is drawn.
    dict(type="LoadPointsFromMultiSweeps", sweeps_num=1, use_dim=[0, 1, 2, 3, 4], test_mode=True),
]
meta_keys = ("sample_idx", "lidar2img", "pad_shape", "img_shape", "box_type_3d", "box_mode_3d")
train_pipeline = [
    *load_points,
    dict(type="LoadMultiViewImageFromFiles"),
    dict(type="LoadAnnotations3D", with_bbox_3d=True, with_label_3d=True, with_attr_label=False),
    dict(
        type="GlobalRotScaleTransAll",
        rot_range=[-0.4, 0.4],
        scale_ratio_range=[0.95, 1.05],
        translation_std=[0, 0, 0],
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
test_pipeline = [
    *load_points,
    dict(type="LoadMultiViewImageFromFiles"),
    dict(
        type="MultiScaleFlipAug3D",
        img_scale=(1333, 800),
        pts_scale_ratio=1,
        flip=False,
        transforms=[
            dict(type="ResizeCropFlipImage", data_aug_conf=ida_aug_conf, training=False),
            dict(type="NormalizeMultiviewImage", **img_norm_cfg),
            dict(type="PadMultiViewImage", size_divisor=32),
            dict(type="DefaultFormatBundle3D", class_names=class_names, with_label=False),
            dict(type="Collect3D", keys=["points", "img"], meta_keys=meta_keys),
        ],
    ),
]
dataset_type = "CustomNuScenesDataset"
data_root = "data/synthetic/base/"
data = dict(
    samples_per_gpu=2,
    workers_per_gpu=1,
    train=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file=data_root + "nuscenes_infos_synth_train.pkl",
        pipeline=train_pipeline,
        classes=class_names,
        modality=input_modality,
        test_mode=False,
        box_type_3d="LiDAR",
    ),
    val=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file=data_root + "nuscenes_infos_synth_val.pkl",
        pipeline=test_pipeline,
        classes=class_names,
        modality=input_modality,
        test_mode=True,
        box_type_3d="LiDAR",
    ),
)

optimizer = dict(
    type="AdamW",
    lr=1e-4,
    paramwise_cfg=dict(
        custom_keys=dict(
            transformer=dict(lr_mult=1.0),
            task_heads=dict(lr_mult=1.0),
            img_backbone=dict(lr_mult=1.0),
            pts_backbone=dict(lr_mult=1.0),
        )
    ),
    weight_decay=0.01,
)
optimizer_config = dict(grad_clip=dict(max_norm=35, norm_type=2))
lr_config = dict(policy="cyclic", target_ratio=(10, 0.001), cyclic_times=1, step_ratio_up=0.2)
total_epochs = 18
seed = 0
evaluation = dict(rungs=[0.25, 0.5, 0.75, 1.0], val_shares=[0.5, 0.5, 1.0, 1.0])
log_config = dict(interval=50)
checkpoint_config = dict(by_epoch=False, interval=1000)
load_from = None
work_dir = "work_dirs/cmt_nano"
