"""How far a score would move with other scenes: a bootstrap over the validation scenes.

A score is measured on a sample of scenes. Two sets of scenes as large, drawn from the same drives,
would give two scores; their spread is no noise of the training, and no number of seeds shows it.
Scenes are drawn, not frames: frames of a scene resemble each other.

Source: Efron, "Bootstrap methods: another look at the jackknife", Annals of Statistics 7 (1979).
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from statistics import stdev

import numpy as np
from nuscenes.eval.common.data_classes import EvalBoxes


def standard_error(
    score: Callable[[EvalBoxes, EvalBoxes], float],
    truth: EvalBoxes,
    found: EvalBoxes,
    scenes: Mapping[str, str],
    *,
    draws: int,
    seed: int = 0,
) -> float:
    """Standard deviation of a score over sets of scenes, drawn with replacement.

    Args:
        score: Of ground truth and detections.
        truth: Ground truth by sample.
        found: Detections by sample.
        scenes: Scene of each sample.
        draws: Sets to draw, 2 at least; each costs one call of ``score``.
        seed: Of the draws.

    Raises:
        ValueError: If there are fewer than two draws.
    """
    if draws < 2:
        raise ValueError(f"a standard error needs 2 draws at least, but got {draws}")
    by_scene: dict[str, list[str]] = {}
    for sample, scene in scenes.items():
        by_scene.setdefault(scene, []).append(sample)
    samples = list(by_scene.values())
    random = np.random.default_rng(seed)
    scores = []
    for _ in range(draws):
        chosen = random.integers(len(samples), size=len(samples))
        tokens = [token for scene in chosen for token in samples[scene]]
        scores.append(score(_drawn(truth, tokens), _drawn(found, tokens)))
    return stdev(scores)


def _drawn(boxes: EvalBoxes, tokens: Sequence[str]) -> EvalBoxes:
    """The boxes of samples; each place is a sample of its own, also where a token stands twice."""
    drawn = EvalBoxes()
    for place, token in enumerate(tokens):
        own = [copy.copy(box) for box in boxes[token]]
        for box in own:
            box.sample_token = str(place)  # a box is matched with those of its own sample
        drawn.add_boxes(str(place), own)
    return drawn
