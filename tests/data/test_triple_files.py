"""Reading triples: every format that is promised, and everything that a file can have wrong."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from nsm.config import ConfigError
from nsm.data.triple_files import Triples, Vocabulary, find_file, read_triples, read_types
from nsm.data.triple_folder import CLASS, UNTYPED, TripleFolder, read_folder
from nsm.data.triple_lines import LONGEST_LINE, Problems
from tests.triple_folders import make_folder, read, write

PLAIN = "a\tlikes\tb\nb\tknows\tä\n"


def read_text(path: Path, content: str | bytes, *, strict: bool = True) -> tuple[Triples, Vocabulary, Problems]:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    vocabulary, problems = Vocabulary(), Problems(strict)
    return read_triples(path, vocabulary, problems), vocabulary, problems


def names(triples: Triples, vocabulary: Vocabulary) -> list[tuple[str, str, str]]:
    entities, relations = list(vocabulary.entities), list(vocabulary.relations)
    return [(entities[s], relations[r], entities[o]) for s, r, o in zip(*triples.spo, strict=True)]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.txt", PLAIN),
        ("x.tsv", PLAIN.rstrip("\n")),
        ("x.txt", PLAIN.replace("\n", "\r\n")),
        ("x.txt", "\ufeff" + PLAIN),
        ("x.txt", "# a comment\n\n" + PLAIN + "\n# another\n"),
        ("x.txt", "head\trelation\ttail\n" + PLAIN),
        ("x.tsv", "# by hand\nObject\tSubject\tPredicate\nb\ta\tlikes\nä\tb\tknows\n"),
        ("x.txt", " a \tlikes\tb\nb\tknows\tä \n"),
        ("x.csv", "subject,predicate,object\na,likes,b\nb,knows,ä\n"),
        ("x.csv", '\ufeffrelation,head,tail,note\r\nlikes,a,b,"x, y"\r\nknows,"b",ä,\r\n'),
        ("x.txt.gz", gzip.compress(PLAIN.encode(), mtime=0)),
        ("x.csv.gz", gzip.compress("h,r,t\na,likes,b\nb,knows,ä\n".encode(), mtime=0)),
    ],
)
def test_the_same_triples_in_every_format(tmp_path: Path, name: str, content: str | bytes) -> None:
    triples, vocabulary, _ = read_text(tmp_path / name, content)
    assert names(triples, vocabulary) == [("a", "likes", "b"), ("b", "knows", "ä")]
    assert triples.confidence.tolist() == [1.0, 1.0]
    assert triples.level.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.txt", "a\tr\tb\nb\tr\tc\t0.25\nc\tr\ta\t0.5\t3\n"),
        ("x.csv", "level,subject,predicate,object,confidence\n1,a,r,b,1\n1,b,r,c,0.25\n3,c,r,a,.5\n"),
        ("x.csv", "level,subject,predicate,object,confidence\n,a,r,b,\n,b,r,c,0.25\n3,c,r,a,.5\n"),
        ("x.txt", "s\tp\to\tconfidence\tlevel\na\tr\tb\t \t\nb\tr\tc\t0.25\t\nc\tr\ta\t.5\t3\n"),
        ("x.txt", "a\tr\tb\t\nb\tr\tc\t0.25\t\nc\tr\ta\t0.5\t3\n"),
    ],
)
def test_confidence_and_level(tmp_path: Path, name: str, content: str) -> None:
    triples, _, _ = read_text(tmp_path / name, content)
    assert triples.confidence.tolist() == [1.0, 0.25, 0.5]
    assert triples.level.tolist() == [1, 1, 3]


BAD_LINES = {
    "two columns": ("a\tlikes\n", "2 columns instead of 3 to 5", "wrong number of columns"),
    "spaces": ("a likes b\n", "put tabs where the spaces are", "wrong number of columns"),
    "six columns": ("a\tr\tb\t1\t1\t1\n", "6 columns", "wrong number of columns"),
    "no object": ("a\tlikes\t\n", "the object is empty", "empty field"),
    "blank subject": ("  \tlikes\tb\n", "the subject is empty", "empty field"),
    "confidence in words": ("a\tlikes\tb\thigh\n", "confidence 'high'", "bad confidence"),
    "confidence above 1": ("a\tlikes\tb\t1.5\n", "from 0 to 1", "bad confidence"),
    "confidence that is none": ("a\tlikes\tb\tnan\n", "confidence 'nan'", "bad confidence"),
    "level 0": ("a\tlikes\tb\t1\t0\n", "a whole number from 1", "bad level"),
    "level 1.5": ("a\tlikes\tb\t1\t1.5\n", "level '1.5'", "bad level"),
    "again": ("x\tlikes\ty\n", "the triple of line 1 again", "duplicate"),
    "Latin-1": (b"caf\xe9\tlikes\tb\n", "byte 4 of the line (0xe9) is not UTF-8", "not UTF-8"),
    "a long line": (b"a\tlikes\t" + b"b" * (LONGEST_LINE + 7) + b"\n", "longer than", "line too long"),
}


@pytest.mark.parametrize("case", BAD_LINES)
def test_bad_lines_are_refused_with_their_number_or_dropped_and_counted(tmp_path: Path, case: str) -> None:
    bad, message, kind = BAD_LINES[case]
    raw = bad.encode() if isinstance(bad, str) else bad
    content = b"x\tlikes\ty\n" + raw + b"y\tlikes\tx\n"
    path = tmp_path / "train.txt"
    with pytest.raises(ConfigError) as caught:
        read_text(path, content)
    assert f"{path}, line 2: " in str(caught.value)
    assert message in str(caught.value)
    assert "domain.strict=false" in str(caught.value)
    triples, vocabulary, problems = read_text(path, content, strict=False)
    assert names(triples, vocabulary) == [("x", "likes", "y"), ("y", "likes", "x")]
    assert triples.line.tolist() == [1, 3]
    assert problems.dropped == {path: {kind: 1}}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("x\ty\n" + PLAIN, "line 1: 2 columns instead of 3 to 5; the columns are "),
        (PLAIN + "x\ty\n" * 2, "separated by tabs; and 1 more line like it (domain.strict=false"),
        (PLAIN * 9 + "x\ty\nx\t\ty\n" * 7, "; and 6 more lines like it; and 23 with other faults (domain.strict=false"),
    ],
)
def test_the_first_fault_says_how_many_others_there_are(tmp_path: Path, content: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_text(tmp_path / "train.txt", content)
    assert said in str(caught.value)
    assert ("more line" in str(caught.value)) == ("more line" in said)


def test_the_first_fault_comes_before_what_ends_the_reading_unless_it_is_dropped(tmp_path: Path) -> None:
    content = "s,p,o\na,r,b\na,r\nb,r,a\n" + 'a,"r,b\n'
    with pytest.raises(ConfigError, match=r"line 3: 2 columns where the header has 3"):
        read_text(tmp_path / "x.csv", content)
    with pytest.raises(ConfigError, match=r"line 5: not CSV"):
        read_text(tmp_path / "x.csv", content, strict=False)


@pytest.mark.parametrize("strict", [True, False])
def test_dropping_more_than_half_of_a_file_is_no_remedy(tmp_path: Path, strict: bool) -> None:
    with pytest.raises(ConfigError) as caught:
        read_text(tmp_path / "x.txt", PLAIN.replace("\t", " ") * 150, strict=strict)
    said = "put tabs where the spaces are; and 299 more lines like it (300 of its 300 lines cannot be used"
    assert said in str(caught.value)
    assert "strict=false" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"line 3: .*\(3 of its 5 lines cannot be used"):
        read_text(tmp_path / "x.txt", PLAIN + "a\t\tb\n" * 3, strict=strict)


def test_half_a_file_and_any_number_of_repetitions_may_be_dropped(tmp_path: Path) -> None:
    for content in (PLAIN + "a\t\tb\n" * 2, PLAIN * 5):
        triples, _, problems = read_text(tmp_path / "x.txt", content, strict=False)
        assert len(triples) == 2
        assert problems.dropped[tmp_path / "x.txt"].total() == content.count("\n") - 2


def test_what_is_dropped_is_told_by_file_and_loudly_above_5_percent(tmp_path: Path) -> None:
    good = "".join(f"a\tr\tb{i}\n" for i in range(95))
    _, _, problems = read_text(tmp_path / "x.txt", good + "a\t\tb\n" * 5, strict=False)
    few = "x.txt: domain.strict=false dropped 5 of its 100 lines: 5 empty field (the first in line 96: "
    assert problems.warnings == [few + "the predicate is empty)"]
    _, _, problems = read_text(tmp_path / "x.txt", good + "a\tr\n" * 5 + good[:7], strict=False)
    assert "5 wrong number of columns (the first in line 96: " in problems.warnings[0]
    assert "1 duplicate (line 101: the triple of line 1 again)" in problems.warnings[0]
    assert "LOST" not in problems.warnings[0]  # a repetition loses nothing
    _, _, problems = read_text(tmp_path / "x.txt", good + "a\tr\n" * 6, strict=False)
    assert "6 % OF THE FILE IS LOST" in problems.warnings[0]
    assert "most likely a name holds the separator" in problems.warnings[0]
    with pytest.raises(ConfigError, match=r"domain\.strict=false would drop 6 of its 101 lines; most likely a name"):
        read_text(tmp_path / "x.txt", good + "a\tr\n" * 6)


def test_a_line_of_100_mb_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "train.txt.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(b"a\tr\tb\n")
        for _ in range(100):
            file.write(b"x" * 2**20)
        file.write(b"\nb\tr\ta\n")
    problems = Problems(strict=False)
    assert read_triples(path, Vocabulary(), problems).line.tolist() == [1, 3]
    assert problems.dropped == {path: {"line too long": 1}}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.txt", "", "holds no triple"),
        ("x.txt", "# only this\n", "holds no triple"),
        ("x.txt", "a\tr\tb\n".encode("utf-16"), "is UTF-16"),
        ("x.csv", "a,likes,b\n", "line 1: a .csv begins with the names of its columns"),
        ("x.txt", b"\xfe\xff" + "a\tr\tb\n".encode("utf-16-be"), "is UTF-16"),
        ("x.csv", "s;p;o\na;likes;b\n", "line 1: the columns of a .csv stand between commas, not semicolons"),
        ("x.csv", "s\tp\to\na\tlikes\tb\n", "line 1: the columns of a .csv stand between commas, not tabs"),
        ("x.txt", "a,likes,b\n", "line 1: 1 column instead of 3 to 5; put tabs where the commas are"),
        ("x.csv", "s,p,o\na,likes,b,c\n", "line 2: 4 columns where the header has 3"),
        ("x.csv", 's,p,o\na,"likes,b\n', "not CSV"),
        ("x.txt.gz", b"a\tr\tb\n", "not a whole gzip file"),
        ("x.txt.gz", gzip.compress(PLAIN.encode() * 999, mtime=0)[:-30], "not a whole gzip file"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_text(tmp_path / name, content)
    assert str(tmp_path / name) in str(caught.value)
    assert message in str(caught.value)
    assert "strict=false" not in str(caught.value)


def test_types_in_both_formats(tmp_path: Path) -> None:
    expected = {"a": ["person", "singer"], "b": ["city"]}
    (tmp_path / "entity2types.tsv").write_text("a\tperson\na\tsinger\r\nb\tcity\n")
    assert read_types(tmp_path) == expected
    (tmp_path / "entity2types.json").write_text('{"a": ["person", "singer"], "b": "city"}')
    assert read_types(tmp_path) == expected
    for content, message in (('{"a": [1]}', "'a' has"), ("[]", "an object"), ('{\n"a": [}', "line 2: not JSON")):
        (tmp_path / "entity2types.json").write_text(content)
        with pytest.raises(ConfigError, match=r"entity2types\.json") as caught:
            read_types(tmp_path)
        assert message in str(caught.value)
    (tmp_path / "entity2types.json").unlink()
    (tmp_path / "entity2types.tsv").write_bytes(b"a\tperson\n" + b"\xe9\tcity\n" * 2)
    with pytest.raises(ConfigError, match=r"entity2types\.tsv, line 2: .* not UTF-8; .*; and 1 more line like it$"):
        read_types(tmp_path)


def load(path: Path, inference_path: Path | None = None, *, strict: bool = True) -> tuple[TripleFolder, Problems]:
    problems = Problems(strict)
    return read_folder(path, inference_path, problems), problems


def test_a_folder(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, false=True)
    found, _ = load(folder)
    sizes = {name: len(read(folder / f"{name}.txt")) for name in ("train", "valid", "test")}
    assert {name: len(triples) for name, triples in found.true.items()} == {
        "train": sizes["train"],
        "val": sizes["valid"],
        "test": sizes["test"],
    }
    assert found.false.keys() == {"val", "test"}
    assert len(found.known) == sum(sizes.values())
    assert sorted(found.relations) == ["back", "is_a", "next", "skip"]
    assert found.entity_types == [UNTYPED, "even", "odd", CLASS]
    graph = found.graph
    assert graph is found.test_graph
    assert graph.num_entities == 40
    assert len(graph) == sizes["train"] + 40
    assert graph.level.tolist() == [1] * 40 + [2] * 2
    is_a = graph.relation == found.relations.index("is_a")
    assert (graph.level[graph.object[is_a]] == 2).all()
    assert (graph.x[graph.subject[is_a]] == graph.object[is_a] - 39).all()


def test_a_folder_without_types_has_no_classes(tmp_path: Path) -> None:
    found, _ = load(make_folder(tmp_path, types=False))
    assert found.entity_types == [UNTYPED]
    assert "is_a" not in found.relations
    assert found.graph.num_nodes == found.graph.num_entities


def test_doubted_triples_stand_in_the_graph_but_are_not_learned_from(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    lines = (folder / "train.txt").read_text().splitlines()
    (folder / "train.txt").write_text("\n".join([lines[0] + "\t0.1", *lines[1:]]) + "\n")
    found, _ = load(folder)
    assert len(found.true["train"]) == len(lines) - 1
    assert (found.graph.confidence < 0.5).sum() == 1
    (folder / "train.txt").write_text("\n".join(line + "\t0.1" for line in lines) + "\n")
    with pytest.raises(ConfigError, match="nothing to learn from"):
        load(folder)


def test_an_inference_folder_has_other_entities_and_the_same_relations(tmp_path: Path) -> None:
    seen = make_folder(tmp_path / "seen")
    unseen = make_folder(tmp_path / "unseen", num_entities=30, seed=1, prefix="new", false=True)
    found, _ = load(seen, unseen)
    assert found.graph.num_entities == 40
    assert found.test_graph.num_entities == 30
    assert len(found.true["test"]) == len(read(unseen / "test.txt"))
    assert found.false.keys() == {"test"}
    assert len(found.known) == sum(len(read(unseen / f"{name}.txt")) for name in ("train", "valid", "test"))
    assert found.test_graph.x.max() == found.graph.x.max()
    spoiled(unseen, "test.txt", "alone\tnext\tnew1")
    alone = load(seen, unseen)[0].test_graph
    assert (alone.num_entities, len(alone)) == (31, len(found.test_graph))
    assert (alone.degree[30], alone.level[30]) == (0, 1)
    with pytest.raises(ConfigError, match="unknown relation 'hates'"):
        load(seen, make_spoiled(tmp_path / "other", "e0\thates\te1"))
    (unseen / "valid.txt").unlink()
    (seen / "test.txt").unlink()  # nobody asks about it
    assert len(load(seen, unseen)[0].true["test"]) == len(read(unseen / "test.txt"))


def test_types_of_new_entities_may_stand_in_the_training_folder(tmp_path: Path) -> None:
    seen = make_folder(tmp_path / "seen")
    unseen = make_folder(tmp_path / "unseen", num_entities=30, seed=1, prefix="new")
    before = load(seen, unseen)[0].test_graph.x
    with (seen / "entity2types.tsv").open("a") as file:
        file.write((unseen / "entity2types.tsv").read_text())
    (unseen / "entity2types.tsv").unlink()
    assert np.array_equal(load(seen, unseen)[0].test_graph.x, before)


def make_spoiled(folder: Path, line: str) -> Path:
    spoiled(make_folder(folder), "test.txt", line)
    return folder


def spoiled(folder: Path, name: str, line: str) -> int:
    """Append a line to a file; its number."""
    with (folder / name).open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    return len((folder / name).read_text(encoding="utf-8").splitlines())


@pytest.mark.parametrize(
    ("name", "line", "message", "kind"),
    [
        ("test.txt", "nobody\tnext\te1", "unknown entity 'nobody'", "unknown entity"),
        ("valid.txt", "e0\tnext\tnobody", "domain.inference_path=", "unknown entity"),
        ("test.txt", "e0\thates\te1", "unknown relation 'hates'", "unknown relation"),
        ("test_negatives.txt", "e0\thates\te1", "unknown relation 'hates'", "unknown relation"),
        ("test.txt", "TRAIN", "the triple is also in train", "also in train"),
        ("valid.txt", "TRAIN", "the triple is also in train", "also in train"),
        ("test_negatives.txt", "TRAIN", "the triple is also in train", "also in train"),
    ],
)
def test_what_files_must_not_share(tmp_path: Path, name: str, line: str, message: str, kind: str) -> None:
    folder = make_folder(tmp_path, false=True)
    whole, _ = load(folder)
    if line == "TRAIN":
        line = "\t".join(read(folder / "train.txt")[3])
    number = spoiled(folder, name, line)
    with pytest.raises(ConfigError) as caught:
        load(folder)
    assert f"{folder / name}, line {number}: " in str(caught.value)
    assert message in str(caught.value)
    found, problems = load(folder, strict=False)
    assert problems.dropped == {folder / name: {kind: 1}}
    for split, triples in whole.true.items():
        assert np.array_equal(found.true[split].spo, triples.spo)


def test_missing_and_doubled_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no folder"):
        load(tmp_path / "nowhere")
    folder = make_folder(tmp_path)
    (folder / "valid.tsv").write_text("e0\tnext\te1\n")
    with pytest.raises(ConfigError, match=r"valid.txt and valid.tsv are both there: keep one"):
        load(folder)
    (folder / "valid.tsv").unlink()
    (folder / "valid.txt").rename(folder / "valid.nt")
    with pytest.raises(ConfigError, match=r"there is no valid.txt in .*, but valid.nt: it must hold train, valid and"):
        load(folder)
    assert find_file(folder, "valid") is None
    for stem, other in (("valid", "dev"), ("valid", "Validation"), ("train", "Train"), ("test", "testing")):
        folder = make_folder(tmp_path / other)
        (folder / f"{stem}.txt").rename(folder / f"{other}.TXT")
        with pytest.raises(ConfigError, match=rf"no {stem}.txt in .*, but {other}.TXT: call that {stem}.txt$"):
            load(folder)
    with pytest.raises(ConfigError, match=r"train\.txt is a file: name its folder instead, "):
        load(make_folder(tmp_path) / "train.txt")


def headed(path: Path) -> None:
    path.write_text("entity1\trelationship\tentity2\n" + path.read_text())


def swapped(path: Path) -> None:
    write(path, [(s, o, r) for s, r, o in read(path)])


def test_what_is_hardly_meant_is_told(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "whole", false=True)
    inference = make_folder(tmp_path / "inference", num_entities=30, seed=1, prefix="new", false=True)
    assert load(folder)[0].odd == []
    assert load(folder, inference)[0].odd == []
    assert load(make_folder(tmp_path / "plain", types=False))[0].odd == []

    def odd(name: str, *paths: Path | None) -> str:
        (said,) = load(tmp_path / name, *paths)[0].odd
        return said

    headed(make_folder(tmp_path / "headed") / "train.txt")
    assert odd("headed").startswith("train.txt, line 1, was read as a triple but may be a header: none of entity1, ")
    (make_folder(tmp_path / "types", types=False) / "entity2types.json").write_text('{"a": "person"}')
    assert odd("types").startswith("entity2types has no type of any entity of train: it speaks of 'a'")
    (make_folder(tmp_path / "unfair", false=True) / "valid_negatives.txt").unlink()
    assert odd("unfair").startswith("false triples are given for test and not for valid")
    (tmp_path / "unfair" / "test_negatives.txt").rename(tmp_path / "unfair" / "valid_negatives.txt")
    assert odd("unfair").startswith("false triples are given for valid and not for test")
    assert odd("whole", folder).startswith("domain.inference_path holds the same train as domain.path")
    (inference / "entity2types.tsv").unlink()
    assert "no type of any entity of the graph of domain.inference_path" in odd("whole", inference)


def test_a_header_in_every_file_is_suspected(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, types=False)
    headed(folder / "valid.txt")
    with pytest.raises(ConfigError, match=r"valid\.txt, line 1: unknown entity 'entity1'; .*if it names the columns"):
        load(folder)
    headed(folder / "train.txt")
    with pytest.raises(
        ConfigError, match=r"valid\.txt, line 1: the triple is also in train; .*if it names the columns"
    ):
        load(folder)
    assert "may be a header" in load(folder, strict=False)[0].odd[0]


def test_swapped_columns_are_suspected(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, num_entities=120, types=False)
    for name in ("train", "valid", "test"):
        swapped(folder / f"{name}.txt")
    with pytest.raises(ConfigError, match=r"train has it as an entity: are the columns subject, predicate and object"):
        load(folder)
    (said,) = load(folder, strict=False)[0].odd
    assert "relations are entities too" in said


def test_what_was_read_is_told_in_a_line(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "seen", false=True)
    lines = (folder / "train.txt").read_text().splitlines()
    (folder / "train.txt").write_text("\n".join([lines[0] + "\t0.1", *lines[1:]]) + "\n")
    sizes = [len(read(folder / f"{name}.txt")) for name in ("valid", "test")]
    found, _ = load(folder)
    assert found.summary({"val": sizes[0], "test": sizes[1]}) == (
        f"train {len(lines)} triples (1 not believed: confidence below 0.5), 40 entities, 3 relations, types of 40 "
        f"entities; validation {sizes[0]} true, {sizes[0]} given as false; test {sizes[1]} true, "
        f"{sizes[1]} given as false"
    )
    unseen = make_folder(tmp_path / "unseen", num_entities=30, seed=1, prefix="new", types=False)
    size = [len(read(unseen / f"{name}.txt")) for name in ("train", "test")]
    found, _ = load(make_folder(tmp_path / "plain", types=False), unseen)
    expected = f"test {size[1]} true, 9 corrupted, in another graph of {size[0]} triples, 30 entities, no types"
    assert found.summary({"val": 7, "test": 9}).endswith(expected)
    assert "3 relations, no types; validation" in found.summary({"val": 7, "test": 9})


def test_a_test_that_only_repeats_training_is_refused(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    write(folder / "test.txt", read(folder / "train.txt")[:5])
    with pytest.raises(ConfigError, match=r"is also in train; .* and 4 more lines like it \(5 of its 5 lines"):
        load(folder, strict=False)
