"""Box codec, assigner, coder and task head."""

import itertools

import pytest
import torch
from cmt_cases import head_config
from mmdet.core import build_assigner, build_bbox_coder
from mmdet.models.builder import build_loss
from torch.nn import functional as F

from aqr_model.cmt.boxes.box_codec import decode_boxes, encode_boxes
from aqr_model.cmt.decoder.task_head import GroupLayerNorm1d, SeparateTaskHead
from aqr_model.cmt.loss.assigner import match


def random_boxes(count, seed=0):
    draw = torch.Generator().manual_seed(seed)
    boxes = torch.randn(count, 9, generator=draw)
    boxes[:, 3:6] = boxes[:, 3:6].abs() + 0.5
    boxes[:, 6] = boxes[:, 6].clamp(-3, 3)
    return boxes


def test_slots_are_in_the_public_order():
    box = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 0.5, 7.0, 8.0]])
    log, angle = torch.log, torch.tensor(0.5)
    sizes = log(torch.tensor([4.0, 5.0, 6.0]))
    want = torch.stack(
        [
            torch.tensor(1.0),
            torch.tensor(2.0),
            sizes[0],
            sizes[1],
            torch.tensor(3.0),
            sizes[2],
            angle.sin(),
            angle.cos(),
            torch.tensor(7.0),
            torch.tensor(8.0),
        ]
    )
    torch.testing.assert_close(encode_boxes(box)[0], want)


def test_codec_is_its_own_inverse():
    boxes = random_boxes(20)
    torch.testing.assert_close(decode_boxes(encode_boxes(boxes)), boxes)


@pytest.fixture
def assigner():
    return build_assigner(head_config()["train_cfg"]["assigner"])


def predictions(count=5, classes=4, seed=1):
    draw = torch.Generator().manual_seed(seed)
    slots = encode_boxes(random_boxes(count, seed))
    return slots, torch.randn(count, classes, generator=draw)


def test_cost_equals_a_loop(assigner):
    slots, logits = predictions()
    boxes, labels = random_boxes(3), torch.tensor([2, 0, 2])
    got = assigner.costs(slots, logits, boxes, labels)
    weights = torch.tensor(head_config()["train_cfg"]["code_weights"])
    for q, g in itertools.product(range(5), range(3)):
        p = logits[q, labels[g]].sigmoid()
        positive = -(p + 1e-12).log() * 0.25 * (1 - p) ** 2
        negative = -(1 - p + 1e-12).log() * 0.75 * p**2
        l1 = ((slots[q] - encode_boxes(boxes[g])) * weights)[:8].abs().sum()
        want = 2 * (positive - negative) + 0.25 * l1
        torch.testing.assert_close(got[q, g], want)


def test_match_is_the_cheapest_of_all(assigner):
    slots, logits = predictions()
    cost = assigner.costs(slots, logits, random_boxes(3), torch.tensor([2, 0, 2]))
    queries, truths = match(cost[None])
    best = min(
        sum(cost[q, g] for g, q in enumerate(rows)) for rows in itertools.permutations(range(5), 3)
    )
    torch.testing.assert_close(cost[queries[0], truths[0]].sum(), best)


def test_every_layer_is_matched_by_itself():
    costs = torch.rand(3, 5, 7, generator=torch.Generator().manual_seed(0))
    queries, truths = match(costs)
    assert queries.shape == (3, 5)  # fewer queries than boxes
    for n in range(3):
        alone = match(costs[n : n + 1])
        assert torch.equal(queries[n], alone[0][0])
        assert torch.equal(truths[n], alone[1][0])
    assert len({tuple(row) for row in truths.tolist()}) > 1


def test_assigner_refuses_what_it_does_not_do():
    config = head_config()["train_cfg"]["assigner"]
    with pytest.raises(ValueError, match="`iou_cost` must weigh 0"):
        build_assigner(config | {"iou_cost": {"type": "IoUCost", "weight": 1.0}})
    costs = torch.zeros(1, 3, 2)
    costs[0, 2, 1] = float("nan")
    with pytest.raises(FloatingPointError, match="must be finite"):
        match(costs)


def test_focal_loss_is_mmdets():
    draw = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(40, 4, generator=draw)
    labels = torch.randint(0, 5, (40,), generator=draw)
    config = {"use_sigmoid": True, "gamma": 1.5, "alpha": 0.3, "loss_weight": 2.0}
    ours, theirs = (
        build_loss({"type": name} | config) for name in ("SigmoidFocalLoss", "FocalLoss")
    )
    inputs = [logits.clone().requires_grad_() for _ in range(2)]
    values = [
        loss(leaf, labels, reduction_override="none")
        for loss, leaf in zip((ours, theirs), inputs, strict=True)
    ]
    torch.testing.assert_close(*values)
    for value in values:
        value.sum().backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad)
    with pytest.raises(ValueError, match="`use_sigmoid` of FocalLoss must be True"):
        build_loss({"type": "SigmoidFocalLoss", "use_sigmoid": False})


def outputs(num_queries=6, tasks=(2, 1), seed=0):
    draw = torch.Generator().manual_seed(seed)
    channels = {"center": 2, "height": 1, "dim": 3, "rot": 2, "vel": 2}
    made = []
    for num in tasks:
        branches = {
            name: torch.randn(2, 3, num_queries, c, generator=draw) for name, c in channels.items()
        }
        branches["cls_logits"] = torch.randn(2, 3, num_queries, num, generator=draw)
        made.append([branches])
    return made


def coder(**changes):
    config = head_config()["bbox_coder"] | {"num_classes": 3, "max_num": 7} | changes
    return build_bbox_coder(config)


def test_decoding_equals_a_loop():
    preds = outputs()
    for sample, got in enumerate(coder().decode(preds)):
        scored, first = [], 0
        for task in preds:
            logits = task[0]["cls_logits"][-1, sample]
            names = ("center", "height", "dim", "rot", "vel")
            slots = torch.cat([task[0][name][-1, sample] for name in names], dim=-1)
            for q, k in itertools.product(range(6), range(logits.shape[-1])):
                box = decode_boxes(slots[q])
                scored.append((logits[q, k].sigmoid().item(), first + k, box))
            first += logits.shape[-1]
        scored.sort(key=lambda entry: -entry[0])
        assert got["labels"].tolist() == [label for _, label, _ in scored[:7]]
        torch.testing.assert_close(got["scores"], torch.tensor([score for score, *_ in scored[:7]]))
        torch.testing.assert_close(got["bboxes"], torch.stack([box for *_, box in scored[:7]]))


def test_boxes_outside_and_low_scores_are_dropped():
    preds = outputs(tasks=(3,))
    preds[0][0]["center"][-1, :, :, 0] = 100.0
    assert all(len(sample["scores"]) == 0 for sample in coder().decode(preds))
    kept = coder(score_threshold=0.6).decode(outputs(tasks=(3,)))
    assert all((sample["scores"] > 0.6).all() for sample in kept)
    assert sum(len(sample["scores"]) for sample in kept) > 0


def test_fewer_candidates_than_the_limit():
    found = coder(max_num=1000).decode(outputs(tasks=(3,)))
    assert all(len(sample["scores"]) == 18 for sample in found)


def test_coder_needs_the_true_number_of_classes():
    with pytest.raises(ValueError, match=r"all tasks \(3\), but got 10"):
        coder(num_classes=10).decode(outputs())


def test_group_layer_norm_equals_layer_norm_of_each_group():
    norm = GroupLayerNorm1d(12, groups=3)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x = torch.randn(2, 12, 5)
    got = norm(x)
    for group in range(3):
        part = slice(4 * group, 4 * group + 4)
        want = F.layer_norm(
            x[:, part].transpose(1, 2), (4,), norm.weight[part], norm.bias[part], eps=1e-6
        )
        torch.testing.assert_close(got[:, part], want.transpose(1, 2))


def test_task_head_keeps_layers_apart():
    torch.manual_seed(0)
    head = SeparateTaskHead(8, {"center": (2, 2), "cls_logits": (3, 2)}, groups=3, head_conv=4)
    x = torch.randn(3, 2, 5, 8)
    before = head(x)
    assert before["center"].shape == (3, 2, 5, 2)
    assert before["cls_logits"].shape == (3, 2, 5, 3)
    x[1, 0, 3] += 1
    after = head(x)
    for name, old in before.items():
        changed = (old - after[name]).abs().amax(-1) > 1e-6
        assert changed.nonzero().tolist() == [[1, 0, 3]]
