"""The Trainer: epochs, growth between them, and a checkpoint after each so that a kill costs one epoch at most."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional

from auxin.data import ImageData, Loader, load
from auxin.errors import ConfigError
from auxin.models import MODELS
from auxin.training import checkpoint as checkpoints
from auxin.training.checkpoint import Checkpoint, Stage
from auxin.training.config import RunConfig
from auxin.training.cost import num_flops, num_parameters
from auxin.training.folder import RunFolder
from auxin.training.growth import make_grower
from auxin.training.ladder import build_base, load_model, restore_model, rung_path, rungs
from auxin.training.loop import evaluate, train_epoch
from auxin.training.metrics import MetricsLog
from auxin.training.optimizer import make_optimizer, restore, state_of
from auxin.training.progress import EpochProgress
from auxin.training.provenance import commit, hardware, versions
from auxin.training.reproducible import prepare, reproducible, seed_stage
from auxin.training.result import Phase, Result, widths_by_phase, without_structure
from auxin.training.schedules import make_schedule
from auxin.types import Event


class Trainer:
    """Trains a model that grows, in a folder that the run can be resumed from at any moment.

    Each epoch: train, validate, log, checkpoint; then the grower decides. If it grows, the checkpoint from before
    becomes a rung of the ladder and a new one follows. A run that was killed at any point goes on from the last
    checkpoint and, with ``train.deterministic``, ends with the same weights bit for bit. The test images are seen once,
    after the last epoch, by every rung.

    Args:
        config: What to do.
        folder: The run's folder. If it holds a checkpoint, the run goes on from it.
        data: The images; None loads what the configuration names.
        model: The model before its first event; None builds what the configuration names.
        console: Where progress goes; None is standard output.

    Attributes:
        model: The module itself, grown in place.
        forward: What Fabric made of it: its forward pass runs in the run's precision.
        optimizer: The torch optimizer.
        stepper: What Fabric made of it.
        train_loader: Augmented batches.
        val_loader: Batches of the validation images.
        grower: What grows the model, or None.
        epochs_done: Epochs trained so far.
        seconds: Time trained so far.

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
    ) -> None:
        self.folder = folder if isinstance(folder, RunFolder) else RunFolder(Path(folder))
        self.progress = EpochProgress(config.train.epochs, console)
        prepare(config.train)
        self.fabric = Fabric(accelerator=config.train.device, devices=1, precision=config.train.precision)
        if data is None:
            data = load(config.data.source, val_fraction=config.data.val_fraction, seed=config.data.seed)
        self.data = data.to(self.fabric.device)
        self.config = config = _with_shapes(config, self.data) if model is None else config
        saved = checkpoints.load(self.folder.last) if self.folder.last.exists() else None
        self.epochs_done = saved.epoch + 1 if saved else 0
        self.seconds = saved.seconds if saved else 0.0
        self.model, self._base = self._build(model, saved)
        self.optimizer = make_optimizer(config.optimizer, self.model)
        if saved:
            restore(self.optimizer, self.model, saved.optimizer)
            for group in self.optimizer.param_groups:
                group.update(self.optimizer.defaults)  # a resume may override the configuration
        self.forward, self.stepper = self.fabric.setup(self.model, self.optimizer)
        self.train_loader = self._loader("train")
        self.val_loader = self._loader("val")
        self._example = next(iter(self.val_loader))[0][:1].clone()
        self.grower = make_grower(config.growth, self.model, self.optimizer, self._example, config.train.seed)
        self._commit = commit()  # now: the checkout may move on while the run lasts
        self._restart_epoch = 0
        self._saved = saved
        if saved:
            self._restore_grower(saved)

    @property
    def events(self) -> list[Event]:
        """The growth events so far."""
        return list(self.grower.history.events) if self.grower else []

    def fit(self) -> Result:
        """Train to the last epoch, growing on the way.

        Returns:
            The result, also written to ``result.json``; of a finished run, the one that is there.

        Raises:
            TrainingError: If the loss is no longer finite; the last checkpoint is still good.
            CheckpointError: If a file cannot be written; likewise.
        """
        if self.folder.result.exists():
            return Result.read(self.folder.result)
        self.folder.path.mkdir(parents=True, exist_ok=True)
        checkpoints.write_durably(self.folder.config, self.config.to_yaml().encode())
        log = MetricsLog(self.folder.metrics, self.folder.tensorboard, self.epochs_done)
        epochs = self.config.train.epochs
        try:
            with reproducible(self.config.train, self.fabric.device), self.progress:
                if self._saved is not None and self._saved.stage == "trained" and self.epochs_done < epochs:
                    # Killed after an epoch and before its growth decision was safe: decide again, from the same state.
                    self._grow(self.epochs_done - 1, self._saved.metrics)
                for epoch in range(self.epochs_done, epochs):
                    row = self._epoch(epoch)
                    log.append(row)
                    self._save("trained", row)
                    if epoch + 1 < epochs:  # growth after the last epoch would never be trained
                        self._grow(epoch, row)
                return self._finish()
        finally:
            log.close()

    def _build(self, model: nn.Module | None, saved: Checkpoint | None) -> tuple[nn.Module, nn.Module]:
        if model is None:
            wanted = self.config.to_dict()["model"]
            if saved and saved.config["model"] != wanted:
                raise ConfigError("A resumed run keeps its model: leave the model settings as they were.")
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.config.train.seed)
                model = build_base(wanted)
        base = copy.deepcopy(model)
        if saved:
            restore_model(model, saved)
        if self.config.train.channels_last:
            model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return model, base

    def _restore_grower(self, saved: Checkpoint) -> None:
        self._restart_epoch = int(saved.schedule.get("growth_epoch", 0))
        if self.grower is None:
            if saved.history:
                raise ConfigError("The run has already grown: leave growth.method as it was.")
            return
        self.grower.load_state_dict(saved.grower)

    def _loader(self, split: Any) -> Loader:
        config = self.config
        size = config.train.batch_size if split == "train" else max(config.train.batch_size, 500)
        return Loader(
            self.data,
            split,
            batch_size=size,
            seed=config.train.seed,
            # A last batch of a few images would give batch norm useless statistics.
            drop_last=split == "train" and len(self.data.train_labels) >= size,
            padding=config.data.crop,
            flip=config.data.flip,
            cutout=config.data.cutout,
            channels_last=config.train.channels_last,
        )

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(logits, labels, label_smoothing=self.config.train.label_smoothing)

    def _epoch(self, epoch: int) -> dict[str, float]:
        start = time.perf_counter()
        config = self.config
        seed_stage(config.train.seed, epoch, "train")
        self.train_loader.set_epoch(epoch)
        self.progress.begin(epoch, len(self.train_loader))
        trained = train_epoch(
            self.forward,
            self.stepper,
            self.train_loader,
            fabric=self.fabric,
            epoch=epoch,
            schedule=make_schedule(config.schedule, config.train.epochs, self._restart_epoch),
            lr=config.optimizer.lr,
            label_smoothing=config.train.label_smoothing,
            clip_norm=config.train.clip_norm,
            on_step=self.progress.advance,
        )
        val_loss, val_accuracy = evaluate(self.forward, self.val_loader)
        seconds = time.perf_counter() - start
        self.seconds += seconds
        self.epochs_done = epoch + 1
        row = {
            "epoch": epoch,
            **trained,
            "val_loss": val_loss,
            "val_accuracy": val_accuracy,
            "parameters": num_parameters(self.model),
            "flops": num_flops(self.model, self._example),
            "epoch_seconds": seconds,
            "seconds": self.seconds,
        }
        self.progress.end(row)
        return row

    def _grow(self, epoch: int, metrics: Mapping[str, float]) -> None:
        if self.grower is None:
            return
        start = time.perf_counter()
        seed_stage(self.config.train.seed, epoch, "growth")
        self.train_loader.set_epoch(epoch)
        event = self.grower.step(epoch, self.train_loader, self._loss, dict(metrics))
        if event is None:
            return
        if self.config.train.channels_last:
            self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._restart_epoch = epoch + 1
        self.seconds += time.perf_counter() - start
        self.progress.line(f"grew after epoch {epoch + 1}: {event}")
        self._keep_rung(len(self.events) - 1)
        self._save("grown", metrics)

    def _keep_rung(self, number: int) -> None:
        """Copy the checkpoint of the epoch just trained to the ladder; read back, so it is known to be whole."""
        checkpoints.save(checkpoints.load(self.folder.last), rung_path(self.folder.ladder, number))

    def _save(self, stage: Stage, metrics: Mapping[str, float]) -> None:
        checkpoints.save(
            Checkpoint(
                config=self.config.to_dict(),
                epoch=self.epochs_done - 1,
                stage=stage,
                model=self.model.state_dict(),
                optimizer=state_of(self.optimizer, self.model),
                history=self.grower.history.to_json() if self.grower else [],
                grower=self.grower.state_dict() if self.grower else {},
                schedule={"growth_epoch": self._restart_epoch},
                metrics=dict(metrics),
                seconds=self.seconds,
            ),
            self.folder.last,
        )

    def _finish(self) -> Result:
        self._keep_rung(len(self.events))
        found, phases = rungs(self.folder.ladder)[: len(self.events) + 1], []
        for index, rung in enumerate(found):
            before = found[index - 1] if index else None
            phases.append(
                Phase(
                    first_epoch=before.epoch + 2 if before else 1,
                    last_epoch=rung.epoch + 1,
                    parameters=rung.parameters,
                    flops=rung.flops,
                    val_accuracy=rung.val_accuracy,
                    test_accuracy=self._test(rung.path),
                    seconds=rung.seconds - (before.seconds if before else 0.0),
                )
            )
        result = Result(
            name=self.config.name,
            config=self.config.to_dict(),
            **self._commit,
            seed=self.config.train.seed,
            hardware=hardware(),
            versions=versions(),
            data=dict(self.data.description),
            phases=phases,
            events=[without_structure(event) for event in self.events],
            widths=widths_by_phase(self.events),
            seconds=self.seconds,
        )
        result.save(self.folder.result)
        return result

    def _test(self, manifest: Path) -> float | None:
        if len(self.data.test_labels) == 0:
            return None
        model = load_model(manifest, self._base)
        if self.config.train.channels_last:
            model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        _, accuracy = evaluate(self.fabric.setup_module(model), self._loader("test"))
        return accuracy


def _with_shapes(config: RunConfig, data: ImageData) -> RunConfig:
    # What our models must know about the images goes into the configuration: a checkpoint is rebuilt without images.
    if config.model.name not in MODELS:
        return config
    kwargs = {"num_classes": data.num_classes, "in_channels": data.channels, **config.model.kwargs}
    return replace(config, model=replace(config.model, kwargs=kwargs))
