# CMT on cameras alone at laptop size: the nano detector without its LiDAR branch, trained like it
# from scratch on the synthetic base domain.
_base_ = ["./cmt_nano.py"]

point_cloud_range = [-40.96, -40.96, -5.0, 40.96, 40.96, 3.0]
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
input_modality = dict(use_lidar=False)
model = dict(
    pts_voxel_layer=None,
    pts_voxel_encoder=None,
    pts_middle_encoder=None,
    pts_backbone=None,
    pts_neck=None,
    pts_bbox_head=dict(type="CmtImageHead", transformer=dict(type="CmtImageTransformer")),
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
meta_keys = ("sample_idx", "lidar2img", "pad_shape", "img_shape", "box_type_3d", "box_mode_3d")
train_pipeline = [
    dict(type="LoadMultiViewImageFromFiles"),
    dict(type="LoadAnnotations3D", with_bbox_3d=True, with_label_3d=True, with_attr_label=False),
    dict(
        type="GlobalRotScaleTransImage",
        rot_range=[-0.4, 0.4],
        scale_ratio_range=[0.95, 1.05],
        translation_std=[0, 0, 0],
        reverse_angle=False,
    ),
    dict(type="ObjectRangeFilter", point_cloud_range=point_cloud_range),
    dict(type="ObjectNameFilter", classes=class_names),
    dict(type="ResizeCropFlipImage", data_aug_conf=ida_aug_conf, training=True),
    dict(type="NormalizeMultiviewImage", **img_norm_cfg),
    dict(type="PadMultiViewImage", size_divisor=32),
    dict(type="DefaultFormatBundle3D", class_names=class_names),
    dict(
        type="Collect3D",
        keys=["img", "gt_bboxes_3d", "gt_labels_3d"],
        meta_keys=(*meta_keys, "gt_bboxes_3d", "gt_labels_3d"),
    ),
]
test_pipeline = [
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
            dict(type="Collect3D", keys=["img"], meta_keys=meta_keys),
        ],
    ),
]
data = dict(
    train=dict(pipeline=train_pipeline, modality=input_modality),
    val=dict(pipeline=test_pipeline, modality=input_modality),
)

optimizer = dict(
    paramwise_cfg=dict(
        custom_keys=dict(
            _delete_=True,
            transformer=dict(lr_mult=1.0),
            task_heads=dict(lr_mult=1.0),
            img_backbone=dict(lr_mult=1.0),
        )
    )
)
work_dir = "work_dirs/cmt_camera_nano"
