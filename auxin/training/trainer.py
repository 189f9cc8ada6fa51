"""The Trainer: epochs, growth between them, and a checkpoint after each so that a kill costs one epoch at most.

A long file: the order in which these happen, and in which files are written, is what makes a resume exact.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional

from auxin.data import ImageData
from auxin.errors import CheckpointError, ConfigError
from auxin.surgery import History
from auxin.training import checkpoint as checkpoints
from auxin.training import decisions as decision_log
from auxin.training import target as targets
from auxin.training.account import Account
from auxin.training.begun import changes
from auxin.training.checkpoint import Checkpoint, Stage
from auxin.training.config import RunConfig
from auxin.training.cost import num_flops, num_parameters
from auxin.training.depthwise import depthwise_in_float32
from auxin.training.distributions import keep_distributions
from auxin.training.fit import require_fit
from auxin.training.folder import RunFolder
from auxin.training.growth import make_grower, written_out
from auxin.training.images import (
    image_facts,
    load_images,
    make_loader,
    require_same_images,
    require_same_split,
    scoring_samples,
    with_shapes,
)
from auxin.training.ladder import LadderWriter, build_base, load_model, restore_model, rung_path, rungs
from auxin.training.loop import evaluate, train_epoch
from auxin.training.metrics import MetricsLog, read_rows
from auxin.training.optimizer import make_optimizer, restore, state_of
from auxin.training.precision import advice, precision_of
from auxin.training.progress import EpochProgress
from auxin.training.provenance import session
from auxin.training.reproducible import prepare, reproducible, seed_stage
from auxin.training.result import Result, phases_of, widths_by_phase, without_structure
from auxin.training.schedules import Plateau, make_schedule
from auxin.types import Event


class Trainer:
    """Trains a model that grows, in a folder that the run can be resumed from at any moment.

    Each epoch: train, validate, log, checkpoint; then the grower decides. If it grows, the checkpoint from before
    becomes a rung of the ladder and a new one follows; the best epoch of each size is kept too. A run that was killed
    at any point goes on from the last checkpoint and, with ``train.deterministic``, ends with the same weights bit for
    bit. The test images are seen once, after the last epoch, by every rung.

    Args:
        config: What to do.
        folder: The run's folder. If it holds a checkpoint, the run goes on from it.
        data: The images; None loads what the configuration names.
        model: The model before its first event; None builds what the configuration names.
        console: Where progress goes; None is standard output.
        on_epoch: Called with the folder after each epoch and what grew then, for example to draw a page.

    Attributes:
        model: The module itself, grown in place.
        forward: What Fabric made of it: its forward pass runs in the run's precision.
        optimizer: The torch optimizer.
        stepper: What Fabric made of it.
        train_loader: Augmented batches.
        val_loader: Batches of the validation images.
        grower: What grows the model, or None.
        image_facts: What a checkpoint says of the images.
        epochs_done: Epochs trained so far.
        seconds: Time trained so far.
        account: FLOPs and electricity so far.

    Raises:
        ConfigError: If a setting cannot be used.
        CheckpointError: If the folder's checkpoint is damaged or of another model.

    Example:
        >>> import tempfile
        >>> from auxin.training import RunConfig
        >>> config = RunConfig.from_dict({
        ...     "model": {"name": "small_cnn"}, "train": {"epochs": 2, "precision": "32-true"}, "growth": {"every": 1}})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     result = Trainer(config, folder, console=Console(quiet=True)).fit()
        >>> len(result.phases)
        2
    """

    def __init__(
        self,
        config: RunConfig,
        folder: RunFolder | Path | str,
        *,
        data: ImageData | None = None,
        model: nn.Module | None = None,
        console: Console | None = None,
        on_epoch: Callable[[RunFolder], None] | None = None,
    ) -> None:
        self.on_epoch = on_epoch
        self.folder = folder if isinstance(folder, RunFolder) else RunFolder(Path(folder))
        self.progress, self._console = EpochProgress(config.train.epochs, console), console or Console()
        prepare(config.train)
        if config.train.device == "cuda" and not torch.cuda.is_available():
            raise ConfigError("train.device is cuda, but torch finds no GPU here: give auto or cpu.")
        saved = checkpoints.load(self.folder.last) if self.folder.last.exists() else None
        precision = precision_of(config.train, saved.config["train"]["precision"] if saved else None)
        config = replace(config, train=replace(config.train, precision=precision))
        self.fabric = Fabric(accelerator=config.train.device, devices=1, precision=precision)
        if saved:
            require_same_split(saved.config["data"], config.data)
        if data is None:
            data = load_images(config.data)
        self.image_facts = image_facts(data)
        if saved:
            require_same_images(saved.run.get("images"), self.image_facts, data.description.get("source", "These"))
        self.data = data.to(self.fabric.device)
        self.config = config = with_shapes(config, self.data) if model is None else config
        self.epochs_done = saved.epoch + 1 if saved else 0
        if config.train.epochs < self.epochs_done:
            raise ConfigError(
                f"train.epochs is {config.train.epochs}, but {self.epochs_done} are trained: give at least that."
            )
        self.seconds = saved.seconds if saved else 0.0
        self.account = Account(saved.run.get("spent", {"energy_kwh": None}) if saved else None, config.train.energy)
        start = checkpoints.load(Path(config.model.start)) if config.model.start and saved is None else None
        self.model, self._base = self._build(model, saved or start)
        self.optimizer = make_optimizer(config.optimizer, self.model)
        if saved:
            restore(self.optimizer, self.model, saved.optimizer)
            for group in self.optimizer.param_groups:
                group.update(self.optimizer.defaults)  # a resume may override the configuration
        self.forward, self.stepper = self.fabric.setup(self.model, self.optimizer)
        self.train_loader = make_loader(config, self.data, "train")
        self.val_loader = make_loader(config, self.data, "val")
        self._example = next(iter(self.val_loader))[0][:1].clone()
        size = min(config.train.batch_size, len(self.data.train_labels))
        require_fit(self.forward, self.model, self._example, self.data.num_classes, size)
        growth = targets.with_target(config.growth, config.target)
        self.grower = make_grower(
            growth,
            self.model,
            self.optimizer,
            self._example,
            config.train.seed,
            self.account.ledger,
            lambda number: scoring_samples(self.data, number, config.data.seed),
        )
        changed = changes(saved.config, config.to_dict()) if saved else None
        # Now: the checkout may move on while the run lasts.
        self._session = session(self.epochs_done + 1, changed)
        self._sessions = [*(saved.run.get("sessions", []) if saved else []), self._session]
        self._restart_epoch = 0
        self._plateau = Plateau(config.schedule.factor, config.schedule.patience, config.schedule.floor)
        self._saved = saved
        self._metrics: Mapping[str, float] = saved.metrics if saved else {}
        self._ladder = LadderWriter(self.folder, saved.run.get("best") if saved else None)
        self._stop: dict[str, Any] | None = None
        # Events before this run, where it starts from a rung.
        self._inherited = History.from_json(start.history) if start else History()
        if saved:
            self._restore(saved)
        elif self.grower:
            self.grower.history = History(self._inherited.events)
        targets.check(config.target, config.growth, self.grower)

    @property
    def events(self) -> list[Event]:
        """The growth events of this run so far."""
        return self.grower.history.events[len(self._inherited.events) :] if self.grower else []

    @property
    def decisions(self) -> list[dict[str, Any]]:
        """Every decision to grow or not so far, as JSON data; where growth has ended, the last one says why."""
        return [*decision_log.decisions_of(self.grower), *([self._stop] if self._stop else [])]

    def fit(self) -> Result:
        """Train to the last epoch, growing on the way.

        Returns:
            The result, also written to ``result.json``; of a finished run, the one that is there.

        Raises:
            TrainingError: If the loss is no longer finite; the last checkpoint is still good.
            CheckpointError: If a file cannot be written, likewise; or if the checkpoint is gone.
        """
        if self.folder.result.exists():
            return Result.read(self.folder.result)
        if self._saved is None and _has_trained(self.folder):
            raise CheckpointError(
                f"{self.folder.path} has trained, but {self.folder.last} is gone: restore the folder of checkpoints, "
                "or remove the run's folder and begin again."
            )
        self.folder.path.mkdir(parents=True, exist_ok=True)
        checkpoints.write_atomically(self.folder.config, self.config.to_yaml().encode())
        if self._saved is not None:
            checkpoints.clean(self.folder.last)
        if self._saved is not None and self._saved.config != self.config.to_dict():
            self._save(self._saved.stage, self._saved.metrics)  # a resume's settings hold from now on
        log = MetricsLog(self.folder.metrics, self.folder.tensorboard, self.epochs_done)
        epochs = self.config.train.epochs
        self.account.start()
        for note in filter(None, (self.account.note, log.note, advice(self.config.train))):
            self.progress.line(note)
        try:
            with reproducible(self.config.train, self.fabric.device), self.progress:
                if self._saved is not None and self._saved.stage == "trained" and self.epochs_done < epochs:
                    # Killed after an epoch and before its growth decision was safe: decide again, from the same state.
                    self._grow(self.epochs_done - 1, self._saved.metrics)
                for epoch in range(self.epochs_done, epochs):
                    row = self._epoch(epoch)
                    log.append(row)
                    self._ladder.keep_best(row, len(self.events))
                    self._save("trained", row)
                    if epoch + 1 < epochs:  # growth after the last epoch would never be trained
                        self._grow(epoch, row)
                    if self.on_epoch is not None:
                        self.on_epoch(self.folder)
                return self._finish()
        finally:
            self.account.stop()
            log.close()

    def _build(self, model: nn.Module | None, saved: Checkpoint | None) -> tuple[nn.Module, nn.Module]:
        if model is None:
            wanted = self.config.to_dict()["model"]
            if saved and any(saved.config["model"][key] != wanted[key] for key in ("name", "kwargs")):
                raise ConfigError(
                    "A run that goes on from a checkpoint keeps its model: leave the model settings as they were."
                )
            model = build_base(wanted, self.config.train.seed)
        base = copy.deepcopy(model)
        if saved:
            restore_model(model, saved)
        model = self.fabric.to_device(model)  # now, as the optimizer's state is restored to where its parameters are
        if self.config.train.channels_last:
            model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return model, base

    def _restore(self, saved: Checkpoint) -> None:
        if saved.config.get("target") == self.config.to_dict()["target"]:  # else a resume may give a new target
            self._stop = saved.run.get("stop")
        self._inherited = History.from_json(saved.history[: saved.run.get("inherited", 0)])
        self._restart_epoch = int(saved.schedule.get("growth_epoch", 0))
        self._plateau.load_state_dict(saved.schedule.get("plateau", {}))
        if self.grower is None:
            if len(saved.history) > len(self._inherited.events):
                raise ConfigError("The run has already grown: leave growth.method as it was.")
            return
        self.grower.load_state_dict(saved.grower)

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(logits, labels, label_smoothing=self.config.train.label_smoothing)

    def _epoch(self, epoch: int) -> dict[str, float]:
        start = time.perf_counter()
        config = self.config
        seed_stage(config.train.seed, epoch, "train")
        self.train_loader.set_epoch(epoch)
        self.progress.begin(epoch, len(self.train_loader))
        with depthwise_in_float32(self.model):
            trained = train_epoch(
                self.forward,
                self.stepper,
                self.train_loader,
                fabric=self.fabric,
                epoch=epoch,
                schedule=make_schedule(config.schedule, config.train.epochs, self._restart_epoch, self._plateau.level),
                lr=config.optimizer.lr,
                label_smoothing=config.train.label_smoothing,
                l1=config.train.l1,
                clip_norm=config.train.clip_norm,
                on_step=self.progress.advance,
            )
        val_loss, val_accuracy = evaluate(self.forward, self.val_loader)
        if config.schedule.name == "plateau":
            self._plateau.update(val_loss)
        seconds = time.perf_counter() - start
        self.seconds += seconds
        self.epochs_done = epoch + 1
        flops = num_flops(self.model, self._example)
        self._account_for_epoch(flops)
        self._metrics = row = {
            "epoch": epoch,
            **trained,
            "val_loss": val_loss,
            "val_accuracy": val_accuracy,
            "parameters": num_parameters(self.model),
            "flops": flops,
            "training_flops": self.account.training_flops,
            "epoch_seconds": seconds,
            "seconds": self.seconds,
        }
        self.progress.end(row)
        return row

    def _account_for_epoch(self, flops: int) -> None:
        size = min(self.config.train.batch_size, len(self.data.train_labels))
        images = self._example.expand(size, *self._example.shape[1:])
        labels = torch.zeros(size, dtype=torch.long, device=images.device)
        validation = flops * len(self.data.val_labels)
        steps = len(self.train_loader)
        self.account.add_epoch(self.model, images, labels, self._loss, steps=steps, validation=validation)

    def _grow(self, epoch: int, metrics: Mapping[str, float]) -> None:
        if self.grower is None or self._stop is not None:
            return
        if reason := targets.accuracy_reached(self.config.target, metrics):
            self._end_growth(epoch, reason)
            return
        start = time.perf_counter()
        seed_stage(self.config.train.seed, epoch, "growth")
        self.train_loader.set_epoch(epoch)
        known = len(self.decisions)
        # The natural trigger sizes its own events.
        sized = self.config.target.given and self.config.growth.trigger != "natural"
        last = sized and targets.fills_cap(self.grower)
        event = self.grower.step(epoch, self.train_loader, self._loss, dict(metrics))
        self.seconds += time.perf_counter() - start
        lines = [decision_log.sentence(decision) for decision in self.decisions[known:]]
        if event is not None:
            lines.append(f"grew after epoch {epoch + 1}: {event}")
        if (event is not None and last) or targets.is_full(self.grower):
            self._stop = targets.stop_record(
                epoch, targets.size_reached(self.grower, self.config.target, self.config.growth.until)
            )
            lines.append(decision_log.sentence(self._stop))
        if self.decisions[known:]:
            decision_log.write(self.folder.decisions, self.decisions)
        if event is not None:
            self._follow(epoch, metrics)
        for line in lines:  # only now: what was done is safe, even if it cannot be printed
            self.progress.line(line)

    def _follow(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Do what an event asks for: layout, schedule, ladder, checkpoint."""
        assert self.grower is not None
        if self.config.train.channels_last:
            self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._restart_epoch = epoch + 1
        if self.config.schedule.after_growth == "restart":
            self._plateau.restart()
        before = self._ladder.keep(len(self.events) - 1)
        keep_distributions(self.folder.similarity, self.grower, len(self.events), before.model)
        self._ladder.best = None
        self.account.grew()
        self._save("grown", metrics)

    def _end_growth(self, epoch: int, reason: str) -> None:
        self._stop = targets.stop_record(epoch, reason)
        decision_log.write(self.folder.decisions, self.decisions)
        self.progress.line(decision_log.sentence(self._stop))

    def _save(self, stage: Stage, metrics: Mapping[str, float]) -> None:
        checkpoints.save(
            Checkpoint(
                config=self.config.to_dict(),
                epoch=self.epochs_done - 1,
                stage=stage,
                model=self.model.state_dict(),
                optimizer=state_of(self.optimizer, self.model),
                history=(self.grower.history if self.grower else self._inherited).to_json(),
                grower=self.grower.state_dict() if self.grower else {},
                schedule={"growth_epoch": self._restart_epoch, "plateau": self._plateau.state_dict()},
                metrics=dict(metrics),
                seconds=self.seconds,
                run={
                    "images": self.image_facts,
                    "inherited": len(self._inherited.events),
                    "best": self._ladder.best,
                    "stop": self._stop,
                    "spent": self.account.to_dict(),
                    "sessions": self._sessions,
                },
            ),
            self.folder.last,
        )

    def _finish(self) -> Result:
        self._ladder.keep(len(self.events))
        if self.config.target.given and self._stop is None:
            reason = targets.accuracy_reached(self.config.target, self._metrics)
            self._end_growth(self.epochs_done - 1, reason or targets.missed(self.config.target, self._metrics))
        whole = rungs(self.folder.ladder, best=True, damaged=self._report_damage)
        found = [rung for rung in whole if rung.number <= len(self.events)]
        sizes = [rung.number for rung in found if not rung.best]
        numbers = range(len(self.events) + 1)
        if missing := [str(n) for n in numbers if not rung_path(self.folder.ladder, n).exists()]:
            self._say(f"Sizes are left out. {self.folder.ladder} has no rung {', '.join(missing)}.")
        result = Result(
            name=self.config.name,
            config=replace(self.config, growth=written_out(self.config.growth)).to_dict(),
            commit=self._session["commit"],
            dirty=self._session["dirty"],
            seed=self.config.train.seed,
            hardware=self._session["hardware"],
            versions=self._session["versions"],
            data=dict(self.data.description),
            phases=phases_of(found, self.events, read_rows(self.folder.metrics), self._test),
            events=[without_structure(event) for event in self.events],
            widths={name: [widths[n] for n in sizes] for name, widths in widths_by_phase(self.events).items()},
            seconds=self.seconds,
            decisions=self.decisions,
            cost=self.account.ledger.to_dict(),
            energy=self.account.stop(),
            sessions=self._sessions if self._saved else [],
        )
        result.save(self.folder.result)
        return result

    def _report_damage(self, error: CheckpointError) -> None:
        self._say(f"A rung is left out. {error}")

    def _say(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False)

    def _test(self, manifest: Path) -> float | None:
        if len(self.data.test_labels) == 0:
            return None
        model = load_model(manifest, self._base)
        if self.config.train.channels_last:
            model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        _, accuracy = evaluate(self.fabric.setup_module(model), make_loader(self.config, self.data, "test"))
        return accuracy


def _has_trained(folder: RunFolder) -> bool:
    # A kill during the first epoch's checkpoint leaves one row.
    return len(read_rows(folder.metrics)) > 1 or any(folder.ladder.glob("rung-*.json"))
