import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from auxin.analysis.curves import read_run
from auxin.analysis.style import COLOURS
from auxin.errors import ConfigError
from auxin.report import LivePage, write_report
from auxin.report.facts import facts
from auxin.training import RunFolder, Trainer, load_config

SECTIONS = ("headline", "growth", "learning", "ladder", "similarity", "events", "gradcam", "setup")


def copy(run: Path, place: Path, *without: str) -> Path:
    return Path(shutil.copytree(run, place / run.name, ignore=shutil.ignore_patterns(*without)))


def section(text: str, name: str) -> str:
    return re.split(r"</section>", text.split(f'<section id="{name}"')[1])[0]


@pytest.fixture(scope="module")
def page(grown_run: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    run = copy(grown_run, tmp_path_factory.mktemp("page"))
    path = write_report(run)
    assert path == run / "report.html"
    assert not list(run.glob("*.part"))
    return path.read_text()


def test_the_page_has_every_section_filled(page: str) -> None:
    for name in SECTIONS:
        assert 'class="missing"' not in section(page, name), name
    assert [section(page, name).count("<svg") for name in ("growth", "learning", "ladder", "similarity")] == [
        4,
        2,
        2,
        2,
    ]
    assert section(page, "gradcam").count("<article>") == 10
    assert section(page, "events").count('data-label="Function change"') == 2
    assert page.count("<figcaption>") >= 7


def test_the_page_says_what_the_result_says(page: str, grown_run: Path) -> None:
    result = json.loads((grown_run / "result.json").read_text())
    last = result["phases"][-1]
    assert f"{last['test_accuracy']:.2%}" in section(page, "headline")
    for phase in result["phases"]:
        assert f"{phase['parameters']:,}" in section(page, "ladder")
        assert f"{phase['val_accuracy']:.2%}" in section(page, "ladder")
    for text in (result["commit"], result["hardware"]["processor"], result["versions"]["torch"], "similarity:"):
        assert text in page
    rows = [json.loads(line) for line in (grown_run / "metrics.jsonl").read_text().splitlines()]
    share = 1 - sum(row["epoch_seconds"] for row in rows) / result["seconds"]
    assert f"{share:.1%} of the time" in section(page, "headline")
    for event in result["events"]:
        assert event["reason"] in section(page, "events")
        assert f"{event['max_change']:.1e}" in section(page, "events")


def test_the_page_is_small_and_needs_nothing_else(page: str) -> None:
    assert len(page.encode()) < 3e6
    assert "<script" not in page and "http-equiv" not in page
    links = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert all(link.startswith(("data:", "#")) for link in links)
    assert not re.search(r"url\((?!#)|@import", page)


def test_figures_take_their_colours_from_the_page_and_share_no_id(page: str) -> None:
    figures = "".join(re.findall(r"<svg class=\"plot.*?</svg>", page, re.DOTALL))
    assert not [colour for colour in COLOURS.values() if colour in figures]
    used = set(re.findall(r"var\(--(\w+)\)", page))
    light, dark = (set(re.findall(r"--(\w+):", block)) for block in re.findall(r":root \{(.*?)\}", page, re.DOTALL))
    assert used <= light and used <= dark
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    assert {name for name in re.findall(r"url\(#([^)]*)\)", page)} <= set(ids)
    assert "<text" in figures


def test_a_net_that_never_grew_has_a_page_that_says_so(fixed_run: Path, tmp_path: Path) -> None:
    text = write_report(copy(fixed_run, tmp_path)).read_text()
    assert "has not grown" in section(text, "similarity")
    assert "did not grow" in section(text, "events")
    assert section(text, "growth").count("<svg") == 4
    assert section(text, "gradcam").count("<article>") == 10


def test_missing_files_become_sentences(grown_run: Path, tmp_path: Path) -> None:
    run = copy(grown_run, tmp_path, "ladder", "checkpoints", "similarity.json")
    text = write_report(run).read_text()
    assert "has no checkpoints: copy its ladder" in section(text, "gradcam")
    assert "did not keep similarities" in section(text, "similarity")
    assert section(text, "growth").count("<svg") == 4
    (run / "config.yaml").write_text((run / "config.yaml").read_text().replace("source: digits", "source: /no/where"))
    run2 = copy(grown_run, tmp_path / "2")
    (run2 / "config.yaml").write_text((run / "config.yaml").read_text())
    assert "say with --data where they are" in section(write_report(run2).read_text(), "gradcam")
    with pytest.raises(ConfigError):
        write_report(tmp_path)


def test_names_from_outside_cannot_break_the_page(fixed_run: Path, tmp_path: Path) -> None:
    run = copy(fixed_run, tmp_path)
    config = (run / "config.yaml").read_text().replace("name: small_cnn", 'name: "<b>small</b>&cnn"')
    (run / "config.yaml").write_text(config)
    text = write_report(run, gallery=False).read_text()
    assert "<b>" not in text and "&lt;b&gt;small" in text


def test_the_page_is_there_after_the_first_epoch_and_asks_for_itself_again(grown_run: Path, tmp_path: Path) -> None:
    config = load_config(["--config", str(grown_run / "config.yaml"), "--train.epochs", "2"])
    folder = RunFolder(tmp_path / "run")
    lines: list[str] = []
    pages: list[str] = []
    live = LivePage(lines.append)

    def on_epoch(at: RunFolder) -> None:
        live._next = 0.0  # these epochs are far shorter than it takes to draw
        live(at)
        pages.append(at.report.read_text())

    trainer = Trainer(config, folder, console=Console(quiet=True), on_epoch=on_epoch)
    trainer.fit()
    live.finish(folder, trainer.data)
    assert len(pages) == 2 and not lines
    assert all('http-equiv="refresh"' in text for text in pages)
    assert "epoch 1 of 2" in pages[0] and "Drawn when the run has reached" in section(pages[0], "gradcam")
    assert section(pages[0], "events").count('data-label="Function change"') == 1
    assert section(pages[0], "similarity").count("<svg") == 2
    final = folder.report.read_text()
    assert "http-equiv" not in final and section(final, "gradcam").count("<article>") == 10


def test_short_epochs_do_not_wait_for_the_page(
    fixed_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(copy(fixed_run, tmp_path))
    drawn: list[object] = []
    monkeypatch.setattr("auxin.report.live.write_report", lambda *_, **__: drawn.append(0))
    clock = iter([100.0, 101.0, 105.0, 119.9, 120.1, 121.0])  # drawn from 100 to 101, so not before 120
    monkeypatch.setattr("auxin.report.live.time.perf_counter", lambda: next(clock))
    live = LivePage(print)
    for _ in range(4):
        live(folder)
    assert len(drawn) == 2


def test_a_page_that_cannot_be_drawn_does_not_stop_the_training(tmp_path: Path) -> None:
    lines: list[str] = []
    live = LivePage(lines.append)
    for _ in range(3):
        live(RunFolder(tmp_path))
    assert len(lines) == 1 and "no config.yaml" in lines[0]
    live.finish(RunFolder(tmp_path))
    assert len(lines) == 2


def test_the_page_is_drawn_after_every_epoch_of_a_net_that_gets_layers(tmp_path: Path) -> None:
    config = load_config(["--model.name", "small_cnn", "--train.epochs", "3", "--train.precision", "32-true"])
    config.growth.method, config.growth.trigger = "random", "natural"
    config.growth.natural.tau, config.growth.natural.widen, config.growth.natural.samples = 1.0, 0, 20
    pages: list[str] = []

    def draw(folder: RunFolder) -> None:
        pages.append(write_report(folder.path, gallery=False).read_text())

    result = Trainer(config, tmp_path / "run", console=Console(quiet=True), on_epoch=draw).fit()
    assert len(result.events) == 2 and len(pages) >= 3
    assert "grown" in section(pages[-1], "growth")


def test_the_facts_name_every_session_of_a_resumed_run(grown_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(grown_run, tmp_path / "run")
    result = json.loads((run / "result.json").read_text())
    last = {name: result[name] for name in ("commit", "dirty", "hardware", "versions")}
    first = {**last, "commit": "b" * 40, "dirty": True, "hardware": {**last["hardware"], "processor": "Another"}}
    sessions = [{"from_epoch": 1, **first}, {"from_epoch": 3, **last, "changed": {"optimizer.lr": [0.05, 0.02]}}]
    (run / "result.json").write_text(json.dumps({**result, "sessions": sessions}))
    shown = dict(facts(read_run(run)))
    assert shown["trained in"] == "2 sessions, from epochs 1, 3 (optimizer.lr 0.02)"
    assert shown["commit"].startswith(f"{'b' * 40}, with changes that are not committed; {last['commit']}")
    assert shown["hardware"].startswith("Another, ") and last["hardware"]["processor"] in shown["hardware"]
    assert shown["versions"].count("torch ") == 1
    assert "trained in" not in dict(facts(read_run(grown_run)))


@pytest.mark.parametrize(
    "wanted, words", [(True, "not counted: there was no meter"), (False, "not counted: --train.energy true counts it")]
)
def test_energy_that_was_not_counted_says_why(grown_run: Path, wanted: bool, words: str) -> None:
    record = read_run(grown_run)
    assert record.result is not None
    config = {**record.config, "train": {**record.config["train"], "energy": wanted}}
    phases = [{**phase, "energy_kwh": None} for phase in record.result["phases"]]
    shown = facts(replace(record, config=config, result={**record.result, "phases": phases, "energy": None}))
    assert dict(shown)["energy"] == words
