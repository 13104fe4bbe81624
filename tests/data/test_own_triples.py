"""The domain of one's own triples: candidates, corruptions, rankings against brute force, shortcuts, controls."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch_geometric.data import Batch

from nsm.config import ConfigError
from nsm.data import ranking
from nsm.data.corruptions import KnownTriples, corrupt
from nsm.data.datamodule import Scorer
from nsm.data.own_triples import OwnTriplesDataModule, TriplesConfig
from nsm.data.scores import load_scores
from nsm.data.subgraphs import NONE
from nsm.data.triple_shortcuts import Shortcuts
from tests.triple_folders import make_folder, read, write

Make = Callable[..., OwnTriplesDataModule]
CODEX = Path(__file__).parents[3] / "shared" / "data" / "codex-s"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("triples")
    make_folder(root / "plain")
    make_folder(root / "false", false=True)
    make_folder(root / "unseen", num_entities=25, seed=1, prefix="new")
    return root


@pytest.fixture(scope="module")
def make(folders: Path) -> Make:
    def made(name: str = "plain", *, inference: bool = False, **settings: Any) -> OwnTriplesDataModule:
        settings |= {"inference_path": str(folders / "unseen")} if inference else {}
        datamodule = OwnTriplesDataModule(path=str(folders / name), cache_dir=str(folders / "data"), **settings)
        datamodule.prepare_data()
        datamodule.setup()
        return datamodule

    return made


def plausibility(batch: Batch) -> Tensor:
    """A score that ties often, and that depends on the candidate alone."""
    return ((7 * batch.subject + 3 * batch.query_type + 5 * batch.object) % 11).float()


def plausibility_of_all(num_entities: int) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The same score, of every entity as the other end of questions."""

    def score(given: Tensor, relation: Tensor, at_object: Tensor) -> Tensor:
        every, given, relation = torch.arange(num_entities), given[:, None], relation[:, None]
        tail, head = (7 * given + 3 * relation + 5 * every) % 11, (7 * every + 3 * relation + 5 * given) % 11
        return torch.where(at_object[:, None], tail, head).float()

    return score


def candidates_of(datamodule: OwnTriplesDataModule, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Triples [3, K] and labels [K] of a split."""
    dataset = getattr(datamodule, f"{name}_set")
    subject, object_ = dataset.columns["query_index"].numpy()
    return np.stack([subject, dataset.columns["query_type"].numpy(), object_]), dataset.column("y").numpy()


def test_candidates_are_the_files_triples_and_as_many_false_ones(make: Make, folders: Path) -> None:
    datamodule = make()
    for name, file in (("train", "train"), ("val", "valid"), ("test", "test")):
        triples, y = candidates_of(datamodule, name)
        size = len(read(folders / "plain" / f"{file}.txt"))
        assert (y == 1).sum() == size
        assert size * 0.95 < (y == 0).sum() <= size
        assert np.unique(triples[:, y == 1], axis=1).shape[1] == size
    datamodule.check_disjoint()
    assert datamodule.majority == pytest.approx(0.5, abs=0.03)


def test_given_false_triples_are_taken(make: Make, folders: Path) -> None:
    datamodule = make("false")
    _, y = candidates_of(datamodule, "test")
    assert (y == 0).sum() == len(read(folders / "false" / "test_negatives.txt"))
    datamodule.check_disjoint()


def test_every_run_tells_what_was_read(folders: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = make_folder(tmp_path / "odd", false=True)
    (folder / "valid_negatives.txt").unlink()
    with (folder / "test.txt").open("a") as file:
        file.write("e1\tnext\n")
    settings = {"path": str(folder), "cache_dir": str(tmp_path / "data"), "strict": False}
    for _ in range(2):  # the second time from the cache
        caplog.clear()
        with caplog.at_level("INFO", logger="nsm.data.own_triples"):
            datamodule = OwnTriplesDataModule(**settings)
            datamodule.prepare_data()
            datamodule.setup()
        told = [record.getMessage() for record in caplog.records if not record.getMessage().startswith("reading")]
        assert [said.split(":")[0] for said in told if said.startswith(("train ", "test.txt"))] == [told[0], "test.txt"]
        false = (candidates_of(datamodule, "val")[1] == 0).sum()
        size = len(read(folder / "test.txt")) - 1
        assert told[0].endswith(f" true, {false} corrupted; test {size} true, {size} given as false")
        assert sum(said.startswith("false triples are given for test and not for valid") for said in told) == 1


def test_corruptions_that_could_not_be_made_are_told(tmp_path: Path) -> None:
    write(tmp_path / "train.txt", [(s, "r", o) for s in "abcd" for o in "abcd" if s != o and s + o not in ("ab", "cd")])
    write(tmp_path / "valid.txt", [("a", "r", "b")])
    write(tmp_path / "test.txt", [("c", "r", "d")])
    content = OwnTriplesDataModule(path=str(tmp_path))._read(np.random.default_rng(0))
    assert "test 1 true, 0 corrupted" in content["summary"]
    (said,) = content["warnings"]
    assert said.startswith("corruptions that could not be made, since every end tried ")
    assert said.endswith("1 of 1 in test")


def test_no_corruption_is_known_to_be_true(make: Make) -> None:
    datamodule = make(negatives=3)
    true = {
        name: set(map(tuple, candidates_of(datamodule, name)[0][:, candidates_of(datamodule, name)[1] == 1].T.tolist()))
        for name in ("train", "val", "test")
    }
    known = {"train": true["train"], "val": true["train"] | true["val"], "test": set().union(*true.values())}
    for name, facts in known.items():
        triples, y = candidates_of(datamodule, name)
        false = set(map(tuple, triples[:, y == 0].T.tolist()))
        assert not false & facts
        assert all(s != o for s, _, o in false)


def test_training_corruptions_hide_what_they_were_made_from(make: Make) -> None:
    datamodule = make(hard_negatives=1.0)
    dataset = datamodule.train_set
    graph, columns = dataset.extractor.graph, dataset.columns
    triples, y = candidates_of(datamodule, "train")
    for i in np.flatnonzero(y == 0).tolist():
        s, r, o = triples[:, i].tolist()
        origin, donor = columns["left_out"][:, i].tolist()
        kept = [graph.subject[origin] == s, graph.object[origin] == o]
        assert sum(kept) == 1
        assert graph.relation[origin] == r
        if donor != NONE:
            assert graph.relation[donor] == r
            assert (graph.object[donor] == o) if kept[0] else (graph.subject[donor] == s)
    assert (columns["left_out"][:, y == 1] == NONE).all()


def test_corruptions_of_a_relation_that_holds_everywhere_are_given_up(make: Make) -> None:
    graph = make(hops=1).train_set.extractor.graph
    everywhere = np.array([(s, 0, o) for s in range(graph.num_entities) for o in range(graph.num_entities)]).T
    known = KnownTriples(*everywhere, graph.num_entities)
    found = corrupt(*everywhere[:, :9], graph=graph, known=known, hard=0.5, rng=np.random.default_rng(0))
    assert len(found.origin) == 0


def test_the_same_settings_give_the_same_samples_and_no_graph_is_stored(make: Make, folders: Path) -> None:
    first, again = make(), make()
    other = make(seed=1)
    for name in ("train", "val", "test"):
        mine, same = (getattr(datamodule, f"{name}_set") for datamodule in (first, again))
        assert all(torch.equal(mine.columns[key], same.columns[key]) for key in mine.columns)
        batches = [dataset.__getitems__([3, 0, 5]).to_dict() for dataset in (mine, same)]
        assert all(
            torch.equal(value, batches[1][key]) for key, value in batches[0].items() if isinstance(value, Tensor)
        )
        assert set(mine.columns) == {"query_index", "query_type", "left_out", "y", "instance"}
    assert not torch.equal(first.train_set.columns["query_index"], other.train_set.columns["query_index"])
    line = (folders / "plain" / "train.txt").read_text()
    (folders / "changed").mkdir()
    for path in (folders / "plain").iterdir():
        (folders / "changed" / path.name).write_text(path.read_text())
    assert make("changed")._description() == first._description()
    (folders / "changed" / "train.txt").write_text(line + "# a comment\n")
    assert make("changed")._description() != first._description()


def brute_force(
    datamodule: OwnTriplesDataModule, facts: set[tuple[int, int, int]], num_entities: int
) -> dict[str, float]:
    """Filtered ranks of both ends, one candidate at a time, ties by the mean over all orders."""

    def score(s: int, r: int, o: int) -> int:
        return (7 * s + 3 * r + 5 * o) % 11

    triples, y = candidates_of(datamodule, "test")
    reciprocal: dict[bool, list[float]] = {True: [], False: []}
    hits: dict[int, list[float]] = {1: [], 3: [], 10: []}
    for s, r, o in triples[:, y == 1].T.tolist():
        for at_object in (True, False):
            others = [(s, r, e) if at_object else (e, r, o) for e in range(num_entities)]
            rivals = [score(*other) for other in others if other == (s, r, o) or other not in facts]
            better, tied = (sum(f(x, score(s, r, o)) for x in rivals) for f in (int.__gt__, int.__eq__))
            ranks = np.arange(better + 1, better + tied + 1)
            reciprocal[at_object].append(float(np.mean(1 / ranks)))
            for k, found in hits.items():
                found.append(float(np.mean(ranks <= k)))
    figures = {f"hits_at_{k}": float(np.mean(found)) for k, found in hits.items()}
    figures |= {"mrr": float(np.mean(reciprocal[True] + reciprocal[False]))}
    return figures | {"mrr_tail": float(np.mean(reciprocal[True])), "mrr_head": float(np.mean(reciprocal[False]))}


def true_triples(datamodule: OwnTriplesDataModule) -> set[tuple[int, int, int]]:
    return set(map(tuple, datamodule._known.T.tolist()))


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("hops", [0, 1])
def test_full_ranking_is_what_brute_force_finds(make: Make, tmp_path: Path, inference: bool, hops: int) -> None:
    datamodule = make(inference=inference, hops=hops)
    num_entities = 25 if inference else 40
    figures = datamodule.evaluate(Scorer(plausibility), tmp_path)
    expected = brute_force(datamodule, true_triples(datamodule), num_entities)
    assert {name: figures[name] for name in expected} == pytest.approx(expected)
    assert figures["ranking_queries"] == 2 * (candidates_of(datamodule, "test")[1] == 1).sum()
    assert "mrr_error" not in figures


@pytest.mark.parametrize("inference", [False, True])
def test_all_entities_at_once_rank_as_one_by_one(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inference: bool
) -> None:
    datamodule = make(inference=inference, protocols=["full_ranking"])
    one_by_one = datamodule.evaluate(Scorer(plausibility), tmp_path)
    for step in (ranking.WHOLE_STEP, 70):
        monkeypatch.setattr(ranking, "WHOLE_STEP", step)
        scorer = Scorer(plausibility, plausibility_of_all(25 if inference else 40))
        (tmp_path / str(step)).mkdir()
        assert datamodule.evaluate(scorer, tmp_path / str(step)) == pytest.approx(one_by_one)


def test_chance_is_what_a_score_that_knows_nothing_reaches(make: Make, tmp_path: Path) -> None:
    figures = make(protocols=["full_ranking", "sampled_ranking"]).evaluate(
        Scorer(lambda batch: torch.zeros(batch.num_graphs)), tmp_path
    )
    for name in ("mrr", "hits_at_1", "hits_at_10", "sampled_mrr", "sampled_hits_at_3"):
        assert figures[name] == pytest.approx(figures[f"{name}_chance"])
    assert 1 / 40 < figures["hits_at_1_chance"] < 1 / 30  # of 40 entities, without those that are right as well
    assert figures["sampled_ranking_queries"] == figures["ranking_queries"]


def test_sampled_ranking_is_the_full_one_where_the_sample_is_everything_and_easier_where_not(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ranking.SAMPLED_NEGATIVES == 50
    datamodule = make(protocols=["full_ranking", "sampled_ranking"])
    figures = datamodule.evaluate(Scorer(plausibility), tmp_path)  # of 40 entities
    assert figures["sampled_mrr"] == pytest.approx(figures["mrr"])
    monkeypatch.setattr(ranking, "SAMPLED_NEGATIVES", 5)
    (tmp_path / "few").mkdir()
    figures = datamodule.evaluate(Scorer(plausibility), tmp_path / "few")
    assert figures["sampled_mrr"] > 1.5 * figures["mrr"]


def test_a_budget_gives_an_estimate_with_its_error(
    make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    full = make().evaluate(Scorer(plausibility), tmp_path)
    (tmp_path / "some").mkdir()
    datamodule = make(ranking_budget=40 * 30)
    some = datamodule.evaluate(Scorer(plausibility), tmp_path / "some")
    assert some["ranking_queries"] == 30
    assert some["mrr"] == pytest.approx((some["mrr_tail"] + some["mrr_head"]) / 2)  # as many of each
    assert some["mrr_error"] > 0
    assert "rests on 30 of " in caplog.text
    assert abs(some["mrr"] - full["mrr"]) < 4 * some["mrr_error"]
    assert some["sampled_mrr_error"] > 0


def test_a_full_ranking_beyond_its_budget_is_left_out(
    make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    datamodule = make(ranking_budget=1000)
    datamodule.config.ranking_budget = 79  # of 40 entities
    figures = datamodule.evaluate(Scorer(plausibility), tmp_path)
    assert "mrr" not in figures
    assert "full_ranking is left out: a query has 40 candidates; domain.ranking_budget=79" in caplog.text


def test_an_interrupted_ranking_goes_on_and_one_by_another_model_does_not(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranking, "STEP", 400)
    datamodule = make(protocols=["full_ranking"], eval_batch_size=128)
    num_graphs: list[int] = []

    def counted(batch: Batch) -> Tensor:
        num_graphs.append(batch.num_graphs)
        return plausibility(batch)

    (tmp_path / "whole").mkdir()
    whole = datamodule.evaluate(Scorer(counted), tmp_path / "whole")
    graphs_of_whole = sum(num_graphs)
    scored_first = len(datamodule.val_set) + len(datamodule.test_set)

    def interrupted(batch: Batch) -> Tensor:
        if sum(num_graphs) > (graphs_of_whole + scored_first) // 2:
            raise KeyboardInterrupt
        return counted(batch)

    num_graphs.clear()
    with pytest.raises(KeyboardInterrupt):
        datamodule.evaluate(Scorer(interrupted), tmp_path)
    num_graphs.clear()
    assert datamodule.evaluate(Scorer(counted), tmp_path) == whole
    assert scored_first < sum(num_graphs) < 0.7 * graphs_of_whole
    num_graphs.clear()
    assert datamodule.evaluate(Scorer(lambda batch: -counted(batch)), tmp_path) != whole
    assert sum(num_graphs) > 0.9 * graphs_of_whole
    written = (tmp_path / "full_ranking.npz").read_bytes()
    for broken in (b"", b"nothing", written[: len(written) // 2]):
        (tmp_path / "full_ranking.npz").write_bytes(broken)
        assert datamodule.evaluate(Scorer(counted), tmp_path) == whole


def test_protocols_are_those_asked_for(make: Make, tmp_path: Path) -> None:
    figures = make(protocols=["auc_pr"]).evaluate(Scorer(plausibility), tmp_path)
    assert figures.keys() == {"auc_pr", "auroc"}
    figures = make().evaluate(Scorer(plausibility), tmp_path)
    assert {"accuracy", "accuracy_matched", "auc_pr", "mrr", "hits_at_10", "sampled_hits_at_10"} <= figures.keys()


def test_scores_are_kept_for_averaging(make: Make, tmp_path: Path) -> None:
    datamodule = make("false")
    datamodule.evaluate(Scorer(plausibility), tmp_path)
    triples, scored = load_scores(tmp_path)
    for name in ("val", "test"):
        s, r, o = triples[name]
        assert np.array_equal(scored[name].score, (7 * s + 3 * r + 5 * o) % 11)
        expected, y = candidates_of(datamodule, name)
        assert set(map(tuple, np.vstack([triples[name], scored[name].y]).T.tolist())) == set(
            map(tuple, np.vstack([expected, y]).T.tolist())
        )


def visible(datamodule: OwnTriplesDataModule, name: str, i: int) -> list[tuple[int, int, int]]:
    """Triples of the graph that a sample may see."""
    dataset = getattr(datamodule, f"{name}_set")
    graph = dataset.extractor.graph
    out = {int(edge) for edge in dataset.columns["left_out"][:, i] if edge != NONE}
    own = tuple(candidates_of(datamodule, name)[0][:, i].tolist())
    facts = zip(graph.subject.tolist(), graph.relation.tolist(), graph.object.tolist(), strict=True)
    return [fact for edge, fact in enumerate(facts) if edge not in out and fact != own]


def test_shortcut_features_are_counts_of_what_a_sample_may_see(make: Make) -> None:
    datamodule = make(hard_negatives=1.0)
    for name in ("train", "test"):
        dataset = getattr(datamodule, f"{name}_set")
        chosen = np.arange(12)
        table = Shortcuts(dataset.extractor.graph)
        features = [getattr(table, kind)(dataset.candidates(chosen)) for kind in ("degrees", "counts")]
        for i in chosen.tolist():
            s, r, o = candidates_of(datamodule, name)[0][:, i].tolist()
            facts = visible(datamodule, name, i)
            for feature, asked in zip(features, ({*range(9)}, {r}), strict=True):
                mine = [fact for fact in facts if fact[1] in asked]
                leaving = [sum(fact[0] == end for fact in mine) for end in (s, o)]
                entering = [sum(fact[2] == end for fact in mine) for end in (s, o)]
                assert feature[i].tolist() == [r, *leaving, *entering]


def test_shortcut_paths_are_counted(make: Make) -> None:
    datamodule = make()
    dataset = datamodule.test_set
    graph = dataset.extractor.graph
    links = {
        (a, b) for s, o in zip(graph.subject.tolist(), graph.object.tolist(), strict=True) for a, b in ((s, o), (o, s))
    }
    near = {node: {b for a, b in links if a == node} for node in range(graph.num_nodes)}
    found = Shortcuts(graph).paths(dataset.candidates(np.arange(20)))
    for i in range(20):
        s, r, o = candidates_of(datamodule, "test")[0][:, i].tolist()
        facts = zip(graph.subject.tolist(), graph.relation.tolist(), graph.object.tolist(), strict=True)
        between = sum({a, b} == {s, o} for a, _, b in facts)
        two = len(near[s] & near[o])
        three = sum(c in near[b] and c != s and b != o for b in near[s] for c in near[o])
        assert found[i, :3].tolist() == [r, between, two]
        if (s, o) not in links:
            assert found[i, 3] == three


def test_shortcuts_are_told_beside_every_result(make: Make) -> None:
    shortcuts = make("false").shortcuts
    kinds = {"relation_only", "degree", "count", "path"}
    assert shortcuts.keys() == kinds | {f"{kind}_matched" for kind in kinds}
    assert shortcuts["relation_only_matched"] == 0.5
    assert make(inference=True).shortcuts.keys() >= kinds


def test_shuffled_labels(make: Make) -> None:
    real, control = make(), make(control="shuffled_labels")
    assert control.shortcuts == {}
    changed = real.train_set.column("y") != control.train_set.column("y")
    assert 0.4 < changed.float().mean() < 0.6
    assert torch.equal(real.test_set.column("y"), control.test_set.column("y"))
    with pytest.raises(ConfigError, match="shuffled_labels"):
        TriplesConfig(control="rewired_edges")


def test_the_folder_is_asked_for() -> None:
    with pytest.raises(ConfigError, match=r"^set domain\.path= to the folder with train, valid and test"):
        OwnTriplesDataModule().prepare_data()


@pytest.mark.parametrize(
    ("setting", "value", "allowed"),
    [
        ("protocols", ["mrr"], "full_ranking"),
        ("hops", -1, "ends alone"),
        ("fanout", 0, "at least 1"),
        ("max_nodes", 1, "at least 2"),
        ("negatives", 0, "at least 1"),
        ("hard_negatives", 1.5, "0 to 1"),
        ("ranking_budget", 0, "at least 1000"),
        ("audit_samples", 10, "at least 100"),
    ],
)
def test_wrong_values_are_refused(setting: str, value: Any, allowed: str) -> None:
    with pytest.raises(ConfigError, match=f"domain.{setting}") as caught:
        TriplesConfig(**{setting: value})
    assert allowed in str(caught.value)


@pytest.mark.skipif(not CODEX.is_dir(), reason="no shared data beside this checkout")
def test_codex_s(tmp_path: Path) -> None:
    datamodule = OwnTriplesDataModule(path=str(CODEX), cache_dir=str(tmp_path), audit_samples=4000)
    datamodule.prepare_data()
    datamodule.setup()
    assert (datamodule.num_entities, len(datamodule.relations)) == (2034, 43)
    assert len(datamodule.train_set) == pytest.approx(2 * 32888, abs=50)
    assert [len(datamodule.val_set), len(datamodule.test_set)] == [2 * 1827, 2 * 1828]
    # What one who knows the relation alone reaches: negatives were given, and not of each relation as many.
    assert datamodule.shortcuts["relation_only"] == pytest.approx(0.780, abs=0.001)
    assert datamodule.shortcuts["relation_only_matched"] == 0.5
