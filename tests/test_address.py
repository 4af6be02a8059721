"""Addresses of shared artifacts: what is one, and what could do harm as one."""

from pathlib import Path

import pytest
from builds import run_command

from runtime.artifacts import fetched_store, named_address, open_store, place
from runtime.errors import OptionError
from runtime.sharing.address import Address, is_address, parse_address

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("our-lab/backbones", Address("our-lab/backbones")),
        ("hf://our-lab/backbones", Address("our-lab/backbones")),
        ("hf://our-lab/backbones@v1.2", Address("our-lab/backbones", "v1.2")),
        ("our-lab/backbones@refs/pr/3", Address("our-lab/backbones", "refs/pr/3")),
        (Path("hf://our-lab/backbones@main"), Address("our-lab/backbones", "main")),
    ],
)
def test_a_repository_is_named_with_or_without_a_revision(text: object, expected: Address) -> None:
    assert parse_address(text) == expected


def test_an_address_reads_as_it_is_written() -> None:
    for text in ("hf://a/b", "hf://a/b@v1"):
        assert str(parse_address(text)) == text


def test_only_a_commit_is_pinned() -> None:
    assert parse_address(f"a/b@{COMMIT}").pinned
    assert not parse_address("a/b@main").pinned
    assert not parse_address(f"a/b@{COMMIT[:12]}").pinned
    assert not parse_address("a/b").pinned


@pytest.mark.parametrize("text", ["backbones", "a/b/c", "../b", "a/..", "a/b..c", "/a/b", "a/ b", "", "-a/b", "hf://"])
def test_what_cannot_be_a_repository_is_an_error(text: str) -> None:
    with pytest.raises(OptionError, match=r"is no repository of the Hugging Face hub: they are named ORG/REPO"):
        parse_address(text)


@pytest.mark.parametrize("revision", ["..", "a/../b", "../x", "-f", ".hidden", "a b", "a\nb", "/etc", "a:b", "a@b"])
def test_what_cannot_be_a_revision_is_an_error(revision: str) -> None:
    with pytest.raises(OptionError, match="is no revision of a/b"):
        parse_address(f"a/b@{revision}")


def test_two_revisions_are_an_error() -> None:
    assert parse_address("a/b@v1", "v1") == Address("a/b", "v1")
    with pytest.raises(OptionError, match="names the revision 'v1', and 'v2' was given, too"):
        parse_address("a/b@v1", "v2")


@pytest.mark.parametrize("artifacts", ["artifacts", "/data/hf", Path("hf"), "our-lab/backbones", None])
def test_a_folder_is_no_address(artifacts: str | Path | None) -> None:
    assert not is_address(artifacts)
    assert named_address(artifacts) is None


def test_the_environment_may_hold_an_address(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BACKBONE_ARTIFACTS", "hf://a/b@v1")

    assert named_address(None) == Address("a/b", "v1")
    assert named_address(tmp_path) is None
    assert place(None) == "hf://a/b@v1"


def test_what_writes_a_store_or_lists_it_needs_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OptionError, match=r"load_model serves from it, nothing else .* runtime.pull a/b fills it"):
        open_store("hf://a/b@v1")
    monkeypatch.setenv("BACKBONE_ARTIFACTS", "hf://a/b")
    with pytest.raises(OptionError, match="Name a folder with --artifacts"):
        open_store(None)


def test_a_commit_has_its_place_in_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    expected = tmp_path / "backbone-runtime" / "hub" / "a--b" / COMMIT
    assert fetched_store(Address("a/b", COMMIT)).root == expected
    with pytest.raises(OptionError, match="load_model serves from it, nothing else"):
        open_store(f"hf://a/b@{COMMIT}")


def test_a_build_does_not_write_to_a_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BACKBONE_ARTIFACTS", "hf://a/b")

    ran = run_command("test/tiny_vit", "--weights", "random", "--dry-run")

    assert ran.status == 2
    assert "hf://a/b is a repository of the Hugging Face hub: load_model serves from it" in ran.err
