"""Builds or updates an index of a folder or a list; only new and changed pictures are embedded.

Each picture is compared with the rows of the index; the cheap comparisons come first:

    size, time and metadata as in the row of its path    the row stays
    size and time as there, other metadata               a new row with the old vector
    content of any row (the file is read)                a new row with that vector: a renamed, copied or touched file
    content that `ivt_jax.embed` has embedded            a new row with that vector
    any other picture                                    is embedded

The row of a deleted picture is deleted last, because another path may need its vector until then. The row of a picture
out of reach stays (`ivt_jax.retrieval.indexing.missing`).

Rows are added in groups, each whole or not at all; then the rows that they replace are deleted by their ids. So every
path keeps a row, whenever a build fails. A path may have two rows for a moment, or until the next build, which deletes
the surplus; a search shows such a path once.
"""

import collections
import contextlib
import dataclasses
import hashlib
import io
import itertools
import os
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from input_pipeline.decoding import is_turned
from ivt_jax.common.ahead import done_ahead
from ivt_jax.common.errors import UserError
from ivt_jax.common.files import is_remote
from ivt_jax.common.messages import counted
from ivt_jax.common.progress import progress
from ivt_jax.encoding.encoder import Encoder
from ivt_jax.encoding.images import fit, is_as_before, odd_shape, open_image
from ivt_jax.gallery.crops import UnreachableError, read_content
from ivt_jax.gallery.vectors import ByDigest, short_digest
from ivt_jax.retrieval.indexing.changes import count_passed, now
from ivt_jax.retrieval.indexing.missing import Missing, Reach, Reasons
from ivt_jax.retrieval.indexing.plan import Plan, find_stale, plan_build
from ivt_jax.retrieval.indexing.sources import Picture, Source
from ivt_jax.retrieval.stores.places import create_store, open_store
from ivt_jax.retrieval.stores.store import About, NoIndexError, Row, VectorStore
from ivt_jax.run.workdir import folder_tokenizer, lock_folder

BATCH = 64  # pictures of a batch on each device
ROWS = 512  # rows of a write; a killed build loses at most these
THUMBNAIL = (160, 192)  # width and height at most
PRUNE_SHARE = 10  # deleting more than 1 row in PRUNE_SHARE needs --prune,
PRUNE_ROWS = 100  # if the index has PRUNE_ROWS rows or more
_LASTING = ("made", "unfinished", "planned", "sideways", "updated", "passed", "kept")  # of `About`, until a build ends
TOO_MANY = "their pictures are gone, but more than a tenth of the index would be deleted"


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of a build."""

    workdir: Path | str | None = None  # folder of the model; by default the one that the index states
    encoder: Encoder | None = None  # the model, if it is loaded already
    dtype: str | None = None  # of the vectors of a new index, float32 (the default) or float16
    batch: int = BATCH  # pictures of a batch on each device
    vectors: Path | None = None  # what `ivt_jax.embed` wrote; its vectors are used for pictures of the same content
    moved: bool = False  # the pictures of the index are in another folder now
    prune: bool = False  # deletes the rows that would stay without their pictures


@dataclasses.dataclass
class Built:
    """The result of a build. All pictures are new, changed, renamed or unchanged."""

    new: int = 0
    changed: int = 0  # other content or metadata
    renamed: int = 0
    unchanged: int = 0  # also pictures that were touched, and rows of `kept`
    gone: int = 0  # rows deleted without a successor
    embedded: int = 0  # pictures that this build embedded
    taken: int = 0  # vectors from `ivt_jax.embed`
    seconds: float = 0.0  # for reading, embedding and writing
    unreadable: list[tuple[str, str]] = dataclasses.field(default_factory=list)  # (path, reason) of pictures
    odd: list[tuple[str, str]] = dataclasses.field(default_factory=list)  # (path, reason) of odd pictures written
    note: str = ""  # a message of the store
    kept: Reasons = dataclasses.field(default_factory=dict)  # rows that stay, with pictures missing or unreadable

    def __str__(self) -> str:
        pictures = counted(self.new + self.changed + self.renamed + self.unchanged, "picture")
        text = f"{pictures}: {self.new:,} new, {self.changed:,} changed, {self.renamed:,} renamed, "
        text += f"{self.gone:,} gone, {self.unchanged:,} unchanged"
        if self.kept:
            text += f"; {len(self.kept):,} of them kept without their pictures (--prune deletes them)"
        if self.taken:
            text += f"; {self.taken:,} had been embedded"
        if self.embedded:
            text += f"; {self.embedded:,} embedded at {self.embedded / self.seconds:,.0f} a second"
        return text


def build(place: Path | str, source: Source, options: Options) -> Built:
    """Builds or updates an index, so that it holds all readable pictures of `source` and no others.

    Rows whose pictures are out of reach stay. If more than a tenth of an index of 100 rows or more would be deleted,
    these rows stay as well. Raises UserError if no picture can be read, if another process is building the index, or if
    the index belongs to another model, dtype or folder; the index then keeps its rows.
    """
    store, about, encoder = _open(place, source, options)
    vectors = _open_vectors(options.vectors, about)
    with _lock(place):
        stale = find_stale(place, source, store, about.sideways) if store and about.sideways else set[int]()
        plan = plan_build(source, store.scan() if store else (), about.unfinished, stale)
        _refuse_unreadable(source, plan)
        about = _about_during(about, plan)
        # Making the index below the folder of its pictures changes the time of a folder there.
        within = Path(os.path.abspath(place)).is_relative_to(source.root)
        listed = now() if within and not store else source.time
        store = store or create_store(place, about)
        _set_about(store, about)
        work = _Work(store, encoder, source, plan, options.batch, vectors)
        work.run()
        built = work.built
        if not built.new + built.changed + built.renamed + built.unchanged:
            raise _nothing_readable(built.unreadable)
        with_row = work.delete_old(options.prune)
        sideways = about.sideways if stale & built.kept.keys() else 0
        passed = count_passed([pair for pair in built.unreadable if pair[0] not in with_row], source.passed)
        kept = dict(collections.Counter(reason for _, reason in built.kept.values()).most_common())
        about = dataclasses.replace(about, updated=listed, passed=passed, kept=kept, sideways=sideways)
        _set_about(store, dataclasses.replace(about, unfinished=-1, planned=0))
        built.note = store.optimize()
    return built


# ---- the index


def _lock(place: Path | str) -> contextlib.AbstractContextManager[Any]:
    """Keeps other builds out of a local folder, which is made if it is missing."""
    if is_remote(place):
        return contextlib.nullcontext()
    try:
        Path(place).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{place} cannot be made: {error.strerror}") from None
    return lock_folder(Path(place), "indexer", "--index")


def _open(place: Path | str, source: Source, options: Options) -> tuple[VectorStore | None, About, Encoder]:
    """Returns the index, None if there is none yet, its `About` for this build, and its model. Writes nothing."""
    workdir = options.workdir
    try:
        store = open_store(place)
    except NoIndexError:
        if workdir is None:
            raise UserError(f"there is no index at {place} yet: name the folder of its model with --workdir") from None
        encoder = options.encoder or Encoder(workdir)
        about = describe_index(encoder, workdir, options.dtype or "float32", source.fields, source.root)
        return None, dataclasses.replace(about, made=uuid.uuid4().hex, source=remembered(source, options)), encoder
    found = store.about
    _refuse_other_source(place, found, source, options)
    workdir = found.model_folder(workdir)
    encoder = options.encoder or Encoder(workdir)
    about = describe_index(encoder, workdir, found.dtype, source.fields, source.root)
    if is_as_before(found.images, about.images):
        next_id = int(store.ids().max(initial=-1)) + 1
        found = dataclasses.replace(found, images=about.images, sideways=next_id)
    if difference := _difference(vars(found), about, ("model", "tokenizer", "dimension", "images")):
        key, was, wanted = difference
        reason = f"{place} was made with {key} {was} ({found.workdir}), {about.workdir} has {wanted}"
        raise UserError(f"{reason}: name the folder of the index's model with --workdir, or another --index")
    lasting = {key: getattr(found, key) for key in _LASTING}
    return store, dataclasses.replace(about, **lasting, source=remembered(source, options)), encoder


def remembered(source: Source, options: Options) -> dict[str, Any]:
    """Returns what an index keeps of a build to repeat it: `Source.origin`, vectors, and batch if it is not BATCH."""
    vectors = {"vectors": os.path.abspath(options.vectors)} if options.vectors else {}
    return {**source.origin, **vectors, **({"batch": options.batch} if options.batch != BATCH else {})}


def describe_index(encoder: Encoder, workdir: Path | str, dtype: str, fields: dict[str, str], root: Path) -> About:
    """Returns the `About` of a new index with this model, these fields and pictures below `root`."""
    folder = Path(workdir).absolute()
    tokenizer = folder_tokenizer(folder, encoder.config).digest
    return About(**encoder.about, tokenizer=tokenizer, dtype=dtype, fields=fields, workdir=str(folder), root=str(root))


def _set_about(store: VectorStore, about: About) -> None:
    if store.about != about:
        store.set_about(about)


def _difference(found: Mapping[str, Any], about: About, keys: Sequence[str]) -> tuple[str, str, str] | None:
    """Returns the first key whose values differ, and both values in short."""
    values = ((key, found.get(key), getattr(about, key)) for key in keys)
    return next(((key, short_digest(was), short_digest(wanted)) for key, was, wanted in values if was != wanted), None)


def _refuse_other_source(place: Path | str, about: About, source: Source, options: Options) -> None:
    if not options.moved:
        about.refuse_other_root(place, source.root)
    if options.dtype not in (None, about.dtype):
        reason = f"{place} holds vectors of {about.dtype}, not {options.dtype}"
        raise UserError(f"{reason}: leave --dtype out, or name another --index")
    if about.fields and not source.listed and "path_fields" not in about.source:
        reason = f"{place} was made from a list, with the fields {', '.join(about.fields)}"
        raise UserError(f"{reason}: name the list with --list, or, to drop the fields, a list of paths alone")


def _open_vectors(folder: Path | None, about: About) -> ByDigest | None:
    """Opens vectors that `ivt_jax.embed` wrote. Raises UserError if they are of another model or preprocessing."""
    if not folder:
        return None
    vectors = ByDigest(folder)
    found = vectors.about
    if is_as_before(found.get("images", {}), about.images):
        found = {**found, "images": about.images}
    if difference := _difference(found, about, ("model", "images")):
        key, was, wanted = difference
        reason = f"{folder} holds vectors of {key} {was}, not {wanted}"
        raise UserError(f"{reason}: embed with the index's model, {about.workdir}, or leave --vectors out")
    return vectors


def _refuse_unreadable(source: Source, plan: Plan) -> None:
    """Raises UserError, before anything is written, if no picture can be read: most likely it is the wrong folder."""
    if plan.current:
        return
    unreadable = [*source.unreadable]
    for picture, _ in plan.todo:
        try:
            open_image(picture.path, read_content(picture.path, picture.content(source.root)))
            return
        except UserError as error:
            unreadable.append((picture.path, _reason(picture.path, error)))
    raise _nothing_readable(unreadable)


def _nothing_readable(failed: Sequence[tuple[str, str]]) -> UserError:
    return UserError(f"none of {counted(len(failed), 'picture')} can be read; the first: {': '.join(failed[0])}")


def _reason(path: str, error: UserError) -> str:
    return str(error).removeprefix(f"{path}: ")


def _about_during(about: About, plan: Plan) -> About:
    """Returns the `About` of the index while a build runs. about: from before, maybe of a stopped build."""
    unfinished = plan.next_id if plan.missing and plan.todo and about.unfinished < 0 else about.unfinished
    new = sum(old is None for _, old in plan.todo)
    many = about.planned or len(plan.todo) > ROWS  # a single write is done whole or not at all
    return dataclasses.replace(about, unfinished=unfinished, planned=plan.rows + new if new and many else 0)


# ---- its rows


class _Entry(NamedTuple):
    """A picture that needs a row: with pixels to embed, or with a vector, or with a digest that the index knows."""

    picture: Picture
    old: Row | None
    digest: str
    pixels: np.ndarray | None = None  # (H, W, 3) uint8, of the model's size
    vector: np.ndarray | None = None
    thumbnail: bytes | None = None
    odd: str | None = None


class _Work:
    """Writes the rows of a plan. ready: vectors of `ivt_jax.embed`; built: the result."""

    def __init__(
        self, store: VectorStore, encoder: Encoder, source: Source, plan: Plan, batch: int, ready: ByDigest | None
    ):
        self._store, self._encoder, self._plan, self._ready = store, encoder, plan, ready
        self._root, self._pictures = source.root, source.pictures
        self._batch = batch * encoder.devices
        self._known, self._next_id = plan.known, plan.next_id
        self._reach = Reach(source)
        self._missing = {row.id: row for row in plan.missing}  # without those that were moved
        self._movable = collections.defaultdict[str, list[Missing]](list)  # by digest
        for row in plan.missing:
            self._movable[row.digest].append(row)
        self._unread = dict[str, str]()  # path -> why the system cannot read it
        self._unread_rows: list[Missing] = []  # the rows of such paths
        self._damaged: list[Missing] = []  # rows whose files can be read but are no pictures any more
        self.built = Built(unchanged=plan.current, unreadable=[*source.unreadable])

    def run(self) -> None:
        """Reads, embeds and writes all pictures; deletes old rows that are replaced or whose pictures were moved."""
        start = time.monotonic()
        entries = progress(self._entries(), len(self._plan.todo), "indexing: ", "pictures", brief=True)
        while some := list(itertools.islice(entries, ROWS)):
            self._write(some)
        self.built.seconds = time.monotonic() - start

    def delete_old(self, prune: bool) -> set[str]:
        """Deletes rows without pictures and surplus rows, after `run`. Checks the folders again.

        Returns the paths of the rows that stay without pictures.
        """
        plan = self._plan
        # A stopped build may not have deleted the rows that its pictures were moved from.
        moved = [row.id for digest in plan.recent if (row := self._moved_from(digest))]
        unsure = [*self._missing.values(), *self._unread_rows]
        for row in plan.shared:
            if row.path in self._unread or row.path not in self._pictures:
                unsure.append(row._replace(reason=self._unread.get(row.path, "")))
        kept = {} if prune else self._reach.reasons_to_keep(unsure)
        rows = [*self._damaged, *unsure]
        gone = {row.id for row in rows} - kept.keys()
        if not prune and plan.rows >= PRUNE_ROWS and PRUNE_SHARE * len(gone) > plan.rows:
            kept |= dict.fromkeys(gone, ("", TOO_MANY))
            gone = set()
        self._store.delete(sorted({*gone, *plan.surplus, *moved} - kept.keys()))
        self.built.gone += len(gone)
        self.built.unchanged += len(kept)
        self.built.kept = kept
        return {row.path for row in rows if row.id in kept}

    def _entries(self) -> Iterator[_Entry]:
        """Yields an entry with a vector, or a known digest, for each readable picture. Embeds in batches."""
        waiting: list[_Entry] = []
        for (picture, old), read in done_ahead(self._read, self._plan.todo, 2 * self._batch):
            try:
                entry = read.result()
                if entry.pixels is entry.vector is None and entry.digest not in self._known:  # it was replaced since
                    entry = self._read((picture, old))
            except UserError as error:
                self._skip(picture.path, old, error)
                continue
            if entry.pixels is None:
                self.built.taken += entry.vector is not None
                yield entry
                continue
            waiting.append(entry)
            if len(waiting) == self._batch:
                yield from self._embed(waiting)
                waiting = []
        if waiting:
            yield from self._embed(waiting)

    def _skip(self, path: str, old: Row | None, error: UserError) -> None:
        """Notes a picture that cannot be read, and whether its row is damaged or only out of reach."""
        reason = _reason(path, error)
        self.built.unreadable.append((path, reason))
        out_of_reach = isinstance(error, UnreachableError)
        if out_of_reach:
            self._unread[path] = reason
        if old:
            (self._unread_rows if out_of_reach else self._damaged).append(Missing(old.id, path, old.digest, reason))

    def _read(self, item: tuple[Picture, Row | None]) -> _Entry:
        """Reads a picture, in a thread. Digest and pixels are of the same bytes, even if the file changes meanwhile."""
        picture, old = item
        if old and (old.size, old.changed) == (picture.size, picture.changed) and old.digest in self._known:
            return _Entry(picture, old, old.digest)  # only the metadata differ
        content = read_content(picture.path, picture.content(self._root))
        digest = hashlib.sha256(content)
        if digest.hexdigest() in self._known:
            return _Entry(picture, old, digest.hexdigest())
        image = open_image(picture.path, content)
        vector, upright = self._ready.get(digest.digest()) if self._ready else (None, True)
        if not upright and is_turned(io.BytesIO(content)):
            vector = None
        pixels = fit(image, self._encoder.size) if vector is None else None
        odd = odd_shape(*image.size)
        return _Entry(picture, old, digest.hexdigest(), pixels, vector, _thumbnail(image), odd)

    def _embed(self, entries: list[_Entry]) -> Iterator[_Entry]:
        pixels = np.stack([entry.pixels for entry in entries])  # type: ignore[misc]
        vectors = self._encoder.embed(iter([pixels]), self._batch)
        self.built.embedded += len(entries)
        return (entry._replace(pixels=None, vector=vector) for entry, vector in zip(entries, vectors, strict=True))

    def _write(self, entries: list[_Entry]) -> None:
        """Adds a row for each entry, all or none; then deletes the replaced rows and those of moved pictures."""
        donors = [self._known[entry.digest] if entry.vector is None else None for entry in entries]
        wanted = sorted({donor for donor in donors if donor is not None})
        found = {row.id: row for row in self._store.get(wanted, vectors=True, thumbnails=True)}
        rows: list[Row] = []
        for entry, donor in zip(entries, donors, strict=True):
            picture, has = entry.picture, entry if donor is None else found[donor]
            vector = np.asarray(has.vector, self._store.about.dtype)
            state = picture.size, picture.changed, picture.metadata
            rows.append(Row(self._next_id, picture.path, entry.digest, *state, vector, has.thumbnail, has.odd))
            self.built.odd += [(picture.path, has.odd)] if has.odd else []
            self._next_id += 1
        self._store.add(rows)
        gone: list[int] = []
        for entry in entries:
            old = entry.old
            moved = None if old and old.digest == entry.digest else self._moved_from(entry.digest)
            gone += [row.id for row in (old, moved) if row]
            self._count(entry, moved)
            if old and self._known.get(old.digest) == old.id:
                del self._known[old.digest]
        self._store.delete(gone)
        self._known.update({row.digest: row.id for row in rows})

    def _moved_from(self, digest: str) -> Missing | None:
        """Returns a row of this content whose file no longer exists, each such row once; None if there is none."""
        movable = self._movable[digest]
        while movable:
            row = movable.pop()
            if self._reach.was_moved(row):
                del self._missing[row.id]
                return row
        return None

    def _count(self, entry: _Entry, moved: Missing | None) -> None:
        if not entry.old:
            self.built.renamed += moved is not None
            self.built.new += moved is None
        else:
            same = (entry.digest, entry.picture.metadata) == (entry.old.digest, entry.old.metadata)
            self.built.unchanged += same
            self.built.changed += not same
            self.built.gone += moved is not None  # the picture was moved onto the path of another, whose row is gone


def _thumbnail(image: Image.Image) -> bytes:
    """Returns a small JPEG of the pixels alone, without other data of the file, such as where it was taken."""
    image.thumbnail(THUMBNAIL)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=82, comment=b"")
    return file.getvalue()
