"""AQR inside the CMT head."""

import pytest
import torch
from cmt_cases import AQR, build, head_config, small_batch
from mmdet.models.builder import build_head

from aqr_model.aqr import aqr_statistics

BRANCHES = ("center", "height", "dim", "rot", "vel", "cls_logits")


def fresh(seed=0, **config):
    """A head as training starts it."""
    torch.manual_seed(seed)
    head = build_head(head_config(**config))
    head.init_weights()
    return head


def plain_and_routed():
    plain, routed = fresh(1), fresh(2, **AQR)
    left = routed.load_state_dict(plain.state_dict(), strict=False)
    assert all(name.startswith("aqr_weight_generator.") for name in left.missing_keys)
    assert not left.unexpected_keys
    return plain, routed


def opinionated(head, seed=3):
    """Give the predictor something to say."""
    torch.manual_seed(seed)
    torch.nn.init.normal_(head.aqr_weight_generator.weight_predictor.weight)
    return head


def test_head_without_aqr_has_none_of_its_parts():
    names = dict(fresh(**AQR | {"enable_aqr": False}).named_modules())
    assert not any("aqr" in name or "weight_renderer" in name for name in names)


def test_routing_changes_the_outputs_once_weights_differ():
    points, images, metas, _, _ = small_batch()
    plain, routed = plain_and_routed()
    opinionated(routed)
    want = plain.eval()(points, images, metas)[0][0]["center"]
    assert not torch.allclose(routed.eval()(points, images, metas)[0][0]["center"], want)


def test_the_detection_loss_reaches_the_predictor():
    _, head = plain_and_routed()
    points, images, metas, boxes, labels = small_batch()
    sum(head.train().loss(boxes, labels, head(points, images, metas)).values()).backward()
    assert head.aqr_weight_generator.weight_predictor.weight.grad.abs().sum() > 0


def test_nothing_is_collected_unless_asked():
    points, images, metas, _, _ = small_batch()
    head = fresh(**AQR).eval()
    head(points, images, metas)
    assert head.last_aqr is None


def test_collected_tensors_are_what_the_statistics_take():
    points, images, metas, _, _ = small_batch()
    head = opinionated(fresh(**AQR)).train()
    head.collect_aqr = True
    head(points, images, metas)
    original, modulated = head.last_aqr["bev"]
    assert not original.requires_grad
    assert not torch.equal(original, modulated)
    statistics = aqr_statistics(**head.last_aqr)
    assert 0 < statistics["aqr/lidar_weights_stats/mean"] < 1
    assert all(isinstance(value, float) for value in statistics.values())


def test_bev_cells_have_their_true_size():
    """Cells come from voxel size and stride, also where the grid does not cover the range."""
    points, images, metas, _, _ = small_batch()
    head = fresh(**AQR | {"voxel_size": (0.1, 0.1, 0.2)}).eval()
    head.collect_aqr = True
    with torch.no_grad():
        head.reference_points.weight.fill_(0.5)
        # 2.0 m and 1.2 m from the range's corner, which is 108 m wide.
        head.reference_points.weight[0, :2] = torch.tensor([2.0, 1.2]) / 108
    head(points, images, metas)
    cells = head.last_aqr["projection"].bev_cells[0, 0]
    # Cell centres are whole numbers: (row, column) = metres / 0.8 - 0.5.
    torch.testing.assert_close(cells, torch.tensor([1.0, 2.0]), rtol=0, atol=1e-4)
    valid = head.last_aqr["projection"].bev_valid[0]
    assert valid[0]
    assert not valid[1:].any()  # inside the range, but behind the last cell


def test_aqr_needs_a_voxel_size():
    config = head_config(**AQR)
    del config["train_cfg"]["voxel_size"]
    config["bbox_coder"]["voxel_size"] = None
    with pytest.raises(ValueError, match="`voxel_size` must be given"):
        build_head(config)


def test_several_batches_share_no_state():
    head = build(**AQR).eval()
    first, second = small_batch(seed=1), small_batch(seed=2)
    before = head(*first[:3])[0][0]["center"]
    head(*second[:3])
    assert torch.equal(head(*first[:3])[0][0]["center"], before)
