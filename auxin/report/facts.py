"""The numbers of a run that stand in words and tables: its headline, and how it was made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from auxin.analysis.curves import RunRecord
from auxin.analysis.plots import short


def duration(seconds: float) -> str:
    """Return a time as people say it.

    Args:
        seconds: Not negative.

    Returns:
        Such as "0.42 s", "38 s", "16 min 43 s" or "2 h 5 min".

    Example:
        >>> duration(0.42), duration(1003), duration(7500)
        ('0.42 s', '16 min 43 s', '2 h 5 min')
    """
    if seconds < 10:
        return f"{seconds:.2f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def headline(record: RunRecord) -> list[tuple[str, str, str]]:
    """Return the headline numbers.

    Args:
        record: The run.

    Returns:
        (what, number, remark) of each.
    """
    first, last = record.phases[0], record.phases[-1]
    tested = last.get("test_accuracy") is not None
    found = [
        ("test accuracy", f"{last['test_accuracy']:.2%}", f"validation {last['val_accuracy']:.2%}")
        if tested
        else ("validation accuracy", f"{last['val_accuracy']:.2%}", "" if record.finished else "so far"),
        _growth("parameters", first["parameters"], last["parameters"]),
        _growth("FLOPs", first["flops"], last["flops"]),
    ]
    if record.layers:
        index = len(record.phases) - 1
        before, now = (sum(1 for layer in record.layers if layer.widths[i] > 0) for i in (0, index))
        found.append(("layers", f"{before} → {now}" if now != before else str(now), "with weights"))
    num_events, trained = len(record.events), sum(row["epoch_seconds"] for row in record.rows)
    share = max(0.0, 1 - trained / max(last_seconds(record), 1e-9))
    words = f"{share:.1%} of the time" if share >= 0.001 else "under 0.1% of the time"
    found.append(("growth events", str(num_events), words if num_events else "the net stayed as it was"))
    found.append(("time", duration(last_seconds(record)), f"{len(record.rows)} of {record.epochs} epochs"))
    energy = energy_kwh(record)
    if energy is not None:
        found.append(("energy", f"{short_energy(energy)}", energy_source(record)))
    return found


def last_seconds(record: RunRecord) -> float:
    """Return the time the run has taken so far, in seconds."""
    return float(record.result["seconds"] if record.result else record.rows[-1]["seconds"])


def energy_kwh(record: RunRecord) -> float | None:
    """Return the electricity of a run in kWh, or None where it was not measured."""
    energy = (record.result or {}).get("energy")
    return float(energy["kwh"]) if energy else None


def energy_source(record: RunRecord) -> str:
    """Return how the electricity is known, such as "modelled"."""
    energy = (record.result or {}).get("energy")
    return str(energy["source"]) if energy else ""


def short_energy(kwh: float) -> str:
    """Return electricity in Wh or kWh.

    Example:
        >>> short_energy(0.0021), short_energy(3.2)
        ('2.10 Wh', '3.20 kWh')
    """
    return f"{kwh:.2f} kWh" if kwh >= 1 else f"{kwh * 1000:.2f} Wh"


def facts(record: RunRecord) -> list[tuple[str, str]]:
    """Return how the run was made, as names and values.

    Args:
        record: The run.

    Returns:
        Rows of a table; what only a finished run knows says so.
    """
    result = record.result
    config = record.config
    found = [("model", _call(config["model"])), ("seed", str(config["train"]["seed"]))]
    energy = energy_kwh(record)
    if result is None:
        found.append(("commit, hardware, versions, energy", "written when the run has reached its last epoch"))
        found.append(("data", str(config["data"]["source"])))
        return found
    sessions = result.get("sessions") or [result]
    if len(sessions) > 1:
        found.append(("trained in", f"{len(sessions)} sessions, from epochs {', '.join(map(_began, sessions))}"))
    found.append(("commit", _distinct(map(_commit, sessions))))
    found.append(("hardware", _distinct(_hardware(one["hardware"]) for one in sessions)))
    found.append(("versions", _distinct(_versions(one["versions"]) for one in sessions)))
    found.append(("data", _data(result["data"])))
    source = f" ({energy_source(record)})" if energy_source(record) else ""
    how = "there was no meter" if config["train"].get("energy") else "--train.energy true counts it"
    known = f"not counted: {how}" if energy is None else short_energy(energy)
    found.append(("energy", known + source))
    cost = result.get("cost") or {}
    if any(cost.values()):
        found.append(("FLOPs spent", ", ".join(f"{name} {short(value)}" for name, value in cost.items() if value)))
    return found


def _growth(name: str, first: float, last: float) -> tuple[str, str, str]:
    if first == last:
        return name, short(last), "from first to last epoch"
    return name, short(last), f"from {short(first)}, ×{last / first:.1f}"


def _call(model: dict[str, Any]) -> str:
    return f"{model['name']}({', '.join(f'{key}={value}' for key, value in model['kwargs'].items())})"


def _distinct(words: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(words))


def _began(session: Mapping[str, Any]) -> str:
    changed = ", ".join(f"{name} {now}" for name, (_, now) in session.get("changed", {}).items())
    return f"{session['from_epoch']} ({changed})" if changed else str(session["from_epoch"])


def _commit(session: Mapping[str, Any]) -> str:
    return f"{session['commit']}, with changes that are not committed" if session.get("dirty") else session["commit"]


def _versions(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _hardware(hardware: dict[str, Any]) -> str:
    words = [f"{hardware['processor']}, {hardware['cores']} cores, {hardware['threads']} torch threads"]
    return ", ".join([*words, *hardware.get("gpus", [])])


def _data(data: dict[str, Any]) -> str:
    sizes = data.get("sizes") or {}
    split = " + ".join(f"{size:,} {name}" for name, size in sizes.items())
    return ": ".join(part for part in (str(data.get("origin", data.get("source", "given in Python"))), split) if part)
