import copy
import math
from statistics import stdev

import pytest
from nuscenes.eval.common.data_classes import EvalBoxes
from nuscenes.eval.detection.data_classes import DetectionBox
from nuscenes.eval.detection.evaluate import DetectionEval

from aqr_model.data.nuscenes.bootstrap import standard_error
from aqr_model.data.nuscenes.results import detection_config


def box(sample, x, *, score=-1.0, name="car"):
    return DetectionBox(
        sample_token=sample,
        translation=(x, 0.0, 0.0),
        size=(2.0, 4.0, 1.5),
        rotation=(1.0, 0.0, 0.0, 0.0),
        velocity=(0.0, 0.0),
        ego_translation=(x, 0.0, 0.0),
        detection_name=name,
        detection_score=score,
        attribute_name="vehicle.parked",
    )


def boxes(by_sample):
    made = EvalBoxes()
    for sample, found in by_sample.items():
        made.add_boxes(sample, [box(sample, x, score=score) for x, score in found])
    return made


class Devkit(DetectionEval):
    def __init__(self, truth, found):
        self.verbose, self.cfg = False, detection_config()
        self.gt_boxes, self.pred_boxes = truth, found


def nds(truth, found):
    return Devkit(truth, found).evaluate()[0].nd_score


# Scenes in which everything, half and nothing is found, with a false alarm of a high score.
TRUTH = boxes({f"{s}{i}": [(10.0 * i, -1.0), (10.0 * i + 5, -1.0)] for s in "abc" for i in range(2)})
FOUND = boxes(
    {f"a{i}": [(10.0 * i, 0.9), (10.0 * i + 5, 0.8)] for i in range(2)}
    | {f"b{i}": [(10.0 * i + 1, 0.7)] for i in range(2)}
    | {f"c{i}": [(45.0, 0.95)] for i in range(2)}
)
SCENES = {f"{s}{i}": s for s in "abc" for i in range(2)}


def test_equal_scenes_have_no_error():
    alike = {f"{s}{i}": [(5.0 * i, 0.5)] for s in "abc" for i in range(2)}
    truth = boxes({f"{s}{i}": [(5.0 * i, -1.0)] for s in "abc" for i in range(2)})
    assert standard_error(nds, truth, boxes(alike), SCENES, draws=5) == pytest.approx(0, abs=1e-9)


def test_it_is_the_spread_of_scores_that_the_devkit_gives_sets_of_scenes():
    """Against a twin that writes each draw down as a dataset of its own."""
    import numpy as np

    random = np.random.default_rng(4)
    scores = []
    for _ in range(6):
        truth, found = EvalBoxes(), EvalBoxes()
        for place, index in enumerate(random.integers(3, size=3)):
            for sample, scene in SCENES.items():
                if scene == "abc"[index]:
                    for source, target in ((TRUTH, truth), (FOUND, found)):
                        moved = copy.deepcopy(source[sample])
                        for each in moved:
                            each.sample_token = f"{place}-{sample}"
                        target.add_boxes(f"{place}-{sample}", moved)
        scores.append(nds(truth, found))
    assert len(set(scores)) > 2
    got = standard_error(nds, TRUTH, FOUND, SCENES, draws=6, seed=4)
    assert got == pytest.approx(stdev(scores))


def test_a_mean_of_scenes_has_the_error_that_statistics_teach():
    """The mean of n scenes has the standard deviation of a scene over the root of n."""
    values = {f"s{i}": float(i % 7) for i in range(40)}
    truth = boxes({name: [(value, -1.0)] for name, value in values.items()})

    def mean(drawn, _):
        return sum(each.translation[0] for each in drawn.all) / len(drawn.all)

    scenes = {name: name for name in values}
    got = standard_error(mean, truth, truth, scenes, draws=1000)
    variance = sum((v - sum(values.values()) / 40) ** 2 for v in values.values()) / 40
    assert got == pytest.approx(math.sqrt(variance / 40), rel=0.06)


def test_frames_of_a_scene_are_drawn_together():
    """One scene alone can be drawn in one way."""
    assert standard_error(nds, TRUTH, FOUND, dict.fromkeys(SCENES, "one"), draws=4) == 0


def test_the_boxes_that_were_given_stay_as_they_are():
    before = [each.sample_token for each in FOUND.all]
    standard_error(nds, TRUTH, FOUND, SCENES, draws=2)
    assert [each.sample_token for each in FOUND.all] == before


def test_one_draw_has_no_spread():
    with pytest.raises(ValueError, match="2 draws at least, but got 1"):
        standard_error(nds, TRUTH, FOUND, SCENES, draws=1)
