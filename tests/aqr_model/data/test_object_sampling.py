import random

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from mmdet3d.core.bbox import LiDARInstance3DBoxes
from mmdet3d.core.bbox.box_np_ops import points_in_rbbox
from mmdet3d.datasets.builder import OBJECTSAMPLERS
from scene_cases import projected, scene, write_infos, write_object

from aqr_model.data.boxes import footprints, overlap_from_above
from aqr_model.data.nuscenes.dataset import CLASS_NAMES
from aqr_model.data.errors import DataError, SampleFileError
from aqr_model.data.pipelines import UnifiedObjectSample

SEEDS = st.integers(0, 2**31 - 1)
GREEN, RED = (0, 255, 0), (0, 0, 255)


def empty_scene(num_boxes=0):
    """Black images, the ground's points, and boxes if wanted."""
    data = scene(1)
    data["img"] = [np.zeros((90, 160, 3), dtype=np.uint8) for _ in range(6)]
    data["points"] = data["points"][torch.arange(120, 220)]
    data["gt_bboxes_3d"] = data["gt_bboxes_3d"][torch.arange(6) < num_boxes]
    data["gt_labels_3d"] = np.arange(6)[:num_boxes]
    return data


def with_boxes(data, boxes, label=9):
    boxes = torch.tensor(boxes, dtype=torch.float32)
    data["gt_bboxes_3d"] = LiDARInstance3DBoxes(boxes, box_dim=9)
    data["gt_labels_3d"] = np.full(len(boxes), label)
    return data


def step(root, entries, groups=None, *, prepare=None, rate=1.0, **options):
    path = write_infos(root, entries)
    sampler = {
        "type": "UnifiedDataBaseSampler",
        "data_root": None,
        "info_path": str(path),
        "rate": rate,
        "prepare": prepare or {},
        "classes": list(CLASS_NAMES),
        "sample_groups": groups or {"car": 1},
    }
    return UnifiedObjectSample(db_sampler=sampler, **{"sample_2d": True, **options})


CAR = [12.0, 2.0, -1.0, 4.5, 2.0, 1.6, 0.4]


def test_boxes_labels_and_points_are_added(tmp_path):
    data = empty_scene(2)
    first = data["gt_bboxes_3d"].tensor.clone()
    data = step(tmp_path, [write_object(tmp_path, "bus", CAR)], {"bus": 1})(data)
    boxes = data["gt_bboxes_3d"].tensor
    assert torch.equal(boxes[:2], first)
    np.testing.assert_allclose(boxes[2, :7], CAR, atol=1e-6)
    assert data["gt_labels_3d"].tolist() == [0, 1, CLASS_NAMES.index("bus")]
    assert data["gt_labels_3d"].dtype == np.int64
    assert data["points"].tensor.shape == (130, 5)
    assert points_in_rbbox(data["points"].tensor[100:, :3].numpy(), boxes[2:].numpy()).all()


def test_points_inside_pasted_boxes_give_way(tmp_path):
    data = empty_scene()
    clutter = data["points"].tensor[:1].clone()
    clutter[0, :3] = torch.tensor([12.0, 2.0, -0.5])
    data["points"] = data["points"].new_point(torch.cat([data["points"].tensor, clutter]))
    data = step(tmp_path, [write_object(tmp_path, "car", CAR)])(data)
    assert not (data["points"].tensor == clutter).all(dim=1).any()
    assert len(data["points"]) == 130


def painted(image, channel):
    rows, columns = np.nonzero(image[..., channel] > 127)
    return (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) if len(rows) else None


@settings(deadline=None, max_examples=40)
@given(SEEDS, st.floats(6, 35), st.floats(-0.9, 0.9), st.floats(-3.1, 3.1))
def test_patch_lies_where_the_box_projects(tmp_path_factory, seed, depth, side, yaw):
    rng = np.random.default_rng(seed)
    box = [depth, depth * side, rng.uniform(-2, 0), *rng.uniform(0.8, 5, 3), yaw]
    root = tmp_path_factory.mktemp("patch")
    data = step(root, [write_object(root, "car", box)])(empty_scene())
    pixels, corner_depth = projected(data["gt_bboxes_3d"].corners[0], data["lidar2img"][0])
    assume((corner_depth > 0).all())
    whole = np.clip([pixels.min(axis=0), pixels.max(axis=0)], 0, [159, 89])
    left, top, right, bottom = np.trunc(whole).reshape(-1).astype(int)
    found = painted(data["img"][0], 1)
    if right - left < 2 or bottom - top < 2:
        assert found is None
        return
    assert found == (left, top, right, bottom)
    assert (data["img"][0][top:bottom, left:right, 1] == 255).all()


def test_box_behind_the_camera_is_pasted_into_the_cloud_only(tmp_path):
    data = step(tmp_path, [write_object(tmp_path, "car", [-12.0, *CAR[1:]])])(empty_scene())
    assert len(data["gt_bboxes_3d"]) == 1
    assert not any(image.any() for image in data["img"])


def test_nearer_objects_lie_on_top(tmp_path):
    far = write_object(tmp_path, "car", [20, 0, -2, 4, 4, 4, 0], colour=GREEN)
    near = write_object(tmp_path, "bus", [10, 0, -1, 1, 1, 1, 0], colour=RED)
    for groups in ({"car": 1, "bus": 1}, {"bus": 1, "car": 1}):
        data = step(tmp_path, [far, near], groups)(empty_scene())
        left, top, right, bottom = painted(data["img"][0], 2)
        region = data["img"][0][top:bottom, left:right]
        assert (region == RED).all()
        outer = painted(data["img"][0], 1)
        assert outer[0] < left
        assert right < outer[2]


@pytest.mark.parametrize("distance", [8.0, 25.0])
def test_own_objects_are_covered_nearer_or_farther(tmp_path, distance):
    """Public checkpoints were trained so: a pasted object covers a nearer one of the scene."""
    own = [distance, 0, -1, 1, 1, 1.5, 0, 0, 0]
    data = with_boxes(empty_scene(), [own])
    for image in data["img"]:
        image[:] = (200, 0, 0)
    pixels, _ = projected(data["gt_bboxes_3d"].corners[0], data["lidar2img"][0])
    middle = np.floor(pixels.mean(axis=0)).astype(int)
    pasted = write_object(tmp_path, "car", [14, 0, -2, 4, 4, 4, 0])
    data = step(tmp_path, [pasted])(data)
    assert data["img"][0][middle[1], middle[0]].tolist() == list(GREEN)


def test_mixup_blends_by_its_rate(tmp_path):
    data = empty_scene()
    for image in data["img"]:
        image[:] = (100, 100, 100)
    data = step(tmp_path, [write_object(tmp_path, "car", CAR)], mixup_rate=0.25)(data)
    image = data["img"][0]
    values = {tuple(pixel) for pixel in image.reshape(-1, 3).tolist()}
    assert values == {(100, 100, 100), (75, 138, 75)}  # 0.75 * 100 + 0.25 * (0, 255, 0), down


def test_without_images(tmp_path):
    data = step(tmp_path, [write_object(tmp_path, "car", CAR)], sample_2d=False)(empty_scene())
    assert len(data["gt_bboxes_3d"]) == 1
    assert not any(image.any() for image in data["img"])


def test_object_without_patch_changes_no_image(tmp_path):
    unseen = write_object(tmp_path, "car", CAR, image_path="")
    seen = write_object(tmp_path, "bus", CAR)
    data = step(tmp_path, [unseen, seen], {"car": 1, "bus": 0})(empty_scene())
    assert len(data["gt_bboxes_3d"]) == 1
    assert not any(image.any() for image in data["img"])


@settings(deadline=None, max_examples=20)
@given(SEEDS)
def test_nothing_collides(tmp_path_factory, seed):
    rng = np.random.default_rng(seed)
    root = tmp_path_factory.mktemp("crowd")
    low, high = [2, -10, -1, 1, 1, 1, -3], [25, 10, 0, 6, 3, 2, 3]
    entries = [write_object(root, "car", rng.uniform(low, high)) for _ in range(12)]
    data = with_boxes(empty_scene(), [[10, 0, -1, 5, 5, 2, 0.3, 0, 0]])
    random.seed(seed)
    data = step(root, entries, {"car": 12}, sample_2d=False)(data)
    boxes = data["gt_bboxes_3d"].tensor.numpy()
    assert len(boxes) > 1
    ground = footprints(boxes)
    assert (overlap_from_above(ground, ground) == np.eye(len(boxes), dtype=bool)).all()


@pytest.mark.parametrize(
    ("places", "kept"),
    [
        ([0, 1], [1]),  # of two that overlap, the first drawn gives way
        ([0, 1, 2], [2]),  # 0 gives way to 1, and 1 to 2, though 0 and 2 are apart
        ([0, 1, 9], [1, 9]),
        ([1, 9, 12.5], [1, 9]),  # the scene has one from 11 to 13
    ],
)
def test_which_of_overlapping_objects_are_taken(tmp_path, monkeypatch, places, kept):
    """As the public sampler does; boxes are 1.5 long and stand at the places, metres."""
    entries = [write_object(tmp_path, "car", [10, p, 0, 1, 1.5, 1, 0]) for p in places]
    made = step(tmp_path, entries, {"car": 9}, sample_2d=False)
    monkeypatch.setattr(random, "sample", lambda objects, count: list(objects)[:count])
    data = made(with_boxes(empty_scene(), [[10, 12, 0, 1, 2, 1, 0, 0, 0]]))
    assert data["gt_bboxes_3d"].tensor[1:, 1].tolist() == kept


def row(count, name="car", **changes):
    """Boxes side by side that never collide."""
    return lambda root: [
        write_object(root, name, [10 + 3 * i, -30.0, -1, 2, 2, 2, 0], **changes)
        for i in range(count)
    ]


@pytest.mark.parametrize(
    ("most", "rate", "present", "added"),
    [
        (4, 1.0, 0, 4),
        (4, 1.0, 1, 3),
        (4, 0.5, 0, 2),
        (2, 1.0, 5, 0),
        (50, 1.0, 0, 10),
        (0, 1, 0, 0),
    ],
)
def test_groups_fill_a_scene_up(tmp_path, most, rate, present, added):
    boxes = [[-10, 4.0 * i, 0, 1, 1, 1, 0, 0, 0] for i in range(present)]
    data = with_boxes(empty_scene(), np.reshape(boxes, (-1, 9)), label=0)
    data = step(tmp_path, row(10)(tmp_path), {"car": most}, rate=rate)(data)
    assert len(data["gt_labels_3d"]) == present + added


def test_filters(tmp_path):
    entries = [
        *row(3, num_points=4)(tmp_path),
        *row(2, num_points=5)(tmp_path),
        *row(4, difficulty=-1)(tmp_path),
        *row(1, "bus", num_points=2)(tmp_path),
    ]
    prepare = {"filter_by_difficulty": [-1], "filter_by_min_points": {"car": 5}}
    made = step(tmp_path, entries, {"car": 9, "bus": 9}, prepare=prepare)
    counts = {name: len(shelf) for name, shelf in made.db_sampler.shelves.items()}
    assert counts == {"car": 2, "bus": 1}


def test_filters_that_leave_nothing_change_nothing(tmp_path):
    prepare = {"filter_by_min_points": {"car": 99}}
    data = step(tmp_path, row(3)(tmp_path), prepare=prepare)(empty_scene(2))
    assert len(data["gt_labels_3d"]) == 2
    assert len(data["points"]) == 100


def test_draws_depend_on_the_seed_alone(tmp_path):
    made = step(tmp_path, row(10)(tmp_path), {"car": 3})

    def draw(seed):
        random.seed(seed)
        return made(empty_scene())["gt_bboxes_3d"].tensor[:, 0].tolist()

    first = [draw(seed) for seed in range(8)]
    assert [draw(seed) for seed in range(8)] == first
    assert len({tuple(own) for own in first}) > 4
    assert all(len(set(own)) == 3 for own in first)


def test_every_object_is_drawn_as_often(tmp_path):
    made = step(tmp_path, row(5)(tmp_path), {"car": 2}, sample_2d=False)
    random.seed(0)
    counts = {10.0 + 3 * i: 0 for i in range(5)}
    for _ in range(500):
        for x in made(empty_scene())["gt_bboxes_3d"].tensor[:, 0].tolist():
            counts[round(x, 1)] += 1
    assert all(abs(count - 200) < 60 for count in counts.values())


@settings(deadline=None, max_examples=20)
@given(SEEDS)
def test_hidden_points_are_those_that_the_slow_twin_finds(tmp_path_factory, seed):
    rng = np.random.default_rng(seed)
    root = tmp_path_factory.mktemp("hidden")
    low, high = [6, -8, -2, 1, 1, 1, -3], [25, 8, 0, 5, 3, 3, 3]
    entries = [write_object(root, "car", rng.uniform(low, high)) for _ in range(4)]
    data, kept = scene(seed), scene(seed)
    for sample, modify in ((data, False), (kept, True)):
        random.seed(seed)
        step(root, entries, {"car": 5}, modify_points=modify)(sample)
    boxes, num_own = data["gt_bboxes_3d"].tensor.numpy(), 6
    matrix = data["lidar2img"][0]
    rectangles = []
    for corners in data["gt_bboxes_3d"].corners:
        pixels, depth = projected(corners, matrix)
        whole = np.trunc(np.clip([pixels.min(axis=0), pixels.max(axis=0)], 0, [159, 89]))
        shown = (depth > 0).all() and (whole[1] - whole[0] > 1).all()
        rectangles.append((*whole, depth.mean()) if shown else None)
    expected = []
    for point in data["points"].tensor.numpy():
        pixel, depth = projected(point[:3], matrix)
        hidden = False
        if depth > 0 and (pixel > 0).all() and (pixel < [160, 90]).all():
            over = [
                (rectangle[2], i)
                for i, rectangle in enumerate(rectangles)
                if rectangle
                and (np.floor(pixel) >= rectangle[0]).all()
                and (np.floor(pixel) < rectangle[1]).all()
            ]
            if over:
                top = min(over)[1]
                own = points_in_rbbox(point[None, :3], boxes[top : top + 1]).any()
                hidden = top >= num_own and not own
        if not hidden:
            expected.append(point)
    np.testing.assert_array_equal(kept["points"].tensor.numpy(), expected)


@pytest.mark.parametrize("kind", ["points", "patch"])
@pytest.mark.parametrize("damage", ["missing", "short", "empty"])
def test_damaged_object_is_named(tmp_path, kind, damage):
    entry = write_object(tmp_path, "car", CAR)
    path = tmp_path / entry["path" if kind == "points" else "image_path"]
    made, content = step(tmp_path, [entry]), path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(content[:-7] if damage == "short" else b"")
    with pytest.raises(SampleFileError, match=path.name):
        made(empty_scene())


@pytest.mark.parametrize("kind", ["no key", "no patch"])
def test_a_database_for_lidar_alone_pastes_into_points_alone(tmp_path, kind):
    """mmdet3d's own converter writes no patches."""
    entries = [write_object(tmp_path, name, CAR) for name in ("car", "bus")]
    for entry in entries:
        if kind == "no key":
            del entry["image_path"]
        else:
            entry["image_path"] = ""
    message = r"must name image patches .* aqr_model\.data\.prepare .* sample_2d=False"
    with pytest.raises(DataError, match=message):
        step(tmp_path, entries)
    data = step(tmp_path, entries, sample_2d=False)(empty_scene())
    assert len(data["gt_bboxes_3d"]) == 1


@pytest.mark.parametrize("key", ["path", "image_path"])
def test_a_database_without_its_folder_is_refused_at_once(tmp_path, key):
    entry = write_object(tmp_path, "car", CAR)
    (tmp_path / entry[key]).unlink()
    with pytest.raises(DataError, match=rf"there is no .*{entry[key]}; copy its folder"):
        step(tmp_path, [entry])


def sampler(root, **changes):
    config = {
        "type": "UnifiedDataBaseSampler",
        "info_path": str(write_infos(root, [write_object(root, "car", CAR)])),
        "data_root": str(root),
        "rate": 1.0,
        "prepare": {},
        "sample_groups": {"car": 2},
        "classes": list(CLASS_NAMES),
    }
    return OBJECTSAMPLERS.build(config | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prepare": {"filter_by_colour": 1}}, "prepare must have keys among"),
        ({"sample_groups": {"tram": 1}}, "sample_groups must name classes among"),
        ({"sample_groups": {"bus": 1}}, r"lacks \['bus'\]"),
        ({"rate": -1.0}, "must be >= 0"),
        ({"info_path": "nowhere.pkl"}, r"aqr_model\.data\.prepare"),
    ],
)
def test_wrong_sampler_settings_are_refused(tmp_path, changes, message):
    with pytest.raises(DataError, match=message):
        sampler(tmp_path, **changes)


@pytest.mark.parametrize("content", [b"", b"no pickle", b"\x80\x04]\x94."])
def test_foreign_info_file(tmp_path, content):
    path = tmp_path / "foreign.pkl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"foreign\.pkl"):
        sampler(tmp_path, info_path=str(path))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sample_method": "random"}, "sample_method must be 'depth'"),
        ({"mixup_rate": 1.5}, "mixup_rate must be at most 1"),
        ({"modify_points": True, "sample_2d": False}, "modify_points needs the images"),
    ],
)
def test_wrong_settings_are_refused(tmp_path, options, message):
    with pytest.raises(DataError, match=message):
        step(tmp_path, [write_object(tmp_path, "car", CAR)], **options)


def test_images_must_be_loaded_before(tmp_path):
    data = empty_scene()
    del data["img"]
    with pytest.raises(DataError, match="load them before"):
        step(tmp_path, [write_object(tmp_path, "car", CAR)])(data)


def test_points_must_have_the_same_values(tmp_path):
    data = empty_scene()
    data["points"] = data["points"][:, [0, 1, 2, 3]]
    with pytest.raises(DataError, match="points_loader must read as many"):
        step(tmp_path, [write_object(tmp_path, "car", CAR)])(data)
