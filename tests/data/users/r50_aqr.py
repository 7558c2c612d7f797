# A fine-tuning run with AQR, in the users' vocabulary.
_base_ = ["./r50_base.py"]

model = dict(
    use_grid_mask=False,
    img_backbone=dict(with_cp=False),
    pts_bbox_head=dict(
        enable_aqr=True,
        debug_mode=True,
        visualization_interval=1000,
        aqr_config=dict(
            embed_dims=256,
            window_sizes=[8, 5],
            use_type_embed=True,
            bev_feature_shape=(128, 128),
            pers_feature_shape=(6, 20, 50),
            encoder_config=dict(
                type="PETRTransformerDecoder",
                return_intermediate=True,
                num_layers=1,
                transformerlayers=dict(
                    type="PETRTransformerDecoderLayer",
                    with_cp=False,
                    attn_cfgs=[
                        dict(type="MultiheadAttention", embed_dims=256, num_heads=4, dropout=0.1)
                    ],
                    ffn_cfgs=dict(
                        type="FFN",
                        embed_dims=256,
                        feedforward_channels=1024,
                        num_fcs=2,
                        ffn_drop=0.1,
                        act_cfg=dict(type="ReLU", inplace=True),
                    ),
                    feedforward_channels=1024,
                    operation_order=("cross_attn", "norm", "ffn", "norm"),
                ),
            ),
        ),
        renderer_config=dict(
            render_method="gaussian",
            gaussian_sigma=1.0,
            bilinear_radius=1.5,
            distance_decay=0.8,
            min_weight_threshold=0.01,
            bev_feature_shape=(128, 128),
            pers_feature_shape=(6, 20, 50),
            normalize_weights=True,
        ),
        use_simple_modulation=False,
        modulator_config=dict(
            type="FeatureModulator",
            modulation_type="element_wise",
            normalize_weights=False,
            residual_connection=True,
            residual_weight=0.7,
            learnable_modulation=False,
            activation="none",
        ),
    ),
)
optimizer = dict(
    lr=0.000014,
    paramwise_cfg=dict(
        custom_keys={
            "img_backbone": dict(lr_mult=0.01, decay_mult=5),
            "img_neck": dict(lr_mult=0.1),
            "pts_voxel_encoder": dict(lr_mult=0.1),
            "pts_middle_encoder": dict(lr_mult=0.1),
            "pts_backbone": dict(lr_mult=0.05),
            "pts_neck": dict(lr_mult=0.1),
            "transformer": dict(lr_mult=0.8),
            "query_embed": dict(lr_mult=0.8),
            "reference_points": dict(lr_mult=0.5),
            "task_heads": dict(lr_mult=0.8),
            "shared_conv": dict(lr_mult=0.8),
            "aqr_weight_generator": dict(lr_mult=8.0),
            "weight_renderer": dict(lr_mult=8.0),
            "feature_modulator": dict(lr_mult=8.0),
        }
    ),
)
lr_config = dict(policy="cyclic", target_ratio=(6, 0.001), cyclic_times=1, step_ratio_up=0.3)
momentum_config = dict(step_ratio_up=0.1)
total_epochs = 1
load_from = "ckpts/epoch_20.pth"
find_unused_parameters = True
