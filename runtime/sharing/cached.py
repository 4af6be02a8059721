"""load_model(artifacts="hf://ORG/REPO@REVISION"): only what is served is fetched, once, into the user's cache.

::

    <user's cache>/hub/<org>--<repo>/refs/<revision>              the commit that it was at when last asked
                                     <commit>/                    a store: what was fetched of that commit
                                              .snapshot.json      what the repository lists
                                              .manifests/<model>  what it publishes of a model

Nothing of a commit ever changes, so a commit that is here needs no network. A branch or tag is asked for at each load;
with HF_HUB_OFFLINE=1 it is the commit that it was at last.
"""

import json
import os
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from urllib.parse import quote

from runtime.artifacts import MANIFEST, Store, fetched_store, file_problem, named_address, repository_cache
from runtime.errors import HubError
from runtime.manifest import Artifact, Manifest
from runtime.publishing import store_errors, workspace
from runtime.request import Request
from runtime.sharing.address import Address, parse_address
from runtime.sharing.pulling import forget_downloads, install
from runtime.sharing.remote_manifest import files_of, parse
from runtime.sharing.snapshot import RemoteFile, Snapshot, take


def pin(request: Request) -> Request:
    """Return the request with the commit in place of a branch or tag; one that names a folder as it is.

    Raises:
        HubError: The repository is unreachable, unknown or gated, or has no such revision.
    """
    address = named_address(request.artifacts)
    return request if address is None else replace(request, artifacts=str(_pinned(address)))


def published(request: Request) -> Manifest:
    """Return what the repository that `request` names publishes of the backbone.

    Programs are among it; `select` takes one only for a backend that is named.

    Raises:
        HubError: The hub does not give it.
        ManifestError: It is damaged or from a newer release.
    """
    address, model = parse_address(request.artifacts), request.spec.name
    store = fetched_store(parse_address(request.artifacts))
    path = store.root / ".manifests" / model / MANIFEST
    with store_errors(store.root):
        if not path.is_file():
            _keep_manifest(_snapshot(address), model, path)
        return parse(path.read_text(encoding="utf-8"), f"{address}/{model}/{MANIFEST}", model)


def bring(request: Request, artifact: Artifact) -> None:
    """Fetch what the cache lacks of an artifact that `published` listed.

    Raises:
        HubError: The hub does not give it.
        ArtifactCorruptError: It is not what the manifest lists. Nothing is kept then.
        StoreError: The cache cannot be written, or the disk is full.
    """
    store, model = fetched_store(parse_address(request.artifacts)), request.spec.name
    if _is_here(store, model, artifact):
        return
    snapshot = _snapshot(parse_address(request.artifacts))
    with workspace(store, model) as space:
        others = [folder / model for folder in store.root.parent.iterdir() if folder != store.root]
        install(space, snapshot, [artifact], others)
        forget_downloads(store, snapshot, model)


def _is_here(store: Store, model: str, artifact: Artifact) -> bool:
    if artifact not in store.read(model).artifacts:
        return False
    return not any(file_problem(store.folder(model) / file.name, file) for file in files_of([artifact]))


def _pinned(address: Address) -> Address:
    if address.pinned:
        return address
    ref = repository_cache(address) / "refs" / quote(address.revision or "main", safe="")
    if _offline():
        return replace(address, revision=_last_commit(address, ref))
    snapshot = take(address)
    with store_errors(ref.parent.parent):
        _write(ref, snapshot.commit)
        _keep_snapshot(snapshot)
    return snapshot.address


def _offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _last_commit(address: Address, ref: Path) -> str:
    try:
        return ref.read_text(encoding="utf-8")
    except OSError as error:
        raise HubError(
            f"{address} cannot be read: HF_HUB_OFFLINE is set, and it was never loaded on this machine. Load it once "
            f"with a network, or pull it into a folder: python -m runtime.pull {address.repo}."
        ) from error


def _snapshot(address: Address) -> Snapshot:
    """Return what the pinned repository lists, from the cache if that knows it."""
    path = fetched_store(address).root / ".snapshot.json"
    if path.is_file():
        listed = json.loads(path.read_text(encoding="utf-8"))
        return Snapshot(address, {name: RemoteFile(**file) for name, file in listed.items()})
    snapshot = take(address)
    _keep_snapshot(snapshot)
    return snapshot


def _keep_snapshot(snapshot: Snapshot) -> None:
    listed = {name: asdict(file) for name, file in snapshot.files.items()}
    _write(fetched_store(snapshot.address).root / ".snapshot.json", json.dumps(listed, sort_keys=True))


def _keep_manifest(snapshot: Snapshot, model: str, path: Path) -> None:
    root = fetched_store(snapshot.address).root
    with tempfile.TemporaryDirectory(prefix=".manifest-", dir=root) as scratch:
        _write(path, snapshot.read(model, Path(scratch)).to_text())


def _write(path: Path, text: str) -> None:
    """Write a file that others may be reading or writing: they see the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(prefix=".part-", dir=path.parent)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    Path(part).replace(path)
