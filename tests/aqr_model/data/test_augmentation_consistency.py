"""Whatever the augmentations and their order: cloud, boxes, velocities and images tell one story.

The oracle knows no camera matrix of the pipeline: a corner of a box is painted into the original
image and put into the cloud as a point, before anything moves. Afterwards the painted mark is
looked for in the image, and the point in the cloud.
"""

import random

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scene_cases import HEIGHT, WIDTH, projected, scene, write_infos, write_object

from aqr_model.data import pipelines as steps
from aqr_model.data.nuscenes.dataset import CLASS_NAMES

MEAN, STD = [103.53, 116.28, 123.675], [57.375, 57.12, 58.395]
CORNER, CENTRE, LATER = 101.0, 102.0, 103.0  # intensities that tell the followed points apart
MOMENT_S = 0.3
SPREAD = 2.0  # of the mark, pixels
EXACT = 0.2  # how far from its place the middle of a mark may be found, pixels
RANGE = [-90.0, -90.0, -20.0, 90.0, 90.0, 20.0]
PASTED = CLASS_NAMES.index("pedestrian")


def marked_scene(seed):
    """A scene with a mark at one corner of box ``chosen``, in image and cloud; each box owns 20."""
    data, rng = scene(seed), np.random.default_rng(seed)
    boxes = data["gt_bboxes_3d"]
    pixels, depth = projected(boxes.corners, data["lidar2img"][0])
    shown = (depth > 1) & (pixels > 30).all(-1) & (pixels < [130, 75]).all(-1)
    assume(shown.any())
    chosen, corner = rng.permutation(np.argwhere(shown))[0]
    grid = np.stack(np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT)), axis=-1) + 0.5
    offset = grid - pixels[chosen, corner]
    mark = np.exp(-(offset**2).sum(axis=-1) / (2 * SPREAD**2)) * 255
    image = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    image[..., 0] = mark
    data["img"] = [image.copy() for _ in range(6)]
    points = data["points"].tensor
    points[:, 3] = 0
    points[:120, 3] = 1 + torch.arange(120) // 20  # 1 + the owner
    centre = boxes.gravity_center[chosen]
    velocity = torch.cat([boxes.tensor[chosen, 7:9], torch.zeros(1)])
    follow = [boxes.corners[chosen, corner], centre, centre + MOMENT_S * velocity]
    rows = [torch.cat([p, torch.tensor([i, 0.0])]) for p, i in zip(follow, KINDS, strict=True)]
    data["points"] = data["points"].new_point(torch.cat([points, torch.stack(rows)]))
    return data, int(chosen)


KINDS = (CORNER, CENTRE, LATER)


def check(data, chosen, *, image_moved, slack=EXACT):
    """What must hold after any number of augmentations."""
    points, boxes = data["points"].tensor.numpy(), data["gt_bboxes_3d"]
    place = {kind: points[points[:, 3] == kind][0, :3] for kind in KINDS}
    (row,) = np.flatnonzero(data["gt_labels_3d"] == chosen)
    box = boxes[int(row)]
    nearest = np.linalg.norm(box.corners[0].numpy() - place[CORNER], axis=-1).min()
    assert nearest < 1e-3
    np.testing.assert_allclose(box.gravity_center[0], place[CENTRE], atol=1e-3)
    later = box.gravity_center[0].numpy()
    later[:2] += MOMENT_S * box.tensor[0, 7:9].numpy()
    np.testing.assert_allclose(later[:2], place[LATER][:2], atol=1e-3)
    check_owned_points(points, data)
    for view in range(6):
        matrix = data["lidar2img"][view]
        np.testing.assert_allclose(
            matrix, data["cam_intrinsic"][view] @ data["lidar2cam"][view], atol=1e-9
        )
        expected = projected(place[CORNER], matrix)[0]
        check_mark(data["img"][view], expected, image_moved, slack)


def check_owned_points(points, data):
    for row, label in enumerate(data["gt_labels_3d"]):
        box = data["gt_bboxes_3d"][row]
        own = points[points[:, 3] == (1 + label if label < 6 else 50)]
        offset = own[:, :3] - box.gravity_center.numpy()
        c, s = np.cos(box.yaw.item()), np.sin(box.yaw.item())
        turned = offset @ np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
        assert (np.abs(turned) <= 0.47 * box.dims.numpy() + 1e-3).all()


def check_mark(image, expected, image_moved, slack):
    """The middle of the mark's light lies where the followed point projects."""
    light = np.clip(np.asarray(image[..., 0], dtype=np.float64), 0, None)
    light[light < 6] = 0
    height, width = light.shape
    reach = 4 * SPREAD + slack
    u, v = expected
    whole = reach < u < width - reach and reach < v < height - reach
    if not whole:  # the augmentation has moved the mark out of the image, wholly or partly
        assert image_moved
        return
    rows, columns = np.mgrid[0:height, 0:width] + 0.5
    found = (light * columns).sum() / light.sum(), (light * rows).sum() / light.sum()
    assert found == pytest.approx((u, v), abs=slack)


def in_space(draw):
    angle = draw(st.floats(0, 3))
    scales = sorted([draw(st.floats(0.7, 1.4)), draw(st.floats(0.7, 1.4))])
    shift = [draw(st.floats(0, 1)) for _ in range(3)]
    return steps.GlobalRotScaleTransAll([-angle, angle], scales, shift)


def mirrored(draw):
    return steps.CustomRandomFlip3D(False, draw(st.floats(0, 1)), draw(st.floats(0, 1)))


def resized(draw):
    if draw(st.booleans()):  # to whole pixels, upright: image and projections agree exactly
        low = high = draw(st.sampled_from([0.8, 0.9, 1.0, 1.1, 1.2]))
        turn = 0.0
    else:
        low = draw(st.floats(0.7, 0.95))
        high = low + draw(st.floats(0, 0.3))
        turn = draw(st.floats(0, 10))
    conf = {
        "resize_lim": (low, high),
        "final_dim": (draw(st.integers(60, 90)), draw(st.integers(110, 160))),
        "bot_pct_lim": (0.0, draw(st.floats(0, 0.15))),
        "rot_lim": (-turn, turn),
        "H": HEIGHT,
        "W": WIDTH,
        "rand_flip": draw(st.booleans()),
    }
    return steps.ResizeCropFlipImage(conf, training=draw(st.booleans()))


def slack_of(step):
    """How far a step may put the image off the projections, pixels.

    As in the public code, a resized image is rounded down to whole pixels (up to 1 pixel off), and
    turned about the corner of its middle pixel (up to 0.13 at 10 degrees).
    """
    if not isinstance(step, steps.ResizeCropFlipImage):
        return EXACT
    (low, high), turns = step.conf["resize_lim"], step.conf["rot_lim"]
    return EXACT if step.training and low == high and turns == (0.0, 0.0) else EXACT + 1.5


def normalised(_draw):
    return steps.NormalizeMultiviewImage(MEAN, STD, to_rgb=False)


def padded(draw):
    return steps.PadMultiViewImage(draw(st.sampled_from([16, 32, 48])))


def build(name, **options):
    from mmdet3d.datasets.pipelines import Compose

    return Compose([{"type": name, **options}]).transforms[0]


def filtered(draw):
    """The steps that drop or reorder, each of which must leave what it keeps as it is."""
    return draw(
        st.sampled_from(
            [
                build("PointsRangeFilter", point_cloud_range=RANGE),
                build("ObjectRangeFilter", point_cloud_range=RANGE),
                build("ObjectNameFilter", classes=list(CLASS_NAMES)),
                build("PointShuffle"),
            ]
        )
    )


def pasted(root, seed):
    """Paste a green pedestrian somewhere before the camera; its points are marked as owned."""
    rng = np.random.default_rng(seed + 1)
    box = [rng.uniform(6, 30), rng.uniform(-15, 15), rng.uniform(-2, 0), 0.8, 0.7, 1.8, 0.5]
    entry = write_object(root, "pedestrian", box)
    points = np.fromfile(root / entry["path"], dtype=np.float32).reshape(-1, 5)
    points[:, 3] = 50
    points.tofile(root / entry["path"])
    sampler = {
        "info_path": str(write_infos(root, [entry])),
        "data_root": None,
        "rate": 1.0,
        "prepare": {},
        "classes": list(CLASS_NAMES),
        "sample_groups": {"pedestrian": 1},
    }
    return steps.UnifiedObjectSample(sampler, sample_2d=True)


SEEDS = st.integers(0, 2**31 - 1)
ALONE = {
    "GlobalRotScaleTransAll": in_space,
    "CustomRandomFlip3D": mirrored,
    "ResizeCropFlipImage": resized,
    "PadMultiViewImage": padded,
    "filters": filtered,
}


@pytest.mark.parametrize("name", ALONE)
@settings(deadline=None, max_examples=25)
@given(seed=SEEDS, choices=st.data())
def test_each_augmentation_alone(name, seed, choices):
    data, chosen = marked_scene(seed)
    step = ALONE[name](choices.draw)
    np.random.seed(seed)
    torch.manual_seed(seed)
    moved = name == "ResizeCropFlipImage"
    check(step(data), chosen, image_moved=moved, slack=slack_of(step))


def denormalised(image):
    return image * np.array(STD, dtype=np.float32) + np.array(MEAN, dtype=np.float32)


@settings(deadline=None, max_examples=60)
@given(seed=SEEDS, choices=st.data())
def test_the_whole_pipeline_in_any_order(tmp_path_factory, seed, choices):
    """Pasting comes first, images keep their order of resizing, normalising and padding."""
    data, chosen = marked_scene(seed)
    made = [in_space, in_space, mirrored, filtered, filtered, filtered]
    names = [*range(len(made)), *["image"] * 3]
    order = choices.draw(st.permutations(names))
    images = iter([resized, normalised, padded])
    chain = [(next(images) if k == "image" else made[k])(choices.draw) for k in order]
    np.random.seed(seed)
    torch.manual_seed(seed)
    data = pasted(tmp_path_factory.mktemp("paste"), seed)(data)
    green = [image[..., 1] > 127 for image in data["img"]]
    for step in chain:
        data = step(data)
    data["img"] = [denormalised(image) for image in data["img"]]
    # Where images are padded after they are normalised, the margin is zero there, the mean here.
    (image_step,) = [step for step in chain if isinstance(step, steps.ResizeCropFlipImage)]
    height, width = image_step.conf["final_dim"]
    data["img"] = [image[:height, :width] for image in data["img"]]
    assume(not near_mark(data))
    check(data, chosen, image_moved=True, slack=max(map(slack_of, chain)))
    check_patch(data, green)


def near_mark(data):
    """Whether the pasted patch touches the mark, whose light it would then cover."""
    rows = np.flatnonzero(data["gt_labels_3d"] == PASTED)
    if not len(rows):
        return False
    points = data["points"].tensor.numpy()
    corner = points[points[:, 3] == CORNER][0, :3]
    mark, _ = projected(corner, data["lidar2img"][0])
    pixels, _ = projected(data["gt_bboxes_3d"].corners[rows[0]], data["lidar2img"][0])
    margin = 6 * SPREAD
    return bool(
        (mark > pixels.min(axis=0) - margin).all() and (mark < pixels.max(axis=0) + margin).all()
    )


def check_patch(data, green_before):
    """The green of the pasted object lies under its box's corners, in images turned or not."""
    rows = np.flatnonzero(data["gt_labels_3d"] == PASTED)
    if not len(rows):
        assert not green_before[0].any()
        return
    corners = data["gt_bboxes_3d"].corners[rows[0]]
    pixels, depth = projected(corners, data["lidar2img"][0])
    assert (depth > 0).all()
    green = data["img"][0][..., 1] > 127
    if not green.any():
        return
    v, u = np.nonzero(green)
    # A turned image shows the patch as a turned rectangle around the corners' hull.
    size = pixels.max(axis=0) - pixels.min(axis=0)
    slack = 2 + 0.2 * size.max()
    assert (u + 0.5 > pixels[:, 0].min() - slack).all()
    assert (u + 0.5 < pixels[:, 0].max() + slack).all()
    assert (v + 0.5 > pixels[:, 1].min() - slack).all()
    assert (v + 0.5 < pixels[:, 1].max() + slack).all()


@settings(deadline=None, max_examples=40)
@given(seed=SEEDS, choices=st.data())
def test_pasted_patch_fills_the_projected_box_exactly(tmp_path_factory, seed, choices):
    """Without image rotation the patch stays an upright rectangle: its borders are the box's."""
    data = scene(seed)
    data["img"] = [np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8) for _ in range(6)]
    data["gt_bboxes_3d"] = data["gt_bboxes_3d"][torch.zeros(6, dtype=torch.bool)]
    data["gt_labels_3d"] = np.zeros(0, dtype=np.int64)
    random.seed(seed)
    np.random.seed(seed)
    data = pasted(tmp_path_factory.mktemp("exact"), seed)(data)
    for image in data["img"]:
        image[..., 2] = 255  # red shows where the camera's image ends in the augmented one
    focal_length = data["cam_intrinsic"][0][0, 0]
    image_step = resized(choices.draw)
    image_step.conf["rot_lim"] = (0.0, 0.0)
    for step in choices.draw(
        st.permutations([in_space(choices.draw), mirrored(choices.draw), image_step])
    ):
        data = step(data)
    image, matrix = data["img"][0], data["lidar2img"][0]
    pixels, depth = projected(data["gt_bboxes_3d"].corners[0], matrix)
    if not (depth > 0).all():
        assert not (image[..., 1] > 127).any()
        return
    left, top, right, bottom = borders(image[..., 2])
    limits = [left, top], [right, bottom]
    expected = np.concatenate([np.clip(pixels.min(axis=0), *limits), np.clip(pixels.max(axis=0), *limits)])
    # One pixel of the camera's image, to which the patch is rounded; half a pixel, by which the
    # interpolated border is found; one pixel where the resized image is rounded to whole ones.
    scale = abs(data["cam_intrinsic"][0][0, 0]) / focal_length
    slack = scale + 0.5 + (slack_of(image_step) > EXACT) + 1e-3
    if not (image[..., 1] > 127).any():
        assert (expected[2:] - expected[:2] <= 2 * slack).any()
        return
    assert borders(image[..., 1]) == pytest.approx(expected.tolist(), abs=slack)


def borders(channel):
    """First and last column and row of what is bright: left, top, right, bottom, exclusive."""
    v, u = np.nonzero(channel > 127)
    return [u.min(), v.min(), u.max() + 1, v.max() + 1]
