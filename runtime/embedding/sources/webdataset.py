"""Images in tar files as WebDataset writes them: files of one sample follow each other and share a key."""

import hashlib
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import BufferedReader
from itertools import groupby
from pathlib import Path

from runtime.embedding.sources.damage import RAISED, check_some_left, is_damage
from runtime.embedding.sources.kinds import IMAGES
from runtime.embedding.sources.listing import Listing
from runtime.embedding.sources.signatures import LENGTH, begins_as_image
from runtime.embedding.tile import Piece, Tile
from runtime.errors import InputError, UnreadableImageError

_EXTENSIONS = tuple(suffix.removeprefix(".") for suffix in IMAGES)


@dataclass(frozen=True)
class WebDataset:
    """Tar files, one piece each; only reading tells how many samples they hold.

    Damage is the last tile of its tar, called as the file and unreadable: samples behind it cannot be found. A sample
    whose key was there before is unreadable, and called by its number besides: ids are unique.

    Attributes:
        root: The folder that the names are relative to.
        names: The tar files.
        sizes: Of each, in words.
        extension: Of the image within a sample; `None` for the one that is an image by its extension.
        damaged: Those that are no tar files at all, and why.
        ignored: How many other files lay beside them, by suffix.
    """

    root: Path
    names: tuple[str, ...]
    sizes: tuple[str, ...]
    extension: str | None = None
    damaged: Mapping[str, str] = field(default_factory=dict)
    ignored: Mapping[str, int] = field(default_factory=dict)

    def pieces(self) -> Sequence[Piece]:
        """Return the files by name."""
        return [Piece(name, None, size) for name, size in zip(self.names, self.sizes, strict=True)]

    def tiles(self, piece: Piece, start: int = 0) -> Iterator[Tile]:
        """Yield the images of the samples; those before `start` are passed over by their headers."""
        number = 0
        for tile in self._all(piece.name, start):
            if number >= start:
                yield tile
            number += 1
        if number == 0:
            called = f" called .{self.extension}" if self.extension else ""
            raise InputError(f"{self.root / piece.name} holds no image{called}.")

    def fingerprint(self) -> str:
        """Return a hash of the names, and of what is taken for the image."""
        content = repr((self.names, self.extension))
        return f"tar-{hashlib.sha256(content.encode()).hexdigest()}"

    def _all(self, name: str, start: int) -> Iterator[Tile]:
        """Yield all tiles, those before `start` without their images, and the damage."""
        if name in self.damaged:
            yield Tile(name, UnreadableImageError(self.damaged[name]))
            return
        number = 0
        try:
            with tarfile.open(self.root / name) as tar:
                for tile in self._tiles(tar, name, start):
                    yield tile
                    number += 1
        except RAISED as error:
            if not is_damage(error):
                raise InputError(
                    f"{self.root / name} cannot be read from sample {number} on: {error}. What was published stays: "
                    "mend it and run the same command with --resume."
                ) from error
            yield Tile(name, UnreadableImageError(f"the tar is damaged from sample {number} on: {error}"))

    def _tiles(self, tar: tarfile.TarFile, name: str, start: int) -> Iterator[Tile]:
        """Yield all tiles, those before `start` without their images."""
        # What is compressed is read from its beginning in any case: as it was the first time, or damage would show at
        # another sample.
        seen, number, compressed = set[int](), 0, not isinstance(tar.fileobj, BufferedReader)
        for key, files in _samples(tar):
            read = compressed or number >= start
            wanted: list[tuple[str, bytes | UnreadableImageError]] = []
            hidden: list[str] = []
            for extension, member in files:
                if self._is_image(extension):
                    wanted.append((extension, _content(tar, member) if read else b""))
                elif self.extension is None and begins_as_image(_start(tar, member)):
                    hidden.append(extension)
            chosen = choose_image([extension for extension, _ in wanted], f"{name}/{key}")
            if chosen is None and not hidden:
                continue
            if hash(key) in seen:
                yield Tile(f"{name}/{key} (sample {number})", _again(f"{name}/{key}"))
            else:
                yield Tile(f"{name}/{key}", _misnamed(hidden) if chosen is None else wanted[chosen][1])
            seen.add(hash(key))
            number += 1

    def _is_image(self, extension: str) -> bool:
        return extension == self.extension if self.extension else extension.rpartition(".")[2] in _EXTENSIONS


def read_webdataset(listing: Listing, *, extension: str | None) -> WebDataset:
    """Return the tar files of `listing`; what does not begin as one is damaged.

    Raises:
        InputError: All are damaged, or one cannot be opened.
    """
    names = listing.names.to_pylist()
    damaged = {name: reason for name in names if (reason := _damage(listing.root / name))}
    check_some_left(listing.root, names, damaged)
    wanted = extension.removeprefix(".").lower() if extension is not None else None
    return WebDataset(listing.root, tuple(names), listing.sizes(), wanted, damaged, listing.ignored)


def _damage(path: Path) -> str | None:
    try:
        with tarfile.open(path):
            return None
    except RAISED as error:
        if not is_damage(error):
            raise InputError(f"{path} cannot be opened: {error}") from error
        return f"is no readable tar file: {error}"


def split_name(name: str) -> tuple[str, str]:
    """Return the key of the sample that a file belongs to, and its extension, empty for what belongs to none.

    The key is all up to the first dot of the base name, folders included.
    """
    folder, slash, base = name.removeprefix("./").rpartition("/")
    stem, _, extension = base.partition(".")
    return f"{folder}{slash}{stem}", extension.lower() if stem else ""


def choose_image(extensions: Sequence[str], sample: str) -> int | None:
    """Return which of a sample's candidates is the image; `None` where there is none.

    Raises:
        InputError: There are several: `a.png` goes before `a.mask.png`, but not before `a.jpg`.
    """
    among = [k for k, extension in enumerate(extensions) if "." not in extension] or range(len(extensions))
    if len(among) > 1:
        raise InputError(
            f"{sample} has several images: {', '.join(extensions[k] for k in among)}. Name the extension to take with "
            "image_column (--image-column)."
        )
    return next(iter(among), None)


def _samples(tar: tarfile.TarFile) -> Iterator[tuple[str, Iterator[tuple[str, tarfile.TarInfo]]]]:
    """Yield keys and the files of each, to be looked at before the next: a compressed tar cannot be read backwards."""
    for key, files in groupby(_files(tar), key=lambda file: file[0]):
        yield key, ((extension, member) for _, extension, member in files)


def _files(tar: tarfile.TarFile) -> Iterator[tuple[str, str, tarfile.TarInfo]]:
    while (member := tar.next()) is not None:
        # Or memory would grow with the tar. Links are not followed, so nothing looks them up.
        tar.members.clear()  # type: ignore[attr-defined]
        # Ids are UTF-8; tar files need not be.
        name = member.name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        key, extension = split_name(name)
        if extension and not member.isdir():
            yield key, extension, member
    _check_end(tar)


def _check_end(tar: tarfile.TarFile) -> None:
    """Tell the end from damage: tarfile takes a header that it cannot read for the end."""
    assert tar.fileobj is not None  # it is open
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError("no header and no end mark; it is damaged, was cut short or is still being written")


def _misnamed(extensions: list[str]) -> UnreadableImageError:
    return UnreadableImageError(
        f"it has an image that is not called as one, .{extensions[0]}: rename it, or name it with image_column "
        "(--image-column)"
    )


def _again(id: str) -> UnreadableImageError:
    return UnreadableImageError(f"its key comes again: {id} is the first one's id. Give each sample a key of its own")


def _start(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member) if member.isreg() else None
    return b"" if file is None else file.read(LENGTH)


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes | UnreadableImageError:
    file = tar.extractfile(member) if member.isreg() else None
    if file is None:
        return UnreadableImageError(f"it is a link to {member.linkname!r}: write the tar with --hard-dereference")
    return file.read()
