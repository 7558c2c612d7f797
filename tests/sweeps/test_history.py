import math
from pathlib import Path

import pytest

from sweeps.health import RULES, judge
from sweeps.history import HistoryError, TrainingLog, parse_json, parse_text, read_log

DATA = Path(__file__).parents[1] / "data" / "logs"
USERS = Path(__file__).parents[3] / "shared" / "data" / "logs"
ONE_LINE = "Epoch [1][50/100]\tlr: 1e-05, loss: 10.0\n"


@pytest.fixture(scope="module")
def aqr() -> TrainingLog:
    return read_log(DATA / "aqr_two_epochs.log")


def test_a_text_log_gives_its_curves_by_step(aqr):
    assert aqr.steps_per_epoch == 100
    assert aqr.curves["train/loss"] == ((50, 12.5), (100, 11.0), (150, 10.5), (200, 10.25))
    assert aqr.curves["train/s_per_step"] == ((50, 1.5), (100, 1.25), (150, 1.25), (200, 1.25))
    assert aqr.curves["train/memory_mb"][-1] == (200, 950.0)
    assert aqr.curves["train/lr"][-1] == (200, 2e-9)
    assert aqr.curves["train/d0.loss_bbox"][0] == (50, 1.25)
    first, second = aqr.curves["train/grad_norm"][:2]
    assert math.isnan(first[1])
    assert second == (100, 48.5)
    assert not any("eta" in name for name in aqr.curves)


def test_a_text_log_gives_its_config(aqr):
    assert (aqr.seed, aqr.aqr, aqr.epochs, aqr.total_steps) == (7, True, 2, 200)
    assert aqr.setting("model.pts_bbox_head.renderer_config.gaussian_sigma") == 1.2
    assert aqr.setting("optimizer.paramwise_cfg.custom_keys.task_heads.lr_mult") == 0.5
    assert aqr.setting("model.pts_bbox_head.aqr_config.window_sizes.0") == 8
    assert aqr.setting("model.pts_bbox_head.aqr_config.window_sizes.2") is None
    assert aqr.setting("optimizer.lr.more") is None
    assert aqr.config["gpu_ids"] == [0, 1]
    assert aqr.semantics == "legacy"


def test_each_print_is_kept_and_the_ranks_are_joined(aqr):
    assert [each.forward for each in aqr.prints] == [80, 80, 160]
    assert aqr.prints[1].values["aqr/lidar_weights_stats/mean"] == 0.72
    assert aqr.curves["aqr/lidar_weights_stats/mean"] == ((80, pytest.approx(0.71)), (160, 0.74))
    assert aqr.curves["aqr/weight_map_pers_stats/max"] == ((80, 41.5), (160, 18.0))
    assert aqr.curves["aqr/lidar_weights_stats/min"] == ((80, 0.1), (160, 0.1))
    assert aqr.curves["aqr/modulation_effect_pers/relative_change"][0] == (80, 0.32)


def test_the_clamp_shows_in_the_prints(aqr):
    assert aqr.observed_clamp == 1.5
    text = (DATA / "aqr_two_epochs.log").read_text()
    varied = parse_text(text.replace("max: 1.500000", "max: 1.2", 1), source="varied")
    assert varied.observed_clamp is None


def test_evaluations_are_read_from_mmcvs_line_once(aqr):
    assert [each.epoch for each in aqr.evaluations] == [1, 2]
    last = aqr.evaluations[-1].metrics
    assert (last["val/nds"], last["val/map"], last["val/mate"]) == (0.675, 0.635, 0.35)
    assert last["val/ap/car"] == pytest.approx(0.825)
    assert last["val/ap/bicycle"] == pytest.approx(0.5)
    assert all(math.isfinite(value) for value in last.values())


def test_the_printed_table_serves_where_that_line_is_missing():
    lines = (DATA / "aqr_two_epochs.log").read_text().splitlines(keepends=True)
    kept = "".join(line for line in lines if "Epoch(val)" not in line)
    (only,) = parse_text(kept, source="cut").evaluations
    assert only.epoch == 1
    assert only.metrics["val/nds"] == 0.65
    assert only.metrics["val/map"] == 0.61
    assert only.metrics["val/ap/car"] == 0.825


def test_a_config_that_begins_in_the_middle_gives_what_is_whole():
    lines = (
        "    head=False))",
        "lr_config = dict(",
        "    policy='cyclic')",
        "half = dict(",
        "x = f()",
    )
    log = parse_text("\n".join([*lines, ONE_LINE]), source="cut")
    assert log.config == {"lr_config": {"policy": "cyclic"}}
    assert (log.aqr, log.seed, log.epochs) == (False, None, 1)


def test_a_repeated_step_counts_as_it_came_last():
    text = ONE_LINE + ONE_LINE.replace("10.0", "9.0")
    assert parse_text(text, source="twice").curves["train/loss"] == ((50, 9.0),)


@pytest.mark.parametrize(
    ("semantics", "expected"),
    [("'right'", "right"), ("dict(preset='legacy', kernel='sum')", "legacy"), ("dict()", "right")],
)
def test_semantics_are_those_that_the_config_names(semantics, expected):
    model = f"model = dict(pts_bbox_head=dict(aqr_config=dict(semantics={semantics})))\n"
    assert parse_text(model + ONE_LINE, source="ours").semantics == expected


def test_a_json_log_gives_the_same_record():
    log = read_log(DATA / "control_two_epochs.log.json")
    assert (log.seed, log.aqr, log.epochs, log.steps_per_epoch) == (3, False, 2, 100)
    assert log.curves["train/loss"] == ((50, 10.0), (100, 9.5), (150, 9.25))
    assert log.curves["train/s_per_step"][-1] == (150, 0.5)
    assert math.isnan(log.curves["train/grad_norm"][0][1])
    assert not any(name.endswith(("/epoch", "/iter", "/mode")) for name in log.curves)
    (only,) = log.evaluations
    assert (only.epoch, only.metrics["val/nds"]) == (2, 0.69)
    assert only.metrics["val/ap/car"] == pytest.approx(0.8)


def test_what_is_no_log_is_refused_with_what_it_lacks():
    with pytest.raises(HistoryError, match=r"notes.txt must be a training log of mmcv"):
        parse_text("loss went down\n", source="notes.txt")
    with pytest.raises(HistoryError, match=r"a.log.json must be a training log"):
        parse_json('{"mode": "val", "epoch": 1}\n', source="a.log.json")
    with pytest.raises(HistoryError, match=r"a.log.json:2: must be JSON"):
        parse_json('{"mode": "train", "epoch": 1, "iter": 1, "loss": 1}\n{"mo', source="a.log.json")
    with pytest.raises(HistoryError, match=r"a.log.json:1: must be a JSON object, but got \[1\]"):
        parse_json("[1]\n", source="a.log.json")


needs_users_logs = pytest.mark.skipif(
    not USERS.is_dir(), reason=f"the users' own logs are not at {USERS}"
)


@pytest.fixture(scope="module")
def users() -> tuple[TrainingLog, TrainingLog]:
    aqr = read_log(USERS / "aqr_clamp1.5_residual0.7.log")
    return aqr, read_log(USERS / "control_without_aqr.log")


@needs_users_logs
def test_the_users_runs_have_their_recorded_numbers(users):
    aqr, control = users
    assert [log.total_steps for log in users] == [4004, 4004]
    assert (aqr.aqr, control.aqr) == (True, False)
    loss, own = dict(aqr.curves["train/loss"]), dict(control.curves["train/loss"])
    recorded = {50: 18.45, 100: 16.29, 200: 14.14, 300: 12.70, 500: 11.34, 600: 10.89, 4000: 10.15}
    assert {step: loss[step] for step in recorded} == pytest.approx(recorded, abs=0.006)
    recorded = {50: 10.05, 1000: 10.45, 2000: 10.15, 3000: 9.99, 4000: 9.93}
    assert {step: own[step] for step in recorded} == pytest.approx(recorded, abs=0.006)
    norm = aqr.curves["train/grad_norm"]
    assert norm[1] == (100, pytest.approx(257, abs=0.1))
    assert norm[-1] == (4000, pytest.approx(41.7, abs=0.05))
    assert aqr.curves["train/s_per_step"][-1] == (4000, 1.84)
    assert aqr.curves["train/memory_mb"][-1] == (4000, pytest.approx(23000, abs=50))
    assert control.curves["train/memory_mb"][-1] == (4000, pytest.approx(21600, abs=50))


@needs_users_logs
def test_the_users_scores_are_as_recorded(users):
    aqr, control = (log.evaluations[-1].metrics for log in users)
    assert (aqr["val/nds"], aqr["val/map"]) == (0.6849, 0.6449)
    assert (control["val/nds"], control["val/map"]) == (0.6908, 0.6575)
    names = ("mate", "mase", "maoe", "mave", "maae")
    assert [aqr[f"val/{name}"] for name in names] == [0.3390, 0.2506, 0.3226, 0.2738, 0.1894]
    recorded = {"car": 0.859, "trailer": 0.423, "bicycle": 0.641, "traffic_cone": 0.727}
    found = {name: control[f"val/ap/{name}"] for name in recorded}
    assert found == pytest.approx(recorded, abs=0.0006)
    assert len([name for name in aqr if name.startswith("val/ap/")]) == 10


@needs_users_logs
def test_the_users_statistics_are_as_recorded(users):
    aqr, control = users
    assert (len(aqr.prints), len(control.prints)) == (32, 0)  # four forwards on eight ranks
    last = aqr.prints[-1].values
    recorded = {
        "lidar_weights_stats/mean": 0.7019,
        "lidar_weights_stats/std": 0.1570,
        "camera_weights_stats/mean": 0.7233,
        "weight_map_bev_stats/mean": 0.0525,
        "weight_map_pers_stats/max": 70.8291,
        "modulation_effect_bev/relative_change": 0.0700,
        "modulation_effect_pers/relative_change": 0.3331,
    }
    found = {name: last[f"aqr/{name}"] for name in recorded}
    assert found == pytest.approx(recorded, abs=6e-5)
    assert aqr.observed_clamp == 1.5
    assert aqr.setting("model.pts_bbox_head.modulator_config.residual_weight") == 0.7
    assert aqr.setting("optimizer.lr") == 1.4e-5


@needs_users_logs
def test_what_health_would_have_said_of_the_users_runs(users):
    aqr, control = users
    said: dict[str, tuple[int, bool]] = {}
    for step, _ in aqr.curves["train/loss"]:
        seen = {k: [p for p in points if p[0] <= step] for k, points in aqr.curves.items()}
        for verdict in judge(seen, RULES, control=[control.curves], total_steps=aqr.total_steps):
            said.setdefault(verdict.rule, (step, verdict.stop))
    # The shock of the gain shows at once; the loss comes back, so nothing is stopped.
    assert said == {
        "loss_above_control": (150, False),
        "gradient_above_control": (350, False),
        "map_mean": (1000, False),
    }
    assert judge(control.curves, RULES, control=[control.curves], total_steps=4004) == ()
