"""Two containers that share a volume: what each sees of the other, and whose write wins."""

from pathlib import Path

import pytest

from tests.fake_modal.attachments import Attachment
from tests.fake_modal.records import VolumeRecord


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    directory = tmp_path / "volume"
    (directory / "old").mkdir(parents=True)
    (directory / "old" / "file").write_text("old")
    return directory


@pytest.fixture
def pair(tmp_path: Path, volume: Path) -> tuple[Attachment, Attachment]:
    record = VolumeRecord(volume_id="vo-1", name="shared", version=1, directory=volume)
    first, second = (
        Attachment(record, volume, tmp_path / name, background_commits=True, read_only=False) for name in ("a", "b")
    )
    first.fill()
    second.fill()
    return first, second


def test_a_commit_is_seen_after_a_reload_only(pair: tuple[Attachment, Attachment], volume: Path) -> None:
    first, second = pair
    (first.copy / "new").mkdir()
    (first.copy / "new" / "file").write_text("new")
    assert not (volume / "new").exists()
    assert first.commit() == (("new/file",), ())
    assert (volume / "new" / "file").read_text() == "new"
    assert not (second.copy / "new").exists()
    second.reload()
    assert (second.copy / "new" / "file").read_text() == "new"
    assert first.commit() == second.commit() == ((), ())


def test_removals_travel_like_writes(pair: tuple[Attachment, Attachment], volume: Path) -> None:
    first, second = pair
    (first.copy / "old" / "file").unlink()
    (first.copy / "old").rmdir()
    assert first.commit() == ((), ("old/file",))
    assert not (volume / "old").exists()
    second.reload()
    assert not (second.copy / "old").exists()


def test_the_last_commit_of_a_file_wins_and_others_stay(pair: tuple[Attachment, Attachment], volume: Path) -> None:
    first, second = pair
    for name, attachment in (("first", first), ("second", second)):
        (attachment.copy / "both").write_text(name)
        (attachment.copy / name).write_text(name)
    first.commit()
    second.commit()
    assert (volume / "both").read_text() == "second"
    assert {path.name for path in volume.iterdir()} == {"old", "both", "first", "second"}


def test_a_reload_keeps_what_is_not_committed(pair: tuple[Attachment, Attachment]) -> None:
    first, second = pair
    (first.copy / "old" / "file").write_text("changed by the first")
    first.commit()
    (second.copy / "old" / "file").write_text("mine")
    second.reload()
    assert (second.copy / "old" / "file").read_text() == "mine"


def test_links_and_empty_directories_are_kept(pair: tuple[Attachment, Attachment], volume: Path) -> None:
    first, second = pair
    (first.copy / "last.ckpt").symlink_to("old/file")
    (first.copy / "latest").symlink_to("old")
    (first.copy / "empty").mkdir()
    first.commit()
    second.reload()
    for directory in (volume, second.copy):
        assert (directory / "last.ckpt").readlink() == Path("old/file")
        assert (directory / "latest").readlink() == Path("old")
        assert (directory / "empty").is_dir()
