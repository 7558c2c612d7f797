import pytest
import torch
from cmt_cases import build, golden, golden_batch, golden_head, head_config, small_batch
from cmt_fill import fill
from mmcv.parallel import DataContainer
from mmdet.models.builder import build_head
from torch.nn import functional as F

from aqr_model.cmt import denoising
from aqr_model.cmt.loss.assigner import match

BRANCHES = ("center", "height", "dim", "rot", "vel", "cls_logits")


def relative(got, want):
    got, want = torch.as_tensor(got).double(), torch.as_tensor(want).double()
    return ((got - want).abs().max() / want.abs().max()).item()


def loss_of(head, batch):
    points, images, metas, boxes, labels = batch
    return head.loss(boxes, labels, head(points, images, metas))


@pytest.fixture(params=["PETRMultiheadAttention", "MultiheadAttention"])
def recorded_head(request):
    """The public head at a small size; both self-attentions that configs name."""
    return golden_head(self_attention=request.param)


@torch.no_grad()
def test_every_layer_reproduces_the_public_head(recorded_head):
    points, images, metas, _, _ = golden_batch()
    outputs = recorded_head.eval()(points, images, metas)[0][0]
    want = golden()
    for name in BRANCHES:
        for layer, recorded in enumerate(want[f"eval_{name}"]):
            assert relative(outputs[name][layer], recorded) < 1e-4, (name, layer)


@torch.no_grad()
def test_decoded_boxes_reproduce_the_public_head(recorded_head):
    points, images, metas, _, _ = golden_batch()
    head = recorded_head.eval()
    results = head.get_bboxes(head(points, images, metas), metas)
    want = golden()
    assert len(results) == 2
    for i, (boxes, scores, labels) in enumerate(results):
        assert relative(boxes.tensor, want[f"decoded_boxes_{i}"]) < 1e-4
        assert relative(scores, want[f"decoded_scores_{i}"]) < 1e-4
        assert labels.tolist() == want[f"decoded_labels_{i}"].tolist()


def test_losses_and_gradients_reproduce_the_public_head(recorded_head, monkeypatch):
    monkeypatch.setattr(denoising, "draw_noise", torch.zeros_like)
    points, images, metas, boxes, labels = golden_batch()
    recorded_head.train()
    recorded_head.shared_conv.bn.eval()
    outputs = recorded_head(points, images, metas)
    losses = recorded_head.loss(boxes, labels, outputs)
    want = golden()
    assert outputs[0][0]["dn_queries"].num_slots == want["dn_pad_size"]
    assert {f"loss_{name}" for name in losses} == {k for k in want if k.startswith("loss_")}
    for name, value in losses.items():
        assert relative(value.detach(), want[f"loss_{name}"]) < 1e-4, name
    total = sum(losses.values())
    assert relative(total.detach(), want["total_loss"]) < 1e-4
    total.backward()
    norms = [key for key in want if key.startswith("grad_")]
    assert len(norms) == 4
    for key in norms:
        gradient = recorded_head.get_parameter(key.removeprefix("grad_")).grad
        assert relative(gradient.norm(), want[key]) < 1e-3, key


def r50_shapes():
    """Entries of the public R50 head's state dict."""
    shapes = {
        "reference_points.weight": (900, 3),
        "shared_conv.conv.weight": (256, 512, 3, 3),
        "shared_conv.bn.num_batches_tracked": (),
        "bev_embedding.0.weight": (256, 512),
        "bev_embedding.2.weight": (256, 256),
        "rv_embedding.0.weight": (1024, 192),
        "rv_embedding.0.bias": (1024,),
        "rv_embedding.2.weight": (256, 1024),
    }
    shapes |= dict.fromkeys(
        ["bev_embedding.0.bias", "bev_embedding.2.bias", "rv_embedding.2.bias"], (256,)
    )
    for name in ("weight", "bias", "running_mean", "running_var"):
        shapes[f"shared_conv.bn.{name}"] = (256,)
    norms = ["transformer.decoder.post_norm"]
    for i in range(6):
        layer = f"transformer.decoder.layers.{i}"
        norms += [f"{layer}.norms.{j}" for j in range(3)]
        for j in range(2):
            attention = f"{layer}.attentions.{j}.attn"
            shapes[f"{attention}.in_proj_weight"] = (768, 256)
            shapes[f"{attention}.in_proj_bias"] = (768,)
            shapes[f"{attention}.out_proj.weight"] = (256, 256)
            shapes[f"{attention}.out_proj.bias"] = (256,)
        shapes[f"{layer}.ffns.0.layers.0.0.weight"] = (1024, 256)
        shapes[f"{layer}.ffns.0.layers.0.0.bias"] = (1024,)
        shapes[f"{layer}.ffns.0.layers.1.weight"] = (256, 1024)
        shapes[f"{layer}.ffns.0.layers.1.bias"] = (256,)
    for norm in norms:
        shapes[f"{norm}.weight"] = shapes[f"{norm}.bias"] = (256,)
    channels = {"center": 2, "height": 1, "dim": 3, "rot": 2, "vel": 2, "cls_logits": 10}
    for name, count in channels.items():
        branch = f"task_heads.0.{name}"
        shapes[f"{branch}.0.weight"] = (384, 256, 1)
        shapes[f"{branch}.1.weight"] = shapes[f"{branch}.1.bias"] = (384,)
        shapes[f"{branch}.3.weight"] = (6 * count, 64, 1)
        shapes[f"{branch}.3.bias"] = (6 * count,)
    return shapes


def test_state_dict_is_that_of_the_public_r50_head():
    head = build_head(
        head_config(
            hidden_dim=256,
            in_channels=512,
            num_query=900,
            num_layers=6,
            num_heads=8,
            feedforward_channels=1024,
            dropout=0.1,
            self_attention="MultiheadAttention",
        )
    )
    assert {name: tuple(t.shape) for name, t in head.state_dict().items()} == r50_shapes()


def test_matching_queries_do_not_depend_on_denoising():
    points, images, metas, _, _ = small_batch()
    head = build().train()
    head.shared_conv.bn.eval()
    trained = head(points, images, metas)[0][0]
    tested = head.eval()(points, images, metas)[0][0]
    assert trained["dn_queries"].num_slots > 0
    for name in BRANCHES:
        torch.testing.assert_close(trained[name], tested[name])
        assert f"dn_{name}" in trained
        assert f"dn_{name}" not in tested


@pytest.mark.parametrize("counts", [(0, 0), (0, 2)])
def test_samples_without_ground_truth_train(counts):
    torch.manual_seed(0)
    head = build().train()
    losses = loss_of(head, small_batch(counts))
    assert set(losses) == set(loss_of(head, small_batch((2, 2))))
    assert all(value.isfinite() for value in losses.values())
    if not any(counts):
        assert losses["loss_bbox"] == 0
        assert losses["dn_loss_cls"] == losses["dn_loss_bbox"] == 0
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())


def test_more_boxes_than_queries_train_without_denoising():
    head = build(num_query=4).train()
    points, images, metas, boxes, labels = small_batch((7, 1))
    outputs = head(points, images, metas)
    assert outputs[0][0]["dn_queries"] is None
    losses = head.loss(boxes, labels, outputs)
    assert all(value.isfinite() for value in losses.values())


def test_boxes_without_extent_give_no_box_loss():
    torch.manual_seed(0)
    head = build().train()
    points, images, metas, boxes, labels = small_batch((1,))
    boxes[0].tensor[:, 3] = 0.0
    losses = head.loss(boxes, labels, head(points, images, metas))
    assert losses["loss_bbox"] == 0
    assert losses["dn_loss_bbox"] == 0
    assert losses["loss_cls"] > 0


def test_evaluation_losses_leave_denoising_out():
    head = build().eval()
    assert set(loss_of(head, small_batch())) == {
        "loss_cls",
        "loss_bbox",
        "d0.loss_cls",
        "d0.loss_bbox",
    }


def test_ground_truth_may_come_in_data_containers(monkeypatch):
    monkeypatch.setattr(denoising, "draw_noise", torch.zeros_like)
    head = build().train()
    head.shared_conv.bn.eval()
    plain, packed = small_batch(), small_batch()
    for meta in packed[2]:
        for key in ("gt_bboxes_3d", "gt_labels_3d"):
            meta[key] = DataContainer(meta[key])
    wanted = loss_of(head, plain)
    for name, value in loss_of(head, packed).items():
        assert value == wanted[name]


def test_several_tasks():
    tasks = [["car", "truck"], ["bus"], ["pedestrian", "bicycle", "barrier"]]
    head = build(tasks=tasks).train()
    points, images, metas, boxes, labels = small_batch((4, 3), num_classes=6)
    outputs = head(points, images, metas)
    assert [task[0]["cls_logits"].shape[-1] for task in outputs] == [2, 1, 3]
    losses = head.loss(boxes, labels, outputs)
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in head.parameters())
    found = head.eval().get_bboxes(outputs, metas)
    assert all(label_ids.max() < 6 for _, _, label_ids in found)


def test_tasks_share_the_losses_of_their_classes(monkeypatch):
    """Boxes of one task's classes leave the other tasks nothing to regress."""
    monkeypatch.setattr(denoising, "draw_noise", torch.zeros_like)
    head = build(tasks=[["car"], ["bus"]]).train()
    points, images, metas, boxes, labels = small_batch((2, 2), num_classes=2)
    for sample in labels:
        sample.fill_(1)
    outputs = head(points, images, metas)
    losses = head.loss(boxes, labels, outputs)
    outputs[0][0]["center"] = outputs[0][0]["center"] + 5
    outputs[0][0]["dn_center"] = outputs[0][0]["dn_center"] + 5
    shifted = head.loss(boxes, labels, outputs)
    assert losses == shifted
    outputs[1][0]["dn_center"] = outputs[1][0]["dn_center"] + 5
    assert head.loss(boxes, labels, outputs)["dn_loss_bbox"] != losses["dn_loss_bbox"]


def test_matching_loss_equals_a_loop(monkeypatch):
    head = build().eval()
    points, images, metas, boxes, labels = small_batch((3, 2))
    outputs = head(points, images, metas)
    losses = head.loss(boxes, labels, outputs)
    out = outputs[0][0]
    for layer, prefix in ((1, ""), (0, "d0.")):
        classification, regression, positives, negatives = 0.0, 0.0, 0, 0
        for i in range(2):
            slots = torch.cat([out[k][layer, i] for k in BRANCHES[:5]], dim=-1)
            logits = out["cls_logits"][layer, i]
            truth = torch.cat([boxes[i].gravity_center, boxes[i].tensor[:, 3:]], dim=1)
            cost = head.criterion.assigner.costs(slots, logits, truth, labels[i]).detach()
            assigned = dict(zip(*(found[0].tolist() for found in match(cost[None])), strict=True))
            for q in range(len(slots)):
                target = torch.zeros(10)
                if q not in assigned:
                    negatives += 1
                else:
                    positives += 1
                    t = assigned[q]
                    x, y, z, dx, dy, dz, yaw, vx, vy = truth[t]
                    want = torch.stack(
                        [x, y, dx.log(), dy.log(), z, dz.log(), yaw.sin(), yaw.cos(), vx, vy]
                    )
                    weight = torch.tensor(head.criterion.code_weights)
                    regression += ((slots[q] - want).abs() * weight).sum()
                    target[labels[i][t]] = 1
                p = logits[q].sigmoid()
                focal = target * 0.25 * (1 - p) ** 2 + (1 - target) * 0.75 * p**2
                entropy = F.binary_cross_entropy(p, target, reduction="none")
                classification += (focal * entropy).sum()
        factor = max(positives + 0.1 * negatives, 1)
        torch.testing.assert_close(losses[f"{prefix}loss_cls"], 2.0 * classification / factor)
        torch.testing.assert_close(losses[f"{prefix}loss_bbox"], 0.25 * regression / positives)


def test_diverged_predictions_are_reported():
    head = build().train()
    with torch.no_grad():
        head.shared_conv.conv.weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="training has diverged"):
        loss_of(head, small_batch())


def test_autocast_does_not_reach_the_head():
    points, images, metas, _, _ = small_batch()
    head = build().eval()
    plain = head(points, images, metas)[0][0]["center"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = head(points, images, metas)[0][0]["center"]
    assert cast.dtype == torch.float32
    assert torch.equal(plain, cast)


def test_init_weights_uses_the_configured_prior_and_uniform_references():
    torch.manual_seed(0)
    head = build_head(head_config(num_query=400))
    head.init_weights()
    assert torch.allclose(head.task_heads[0].cls_logits[-1].bias, torch.tensor(-2.19))
    points = head.reference_points.weight
    assert points.min() >= 0
    assert points.max() <= 1
    assert abs(points.mean().item() - 0.5) < 0.05


def test_grid_references():
    head = build_head(head_config(num_query=4, reference_init="grid"))
    head.init_weights()
    assert head.reference_points.weight.tolist() == [
        [0.25, 0.25, 0.5],
        [0.75, 0.25, 0.5],
        [0.25, 0.75, 0.5],
        [0.75, 0.75, 0.5],
    ]
    with pytest.raises(ValueError, match=r"must be a square.*got 8.*Take 9"):
        build_head(head_config(num_query=8, reference_init="grid")).init_weights()


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ({"reference_init": "random"}, "must be 'uniform' or 'grid', but got 'random'"),
        ({"train_cfg": None}, "`train_cfg` or `test_cfg` must be given"),
        (
            {"enable_aqr": True, "aqr_config": {"embed_dims": 8}},
            r"must equal the head's `hidden_dim` \(16\), but got 8",
        ),
    ],
)
def test_bad_configs(head, message):
    with pytest.raises(ValueError, match=message):
        build_head(head_config(**head))


def test_a_missing_modality_is_an_error():
    points, images, metas, _, _ = small_batch()
    with pytest.raises(ValueError, match=r"lidar and camera, but got those of camera\."):
        build()([None], images, metas)
    with pytest.raises(ValueError, match=r"lidar and camera, but got those of lidar\."):
        build()(points, [None], metas)


def test_a_bev_grid_of_another_size_is_an_error():
    points, images, metas, _, _ = small_batch()
    with pytest.raises(ValueError, match=r"= \(4, 6\) cells.*got \(4, 5\)"):
        build().eval()([points[0][..., :5]], images, metas)


def test_training_needs_ground_truth_in_the_metas():
    points, images, metas, _, _ = small_batch()
    del metas[1]["gt_labels_3d"]
    with pytest.raises(ValueError, match="must hold gt_labels_3d in training"):
        build().train()(points, images, metas)


def test_losses_need_a_train_config():
    head = fill(build_head(head_config(train_cfg=None, test_cfg={"grid_size": [48, 32, 40]})))
    batch = small_batch()
    with pytest.raises(ValueError, match="`train_cfg` must be given to compute losses"):
        loss_of(head.eval(), batch)
