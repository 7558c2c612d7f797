"""How a training goes on: from which file, what it takes from it, what it leaves in it."""

from collections.abc import Iterable
from pathlib import Path

from mmcv import Config

from aqr_model.engine import config_keys
from aqr_model.engine.plan import PlanError
from aqr_model.engine.setup import Run
from aqr_model.engine.weights.files import CheckpointError
from aqr_model.engine.weights.states import TrainState, read_newest, save_state

READS: config_keys.Reads = {
    "resume_from": config_keys.TEXT.or_none(),
    "auto_resume": config_keys.FLAG.or_none(),
}
LATEST = "latest.pth"


def resume_path(cfg: Config, folder: Path, *, resume: bool) -> Path | None:
    """The training state that the training command goes on from; None to start anew.

    With ``resume`` or the config's ``auto_resume`` it is the one in the folder, if it is there: a
    training that was cut goes on where it was cut, also one that began with ``resume_from``.

    Args:
        cfg: Its ``resume_from`` names a file.
        folder: Of the training.
        resume: What the command line says.

    Raises:
        CheckpointError: If ``resume_from`` is not there.
    """
    latest = folder / LATEST
    if (resume or cfg.get("auto_resume")) and latest.is_file():
        return latest
    if not cfg.get("resume_from"):
        return None
    named = Path(cfg.resume_from)
    if not named.is_file():
        raise CheckpointError(f"`resume_from` must name a file, but {named} is not there")
    return named


def require_no_resume(cfg: Config) -> None:
    """Refuse a config that names a file to go on from, where nobody obeys it.

    Raises:
        PlanError: If it has ``resume_from``.
    """
    if cfg.get("resume_from"):
        raise PlanError(
            f"`resume_from = {cfg.resume_from!r}` is obeyed by `python -m aqr_model.train` alone: "
            "the trials of a sweep start at step 0. Set it to None; to start from the weights of "
            "that file, name it in `load_from`"
        )


def restore(run: Run, resume_from: Path | None) -> tuple[int, int]:
    """Go back to a checkpoint; return its step and how many rungs are reported."""
    if resume_from is None:
        return 0, 0
    state = read_newest(resume_from)
    steps = run.workers.gather(state.step)
    if len(set(steps)) > 1:
        raise CheckpointError(f"all processes must read the same checkpoint, but got steps {steps}")
    if state.samples_per_step not in (None, run.plan.samples_per_step):
        raise CheckpointError(
            f"{resume_from} counts steps of {state.samples_per_step} samples, but this training "
            f"has {run.plan.samples_per_step} (samples_per_gpu x cumulative_iters x processes); "
            "resume it with the same number, on however many devices"
        )
    own = run.model.state_dict().keys()
    if own != state.model.keys():
        raise CheckpointError(
            f"{resume_from} must hold the model that is trained, but "
            f"{_differing(own, state.model)}; resume with the config that the training began with, "
            "its custom_hooks included"
        )
    run.model.load_state_dict(state.model)
    try:
        run.optimizer.load_state_dict(state.optimizer)
        if lacking := run.optimizer.defaults.keys() - run.optimizer.param_groups[0].keys():
            raise ValueError(f"they lack {', '.join(sorted(lacking))}, as those of another type")
    except ValueError as error:
        raise CheckpointError(
            f"the optimizer in {resume_from} must have the groups of this training, but: {error};"
            " resume with the `optimizer` and the frozen parts that the training began with"
        ) from error
    if state.scaler:  # states of before had none without fp16
        run.scaler.load_state_dict(state.scaler)
    # Other rungs than the training began with: those behind have been passed, those ahead are due.
    passed = sum(rung.step < state.step for rung in run.plan.rungs)
    reached = sum(rung.step <= state.step for rung in run.plan.rungs)
    return state.step, min(max(state.rungs_reported, passed), reached)


def save(run: Run, step: int, rungs_done: int) -> Path:
    """Write the state of rank 0, from which all others follow."""
    path = run.workdir / LATEST
    if run.workers.is_main:
        state = TrainState(
            step=step,
            model=run.model.state_dict(),
            optimizer=run.optimizer.state_dict(),
            rungs_reported=rungs_done,
            scaler=run.scaler.state_dict(),
            samples_per_step=run.plan.samples_per_step,
        )
        save_state(state, path)
    return path


def _differing(own: Iterable[str], others: Iterable[str]) -> str:
    """The first name that one of two has and the other has not."""
    more, less = sorted(set(others) - set(own)), sorted(set(own) - set(others))
    return f"it also holds {more[0]}" if more else f"it lacks {less[0]}"
