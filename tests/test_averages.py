"""Averaged scores in the report: chosen on validation, seed by seed, and never in the way."""

from pathlib import Path

import pytest

from nsm import ensemble
from nsm.reporting import page, text
from nsm.reporting.configuration import Configuration
from nsm.reporting.records import find_runs
from nsm.reporting.summary import Summary, summarise
from tests.test_report import add_run
from tests.triple_folders import make_scores

NOISE = {"complex": 0.6, "rotate": 0.7, "transe": 1.4}


def add_scored_run(root: Path, model: str, noise: float, *, seed: int, test_noise: float | None = None) -> Path:
    """A completed run whose results say what its scores say."""
    folder = root / f"{model}_{seed}"
    folder.mkdir(parents=True)
    make_scores(folder, noise, seed=10 * sum(map(ord, model)) + seed, test_noise=test_noise)
    found = ensemble.figures(ensemble.average([folder]))
    return add_run(
        folder,
        model=model,
        levels=None,
        seed=seed,
        test=found,
        domain="triples",
        ceiling=None,
        shortcuts={"count": 0.7},
    )


def averaged(summary: Summary) -> dict[str, Configuration]:
    return {configuration.name: configuration for configuration in summary.configurations if configuration.members}


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for model, noise in NOISE.items():
        for seed in (0, 1):
            add_scored_run(tmp_path, model, noise, seed=seed)
    return tmp_path


def test_the_two_best_models_and_all_are_averaged_seed_by_seed(runs: Path) -> None:
    add_scored_run(runs, "complex", 0.6, seed=2)
    found = averaged(summarise(find_runs([runs])))
    assert found.keys() == {"complex + rotate", "all 3 averaged"}
    for name, models in (("complex + rotate", ["complex", "rotate"]), ("all 3 averaged", list(NOISE))):
        assert found[name].seeds == [0, 1]
        for run in found[name].runs:
            expected = ensemble.figures(ensemble.average([runs / f"{model}_{run.seed}" for model in models]))
            assert run.figures("test") == pytest.approx(expected)
            assert run.figure("parameters") == 1234 * len(models)
            assert (run.figure("majority"), run.best_shortcut) == (0.6, ("count", 0.7))
        assert found[name].verdict[1].startswith("beats all shortcuts in 2 of 2 (+.")


def test_the_test_set_chooses_nothing(runs: Path) -> None:
    for seed in (0, 1):
        add_scored_run(runs, "lucky", 1.0, seed=seed, test_noise=0.01)
    summary = summarise(find_runs([runs]))
    assert next(each.name for each in summary.configurations if not each.members) == "lucky"
    assert averaged(summary).keys() == {"complex + rotate", "all 4 averaged"}


def test_what_cannot_be_averaged_is_left_out(runs: Path) -> None:
    (runs / "complex_0" / "scores.npz").unlink()
    (runs / "complex_1" / "scores.npz").write_bytes(b"PK\x03\x04 cut")
    make_scores(runs / "transe_1", 1.0, seed=5, size=200)
    found = averaged(summarise(find_runs([runs])))
    assert {name: configuration.seeds for name, configuration in found.items()} == {"rotate + transe": [0]}
    with pytest.raises(SystemExit, match=r"complex_1.scores\.npz is damaged .*resume=never"):
        ensemble.main([str(runs / "complex_1")])


def test_averages_stand_in_every_form_and_are_no_runs(runs: Path) -> None:
    summary = summarise(find_runs([runs]))
    score = text.plus_minus(averaged(summary)["complex + rotate"].score)
    printed = text.table(summary)
    assert f"complex + rotate  0,1    {score}" in printed
    assert "scores averaged of complex and rotate" in printed
    assert "6 runs: 6 completed" in printed
    marked = text.markdown(summary, ["accuracy"])
    assert f"| complex + rotate | 0, 1 | {score} | 2,468 | 20 |" in marked
    assert "Collapsed runs: 0 of 6" in marked
    assert len(text.as_csv(summary).splitlines()) == 7
    html = page.render(summary, folders=[runs])
    assert "scores averaged of complex and rotate" in html
    legend = html[html.index('<ul class="legend">') :]
    assert "complex + rotate" not in legend[: legend.index("</ul>")]
