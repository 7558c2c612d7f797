import copy

import cv2
import mmcv
import numpy as np
import pytest
import torch
from mmdet3d.core.bbox import LiDARInstance3DBoxes
from mmdet3d.datasets.pipelines import Compose
from scene_cases import projected, scene

from aqr_model.cmt.images.pixels import normalised
from aqr_model.data import pipelines as steps
from aqr_model.data.errors import DataError
from aqr_model.data.nuscenes.dataset import CLASS_NAMES
from aqr_model.data.pipelines.formatting import leave_to_device

RANGE = [-54.0, -54.0, -5.0, 54.0, 54.0, 3.0]
CONF = {
    "resize_lim": (0.8, 1.0),
    "final_dim": (64, 128),
    "bot_pct_lim": (0.0, 0.1),
    "rot_lim": (-5.0, 5.0),
    "H": 90,
    "W": 160,
    "rand_flip": True,
}
META = ("lidar2img", "pad_shape", "img_shape", "sample_idx", "box_type_3d")


@pytest.mark.parametrize("boxes", [None, LiDARInstance3DBoxes(torch.zeros(0, 9), box_dim=9)])
def test_a_scene_without_boxes_moves_with_its_cameras(boxes):
    """Every point is seen where it was seen; the scene has turned by 0.3 and is mirrored twice."""
    before, data = scene(), scene()
    del data["gt_bboxes_3d"]
    if boxes is not None:
        data["gt_bboxes_3d"] = boxes
    for step in [
        steps.GlobalRotScaleTransAll([0.3, 0.3]),
        steps.CustomRandomFlip3D(False, 1.0, 1.0),
    ]:
        data = step(data)
    places = before["points"].tensor[:, :3].numpy(), data["points"].tensor[:, :3].numpy()
    scale = data["pcd_scale_factor"]
    c, s = np.cos(0.3), np.sin(0.3)
    turned = scale * places[0] @ np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]])
    np.testing.assert_allclose(places[1], turned * [-1, -1, 1], atol=1e-4)
    for view in range(6):
        old, depth = projected(places[0], before["lidar2img"][view])
        new, _ = projected(places[1], data["lidar2img"][view])
        np.testing.assert_allclose(new[depth > 1], old[depth > 1], atol=0.05)
    assert data["transformation_3d_flow"] == ["R", "S", "T", "HF", "VF"]


def test_fixed_resize_keeps_the_bottom_rows_and_the_middle_columns():
    conf = {**CONF, "final_dim": (40, 80), "bot_pct_lim": (0.0, 0.0)}
    image = cv2.resize(scene()["img"][0], None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    data = scene()
    before = data["lidar2img"][0]
    data = steps.ResizeCropFlipImage(conf, training=False)(data)
    # At half size, linear interpolation at the pixel corner is the mean of four pixels.
    difference = data["img"][0].astype(int) - image[5:].astype(int)
    assert np.abs(difference).max() <= 1
    moved = np.diag([0.5, 0.5, 1, 1])
    moved[1, 2] = -5
    np.testing.assert_allclose(data["lidar2img"][0], moved @ before)
    assert data["pad_shape"] == [(40, 80, 3)] * 6


@pytest.mark.parametrize(
    ("size", "final", "top"),
    [((900, 1600), (320, 800), 130), ((900, 1600), (640, 1600), 260), ((225, 400), (128, 320), 52)],
)
def test_offsets_of_the_presets(size, final, top):
    """The pixel at the first column of row ``top`` of the resized image is the first of all."""
    conf = {**CONF, "H": size[0], "W": size[1], "final_dim": final, "bot_pct_lim": (0.0, 0.0)}
    image = np.zeros((*size, 3), dtype=np.uint8)
    data = {"img": [image], "lidar2img": [np.eye(4)], "cam_intrinsic": [np.eye(4)]}
    moved = steps.ResizeCropFlipImage(conf, training=False)(data)["cam_intrinsic"][0]
    scale = final[1] / size[1]
    np.testing.assert_allclose(moved[:2, :3], [[scale, 0, 0], [0, scale, -top]])


def test_views_share_the_random_draw():
    data = scene()
    np.random.seed(3)
    data = steps.ResizeCropFlipImage(CONF)(data)
    assert all((matrix == data["lidar2img"][0]).all() for matrix in data["lidar2img"])


def test_image_of_another_size_is_refused():
    data = scene()
    with pytest.raises(DataError, match="900 x 1600, but one has 90 x 160"):
        steps.ResizeCropFlipImage({**CONF, "H": 900, "W": 1600})(data)


def test_unknown_augmentation_key_is_refused():
    with pytest.raises(DataError, match="must have the keys"):
        steps.ResizeCropFlipImage({**CONF, "zoom": 2})


def test_normalise_and_pad():
    mean, std = [103.53, 116.28, 123.675], [57.375, 57.12, 58.395]
    data = scene()
    raw = copy.deepcopy(data["img"])
    data = steps.NormalizeMultiviewImage(mean, std, to_rgb=False)(data)
    data = steps.PadMultiViewImage(32)(data)
    assert data["img_shape"] == data["pad_shape"] == [(96, 160, 3)] * 6
    assert data["img"][0].dtype == np.float32
    expected = (raw[2].astype(np.float64) - mean) / std
    np.testing.assert_allclose(data["img"][2][:90], expected, atol=1e-5)
    assert (data["img"][2][90:] == 0).all()


def test_normalise_to_rgb():
    data = scene()
    raw = data["img"][0].copy()
    data = steps.NormalizeMultiviewImage([1, 2, 3], [1, 1, 1], to_rgb=True)(data)
    np.testing.assert_allclose(data["img"][0], raw[..., ::-1] - np.array([1.0, 2, 3]))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: steps.ModalMask3D(mode="maybe"), "mode must be one of"),
        (lambda: steps.ModalMask3D(mask_modal="radar"), "mask_modal must be one of"),
        (lambda: steps.CustomRandomFlip3D(sync_2d=True), "sync_2d must be False"),
        (lambda: steps.CustomRandomFlip3D(False, 1.5), "must lie in"),
        (lambda: steps.GlobalRotScaleTransAll([1, -1]), "low <= high"),
        (lambda: steps.GlobalRotScaleTransAll(translation_std=[1.0]), "3 values"),
        (lambda: steps.LoadMultiViewImageFromFiles(color_type="grey"), "color_type must be"),
    ],
)
def test_wrong_settings_are_refused(build, message):
    with pytest.raises(DataError, match=message):
        build()


def load_steps():
    return [
        {
            "type": "LoadPointsFromFile",
            "coord_type": "LIDAR",
            "load_dim": 5,
            "use_dim": [0, 1, 2, 3, 4],
        },
        {"type": "LoadPointsFromMultiSweeps", "sweeps_num": 10, "use_dim": [0, 1, 2, 3, 4]},
        {"type": "LoadMultiViewImageFromFiles"},
    ]


def image_steps(*, training):
    return [
        {"type": "ResizeCropFlipImage", "data_aug_conf": CONF, "training": training},
        {
            "type": "NormalizeMultiviewImage",
            "mean": [103.53, 116.28, 123.675],
            "std": [57.375, 57.12, 58.395],
            "to_rgb": False,
        },
        {"type": "PadMultiViewImage", "size_divisor": 32},
    ]


def train_pipeline():
    """The public configs' training pipeline without ground-truth sampling."""
    names = list(CLASS_NAMES)
    return [
        *load_steps(),
        {"type": "LoadAnnotations3D", "with_bbox_3d": True, "with_label_3d": True},
        {"type": "ModalMask3D", "mode": "train"},
        {
            "type": "GlobalRotScaleTransAll",
            "rot_range": [-0.785, 0.785],
            "scale_ratio_range": [0.9, 1.1],
            "translation_std": [0.5, 0.5, 0.5],
        },
        {
            "type": "CustomRandomFlip3D",
            "sync_2d": False,
            "flip_ratio_bev_horizontal": 0.5,
            "flip_ratio_bev_vertical": 0.5,
        },
        {"type": "PointsRangeFilter", "point_cloud_range": RANGE},
        {"type": "ObjectRangeFilter", "point_cloud_range": RANGE},
        {"type": "ObjectNameFilter", "classes": names},
        {"type": "PointShuffle"},
        *image_steps(training=True),
        {"type": "DefaultFormatBundle3D", "class_names": names},
        {
            "type": "Collect3D",
            "keys": ["points", "img", "gt_bboxes_3d", "gt_labels_3d"],
            "meta_keys": (*META, "gt_bboxes_3d", "gt_labels_3d"),
        },
    ]


def test_pipeline_of_the_public_configs_for_training(build_tiny):
    dataset = build_tiny("tiny_train", train_pipeline())
    np.random.seed(0)
    for index in range(len(dataset)):
        data = dataset[index]
        images, metas = data["img"].data, data["img_metas"].data
        assert images.shape == (6, 3, 64, 128)
        assert images.dtype == torch.float32  # turned by a random angle
        assert images.is_contiguous()
        assert data["points"].data.shape[1] == 5
        assert metas["pad_shape"] == [(64, 128, 3)] * 6
        assert np.stack(metas["lidar2img"]).shape == (6, 4, 4)
        boxes, labels = metas["gt_bboxes_3d"], metas["gt_labels_3d"]
        assert isinstance(boxes, LiDARInstance3DBoxes)
        assert torch.equal(boxes.tensor, data["gt_bboxes_3d"].data.tensor)
        assert torch.equal(labels, data["gt_labels_3d"].data)
        assert (boxes.yaw.abs() <= np.pi + 1e-4).all()
        assert metas["box_type_3d"] is LiDARInstance3DBoxes


def test_pipeline_of_the_public_configs_for_testing(build_tiny):
    transforms = [
        {
            "type": "GlobalRotScaleTrans",
            "rot_range": [0, 0],
            "scale_ratio_range": [1.0, 1.0],
            "translation_std": [0, 0, 0],
        },
        {"type": "RandomFlip3D"},
        *image_steps(training=False),
        {"type": "DefaultFormatBundle3D", "class_names": list(CLASS_NAMES), "with_label": False},
        {"type": "Collect3D", "keys": ["points", "img"]},
    ]
    augmented = {"type": "MultiScaleFlipAug3D", "img_scale": (1333, 800), "pts_scale_ratio": 1}
    augmented |= {"flip": False, "transforms": transforms}
    dataset = build_tiny(pipeline=[*load_steps(), augmented], test_mode=True)
    data = dataset[1]
    assert data["img"][0].data.shape == (6, 3, 64, 128)
    assert data["img_metas"][0].data["sample_idx"] == dataset.data_infos[1]["token"]
    assert len(data["points"][0].data) > 300


def standing(size_divisor=32, **norm):
    """The training pipeline without turns, so that pixels stay whole."""
    pipeline = train_pipeline()
    resize, normalise, pad = pipeline[-5:-2]
    resize["data_aug_conf"] = {**CONF, "rot_lim": (0.0, 0.0)}
    normalise |= norm
    pad["size_divisor"] = size_divisor
    return pipeline


def drawn_sample(dataset):
    np.random.seed(3)
    torch.manual_seed(3)
    data = dataset[0]
    return data["img"].data, data["img_metas"].data


@pytest.mark.parametrize("to_rgb", [False, True])
def test_pixels_left_to_the_device_become_what_the_pipeline_would_have_made(build_tiny, to_rgb):
    pipeline = standing(to_rgb=to_rgb)
    left, metas = drawn_sample(build_tiny("tiny_train", pipeline))
    dataset = build_tiny("tiny_train", pipeline)
    for step in dataset.pipeline.transforms:
        if isinstance(step, steps.NormalizeMultiviewImage):
            step.device_multiple = None
    made, _ = drawn_sample(dataset)
    assert left.dtype == torch.uint8
    assert made.dtype == torch.float32
    assert made.std() > 0.3
    batch = normalised(torch.stack([left, left]), [metas, metas])
    assert torch.equal(batch, torch.stack([made, made]))
    assert normalised(made, []) is made


def test_each_sample_is_normalised_as_its_own_pipeline_says(build_tiny):
    left, metas = drawn_sample(build_tiny("tiny_train", standing()))
    other, metas_of_other = drawn_sample(build_tiny("tiny_train", standing(std=[1.0, 2.0, 4.0])))
    batch = normalised(torch.stack([left, other]), [metas, metas_of_other])
    assert torch.equal(batch[0], normalised(left[None], [metas])[0])
    assert torch.equal(batch[1], normalised(other[None], [metas_of_other])[0])
    assert not torch.equal(batch[0], batch[1])


class Foreign:
    """A step of a user's own."""

    def __call__(self, results):
        return results


@pytest.mark.parametrize("change", ["padding", "a step after it", "a user's step before it"])
def test_pixels_are_normalised_in_the_pipeline_where_the_device_could_not(build_tiny, change):
    pipeline = standing(size_divisor=48) if change == "padding" else standing()
    if change == "a step after it":
        pipeline.insert(-2, {"type": "PointShuffle"})
    dataset = build_tiny("tiny_train", pipeline)
    if change == "a user's step before it":
        built = [Foreign(), *build_tiny("tiny_train", [*pipeline]).pipeline.transforms]
        for step in built:
            if isinstance(step, steps.NormalizeMultiviewImage):
                step.device_multiple = None
        leave_to_device(built)
        dataset.pipeline.transforms = built
    images, metas = drawn_sample(dataset)
    assert images.dtype == torch.float32
    assert "img_norm_cfg" not in metas


def test_sweeps_carry_their_age(build_tiny):
    dataset = build_tiny(pipeline=load_steps(), test_mode=True)
    points = dataset[1]["points"].tensor
    ages = np.unique(np.round(points[:, 4].numpy(), 3))
    np.testing.assert_allclose(ages, [0.0, 0.2, 0.5, 0.7], atol=2e-3)


def test_evaluation_takes_the_nearest_sweeps(build_tiny):
    pipeline = load_steps()
    pipeline[1] |= {"sweeps_num": 1}
    dataset = build_tiny(pipeline=pipeline, test_mode=True)
    for _ in range(5):
        points = dataset[2]["points"].tensor
        assert points[:, 4].max() == pytest.approx(0.2, abs=2e-3)


def test_steps_are_those_that_configs_name():
    for name in set(steps.__all__) - {"UnifiedObjectSample"}:  # it needs a database
        built = Compose([{"type": name, **_OPTIONS.get(name, {})}]).transforms[0]
        assert type(built) is getattr(steps, name)


_OPTIONS = {
    "Collect3D": {"keys": []},
    "LoadPointsFromFile": {"coord_type": "LIDAR"},
    "NormalizeMultiviewImage": {"mean": [0, 0, 0], "std": [1, 1, 1]},
    "ObjectRangeFilter": {"point_cloud_range": RANGE},
    "PadMultiViewImage": {"size_divisor": 32},
    "ResizeCropFlipImage": {"data_aug_conf": CONF},
}


def test_images_are_read_as_mmcv_reads_them(build_tiny):
    dataset = build_tiny(pipeline=[{"type": "LoadMultiViewImageFromFiles"}], test_mode=True)
    data = dataset[0]
    for name, image in zip(data["filename"], data["img"], strict=True):
        np.testing.assert_array_equal(image, mmcv.imread(name, "unchanged"))
