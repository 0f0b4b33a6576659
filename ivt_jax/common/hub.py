"""Repositories on the hub (huggingface.co): lists their files at a commit, and fetches a local copy of each.

Everything goes through huggingface_hub and its cache (HF_HOME, HF_HUB_CACHE). With HF_HUB_OFFLINE=1, or if the hub
cannot be reached, only the cache is used.
"""

import contextlib
import functools
import re
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from ivt_jax.common.errors import UserError
from ivt_jax.common.files import write_text

PREFIX = "hf:"  # of a name on the hub, where a file could be named
TIMEOUT = 10  # seconds for the first answer; the client itself would retry for a minute

T = TypeVar("T")


class Repository(NamedTuple):
    """A repository at one commit, and its files: name -> size in bytes, 0 if unknown.

    cached: found in the cache, without asking the hub. revision: the branch, tag or commit that was asked for, "" if
    not known. folder: where the files are, for a folder that the user named instead; it has no commit.
    """

    name: str
    commit: str
    files: dict[str, int]
    cached: bool
    revision: str = ""
    folder: Path | None = None


def look_in(folder: Path) -> Repository:
    """Returns a folder as a repository; its subfolders are left out. Raises UserError if it cannot be read."""
    try:
        files = {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()}
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {error.strerror}") from None
    return Repository(str(folder), "", files, True, "", folder)


def look_up(name: str, suffices: Callable[[Collection[str]], bool] | None = None) -> Repository:
    """Returns the repository "owner/name" or "owner/name@revision" at its latest commit.

    suffices: returns whether these files are all that is needed; if the cache has them, the hub is not asked.
    Raises UserError, in one line, if there is no such repository or revision, it is gated, or neither the hub nor the
    cache has it.
    """
    from huggingface_hub import HfApi, constants

    repo, _, revision = name.partition("@")
    known = _cached(repo, revision or "main")
    if known and (constants.is_offline_mode() or (suffices and suffices(known.files))):
        return known
    ask = functools.partial(HfApi().model_info, repo, revision=revision or None, timeout=TIMEOUT, files_metadata=True)
    info = _asked(ask, repo, revision, known)
    if isinstance(info, Repository):
        print(f"{name}: the hub cannot be reached; using commit {info.commit[:12]} of its cache", file=sys.stderr)
        return info
    files = {file.rfilename: file.size or 0 for file in info.siblings or []}
    return Repository(repo, str(info.sha), files, False, revision or "main")


def fetch(repository: Repository, file: str) -> Path:
    """Returns the local copy of a file, downloaded if the cache has none; prints a line before a download.

    Afterwards the cache finds the commit also by the branch or tag that was asked for. Raises UserError as `look_up`.
    """
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.utils import disable_progress_bars

    if repository.folder:
        return repository.folder / file
    name, commit = repository.name, repository.commit
    found = try_to_load_from_cache(name, file, revision=commit)
    if isinstance(found, str):
        _remember(repository)
        return Path(found)
    size = f", {repository.files[file] / 1e6:,.1f} MB" if repository.files.get(file) else ""
    print(f"fetching {file} of {name}{size}", file=sys.stderr)
    disable_progress_bars()
    path = Path(_asked(functools.partial(hf_hub_download, name, file, revision=commit), name, commit))
    _remember(repository)
    return path


def _folder(repo: str) -> Path:
    """Returns the folder of a repository in the cache."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / ("models--" + repo.replace("/", "--"))


def _remember(repository: Repository) -> None:
    """Writes the commit of a branch or tag into the cache, as huggingface_hub does if it downloads by their names.

    Called after a download, not before: a commit without files would hide an older one that has them.
    """
    name, commit, revision = repository.name, repository.commit, repository.revision
    if repository.cached or revision in ("", commit):
        return
    reference = _folder(name) / "refs" / revision
    with contextlib.suppress(OSError):  # a cache without write permission is still read
        if not reference.is_file() or reference.read_text().strip() != commit:
            reference.parent.mkdir(parents=True, exist_ok=True)
            write_text(reference, commit)


def _cached(repo: str, revision: str) -> Repository | None:
    """Returns what the cache has of a revision: a branch, a tag or a full commit hash; None if nothing."""
    from huggingface_hub import try_to_load_from_cache

    folder = _folder(repo)
    snapshots = {path.name: path for path in folder.glob("snapshots/*")} if re.fullmatch(r"[\w./-]+", repo) else {}
    reference = folder / "refs" / revision
    commit = reference.read_text().strip() if snapshots and reference.is_file() else revision
    if commit not in snapshots:
        return None
    names = [path.relative_to(snapshots[commit]).as_posix() for path in snapshots[commit].rglob("*") if path.is_file()]
    whole = [name for name in names if isinstance(try_to_load_from_cache(repo, name, revision=commit), str)]
    return Repository(repo, commit, {name: (snapshots[commit] / name).stat().st_size for name in whole}, True)


def _asked(ask: Callable[[], T], repo: str, revision: str, known: Repository | None = None) -> T | Any:
    """Returns the answer of the hub, `known` if there is one and the hub cannot be reached. Raises UserError."""
    from huggingface_hub import constants, errors

    try:
        return ask()
    except errors.GatedRepoError:
        remedy = f"accept its terms at https://huggingface.co/{repo}, then log in with `hf auth login`"
        raise UserError(f'"{repo}" on the hub is gated: {remedy}') from None
    except errors.RepositoryNotFoundError:
        raise UserError(f'the hub has no repository "{repo}", or it is private; check the name') from None
    except errors.RevisionNotFoundError:
        raise UserError(f'"{repo}" on the hub has no revision "{revision}"; check the name after @') from None
    except errors.HFValidationError:
        raise UserError(f'"{repo}" is no name of a repository on the hub; expected owner/name') from None
    except Exception as error:  # the client raises many kinds: no network, time-outs, a full disk, offline mode
        if known:
            return known
        if constants.is_offline_mode():
            reason = "HF_HUB_OFFLINE is set"
        else:
            reason = f"the hub cannot be reached ({type(error).__name__})"
        wanted = f"{repo}@{revision}" if revision else repo
        remedy = "fetch it on a machine with the internet and copy the cache, or name a local file"
        raise UserError(f'{reason}, and "{wanted}" is not in the cache {constants.HF_HUB_CACHE}: {remedy}') from None
