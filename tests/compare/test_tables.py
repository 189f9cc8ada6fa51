from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from auxin.compare import Spec, gather, make_plan, make_tables, read_spec, write_tables
from auxin.compare.statistics import Summary, paired, summary
from auxin.compare.tables import Results, spread
from auxin.training import Result
from tests.compare.conftest import make_result

Write = Callable[..., Path]
# Random: mean 82, squared deviations 4 + 0 + 4, std 2. Net2Net - Random: 1, 2, 6; mean 3, std sqrt(7).
RANDOM, NET2NET = (0.80, 0.82, 0.84), (0.81, 0.84, 0.90)
# t(0.975, 2) = 4.302653; 4.302653 · sqrt(7) / sqrt(3) = 6.57241.


def results_of(spec: Spec) -> Results:
    values = dict(zip((row.label for row in spec.rows), (RANDOM, NET2NET), strict=True))
    return {
        row.label: {
            seed: make_result(row.config, test=test, seconds=1000.0 + 100 * seed)
            for seed, test in zip(spec.seeds, values[row.label], strict=True)
        }
        for row in spec.rows
    }


@pytest.fixture
def spec(write: Write) -> Spec:
    return read_spec(write(seeds=3, published={"Random": {"test": 86.49, "seconds": 3022}}, source="A & B, Table 1"))


def test_mean_std_and_n_beside_the_published_value(spec: Spec) -> None:
    table = make_tables(spec, results_of(spec))[0]
    assert table.columns == ("", "n", "test %", "published", "parameters", "MFLOPs per image", "training FLOPs",
                             "seconds", "published")  # fmt: skip
    assert table.rows == (
        ("Random", "3", "82.00 ± 2.00", "86.49", "2,000", "4.00", "-", "1,100 ± 100", "3,022"),
        ("Net2Net", "3", "85.00 ± 4.58", "-", "2,000", "4.00", "-", "1,100 ± 100", "-"),
    )
    notes = " ".join(table.notes)
    assert "Published: A & B, Table 1." in notes
    assert "All images are JPEG." in notes
    assert "Processor, threads: 1, torch 2.13.0. Commit: 012345678." in notes


def test_every_session_of_a_resumed_run_is_named(spec: Spec) -> None:
    results = results_of(spec)
    run = results["Random"][0]
    other = {"commit": "fedcba9876543210", "dirty": True, "hardware": {"gpus": ["H200"]}, "versions": run.versions}
    last = {name: getattr(run, name) for name in other}
    results["Random"][0] = replace(run, sessions=[{"from_epoch": 1, **other}, {"from_epoch": 3, **last}])
    notes = " ".join(make_tables(spec, results)[0].notes)
    assert "H200, torch 2.13.0; Processor, threads: 1, torch 2.13.0. Commit: 012345678, fedcba987 (changed)." in notes


def test_paired_differences_with_students_interval(spec: Spec) -> None:
    table = make_tables(spec, results_of(spec))[1]
    assert table.columns == ("row - baseline", "n", "test %", "seconds")
    assert table.rows == (("Net2Net - Random", "3", "+3.00 [-3.57, +9.57]", "+0 [+0, +0]"),)


def test_pairs_are_formed_by_seed() -> None:
    found = paired({0: 1.0, 1: 2.0, 3: 5.0}, {3: 4.0, 0: 3.0, 2: 9.0})
    assert found is not None
    assert (found.n, found.mean) == (2, -0.5)  # seed 0: -2, seed 3: +1; t(0.975, 1) = 12.7062, s = 2.12132
    assert found.low == pytest.approx(-0.5 - 12.7062 * 2.12132 / 2**0.5, rel=1e-5)
    assert paired({0: 1.0}, {1: 1.0}) is None
    single = paired({0: 3.0}, {0: 1.0})
    assert single is not None
    assert (single.mean, single.low, single.high) == (2.0, None, None)
    assert summary([]) is None


def test_every_size_has_its_row(spec: Spec) -> None:
    table = make_tables(spec, results_of(spec))[2]
    assert table.rows[0] == ("Random", "3", "1-1", "1,000", "2.00", "25.00 ± 0.00", "41.00 ± 1.00", "275 ± 25")
    assert table.rows[1][:3] == ("", "3", "2-2")
    assert len(table.rows) == 4


def test_what_is_missing_keeps_its_place(spec: Spec) -> None:
    results = results_of(spec)
    del results["Random"][1]
    results["Net2Net"].clear()
    main, differences, sizes = make_tables(spec, results)
    assert main.rows[0][1:3] == ("2 of 3", "82.00 ± 2.83")
    assert main.rows[1] == ("Net2Net", "0 of 3", "-", "-", "-", "-", "-", "-", "-")
    assert differences.rows == (("Net2Net - Random", "0", "-", "-"),)
    assert len(sizes.rows) == 2
    assert "No run is finished yet." in make_tables(spec, {"Random": {}, "Net2Net": {}})[0].notes


def test_cost_and_energy_show_where_a_run_has_them(spec: Spec) -> None:
    def newer(result: Result) -> Result:
        last = replace(result.phases[-1], training_flops=3_000_000_000, energy_kwh=0.0125)
        return replace(result, phases=[*result.phases[:-1], last])

    results = {label: {seed: newer(r) for seed, r in found.items()} for label, found in results_of(spec).items()}
    table = make_tables(spec, results)[0]
    assert dict(zip(table.columns, table.rows[1], strict=True))["training GFLOPs"] == "3.00"
    assert dict(zip(table.columns, table.rows[1], strict=True))["Wh"] == "12.50 ± 0.00"


def test_only_a_spread_of_zero_is_left_out_of_counts() -> None:
    assert spread(Summary(3, 1000.0, 1.0), 0, exact=True) == "1,000 ± 1"
    assert spread(Summary(3, 1000.0, 1e-9), 0, exact=True) == "1,000"  # the rounding of a mean
    assert spread(Summary(3, 1000.0, 0.0), 0) == "1,000 ± 0"


def test_both_files_are_written_from_the_kept_results(spec: Spec, tmp_path: Path) -> None:
    plan = make_plan(spec, tmp_path / "runs", tmp_path / "results")
    for run in plan:
        run.kept.parent.mkdir(parents=True, exist_ok=True)
        make_result(run.config, test=0.5).save(run.kept)
        run.folder.path.mkdir(parents=True)
        make_result(run.config, test=0.9).save(run.folder.result)
    paths = write_tables(spec, gather(plan), tmp_path / "results" / "methods")
    assert [path.name for path in paths] == ["table.md", "table.tex"]
    markdown, latex = (path.read_text() for path in paths)
    assert "| Random | 3 | 50.00 ± 0.00 | 86.49 |" in markdown
    assert r"Random & 3 & 50.00 $\pm$ 0.00 & 86.49 &" in latex
    assert r"A \& B, Table 1" in latex
    assert latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}") == 3
    assert "90.00" not in markdown
