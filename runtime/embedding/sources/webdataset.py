"""Images in tar files as WebDataset writes them: files of one sample follow each other and share a key."""

import hashlib
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from runtime.embedding.sources.kinds import IMAGES
from runtime.embedding.sources.listing import Listing
from runtime.embedding.tile import Piece, Tile
from runtime.errors import InputError, UnreadableImageError

_EXTENSIONS = tuple(suffix.removeprefix(".") for suffix in IMAGES)


@dataclass(frozen=True)
class WebDataset:
    """Tar files, one piece each; only reading tells how many samples they hold.

    Attributes:
        root: The folder that the names are relative to.
        names: The tar files.
        sizes: Bytes of each.
        extension: Of the image within a sample; `None` for the one that is an image by its extension.
    """

    root: Path
    names: tuple[str, ...]
    sizes: tuple[int, ...]
    extension: str | None = None

    def pieces(self) -> Sequence[Piece]:
        """Return the files by name."""
        return [Piece(name, None) for name in self.names]

    def tiles(self, piece: Piece, start: int = 0) -> Iterator[Tile]:
        """Yield the images of the samples; those before `start` are passed over by their headers."""
        path, number = self.root / piece.name, 0
        try:
            with tarfile.open(path) as tar:
                for tile in self._tiles(tar, piece.name, start):
                    if number >= start:
                        yield tile
                    number += 1
        except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
            raise InputError(f"{path} cannot be read from sample {number} on: {error}. Write it anew.") from error
        if number == 0:
            raise InputError(f"{path} holds no image{f' called .{self.extension}' if self.extension else ''}.")

    def fingerprint(self) -> str:
        """Return a hash of names and sizes, and of what is taken for the image."""
        content = repr((self.names, self.sizes, self.extension))
        return f"tar-{hashlib.sha256(content.encode()).hexdigest()}"

    def _tiles(self, tar: tarfile.TarFile, name: str, start: int) -> Iterator[Tile]:
        """Yield all tiles, those before `start` without their images."""
        seen: set[int] = set()
        for key, files in _samples(tar):
            wanted = [(e, _content(tar, m) if len(seen) >= start else b"") for e, m in files if self._is_image(e)]
            chosen = choose_image([extension for extension, _ in wanted], f"{name}/{key}")
            if chosen is None:
                continue
            if hash(key) in seen:
                raise InputError(f"{self.root / name} holds the sample {key!r} more than once; ids must be unique.")
            seen.add(hash(key))
            yield Tile(f"{name}/{key}", wanted[chosen][1])

    def _is_image(self, extension: str) -> bool:
        return extension == self.extension if self.extension else extension.rpartition(".")[2] in _EXTENSIONS


def read_webdataset(listing: Listing, *, extension: str | None) -> WebDataset:
    """Return the tar files of `listing`, each seen to begin as one.

    Raises:
        InputError: One is damaged.
    """
    names = listing.names.to_pylist()
    for name in names:
        _check(listing.root / name)
    wanted = extension.removeprefix(".").lower() if extension is not None else None
    return WebDataset(listing.root, tuple(names), tuple(listing.sizes.to_pylist()), wanted)


def _check(path: Path) -> None:
    try:
        with tarfile.open(path):
            pass
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} is no readable tar file: {error}") from error


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
        key, extension = split_name(member.name)
        if extension and not member.isdir():
            yield key, extension, member
    _check_end(tar)


def _check_end(tar: tarfile.TarFile) -> None:
    """Tell the end from damage: tarfile takes a header that it cannot read for the end."""
    assert tar.fileobj is not None  # it is open
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError("no header and no end mark; it is damaged, was cut short or is still being written")


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes | UnreadableImageError:
    file = tar.extractfile(member) if member.isreg() else None
    if file is None:
        return UnreadableImageError(f"it is a link to {member.linkname!r}: write the tar with --hard-dereference")
    return file.read()
