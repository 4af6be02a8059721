"""What a push would change in a repository: decided before anything is sent."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir

from exporters.model_card import MARK, write_card
from exporters.redistribution import require_permission
from runtime.artifacts import MANIFEST, Store
from runtime.doctor.stored import rebuild_command
from runtime.errors import ArtifactCorruptError, HubError, ManifestError, OptionError
from runtime.manifest import Manifest, StoredFile, rebuild
from runtime.publishing import store_errors
from runtime.sharing.address import Address
from runtime.sharing.remote_manifest import files_of, merge, parse
from runtime.sharing.snapshot import Snapshot, take

CARD = "README.md"


@dataclass(frozen=True)
class Push:
    """What is to be pushed, and where to.

    Attributes:
        store: Where the artifacts are.
        models: Names of the models.
        address: The repository, with the branch if it is not the main one.
        create_pr: Open a pull request instead of changing the branch.
        private: Make the repository private if it does not exist yet.
        allowed: The publishers of restricted weights have permitted it.
        message: Of the commit.
    """

    store: Store
    models: tuple[str, ...]
    address: Address
    create_pr: bool = False
    private: bool = False
    allowed: bool = False
    message: str | None = None


@dataclass(frozen=True)
class Plan:
    """What a push changes.

    Attributes:
        base: What the repository holds; `None` when it is to be made.
        private: Whether only some accounts (will) see it.
        new_branch: Whether its branch is to be made.
        local: What the store publishes of each model.
        uploads: Files to send, by path in the repository: where they are, or their text.
        deletions: Paths that no manifest lists any more.
        notes: What a reader should know.
    """

    base: Snapshot | None
    private: bool
    new_branch: bool
    local: tuple[Manifest, ...]
    uploads: dict[str, Path | bytes] = field(default_factory=dict)
    deletions: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def changes(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.uploads or self.deletions or self.new_branch or self.base is None)

    @property
    def bytes(self) -> int:
        """How much is sent, but for what the hub finds it has already."""
        return sum(len(f) if isinstance(f, bytes) else f.stat().st_size for f in self.uploads.values())


def plan(push: Push) -> Plan:
    """Return what the push would change, after comparing every local file with its SHA-256.

    Raises:
        ArtifactError: A local artifact is damaged; the repository cannot be read, or what it holds is damaged.
        RedistributionError: The repository is public, and some of the weights must not be.
        OptionError: `private` was asked of a repository that is public.
    """
    local = tuple(_checked(push.store, model) for model in push.models)
    base, new_branch = _base(push.address)
    private = push.private if base is None else base.private
    if push.private and not private:
        raise OptionError(f"{push.address.repo} exists and is public: --private only decides about a new one.")
    if not private and not push.allowed:
        require_permission(local, push.address.repo)
    planned = Plan(base, private, new_branch, local)
    with store_errors(Path(gettempdir())), TemporaryDirectory(prefix="backbone-push-") as scratch:
        return _compare(planned, push, Path(scratch))


def _checked(store: Store, model: str) -> Manifest:
    manifest = store.read(model)
    for file, problem in store.problems(manifest, full=True).items():
        commands = [rebuild_command(model, a, store, force=True) for a in manifest.artifacts if file in a.files]
        path = store.folder(model) / file.name
        raise ArtifactCorruptError("\n".join([f"{path} {problem}. Nothing was pushed. Build it again:", *commands]))
    return manifest


def _base(address: Address) -> tuple[Snapshot | None, bool]:
    """Return what the branch holds, or the main branch where it has yet to be made, and whether it has."""
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        return take(address), False
    except HubError as error:
        if isinstance(error.__cause__, RevisionNotFoundError) and address.revision:
            return take(Address(address.repo)), True
        if type(error.__cause__) is RepositoryNotFoundError:
            return None, address.revision is not None
        raise


def _compare(planned: Plan, push: Push, scratch: Path) -> Plan:
    base, repo = planned.base, push.address.repo
    remote, unread = _remote(base, push.models, scratch)
    merged = {m.model: merge(remote.get(m.model, Manifest(m.model)), m.artifacts, str(repo)) for m in planned.local}
    uploads: dict[str, Path | bytes] = {}
    for manifest in planned.local:
        folder = push.store.folder(manifest.model)
        uploads |= {f"{manifest.model}/{f.name}": folder / f.name for f in _new_files(manifest, remote, base)}
    texts = {f"{model}/{MANIFEST}": _readable(manifest, push.store) for model, manifest in merged.items()}
    card, notes = _card(base, write_card(repo, [*(remote | merged).values()], tuple(unread)), scratch)
    notes += tuple(f"{model} stays as it is in the repository: {error}" for model, error in unread.items())
    old = {f"{model}/{MANIFEST}": manifest.to_text() for model, manifest in remote.items()}
    uploads |= {path: text.encode() for path, text in texts.items() if old.get(path) != text}
    deletions = [path for model in merged if model in remote for path in _unlisted(remote[model], merged[model], base)]
    return replace(planned, uploads=uploads | card, deletions=tuple(deletions), notes=notes)


def _remote(
    base: Snapshot | None, pushed: Sequence[str], scratch: Path
) -> tuple[dict[str, Manifest], dict[str, ManifestError]]:
    """Return the manifests of the repository, and why others cannot be read.

    Raises:
        ManifestError: One cannot be read, and it is that of a model to be pushed: what it lists must not be lost.
    """
    read: dict[str, Manifest] = {}
    unread: dict[str, ManifestError] = {}
    if base is None:
        return read, unread
    for model in base.models:
        try:
            read[model] = base.read(model, scratch)
        except ManifestError as error:
            unread[model] = error
    if wrong := [model for model in pushed if model in unread]:
        others = "" if set(pushed) <= set(wrong) else " The other models can be pushed: name them with GLOB."
        raise ManifestError(f"{unread[wrong[0]]} Nothing was pushed.{others}") from unread[wrong[0]]
    return read, unread


def _readable(manifest: Manifest, store: Store) -> str:
    """Return the text of a manifest to send, after reading it as everybody will who pulls it.

    Raises:
        ManifestError: They would refuse it. What the repository holds was read so already: the store's own is wrong.
    """
    text, path = manifest.to_text(), store.folder(manifest.model) / MANIFEST
    parse(text, str(path), manifest.model, f"Nothing was pushed, for nobody could pull that. {rebuild(path)}")
    return text


def _new_files(manifest: Manifest, remote: dict[str, Manifest], base: Snapshot | None) -> list[StoredFile]:
    """Return the files that the repository does not have yet; their names carry the hash of their content."""
    known = files_of(remote[manifest.model].artifacts) if manifest.model in remote else []
    there = base.files if base else {}
    return [
        file
        for file in files_of(manifest.artifacts)
        if file not in known or (path := f"{manifest.model}/{file.name}") not in there or there[path].is_not(file)
    ]


def _unlisted(old: Manifest, new: Manifest, base: Snapshot | None) -> list[str]:
    names = {file.name for file in files_of(old.artifacts)} - {file.name for file in files_of(new.artifacts)}
    return sorted(path for name in names if base and (path := f"{old.model}/{name}") in base.files)


def _card(base: Snapshot | None, text: str, scratch: Path) -> tuple[dict[str, Path | bytes], tuple[str, ...]]:
    """Return the model card if it has to be written, and what to say about one that was written by hand."""
    if base is None or CARD not in base.files:
        return {CARD: text.encode()}, ()
    old = base.download(CARD, scratch).read_text(encoding="utf-8", errors="replace")
    if MARK not in old:
        return {}, (f"{CARD} was not written by this command, and stays as it is.",)
    return ({} if old == text else {CARD: text.encode()}), ()
