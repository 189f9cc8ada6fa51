"""Electricity of a run in kWh, by codecarbon where that optional library is installed (extra ``energy``).

codecarbon counts the whole machine, other programs included: processor, GPUs, memory. It runs offline here, prints
nothing and writes no file. Only energy is taken from it, not emissions, so the country plays no part.
"""

from __future__ import annotations

import importlib
import logging
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

Source = Literal["measured", "modelled"]
"""Measured: processor and GPUs have energy counters. Modelled: at least one is guessed from its load."""

_COUNTERS = {"intel_rapl": "RAPL", "windows_emi": "Windows' energy meter", "intel_power_gadget": "Power Gadget"}


@dataclass(frozen=True)
class Energy:
    """Electricity used.

    Attributes:
        kwh: Kilowatt-hours.
        source: Whether they were measured or modelled.
        note: How, in a sentence.
    """

    kwh: float
    source: Source
    note: str


class EnergyMeter:
    """Adds up the electricity of a run, over as many sittings as it takes.

    Nothing that goes wrong inside codecarbon reaches the run: readings are then None, and the note says why.

    Args:
        kwh_before: What earlier sittings of the run used, in kWh.

    Attributes:
        source: "measured" or "modelled", known once started.
        note: How, or why there is no reading, in a sentence.

    Example:
        >>> meter = energy_meter(kwh_before=0.2)
        >>> if meter is not None:
        ...     meter.start()
        ...     used = meter.stop()
    """

    def __init__(self, kwh_before: float = 0.0) -> None:
        self.kwh_before = kwh_before
        self.source: Source = "modelled"
        self.note = "The energy meter was not started."
        self._tracker: Any = None
        self._record: Any = None

    def start(self) -> None:
        """Begin to count; takes about a second, and does nothing if already begun."""
        if self._tracker is not None:
            return
        try:
            self._tracker, self._record = _make_tracker()
            self._tracker.start()
            # codecarbon swallows its own exceptions: a first reading shows whether it works.
            self._tracker.flush()
            if self._record.total is None:
                raise RuntimeError("it gave no reading")
            self.source, self.note = _describe(self._tracker._hardware)
        except Exception as error:
            self._fail(error)

    def read(self) -> float | None:
        """Return the kWh so far, those before included, or None if they are not known."""
        if self._tracker is not None:
            try:
                self._tracker.flush()
            except Exception as error:
                self._fail(error)
        return self._kwh()

    def stop(self) -> Energy | None:
        """Stop counting for good; call it also when the run fails, so that no thread is left behind.

        Returns:
            The electricity used, or None if it is not known.
        """
        if self._tracker is not None:
            try:
                self._tracker.stop()
            except Exception as error:
                self._fail(error)
            self._tracker = None
        kwh = self._kwh()
        return None if kwh is None else Energy(kwh, self.source, self.note)

    def _kwh(self) -> float | None:
        total = getattr(self._record, "total", None)
        return None if total is None else self.kwh_before + float(total.energy_consumed)

    def _fail(self, error: Exception) -> None:
        # A sum with a hole in it would pass for the whole: better no number.
        tracker, self._tracker, self._record = self._tracker, None, None
        with suppress(Exception):  # it may have left its threads running
            tracker.stop()
        self.note = f"No energy: codecarbon failed ({type(error).__name__}: {error})."


def energy_meter(kwh_before: float = 0.0) -> EnergyMeter | None:
    """Return a meter, not started yet, or None where codecarbon is not installed.

    Args:
        kwh_before: What earlier sittings of the run used, in kWh.

    Returns:
        The meter.
    """
    return EnergyMeter(kwh_before) if find_spec("codecarbon") is not None else None


def _make_tracker() -> tuple[Any, Any]:
    """Return a tracker, not started, and the object that it hands its sums to."""
    # Imported by name and only now: an optional library, with pandas behind it.
    codecarbon = importlib.import_module("codecarbon")
    outputs = importlib.import_module("codecarbon.output_methods.base_output")
    logging.getLogger("codecarbon").setLevel(logging.CRITICAL)  # it speaks before it reads its own ``log_level``

    class Record(outputs.BaseOutput):  # type: ignore[name-defined]
        total: Any = None

        def out(self, total: Any, delta: Any) -> None:
            self.total = total

    record = Record()
    # All that could write or call home is named, for a user's own configuration of codecarbon would switch it on.
    tracker = codecarbon.OfflineEmissionsTracker(
        output_methods=[],
        output_handlers=[record],
        output_dir=tempfile.gettempdir(),
        emissions_endpoint=None,
        electricitymaps_api_token=None,
        cloud_provider=None,
        country_iso_code="FRA",  # it must have one; with the intensity below nothing is computed from it
        force_carbon_intensity_g_co2e_kwh=0.0,
        pue=1.0,
        allow_multiple_runs=True,
        api_call_interval=-1,
        log_level="critical",
    )
    return tracker, record


def _describe(hardware: list[Any]) -> tuple[Source, str]:
    """Return whether a tracker's processor and GPUs have counters, and the sentence that says so."""
    parts, measured = list[str](), list[bool]()
    for device in hardware:
        kind = type(device).__name__
        if kind == "GPU":
            parts, measured = [*parts, "GPUs by their own power counters"], [*measured, True]
        elif kind == "CPU":
            counter = _COUNTERS.get(device._mode)
            parts.append(f"processor by {counter} counters" if counter else "processor modelled from its load and TDP")
            measured.append(counter is not None)
        elif kind != "RAM":
            parts, measured = [*parts, f"{device.chip_part} by the chip's power readings"], [*measured, True]
    if not measured:
        parts.append("no processor found")
    source: Source = "measured" if measured and all(measured) else "modelled"
    return source, f"codecarbon, whole machine: {', '.join(parts)}, memory modelled from its size."
