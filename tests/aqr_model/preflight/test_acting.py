"""Whether a difference between two configs makes one to a training."""

import logging
from pathlib import Path

import pytest
import torch
from torch import nn

from aqr_model.knobs import KNOBS, to_overrides
from aqr_model.preflight.acting import idle_here, picture, says_no_effect, trains_alike
from aqr_model.preflight.reading import apply_overrides, load_config

CONFIGS = Path("aqr_model/configs")
HEAD = "model.pts_bbox_head"
KEYS = "optimizer.paramwise_cfg.custom_keys"


def nano(overrides=None, name="cmt_aqr_nano.py"):
    cfg = load_config(CONFIGS / name)
    apply_overrides(cfg, overrides or {})
    return cfg


def alike(key, value, name="cmt_aqr_nano.py", **others):
    given = {k.replace("__", "."): v for k, v in others.items()}
    return trains_alike(nano(given, name), nano({**given, key: value}, name))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (f"{HEAD}.loss_heatmap.loss_weight", 3.0),  # public configs carry it, no head reads it
        (f"{HEAD}.debug_mode", True),
        (f"{HEAD}.aqr_config.use_type_embed", True),
        (f"{HEAD}.tasks.0.num_class", 9),
        ("model.train_cfg.pts.pos_weight", 1.0),
        ("model.train_cfg.pts.gaussian_overlap", 0.5),
        ("model.test_cfg.pts.max_num", 300),
        ("model.test_cfg.pts.grid_size", [64, 64, 1]),  # stands in where there is no train_cfg
        (f"{KEYS}.query_embed.lr_mult", 0.1),
        (f"{KEYS}.weight_renderer.lr_mult", 0.1),
        ("optimizer_config.paramwise_cfg", {"custom_keys": {}}),
        ("class_names", ["car"]),
        ("log_level", "DEBUG"),
        ("evaluation.metric", "bbox"),
    ],
)
def test_what_nobody_heeds_makes_no_difference(key, value):
    assert alike(key, value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (f"{HEAD}.loss_cls.loss_weight", 3.0),
        (f"{HEAD}.loss_cls.gamma", 1.0),
        (f"{HEAD}.dn_weight", 0.5),
        (f"{HEAD}.visualization_interval", 7),
        (f"{HEAD}.noise_scale", 0.5),
        (f"{HEAD}.separate_head.init_bias", -1.0),
        (f"{HEAD}.transformer.decoder.transformerlayers.attn_cfgs.0.dropout", 0.1),
        (f"{HEAD}.bbox_coder.max_num", 100),
        ("model.train_cfg.pts.code_weights.8", 0.2),
        ("model.train_cfg.pts.assigner.reg_cost.weight", 0.5),
        ("model.img_backbone.frozen_stages", 1),
        ("model.img_backbone.norm_eval", True),
        ("model.use_grid_mask", True),
        ("model.pts_voxel_layer.max_num_points", 8),
        ("optimizer.weight_decay", 0.1),
        ("optimizer.type", "SGD"),
        (f"{KEYS}.pts_neck.lr_mult", 0.1),
        (f"{KEYS}.transformer.lr_mult_schedule", {"type": "constant", "value": 0.1}),
        ("lr_config.step_ratio_up", 0.5),
        ("optimizer_config.grad_clip.max_norm", 10),
        ("data.samples_per_gpu", 4),
        ("data.train.pipeline.4.rot_range", [-1, 1]),
        ("seed", 3),
        ("load_from", None),
    ],
)
def test_what_somebody_heeds_makes_a_difference(key, value):
    assert not alike(key, value)


def ends(knob):
    if knob.choices:
        return knob.choices[0], knob.choices[-1]
    low = knob.low if knob.low is not None else knob.default
    return low, knob.high if knob.high is not None else low + 1


# Where a knob acts: a width where its kernel is drawn, a field of the legacy maps among them.
WITH = {
    "bilinear_radius": {"render_method": "bilinear"},
    "distance_decay": {"render_method": "distance_weighted"},
}
PLAIN = [k for k in KNOBS.values() if k.keys and not k.name.endswith("_schedule")]


@pytest.mark.parametrize("knob", PLAIN, ids=lambda knob: knob.name)
def test_every_knob_makes_a_difference_to_the_shipped_detector(knob):
    low, high = (
        nano(to_overrides({**WITH.get(knob.name, {}), knob.name: value})) for value in ends(knob)
    )
    assert not trains_alike(low, high)


@pytest.mark.parametrize("knob", PLAIN, ids=lambda knob: knob.name)
def test_without_aqr_none_of_its_knobs_does(knob):
    routed = f"{HEAD}." in knob.keys[0] or "aqr" in knob.name
    configs = [nano(to_overrides({knob.name: value}), "cmt_nano.py") for value in ends(knob)]
    if knob.name != "enable_aqr":
        assert trains_alike(*configs) == routed


def test_a_kernels_width_has_no_effect_where_another_kernel_is_drawn():
    cfg = nano({f"{HEAD}.renderer_config.bilinear_radius": 3.0})
    told = says_no_effect(cfg, f"{HEAD}.renderer_config.bilinear_radius")
    assert "`bilinear_radius` (3.0) has no effect with `render_method='gaussian'`" in told
    assert says_no_effect(cfg, f"{HEAD}.renderer_config.gaussian_sigma") is None
    assert says_no_effect(cfg, "optimizer.lr") is None


def test_comparing_is_quiet(caplog):
    with caplog.at_level(logging.WARNING):
        alike(f"{HEAD}.renderer_config.bilinear_radius", 3.0)
    assert caplog.records == []


def test_an_entry_that_changes_nothing_says_why():
    cfg = nano({f"{KEYS}.query_embed.lr_mult": 0.5, f"{KEYS}.aqr_weight.lr_mult": 0.5})
    assert "no parameter" in idle_here(cfg, f"{KEYS}.query_embed.lr_mult")
    assert "`aqr_weight_generator`" in idle_here(cfg, f"{KEYS}.aqr_weight.lr_mult")
    assert idle_here(cfg, f"{KEYS}.transformer.lr_mult") is None
    assert idle_here(cfg, f"{HEAD}.num_query") is None


def test_what_cannot_be_built_is_never_called_alike():
    assert not alike(f"{HEAD}.num_query", 145)
    assert not alike("optimizer.type", "NoSuchOptimizer")


class Part(nn.Module):
    def __init__(self, **held):
        super().__init__()
        self.layer = nn.Linear(2, 2)
        for name, value in held.items():
            setattr(self, name, value)


def built(**held):
    torch.manual_seed(0)
    return Part(**held)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, 2),
        (1.0, None),
        ("a", "b"),
        ([1, {"a": (2,)}], [1, {"a": (3,)}]),
        (torch.zeros(2), torch.ones(2)),
        (torch.zeros(2), torch.zeros(3)),
        (nn.Conv2d(1, 1, 3, padding=0), nn.Conv2d(1, 1, 3, padding=1)),
    ],
)
def test_a_picture_shows_all_that_a_part_holds(one, other):
    assert picture(built(held=one)) != picture(built(held=other))
    assert picture(built(held=one)) == picture(built(held=one))


def test_a_picture_looks_into_functions_and_circles():
    def power(n):
        return lambda x: x**n

    assert picture(built(function=power(2))) != picture(built(function=power(3)))
    assert picture(built(function=power(2))) == picture(built(function=power(2)))
    circle: list = [1]
    circle.append(circle)
    assert picture(built(held=circle)) == picture(built(held=circle))


def test_a_picture_shows_initial_values_and_what_takes_gradients():
    one, other = built(), built()
    assert picture(one) == picture(other)
    other.layer.weight.data[0, 0] += 1
    assert picture(one) != picture(other)
    other = built()
    other.layer.bias.requires_grad_(False)
    assert picture(one) != picture(other)
    other = built()
    other.layer.register_forward_hook(lambda *_: None).remove()  # counts on, and nothing else
    assert picture(one) == picture(other)
