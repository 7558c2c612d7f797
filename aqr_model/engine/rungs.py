"""The rungs of a training: scored where they are reached, handed over when the score is there."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from aqr_model.engine.evaluator import set_epoch
from aqr_model.engine.hooks import AVERAGED_KEY
from aqr_model.engine.plan import Rung
from aqr_model.engine.resuming import save
from aqr_model.engine.scoring import ScoringProcess
from aqr_model.engine.setup import Run


@dataclass(frozen=True, kw_only=True)
class _Open:
    """A rung whose score is not handed over yet; only rank 0 has the `scorer`."""

    rung: Rung
    checkpoint: Path
    scorer: ScoringProcess | None


class Rungs:
    """Scores a training at its rungs and hands the scores over.

    With ``evaluation.beside_training`` the devkit scores in a process of its own while the training
    goes on. No state is saved before that score is handed over, so that a resume begins at the
    rung and scores it again.

    Args:
        run: What is trained.
        done: How many rungs are handed over.

    Attributes:
        done: The same, by now.
    """

    def __init__(self, run: Run, done: int) -> None:
        self.run, self.done = run, done
        self._open: _Open | None = None

    @property
    def is_open(self) -> bool:
        """Whether a score is being made; the same on all processes."""
        return self._open is not None

    @property
    def has_score(self) -> bool:
        """Whether the score that was being made is there; rank 0 knows."""
        scorer = None if self._open is None else self._open.scorer
        return scorer is not None and scorer.is_over()

    def score_due(self, step: int) -> None:
        """Score the rungs that end at a step. All processes must call it.

        Args:
            step: Optimizer steps done.
        """
        rungs = self.run.plan.rungs
        while self.done + self.is_open < len(rungs) and (
            rungs[self.done + self.is_open].step <= step
        ):
            self.hand_over()
            self._score(rungs[self.done], step)
        if step >= self.run.plan.total_steps:
            self.hand_over()

    def hand_over(self) -> None:
        """Wait for the score that is being made, and for what is decided on it. All must call it.

        Raises:
            FloatingPointError: If a detection was not finite.
        """
        if self._open is None:
            return
        due = self._open
        scores = None if due.scorer is None else due.scorer.result()
        self._open = None
        self._report(due.rung, due.checkpoint, scores)

    def __enter__(self) -> Self:
        """Begin."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Let go of a score that is being made.

        Where the training itself is at its end, on all processes, the score is handed over first:
        a resume would fail at the same step again, and the rung would never have one.
        """
        if kind is not None and issubclass(kind, FloatingPointError):
            self.hand_over()
        if self._open is not None and self._open.scorer is not None:
            self._open.scorer.cancel()

    def _score(self, rung: Rung, step: int) -> None:
        run = self.run
        set_epoch(run.model, run.plan.epoch(step), run.plan.total_epochs)
        # Each process has its own statistics of batch norms; those of rank 0 are saved and scored.
        run.workers.share_buffers(run.model)
        # Saved before the score is handed over: if the process dies in between, the next attempt
        # scores this rung again, and nothing is lost.
        checkpoint = save(run, step, self.done)
        settings = {"val_share": rung.val_share, "workdir": run.workdir, "workers": run.workers}
        with run.averaged.in_place():
            if run.scores_beside:
                scorer = run.evaluator.begin_score(run.model, **settings)
                self._open = _Open(rung=rung, checkpoint=checkpoint, scorer=scorer)
                return
            scores = run.evaluator.score(run.model, **settings)
        self._report(rung, checkpoint, scores)

    def _report(self, rung: Rung, checkpoint: Path, scores: dict[str, float] | None) -> None:
        run = self.run
        if run.report is not None and scores is not None:
            averaged = {AVERAGED_KEY: 1.0} if run.averaged.acts else {}
            run.report.rung(
                {**scores, **averaged},
                fraction=rung.fraction,
                val_share=rung.val_share,
                epoch=run.plan.epoch(rung.step),
                step=rung.step,
                checkpoint=checkpoint,
            )
        run.workers.gather(None)  # nobody trains on before rank 0 may
        self.done += 1
