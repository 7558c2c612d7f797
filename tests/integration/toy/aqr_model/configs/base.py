model = dict(
    pts_bbox_head=dict(
        enable_aqr=False,
        renderer_config=dict(max_weight_clamp=1.5, gaussian_sigma=1.0),
        modulator_config=dict(residual_weight=0.7),
    )
)
data = dict(
    samples_per_gpu=2,
    train=dict(type="CBGSDataset", dataset=dict(ann_file="data/train.pkl")),
    val=dict(ann_file="data/val.pkl"),
)
total_epochs = 6
seed = 1
load_from = None
evaluation = dict(rungs=[1.0], val_shares=[1.0])
window = (1, 2)
