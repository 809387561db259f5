"""Turns phases and training steps into one progress bar with the time that is left."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from core.engine.training import StepReport
from core.progress import PhaseStarted, Reporter, StepDone

SHARES = {
    "loading": 0.02,
    "baseline": 0.02,
    "pruning": 0.76,
    "compacting": 0.02,
    "evaluating": 0.03,
    "exporting": 0.12,
    "verifying": 0.03,
}
"""Part of a job's time that each phase is expected to take without dense training; they add up to 1."""

ONCE = ("loading", "baseline", "pruning")
"""Phases that there are once in a job; the others come once for each bundle."""


class Tracker:
    """Reports where a job stands; `seconds` holds what each phase took, all its times together."""

    def __init__(self, report: Reporter) -> None:
        self._report = report
        self._started = time.monotonic()
        self._phase = ""
        self._before = 0.0
        self._shares = dict(SHARES)
        self._steps: dict[str, int] = {}
        self._steps_before = 0
        self.seconds: dict[str, float] = {}

    def expect(self, dense_steps: int, pruning_steps: int, bundles: int = 1) -> None:
        """Share the time for training between the baseline and pruning, once it is known who trains how long.

        Args:
            dense_steps: Of plain fine-tuning.
            pruning_steps: Of all levels together, at the most.
            bundles: How many are delivered.
        """
        moved = SHARES["pruning"] * dense_steps / max(1, dense_steps + pruning_steps)
        self._shares = {name: share if name in ONCE else share / bundles for name, share in SHARES.items()}
        self._shares["baseline"] += moved
        self._shares["pruning"] -= moved
        self._steps = {"baseline": dense_steps, "pruning": pruning_steps}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Report a phase and time it."""
        self._phase = name
        self._steps_before = 0
        self._report(PhaseStarted(phase=name))
        self._progress(self._before, StepDone(fraction=0.0, message=name))
        started = time.monotonic()
        yield
        self.seconds[name] = round(self.seconds.get(name, 0.0) + time.monotonic() - started, 3)
        self._before += self._shares[name]
        self._progress(self._before, StepDone(fraction=0.0, message=name))

    def training_step(self, step: StepReport) -> None:
        """Report an optimiser step; a phase may have several trainings, one after the other."""
        done = self._steps_before + step.step
        total = max(done, self._steps.get(self._phase, step.total_steps))
        self._progress(
            self._before + self._shares[self._phase] * done / total,
            StepDone(
                fraction=0.0,
                step=done,
                total_steps=total,
                message=self._phase,
                metrics={"loss": step.loss, "sparsity": step.sparsity},
            ),
        )
        if step.step == step.total_steps:
            self._steps_before = done

    def _progress(self, fraction: float, message: StepDone) -> None:
        fraction = min(1.0, round(fraction, 4))
        elapsed = time.monotonic() - self._started
        left = elapsed / fraction * (1 - fraction) if fraction else None
        self._report(message.model_copy(update={"fraction": fraction, "eta_seconds": left}))
