# The freezing of the first assignment never takes effect: the second replaces it.
_base_ = ["./r50_base.py"]

model = dict(
    img_backbone=dict(frozen_stages=4, norm_eval=True),
    pts_backbone=dict(frozen_stages=2, norm_eval=True),
    img_neck=dict(frozen=True),
)
optimizer = dict(lr=0.000014)
total_epochs = 1
model = dict(
    use_grid_mask=False,
    img_backbone=dict(norm_eval=False),
    pts_bbox_head=dict(enable_aqr=True, aqr_config=dict(embed_dims=256, window_sizes=[9, 5])),
)
