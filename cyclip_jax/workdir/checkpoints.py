"""Checkpoints: Orbax, with checksums. The only file that imports orbax."""

import concurrent.futures
import contextlib
import dataclasses
import json
import logging
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers as policy

from cyclip_jax.errors import UserError
from cyclip_jax.files import entries, parse_json, sha256_of, write_atomically
from cyclip_jax.parallel import Tree
from cyclip_jax.runtime.agreement import decided_by_process_zero
from cyclip_jax.workdir.layout import CHECKPOINTS, DAMAGED_CHECKPOINTS
from cyclip_jax.workdir.saved import saved_steps

AVERAGE = "average"
_CHECKSUMS = "checksums.json"
_UNFINISHED = ".orbax-checkpoint-tmp"

# A save that fails leaves a page of each array's own error behind, beside the one that it raises.
logging.getLogger("asyncio").addFilter(lambda record: "never retrieved" not in record.getMessage())


class _Manager(ocp.CheckpointManager):
    """Orbax's, which leaves the question whether to stop to the run (see StopOnSignal).

    Its own would ask in every save, with the step in place of the number of the question. Processes
    that were told to stop at that moment would agree on a number that had been before.
    """

    def reached_preemption(self, step: int) -> bool:
        """Always false: the run asks itself."""
        return False


@dataclasses.dataclass(frozen=True)
class _Best(policy.PreservationPolicy):
    """Keeps the checkpoint that a Checkpointer's `best` chooses."""

    checkpointer: "Checkpointer"

    def should_preserve(
        self,
        checkpoints: Sequence[policy.PolicyCheckpointInfo],
        *,
        context: policy.PreservationContext,
    ) -> Sequence[bool]:
        """For each checkpoint, whether it is that one."""
        del context
        steps = [checkpoint.step for checkpoint in checkpoints]
        best = self.checkpointer.best(steps)
        return [step == best for step in steps]


class Checkpointer:
    """Saves and restores train states under `<workdir>/checkpoints/<step>/`.

    A checkpoint has three items: `model` (parameters and statistics), `training` (all else that a
    step changes) and `meta` (JSON: data position and config). An average of the model is a fourth
    item, `average`, so that it can be restored without the rest. They are written in the background
    and committed together. Once a checkpoint is committed, the SHA-256 of each of its files is
    written beside them: Orbax itself restores a flipped bit without noticing.

    Where a checkpoint cannot be written, say on a full disk, this is logged at once and does not
    end the run: the next save tries again, and earlier checkpoints stay. With several processes it
    does end the run, as the others may be waiting for this one inside the save.

    Attributes:
      workdir: the run's directory.
      best: function from the steps of the checkpoints to the one of them that stays besides, or
        None.

    Args:
      workdir: the run's directory, local or remote.
      keep: how many of the newest checkpoints stay.
      keep_every_steps: checkpoints at multiples of this stay for good; None keeps only the newest.
    """

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        *,
        keep: int = 3,
        keep_every_steps: int | None = None,
    ) -> None:
        self.workdir: epath.Path = epath.Path(workdir)
        self.best: Callable[[Collection[int]], int | None] = lambda steps: None
        self._directory = self.workdir / CHECKPOINTS
        self._background = concurrent.futures.ThreadPoolExecutor(max_workers=1)
        self._pending = None
        self._failure = None
        policies = [policy.LatestN(keep), _Best(self)]
        if keep_every_steps:
            policies.append(policy.EveryNSteps(keep_every_steps))
        self._options = ocp.CheckpointManagerOptions(
            preservation_policy=policy.AnyPreservationPolicy(policies)
        )
        self._manager = self._open_manager()

    def save(self, step: int, *, model: Tree, training: Tree, meta: Mapping[str, Any]) -> None:
        """Starts to write a checkpoint; returns once the arrays are copied to the host.

        Args:
          step: the number of steps done, which names the checkpoint.
          model: tree of arrays, the parameters and statistics.
          training: dict of trees of arrays, all else that a step changes. Its "average", if it has
            one, is a tree like `model`.
          meta: what JSON can write: the data position and the config.
        """
        self.wait()
        trees = _items(model, training)
        items = ocp.args.Composite(
            **{name: ocp.args.StandardSave(tree) for name, tree in trees.items()},
            meta=ocp.args.JsonSave(meta),
        )
        with self._failures_reported(step):
            self._failure = None
            self._manager.save(step, args=items, force=True)
        self._pending = self._background.submit(self._finish, step)

    def restore_newest(
        self, *, model: Tree, training: Tree
    ) -> tuple[int, Tree, Tree, dict[str, Any]] | None:
        """Restores the newest undamaged checkpoint.

        A damaged one is moved to `<workdir>/damaged_checkpoints`, which is logged as an error, and
        the one before is tried.

        Args:
          model, training: trees of jax.ShapeDtypeStruct with shardings, or of arrays.

        Returns:
          (step, model, training, meta), or None where there is no checkpoint.

        Raises:
          UserError: every checkpoint is damaged, or the newest good one has a different structure.
        """
        # One process reads the files for all, and alone moves what is damaged.
        step = decided_by_process_zero(self._newest_good_step)
        self._manager.reload()
        if step is None:
            return None
        trees = _items(model, training)
        try:
            restored: Any = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    **{name: ocp.args.StandardRestore(tree) for name, tree in trees.items()},
                    meta=ocp.args.JsonRestore(),
                ),
            )
        except Exception as error:  # of many types, for a broken file and for another state
            is_verified = (self._directory / str(step) / _CHECKSUMS).exists()
            # The error may be this process's alone: several could not agree on what to try next.
            if not is_verified and jax.process_count() == 1:
                self._set_aside(step, error)
                self._manager.reload()
                return self.restore_newest(model=model, training=training)
            raise UserError(
                f"checkpoint {step} of {self.workdir} does not fit the config's model and "
                f"optimizer; restore the old config, or choose another --workdir ({error})"
            ) from error
        own = {name: restored[name] for name in trees}
        return step, own.pop("model"), own.pop("training") | own, restored.meta

    def _newest_good_step(self):
        """The newest step whose files are what was written; those after it are set aside."""
        steps = sorted(self._manager.all_steps(), reverse=True)
        for step in steps:
            try:
                # Only the newest can lack its checksums without being damaged: by a kill.
                verify(self._directory / str(step), may_lack_checksums=step == steps[0])
            except ChecksumError as error:
                self._set_aside(step, error)
                continue
            return step
        if steps:
            raise UserError(
                f"every checkpoint of {self.workdir} was damaged; they are in "
                f"{self.workdir / DAMAGED_CHECKPOINTS}, and the same command starts from scratch"
            )
        return None

    def wait(self) -> Exception | None:
        """Waits for the newest save.

        Returns:
          The exception that kept it from being written, or None where it is on disk.
        """
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()
            if self._failure is not None:
                self._renew_manager()
        return self._failure

    def close(self) -> None:
        """Waits as `wait` does, and releases the threads."""
        try:
            self.wait()
        finally:
            self._manager.close()
            self._background.shutdown()

    def _finish(self, step):
        if self._failure is not None:
            return
        with self._failures_reported(step):
            # Not Orbax's post-finalisation callback: it runs before the directory gets its name.
            self._manager.wait_until_finished()
            if jax.process_index() == 0:
                write_checksums(self._directory / str(step))

    @contextlib.contextmanager
    def _failures_reported(self, step):
        try:
            yield
        except Exception as error:  # of many types: TensorStore's of a full disk is a ValueError
            if jax.process_count() > 1:
                raise
            self._failure = error
            logging.error(
                "CHECKPOINT %d COULD NOT BE WRITTEN to %s. Free space or mend the error named "
                "here: training goes on, and the next save tries again. (%s)",
                step,
                self._directory,
                error,
            )

    def _renew_manager(self):
        # Orbax's would raise the save's error in the next one, too.
        for end in (self._manager.wait_until_finished, self._manager.close):
            with contextlib.suppress(Exception):  # that one; it was reported
                end()
        self._manager = self._open_manager()

    def _open_manager(self):
        """Orbax's manager, once what a killed or failed save left is removed."""
        if jax.process_index() == 0:
            leftovers = [p for p in entries(self._directory) if p.name.endswith(_UNFINISHED)]
            for path in leftovers:
                with contextlib.suppress(OSError):  # where its threads still write; so next time
                    path.rmtree()
        return _Manager(self._directory, options=self._options)

    def _set_aside(self, step, error):
        logging.error(
            "Checkpoint %d is damaged and is set aside in %s; trying the one before. (%s)",
            step,
            self.workdir / DAMAGED_CHECKPOINTS,
            error,
        )
        destination = self.workdir / DAMAGED_CHECKPOINTS
        destination.mkdir(parents=True, exist_ok=True)
        count = sum(path.name.startswith(str(step)) for path in entries(destination))
        (self._directory / str(step)).rename(destination / f"{step}.{count}")


def _items(model, training):
    """The trees of a checkpoint by the names of their items."""
    average = {name: tree for name, tree in training.items() if name == AVERAGE}
    training = {name: tree for name, tree in training.items() if name not in average}
    return {"model": model, "training": training, **average}


def restore_model(
    workdir: str | os.PathLike[str],
    abstract_model: Tree,
    *,
    step: int | None = None,
    item: str = "model",
) -> tuple[int, Tree]:
    """Restores parameters and statistics alone, for evaluation or as a starting point.

    Args:
      workdir: the directory of a run.
      abstract_model: the tree of jax.ShapeDtypeStruct with shardings.
      step: which checkpoint; None is the newest.
      item: "model", or AVERAGE for the average.

    Returns:
      (step, model).

    Raises:
      UserError: no such checkpoint, or a damaged one.
    """
    directory = epath.Path(workdir) / CHECKPOINTS
    steps = saved_steps(workdir)
    if not steps:
        raise UserError(f"{workdir} has no checkpoints; name the workdir of a run")
    step = steps[-1] if step is None else step
    if step not in steps:
        known = ", ".join(map(str, steps))
        raise UserError(f"{workdir} has no checkpoint of step {step}; choose one of {known}")
    try:
        verify(directory / str(step), may_lack_checksums=step == steps[-1])
    except ChecksumError as error:
        raise UserError(f"checkpoint {step} of {workdir} is damaged: {error}") from error
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            return step, checkpointer.restore(directory / str(step) / item, abstract_model)
    except Exception as error:  # of many types, for a broken file and for another model
        raise UserError(
            f"checkpoint {step} of {workdir} cannot be restored: it is damaged, or its config.json "
            f"is of another model ({error})"
        ) from error


class ChecksumError(Exception):
    """A file of a checkpoint is not what was written."""


def write_checksums(directory: epath.Path) -> None:
    """Writes the SHA-256 of every file of a committed checkpoint, atomically."""
    write_atomically(directory / _CHECKSUMS, json.dumps(_checksums(directory), indent=1))


def verify(directory: epath.Path, *, may_lack_checksums: bool = False) -> None:
    """Raises ChecksumError where a file is missing or differs from what was written.

    A checkpoint has no checksums if its run was killed after the commit and before they were
    written. It is whole, as a commit is atomic, and passes with a warning where it
    `may_lack_checksums`.

    Args:
      directory: of the checkpoint.
      may_lack_checksums: whether the checkpoint may be without them.
    """
    path = directory / _CHECKSUMS
    if not path.exists():
        if not may_lack_checksums:
            raise ChecksumError(f"{_CHECKSUMS} is missing")
        logging.warning("%s has no %s: its bits cannot be verified.", directory, _CHECKSUMS)
        return
    try:
        expected = parse_json(path.read_text())
    except ValueError as error:
        raise ChecksumError(f"{path} cannot be read: {error}") from error
    actual = _checksums(directory)
    changed = sorted(name for name in expected if actual.get(name) != expected[name])
    if changed:
        raise ChecksumError(f"these files changed after they were written: {', '.join(changed)}")


def _checksums(directory):
    return {
        str(path.relative_to(directory)): sha256_of(path)
        for path in sorted(_files(directory))
        if not path.name.startswith(_CHECKSUMS)
    }


def _files(directory):
    for path in directory.iterdir():
        if path.is_dir():
            yield from _files(path)
        else:
            yield path
