"""What a run has spent so far: FLOPs by kind, and electricity where it is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from auxin.training.cost import Ledger, training_flops
from auxin.training.energy import EnergyMeter, energy_meter
from auxin.types import LossFn


class Account:
    """The sums of a run, continued when it resumes; what a killed epoch spent in vain is not in them.

    Args:
        saved: What ``to_dict`` returned at the checkpoint that the run goes on from; None or empty for a new run.
        energy: Whether to count electricity.

    Attributes:
        ledger: FLOPs by kind.
        meter: The energy meter, or None.
        note: Why there is no meter although one is wanted, or an empty text.

    Example:
        >>> account = Account({"flops": {"training": 300, "surgery": 20}, "energy_kwh": None})
        >>> account.training_flops, account.to_dict()["energy_kwh"]
        (320, None)
    """

    def __init__(self, saved: Mapping[str, Any] | None = None, energy: bool = False) -> None:
        saved = saved or {}
        self.ledger = Ledger.from_dict(saved.get("flops", {}))
        self.meter: EnergyMeter | None = None
        self.note = ""
        before = saved.get("energy_kwh", 0.0)
        if energy and before is None:
            self.note = "energy is not counted, since the run began without a meter"
        elif energy:
            self.meter = energy_meter(before)
            self.note = "" if self.meter else 'energy is not counted: run pip install "auxin[energy]"'
        self._step: int | None = None

    @property
    def training_flops(self) -> int:
        """FLOPs that the weights cost so far: training, scoring and surgery, without validation."""
        return self.ledger.total - self.ledger.flops["validation"]

    def add_epoch(
        self, model: nn.Module, images: Tensor, labels: Tensor, loss_fn: LossFn, *, steps: int, validation: int
    ) -> None:
        """Add an epoch; what one step costs is measured once per size.

        Args:
            model: As it was trained in this epoch.
            images: A batch of the training's shape, (N, C, H, W).
            labels: Its labels, (N,).
            loss_fn: The training loss.
            steps: Number of steps.
            validation: FLOPs of all validation images.
        """
        if self._step is None:
            self._step = training_flops(model, images, labels, loss_fn)
        self.ledger.add("training", self._step * steps)
        self.ledger.add("validation", validation)

    def grew(self) -> None:
        """Forget what a step costs: the model has another size."""
        self._step = None

    def to_dict(self) -> dict[str, Any]:
        """Return the sums as JSON data; reads the meter."""
        return {"flops": self.ledger.to_dict(), "energy_kwh": self.meter.read() if self.meter else None}

    def start(self) -> None:
        """Begin to count electricity."""
        if self.meter is not None:
            self.meter.start()

    def stop(self) -> dict[str, Any] | None:
        """Stop counting electricity.

        Returns:
            Its ``kwh``, their ``source`` (measured or modelled) and a ``note``; None without a reading.
        """
        energy = self.meter.stop() if self.meter else None
        return vars(energy) if energy else None
