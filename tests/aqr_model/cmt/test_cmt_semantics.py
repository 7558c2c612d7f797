"""Meanings, variants and schedules of AQR inside the CMT head."""

from pathlib import Path

import numpy as np
import pytest
import torch
from cmt_cases import boxes_3d, head_config, small_batch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmdet.models.builder import build_head

from aqr_model.aqr import AqrSemantics, aqr_statistics, make_schedule
from aqr_model.aqr.semantics import CHOICES
from aqr_model.legacy_statistics import augmented_cameras

DOCS = Path(__file__).parents[3] / "docs" / "aqr.md"
# Fields whose second values move the features of a fresh AQR.
GIVE_UP_THE_START = {"background", "residual", "predictor"}
BRANCHES = ("center", "height", "dim", "rot", "vel", "cls_logits")
# The R50 run's dictionaries as its log dumps them, at the size of these tests.
USERS = {
    "voxel_size": (2.25, 3.375, 8.0),  # 6 x 4 cells of 8 x 8 voxels cover the range
    "enable_aqr": True,
    "debug_mode": True,
    "visualization_interval": 1000,
    "use_simple_modulation": False,
    "aqr_config": {
        "embed_dims": 16,
        "window_sizes": [8, 5],
        "use_type_embed": True,
        "bev_feature_shape": (4, 6),
        "pers_feature_shape": (6, 5, 10),
        "encoder_config": {
            "type": "PETRTransformerDecoder",
            "return_intermediate": True,
            "num_layers": 1,
            "transformerlayers": {
                "type": "PETRTransformerDecoderLayer",
                "with_cp": False,
                "attn_cfgs": [
                    {"type": "MultiheadAttention", "embed_dims": 16, "num_heads": 4, "dropout": 0.1}
                ],
                "ffn_cfgs": {
                    "type": "FFN",
                    "embed_dims": 16,
                    "feedforward_channels": 32,
                    "num_fcs": 2,
                    "ffn_drop": 0.1,
                    "act_cfg": {"type": "ReLU", "inplace": True},
                },
                "feedforward_channels": 32,
                "operation_order": ("cross_attn", "norm", "ffn", "norm"),
            },
        },
    },
    "renderer_config": {
        "render_method": "gaussian",
        "gaussian_sigma": 1.0,
        "bilinear_radius": 1.5,
        "distance_decay": 0.8,
        "min_weight_threshold": 0.01,
        "bev_feature_shape": (4, 6),
        "pers_feature_shape": (6, 5, 10),
        "normalize_weights": True,
    },
    "modulator_config": {
        "type": "FeatureModulator",
        "modulation_type": "element_wise",
        "normalize_weights": False,
        "residual_connection": True,
        "residual_weight": 0.7,
        "learnable_modulation": False,
        "activation": "none",
    },
}


def make(semantics=None, *, seed=0, **config):
    """A head as training starts it."""
    merged = USERS | config
    merged["aqr_config"] = merged["aqr_config"] | {"semantics": semantics}
    torch.manual_seed(seed)
    head = build_head(head_config(**merged))
    head.init_weights()
    head.collect_aqr = True
    return head.train()


def routed(semantics, counts, **config):
    """`last_aqr` of a training batch with so many boxes a sample, seen by a nuScenes rig."""
    points, images, metas, _, _ = small_batch(counts)
    rng = np.random.default_rng(0)
    for meta in metas:
        meta["lidar2img"] = augmented_cameras(rng)
        meta["pad_shape"] = [(400, 800, 3)] * 6
    head = make(semantics, num_query=100, **config)
    head.shared_conv.eval()
    torch.manual_seed(1)
    head(points, images, metas)
    return head.last_aqr


def test_the_users_config_builds_as_it_is(caplog):
    head = make()
    assert "are read as [9, 5]" in caplog.text
    points, images, metas, boxes, labels = small_batch()
    losses = head.loss(boxes, labels, head(points, images, metas))
    assert all(loss.isfinite() for loss in losses.values())


def test_padded_denoising_slots_pile_up_in_legacy_camera_maps_and_nowhere_else():
    """D3 and D10: 90 of 100 slots of the second sample are empty, at the range's corner."""
    past = {"preset": "legacy", "clamped": "bev", "unseen": "masked"}
    legacy = routed(past, (10, 1))
    full, padded = legacy["maps"].camera
    empty = torch.arange(100) % 10 > 0
    seen = legacy["projection"].camera_visible[1, :, :100][:, empty]
    assert (seen == seen[:, :1]).all()
    assert seen[:, 0].sum() == 1
    # Together 90 kernels of height 0.159, of weights between 0 and 1 that begin near 0.8.
    weight = legacy["weights"].camera[1, :100][empty].mean()
    assert padded.max() > 90 * 0.159 * weight
    assert padded.max() > 5 * legacy["renderer"].max_weight_clamp
    assert padded.max() > 3 * full.max()
    view, row, col = (padded == padded.max()).nonzero()[0].tolist()
    assert seen[view, 0]
    cells = legacy["projection"].camera_cells[1, view, :100][empty]
    assert cells.eq(torch.tensor([row, col])).all()
    assert routed("legacy", (10, 1))["maps"].camera.max() == 1.5


def test_right_queries_remove_the_pile():
    past = {"preset": "legacy", "clamped": "bev", "unseen": "masked"}
    padded = routed(past, (10, 1))["maps"].camera[1].max()
    corrected = routed(past | {"queries": "matching"}, (10, 1))["maps"].camera[1].max()
    assert corrected < padded / 3
    loud = {"aqr_config": _without_dropout() | {"predictor_bias": 1.5}}
    right = routed("right", (10, 1), **loud)["maps"]
    assert right.camera.max() <= 1.5
    # Nothing of a sample's boxes is in it: the same maps with no box at all.
    torch.testing.assert_close(right, routed("right", (0, 0), **loud)["maps"])


def test_legacy_maps_know_the_labels_and_right_ones_do_not():
    """D4: boxes of a training sample move its legacy maps, through the denoising queries."""
    for semantics, leaks in (("legacy", True), ({"queries": "all"}, True), ("right", False)):
        points, images, metas, _, _ = small_batch((3, 3))
        head = make(semantics, aqr_config=_without_dropout() | {"predictor_bias": 1.0})
        maps = []
        for place in (-30.0, 30.0):
            for meta in metas:
                box = torch.tensor([[place, 0.0, -1.0, 4.0, 2.0, 2.0, 0.0, 0.0, 0.0]])
                meta["gt_bboxes_3d"], meta["gt_labels_3d"] = boxes_3d(box), torch.tensor([0])
            head(points, images, metas)
            maps.append(head.last_aqr["maps"].bev)
        assert torch.equal(*maps) != leaks
        queries = head.last_aqr["weights"].lidar.shape[1]
        assert queries == head.num_query + (9 if leaks else 0)


def _without_dropout():
    encoder = USERS["aqr_config"]["encoder_config"]
    layer = encoder["transformerlayers"]
    attention = [layer["attn_cfgs"][0] | {"dropout": 0.0}]
    ffn = layer["ffn_cfgs"] | {"ffn_drop": 0.0}
    layer = layer | {"attn_cfgs": attention, "ffn_cfgs": ffn}
    return USERS["aqr_config"] | {"encoder_config": encoder | {"transformerlayers": layer}}


def test_scoring_has_matching_queries_alone_under_every_meaning():
    points, images, metas, _, _ = small_batch()
    head = make("legacy").eval()
    head(points, images, metas)
    assert head.last_aqr["weights"].lidar.shape == (2, head.num_query)


@settings(max_examples=25, deadline=None)
@given(
    fields=st.sets(st.sampled_from(sorted(CHOICES))),
    method=st.sampled_from(["gaussian", "bilinear", "direct", "distance_weighted"]),
    kind=st.sampled_from(["element_wise", "channel_wise", "adaptive"]),
    counts=st.sampled_from([(3, 1), (0, 0)]),
)
def test_every_mix_trains_and_describes_itself(fields, method, kind, counts):
    semantics = {name: CHOICES[name][1] for name in fields}
    head = make(
        semantics,
        renderer_config=USERS["renderer_config"] | {"render_method": method},
        modulator_config=USERS["modulator_config"] | {"modulation_type": kind},
    )
    points, images, metas, boxes, labels = small_batch(counts)
    loss = sum(head.loss(boxes, labels, head(points, images, metas)).values())
    loss.backward()
    assert loss.isfinite()
    predictor = head.aqr_weight_generator.weight_predictor.weight
    if semantics.get("gradient") == "blocked":
        assert predictor.grad is None
    else:
        assert predictor.grad.isfinite().all()
    assert aqr_statistics(**head.last_aqr)


@pytest.mark.parametrize("name", [None, *sorted(set(CHOICES) - GIVE_UP_THE_START)])
@pytest.mark.parametrize("training", [False, True])
def test_fresh_aqr_changes_nothing_while_neutral_stays_neutral(name, training):
    """As it is, and with one field at a time: the plain detector's outputs, bit for bit."""
    points, images, metas, _, _ = small_batch()
    torch.manual_seed(1)
    plain = build_head(head_config(voxel_size=USERS["voxel_size"]))
    plain.init_weights()
    head = make({} if name is None else {name: CHOICES[name][1]}, seed=2)
    head.load_state_dict(plain.state_dict(), strict=False)
    outputs = []
    for each in (plain, head):
        each.train(training)
        torch.manual_seed(0)
        outputs.append(each(points, images, metas)[0][0])
    for branch in BRANCHES:
        assert torch.equal(outputs[0][branch], outputs[1][branch]), branch


def test_all_parts_share_the_configs_meaning():
    head = make("legacy")
    legacy = AqrSemantics.preset("legacy")
    assert head.aqr_semantics == legacy
    assert head.weight_renderer.semantics == head.feature_modulator.semantics == legacy
    assert head.aqr_weight_generator.random_predictor


def test_simple_modulation_is_the_map_alone(caplog):
    points, images, metas, _, _ = small_batch()
    head = make("legacy", use_simple_modulation=True).eval()
    assert "`modulator_config` (modulation_type" in caplog.text
    head(points, images, metas)
    maps = head.last_aqr["maps"]
    for group, drawn in (("bev", maps.bev), ("camera", maps.camera.flatten(0, 1))):
        before, after = head.last_aqr[group]
        torch.testing.assert_close(after, before * drawn[:, None])
        assert not torch.equal(after, before)
    assert head.feature_modulator.residual_weight == 0.0


def test_schedules_set_the_values_of_the_day():
    head = make(
        renderer_config=USERS["renderer_config"]
        | {"clamp_schedule": {"type": "staged", "stages": [(0, 3.0), (9, 2.0), (17, 1.5)]}},
        modulator_config=USERS["modulator_config"]
        | {"residual_schedule": {"type": "cosine", "start_value": 0.7, "end_value": 0.4}},
    )
    points, images, metas, _, _ = small_batch()
    for epoch, clamp, residual in ((0, 3.0, 0.7), (12, 2.0, 0.55), (24, 1.5, 0.4)):
        head.set_epoch(float(epoch), 24.0)
        head(points, images, metas)
        statistics = aqr_statistics(**head.last_aqr)
        assert statistics["aqr/effective/max_weight_clamp"] == clamp
        assert statistics["aqr/effective/residual_weight"] == pytest.approx(residual)


def test_setting_the_epoch_without_aqr_or_schedules_changes_nothing():
    build_head(head_config()).set_epoch(1.5, 3.0)
    head = make()
    head.set_epoch(1.5, 3.0)
    assert head.weight_renderer.max_weight_clamp == 1.5
    assert head.feature_modulator.residual_weight == 0.7


def test_the_documented_stages_are_a_config_that_the_parts_take():
    blocks = DOCS.read_text().split("```python\n")[1:]
    (block,) = (block for block in blocks if "_base_" in block)
    config: dict = {}
    exec(block.split("```")[0], config)
    parts = config["model"]["pts_bbox_head"]
    head = make(
        renderer_config=USERS["renderer_config"] | parts["renderer_config"],
        modulator_config=USERS["modulator_config"] | parts["modulator_config"],
    )
    keys = config["optimizer"]["paramwise_cfg"]["custom_keys"].values()
    rates = [make_schedule(key["lr_mult_schedule"], config["total_epochs"]) for key in keys]
    # Report 003: epochs 0-8, 9-16, 17-24.
    for epoch, clamp, residual, rate in (
        (0, 3.0, 0.7, 0.5),
        (9, 2.0, 0.5, 0.3),
        (24, 1.5, 0.4, 0.1),
    ):
        head.set_epoch(epoch, config["total_epochs"])
        assert head.weight_renderer.max_weight_clamp == clamp
        assert head.feature_modulator.residual_weight == residual
        assert [schedule(epoch) for schedule in rates] == [rate]


def test_the_documented_table_has_every_field_with_its_values():
    rows = {
        row.split("|")[1].strip(" `"): row
        for row in DOCS.read_text().splitlines()
        if row.startswith("| `")
    }
    for name, values in CHOICES.items():
        assert all(f"`{value}`" in rows[name] for value in values), name
