import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from auxin.analysis import plots
from auxin.analysis.curves import LayerWidths, RunRecord, read_run
from auxin.analysis.pictures import TILE, tile
from auxin.analysis.plots import _apart
from auxin.analysis.style import COLOURS, NUM_RINGS, Plot, house_style, new_figure, ring, save
from auxin.training import RunFolder


def deeper_record() -> RunRecord:
    widths = {"first": (4, 6, 9), "first.grown.0": (0, 6, 9), "last": (2, 2, 2)}
    phases = [
        {
            "first_epoch": 2 * i + 1,
            "last_epoch": 2 * i + 2,
            "parameters": 10**i,
            "flops": 10**i,
            "val_accuracy": 0.5 + i,
        }
        for i in range(3)
    ]
    layers = [LayerWidths(name, sizes) for name, sizes in widths.items()]
    return RunRecord(RunFolder(Path("run")), {"train": {"epochs": 6}}, [{"epoch": 5}], [{}, {}], phases, layers, None)


def test_the_timeline_has_a_ring_per_growth_and_begins_a_layer_where_it_was_inserted() -> None:
    plot = plots.timeline(deeper_record())
    ribbons = plot.figure.axes[0].patches
    assert len(ribbons) == 3 + 2 + 1
    starts = sorted(patch.get_xy()[:, 0].min() for patch in ribbons)
    assert starts == [0, 0, 2, 2, 4, 4]
    assert "1 of the 3 layers were inserted" in plot.caption
    thickest = max(patch.get_xy()[:, 1].max() - patch.get_xy()[:, 1].min() for patch in ribbons)
    assert thickest == pytest.approx(0.88)


def test_silhouettes_show_as_many_bars_as_layers() -> None:
    figure = plots.silhouettes(deeper_record()).figure
    (axes,) = figure.axes
    assert len({round(bar.get_x(), 3) for bar in axes.patches}) == 2 + 3 + 3
    words = [text.get_text() for text in axes.texts]
    assert [word for word in words if "layers" in word] == [
        "epochs 1–2, 2 layers", "epochs 3–4, 3 layers", "epochs 5–6, 3 layers",
    ]  # fmt: skip


def test_every_figure_of_a_run_has_a_caption(grown_run: Path) -> None:
    record = read_run(grown_run)
    drawn = [
        plots.timeline(record), plots.silhouettes(record, 400), plots.loss(record), plots.accuracy(record),
        plots.tradeoff(record, "parameters"), plots.tradeoff(record, "flops"),
        plots.similarity_by_layer(record.similarity[-1]),
    ]  # fmt: skip
    assert all(len(plot.caption) > 40 and plot.caption.endswith(".") for plot in drawn)


def test_colours_are_one_per_role_and_rings_never_run_out() -> None:
    assert len(set(COLOURS.values())) == len(COLOURS)
    assert [ring(i, 3) for i in range(3)] == [COLOURS[f"ring{i}"] for i in range(3)]
    many = [ring(i, 40) for i in range(40)]
    assert many[0] == COLOURS["ring0"] and many[-1] == COLOURS[f"ring{NUM_RINGS - 1}"]


def test_a_saved_picture_carries_its_caption_and_is_the_same_every_time(tmp_path: Path) -> None:
    texts = []
    for name in ("a.svg", "b.svg"):
        with house_style():
            figure = new_figure(300, 200)
            figure.add_subplot().plot([0, 1], [0, 1])
        texts.append(save(Plot(figure, "What it shows."), tmp_path / name).read_text())
    assert "What it shows." in texts[0]
    assert texts[0] == texts[1]


def test_a_tile_is_sharp_and_a_map_brightens_it_where_the_evidence_is() -> None:
    image = torch.zeros(1, 8, 8, dtype=torch.uint8)
    image[0, 0, 0] = 255
    plain = tile(image)
    assert plain.shape == (TILE, TILE, 3)
    assert (plain[:12, :12] == 255).all() and (plain[12:, 12:] == 0).all()
    cam = torch.zeros(8, 8)
    cam[6, 6] = 1
    heat = tile(torch.zeros(3, 8, 8, dtype=torch.uint8), cam).sum(2)
    assert heat[78, 78] > 200 > heat[20, 20]


def test_labels_of_sizes_close_together_do_not_touch() -> None:
    sizes = np.array([9_024, 13_293, 20_746, 31_072, 48_238, 58_992, 62_633.0])
    ticks = _apart(sizes, log=True)
    assert ticks[-1] == 62_633 and 58_992 not in ticks and 9_024 in ticks
    assert all(np.log(b / a) >= 0.14 * np.log(62_633 / 9_024) for a, b in itertools.pairwise(ticks))
    assert _apart(np.array([5.0]), log=False) == [5.0]
