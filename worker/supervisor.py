"""Does one job: claims it, runs it in a child process, keeps its lease, and records how it ended.

The supervisor and the child share a folder and a pipe. The child knows neither the database nor the broker; the
supervisor never loads a model. Whatever becomes of the child, the worker lives on.
"""

import logging
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from pydantic import ValidationError
from structlog.contextvars import bound_contextvars

from core.db import UNAVAILABLE
from core.dispatch import Dispatcher
from core.errors import IllegalTransitionError, LeaseLostError, NotFoundError, StorageError
from core.jobs.keys import artifact_prefix, checkpoints_of
from core.jobs.records import Cancelled, Lease
from core.jobs.spec import JobSpec
from core.jobs.state import Status
from core.jobs.store import JobStore
from core.progress import Checkpointed, Failed, LastWord, Note, StepDone, Stopped, Succeeded
from core.settings import Settings
from core.storage import Storage
from worker.assignment import Assignment, Upload
from worker.child import Child
from worker.quota import DiskQuota, check_room

RUNNER = (sys.executable, "-m", "worker.runner")

_TICK_SECONDS = 0.2
_PROGRESS_SECONDS = 1.0
_HEARTBEAT_SECONDS = 1.0
"""At most this between two looks at the job's status; a shorter lease is renewed six times while it lasts."""
_UNFIT_SECONDS = 2.0
"""Between two looks at whether a worker that cannot do a job can by now."""
_EXIT_SECONDS = 10.0
"""How long a process may take to exit after its last message, if the lease is not short."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Lost:
    """The attempt came to nothing through no fault of the job, which goes back to the queue."""

    reason: str


@dataclass(frozen=True, slots=True)
class HandedBack:
    """The attempt stopped in good order; the job goes back to the queue, or is paused."""

    reason: str


Outcome = Succeeded | Failed | Cancelled | Lost | HandedBack


class Supervisor:
    """Runs jobs one after the other.

    Args:
        owner: Names this worker process in the leases it takes.
        should_stop: Asked a few times a second; once it says yes, the running job is given back, and none is taken.
        runner: Command line of the child, to which `--work-dir` and `--progress-fd` are added.
    """

    def __init__(
        self,
        store: JobStore,
        storage: Storage,
        dispatcher: Dispatcher,
        settings: Settings,
        *,
        owner: str,
        should_stop: Callable[[], bool],
        runner: Sequence[str] = RUNNER,
    ) -> None:
        self._store = store
        self._storage = storage
        self._dispatcher = dispatcher
        self._settings = settings
        self._owner = owner
        self._should_stop = should_stop
        self._runner = runner

    def run_next(self) -> None:
        """Do the job that has waited longest, if one waits; every ending is recorded, none is raised."""
        if not self._becomes_fit():
            return
        lease = self._store.claim_next(self._owner)
        if lease is None:
            logger.info("no job is waiting")
            return
        with bound_contextvars(job_id=lease.job_id, attempt=lease.attempt):
            self._run(lease)

    def _becomes_fit(self) -> bool:
        """Wait until this worker can do a job; False where it is told to stop before.

        Without a disk or a store it would take job after job and lose each at once, however many workers are well.
        """
        while not self._should_stop():
            try:
                self._check_fit()
            except (OSError, StorageError) as error:
                logger.warning("this worker takes no job until it can do one: %s", error)
                time.sleep(_UNFIT_SECONDS)
            else:
                return True
        return False

    def _check_fit(self) -> None:
        """Raise what keeps a job from being done here: no room to work in, or no store to put its bundle in."""
        check_room(self._settings.work_dir)
        self._storage.check_writable()

    def _run(self, lease: Lease) -> None:
        logger.info("job %s: attempt %d begins", lease.job_id, lease.attempt)
        outcome: Outcome | None = None
        try:
            outcome = self._attempt(lease)
            self._record(lease, outcome)
        except LeaseLostError as error:
            logger.warning("job %s: attempt %d is fenced off: %s", lease.job_id, lease.attempt, error)
            self._discard_if_deleted(lease)
        finally:
            # Of earlier attempts too: whoever made them may have been killed before he could.
            useless = range(1, lease.attempt + (not isinstance(outcome, Succeeded)))
            for attempt in useless:
                self._discard(lease, artifact_prefix(lease.job_id, attempt))

    def _attempt(self, lease: Lease) -> Outcome:
        heartbeat = Heartbeat(self._store, lease, self._settings.lease_seconds)
        work_dir = (self._settings.work_dir / f"{lease.job_id}-{lease.attempt}").absolute()
        try:
            work_dir.mkdir(parents=True)
            self._assignment(lease).write(work_dir)
            environment = child_environment(os.environ, self._settings) | {"TMPDIR": str(work_dir)}
            with Child(self._runner, work_dir, environment, self._settings.cancel_grace_seconds) as child:
                with suppress(IllegalTransitionError):  # cancelled meanwhile, which the first heartbeat sees
                    self._store.start(lease)
                return self._watch(lease, heartbeat, child, DiskQuota(work_dir, self._settings.job_disk_bytes))
        except OSError as error:
            logger.exception("job %s: attempt %d could not be run", lease.job_id, lease.attempt)
            return Lost(f"the worker could not run the job's process ({error.strerror or error})")
        except UNAVAILABLE as error:
            logger.warning("job %s: the database did not answer before it was started: %s", lease.job_id, error)
            return HandedBack("the database did not answer when it was to be started")
        except NotFoundError as error:
            return Failed(code="invalid_input", message=str(error))
        except ValidationError as error:
            fault = error.errors()[0]
            problem = f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}"
            return Failed(
                code="invalid_input", message=f"An earlier version accepted what this one does not: {problem}"
            )
        finally:
            shutil.rmtree(work_dir, ignore_errors=True)

    def _assignment(self, lease: Lease) -> Assignment:
        spec = JobSpec.model_validate(self._store.get(lease.job_id).resolved_spec)
        files = {file_id: self._store.get_file(file_id) for file_id in spec.file_ids().values()}
        return Assignment(
            job_id=lease.job_id,
            attempt=lease.attempt,
            spec=spec,
            files={i: Upload(key=f.key, filename=f.filename, sha256=f.sha256) for i, f in files.items()},
            storage_url=self._settings.storage_url,
            artifact_prefix=artifact_prefix(lease.job_id, lease.attempt),
            checkpoint_prefix=f"{checkpoints_of(lease.job_id)}/{lease.attempt}",
            checkpoints=self._store.checkpoints(lease.job_id),
        )

    def _watch(self, lease: Lease, heartbeat: "Heartbeat", child: Child, quota: DiskQuota) -> Outcome:
        """Until the child is done, or must not go on."""
        relay = Relay(self._store, lease)
        deadline = time.monotonic() + self._settings.run_timeout_seconds
        parting: HandedBack | None = None
        while True:
            ended = child.returncode() is not None
            if ended:
                child.stop()
            for message in child.remaining_messages() if ended else child.messages(_TICK_SECONDS):
                if isinstance(message, LastWord):
                    return self._last_word(lease, child, message, parting)
                if isinstance(message, Checkpointed):
                    self._keep(lease, message)
                else:
                    relay.take(message)
            if ended:
                return parting or self._verdict(lease, child)
            relay.flush()
            status = heartbeat.status()
            if status is Status.CANCELLING:
                return Cancelled()
            if quota.is_exceeded():
                limit = self._settings.job_disk_bytes
                return Failed(code="storage_full", message=f"The job wrote more than the {limit} bytes that one may.")
            if parting is None and (parting := self._parting(status)):
                child.ask_to_stop()
                deadline = time.monotonic() + self._settings.shutdown_grace_seconds
            if time.monotonic() > deadline:
                if parting is not None:
                    return parting
                hours = self._settings.run_timeout_seconds / 3600
                return Failed(code="timeout", message=f"The run took longer than the {hours:g} h that are allowed.")

    def _parting(self, status: Status) -> HandedBack | None:
        """Why the job is to stop at its next checkpoint, if it is."""
        if status is Status.PAUSING:
            return HandedBack("paused on request")
        return HandedBack("its worker was shut down") if self._should_stop() else None

    def _last_word(self, lease: Lease, child: Child, message: LastWord, parting: HandedBack | None) -> Outcome:
        # The lease is not renewed meanwhile.
        child.wait(min(_EXIT_SECONDS, self._settings.lease_seconds / 6))
        if isinstance(message, Stopped):
            return parting or HandedBack("its process was told to stop")
        if isinstance(message, Failed):
            logger.error("job %s: %s; its last words:\n%s", lease.job_id, message.message, child.log_tail())
            if message.code == "storage_unavailable":  # not the job's fault, and it may pass
                return Lost(message.message)
        return message

    def _keep(self, lease: Lease, checkpoint: Checkpointed) -> None:
        """Record a checkpoint; one that is not recorded does not count, and goes with the others when the job ends.

        Nothing is removed here: a slow store would keep the lease from being renewed.
        """
        try:
            self._store.keep_checkpoint(lease, checkpoint)
        except UNAVAILABLE as error:
            logger.warning("job %s: a checkpoint could not be recorded: %s", lease.job_id, error)

    def _verdict(self, lease: Lease, child: Child) -> Outcome:
        """On a child that ended without a last message."""
        code = child.returncode() or 0
        logger.error("job %s: its process ended with %d; its last words:\n%s", lease.job_id, code, child.log_tail())
        if child.was_killed_for_memory():
            advice = "a smaller per_device_train_batch_size or max_length needs less"
            return Failed(code="out_of_memory_host", message=f"The worker's memory did not suffice; {advice}.")
        if code < 0:
            return Lost(f"its process was killed by {_signal_name(-code)}, as happens when memory runs out")
        return Failed(code="internal", message=f"The job's process ended early, with exit status {code}.")

    def _record(self, lease: Lease, outcome: Outcome) -> None:
        """Write the ending down, however long the database takes, up to the length of a lease."""
        logger.info("job %s: attempt %d ends: %s", lease.job_id, lease.attempt, type(outcome).__name__)
        deadline = time.monotonic() + self._settings.lease_seconds
        while True:
            try:
                return self._record_once(lease, outcome)
            except UNAVAILABLE as error:
                logger.warning("job %s: its ending could not be recorded: %s", lease.job_id, error)
                if time.monotonic() > deadline:
                    raise
                time.sleep(_HEARTBEAT_SECONDS)

    def _record_once(self, lease: Lease, outcome: Outcome) -> None:
        if not isinstance(outcome, Lost | HandedBack):
            self._store.finish(lease, outcome)
            return
        give_up = self._store.release if isinstance(outcome, Lost) else self._store.hand_back
        status = give_up(lease, outcome.reason)
        logger.warning("job %s is %s: %s", lease.job_id, status, outcome.reason)
        if status is Status.QUEUED and self._dispatcher.job_ready(lease.job_id):
            self._store.mark_dispatched(lease.job_id)

    def _discard_if_deleted(self, lease: Lease) -> None:
        """Remove checkpoints that were written since the job was deleted: nobody else would know them for useless."""
        try:
            self._store.get(lease.job_id)
        except NotFoundError:
            self._discard(lease, checkpoints_of(lease.job_id))
        except UNAVAILABLE as error:
            logger.warning("job %s: its checkpoints stay, if it was deleted: %s", lease.job_id, error)

    def _discard(self, lease: Lease, prefix: str) -> None:
        try:
            self._storage.delete_prefix(prefix)
        except StorageError as error:
            logger.warning("job %s: %s of attempt %d stays: %s", lease.job_id, prefix, lease.attempt, error)


class Relay:
    """Passes a child's messages on to the store: of progress, the newest, about once a second."""

    def __init__(self, store: JobStore, lease: Lease) -> None:
        self._store = store
        self._lease = lease
        self._newest: StepDone | None = None
        self._recorded_at = -_PROGRESS_SECONDS

    def take(self, message: Note) -> None:
        """Record at once what is not progress, after the progress that came before it."""
        if isinstance(message, StepDone):
            self._newest = message
            return
        self._flush_now()
        self._record(message)

    def flush(self) -> None:
        """Record progress if it is time."""
        if time.monotonic() - self._recorded_at >= _PROGRESS_SECONDS:
            self._flush_now()

    def _flush_now(self) -> None:
        if self._newest is not None:
            self._record(self._newest)
            self._newest = None
            self._recorded_at = time.monotonic()

    def _record(self, message: Note) -> None:
        try:
            self._store.record(self._lease, message)
        except UNAVAILABLE as error:  # a gap in the history is no reason to end the job
            logger.warning("job %s: %r could not be recorded: %s", self._lease.job_id, message, error)


class Heartbeat:
    """Renews the lease, and learns the job's status from that; a silent database is borne while the lease lasts.

    It is made as soon as the lease is there, which it takes to be new.
    """

    def __init__(self, store: JobStore, lease: Lease, lease_seconds: float) -> None:
        self._store = store
        self._lease = lease
        self._lease_seconds = lease_seconds
        self._interval = min(_HEARTBEAT_SECONDS, lease_seconds / 6)
        self._status = Status.RUNNING
        self._renewed_at = self._tried_at = time.monotonic()

    def status(self) -> Status:
        """The newest known status.

        Raises:
            LeaseLostError: another attempt owns the job, or may own it by now.
        """
        now = time.monotonic()
        if now - self._tried_at < self._interval:
            return self._status
        self._tried_at = now
        try:
            self._status = self._store.renew(self._lease)
            self._renewed_at = now
        except UNAVAILABLE as error:
            logger.warning("job %s: its lease could not be renewed: %s", self._lease.job_id, error)
            if now - self._renewed_at > self._lease_seconds:
                raise LeaseLostError("The lease ran out while the database did not answer.") from error
        return self._status


def child_environment(environment: Mapping[str, str], settings: Settings) -> dict[str, str]:
    """What the child gets: no way to the database, the broker or the API, nor to the Hub unless that is configured.

    A token for the Hub (HF_TOKEN) stays in the environment, where its library finds it.
    """
    # Settings are read from names in any case.
    secret = {f"NEUROPRUNE_{name}" for name in ("DATABASE_URL", "BROKER_URL", "API_KEYS", "API_KEY")}
    kept = {name: value for name, value in environment.items() if name.upper() not in secret}
    defaults = {"TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    kept["HF_HUB_OFFLINE"] = str(int(settings.hub_offline))
    if settings.hub_home is not None:
        kept["HF_HOME"] = str(settings.hub_home.absolute())
    # OpenMP threads that wait for others spin by default, which is ruinous where cores are shared: two trainings on
    # the same two cores took 4.2 s a step instead of 0.2 s; with this limit 0.6 s, and alone still 0.2 s.
    defaults["GOMP_SPINCOUNT"] = "20000"
    if settings.torch_threads is not None:
        kept["OMP_NUM_THREADS"] = str(settings.torch_threads)
    return defaults | kept


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
