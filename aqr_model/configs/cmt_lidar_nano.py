# CMT on LiDAR alone at laptop size: the nano detector without its camera branch, trained like it
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
input_modality = dict(use_camera=False)
model = dict(
    img_backbone=None,
    img_neck=None,
    pts_bbox_head=dict(type="CmtLidarHead", transformer=dict(type="CmtLidarTransformer")),
)

load_points = [
    dict(type="LoadPointsFromFile", coord_type="LIDAR", load_dim=5, use_dim=[0, 1, 2, 3, 4]),
    dict(type="LoadPointsFromMultiSweeps", sweeps_num=1, use_dim=[0, 1, 2, 3, 4], test_mode=True),
]
meta_keys = ("sample_idx", "box_type_3d", "box_mode_3d")
train_pipeline = [
    *load_points,
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
    dict(type="DefaultFormatBundle3D", class_names=class_names),
    dict(
        type="Collect3D",
        keys=["points", "gt_bboxes_3d", "gt_labels_3d"],
        meta_keys=(*meta_keys, "gt_bboxes_3d", "gt_labels_3d"),
    ),
]
test_pipeline = [
    *load_points,
    dict(
        type="MultiScaleFlipAug3D",
        img_scale=(1333, 800),
        pts_scale_ratio=1,
        flip=False,
        transforms=[
            dict(type="DefaultFormatBundle3D", class_names=class_names, with_label=False),
            dict(type="Collect3D", keys=["points"], meta_keys=meta_keys),
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
            pts_backbone=dict(lr_mult=1.0),
        )
    )
)
work_dir = "work_dirs/cmt_lidar_nano"
