"""Pushing artifacts to a repository: which models, and the one commit that does it."""

import fnmatch
from collections.abc import Iterable
from dataclasses import dataclass

from exporters.push_plan import Plan, Push
from runtime.artifacts import Store
from runtime.errors import ArtifactNotFoundError
from runtime.sharing.hub_errors import hub_errors


@dataclass(frozen=True)
class Pushed:
    """What a push did: the repository's commit, and the pull request if there is one."""

    commit: str
    pull_request: str | None = None


def find_models(store: Store, pattern: str) -> tuple[str, ...]:
    """Return the models with artifacts in the store whose names match a glob.

    Raises:
        ArtifactNotFoundError: None does.
    """
    held = store.models()
    found = tuple(fnmatch.filter(held, pattern))
    if not found:
        raise ArtifactNotFoundError(
            f"{store.root} has no artifacts of a model that matches {pattern!r}. It has: {', '.join(held) or 'none'}. "
            "Build some with: python -m exporters.build NAME."
        )
    return found


def carry_out(push: Push, planned: Plan) -> Pushed:
    """Make the repository and branch where there is none, then one commit with everything.

    Raises:
        HubError: The hub refuses, cannot be reached, or somebody else pushed in the meantime; nothing was changed then,
            but a new repository or branch may be there, empty.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api, repo, branch = HfApi(), push.address.repo, push.address.revision
    if not planned.changes:
        return Pushed(planned.base.commit if planned.base else "")
    with hub_errors(push.address):
        if planned.base is None:
            api.create_repo(repo, private=planned.private, exist_ok=False)
        if planned.new_branch and branch:
            api.create_branch(repo, branch=branch, exist_ok=True)
        additions = [CommitOperationAdd(path, file) for path, file in planned.uploads.items()]
        if planned.base and not (additions or planned.deletions):
            return Pushed(planned.base.commit)  # the branch alone was missing
        done = api.create_commit(
            repo,
            [*additions, *(CommitOperationDelete(path) for path in planned.deletions)],
            commit_message=push.message or f"Artifacts of {_several(push.models)}",
            revision=branch,
            create_pr=push.create_pr,
            parent_commit=planned.base.commit if planned.base else None,
        )
        return Pushed(done.oid, done.pr_url)


def _several(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:3]) + (f" and {len(listed) - 3} more" if len(listed) > 3 else "")
