"""Builds or updates an index of a folder or a list; only new and changed pictures are embedded.

Each picture is compared with the rows of the index. The cheap comparisons come first:

    the row of its path has its size, time of change and metadata     the row stays
    ... but other metadata                                            a new row, with the old vector
    a row has its content (the file is read to know it)               a new row, with the vector of that one: the file
                                                                      was renamed, copied or touched
    `ivt_jax.embed` has embedded its content, on any machine          a new row, with that vector
    none of these                                                     it is embedded
    a row has the path of a deleted picture                           the row is deleted when all others are written:
                                                                      until then another path may need its vector
    ... of a picture out of reach                                     the row stays (`ivt_jax.retrieval.missing`)

Rows are added in groups, each whole or not at all; then the rows that they replace are deleted by their ids. So every
path keeps a row, whatever fails and when. A path may have two rows for a moment, or until the next build, which deletes
the surplus; a search shows such a path once.
"""

import collections
import contextlib
import dataclasses
import hashlib
import io
import itertools
import time
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from input_pipeline.decoding import is_turned
from ivt_jax.common.errors import UserError
from ivt_jax.common.files import is_remote
from ivt_jax.common.messages import counted
from ivt_jax.common.progress import progress
from ivt_jax.encoding.encoder import ImageEncoder
from ivt_jax.encoding.images import fit, is_as_before, open_image
from ivt_jax.gallery.crops import UnreachableError, done_ahead, read_content
from ivt_jax.gallery.vectors import DTYPES, ByDigest, short_digest
from ivt_jax.retrieval.missing import Kept, Missing, Reach, Reasons, count_kept
from ivt_jax.retrieval.places import create_store, open_store
from ivt_jax.retrieval.sources import Picture, Source
from ivt_jax.retrieval.store import About, NoIndexError, Row, VectorStore
from ivt_jax.retrieval.upright import find_stale, next_id
from ivt_jax.run.workdir import folder_tokenizer, lock_folder

BATCH = 64  # pictures that a device takes at once
ROWS = 512  # that are written at once: what a kill costs at most
THUMBNAIL = (160, 192)  # width and height at most
PRUNE_SHARE = 10  # deleting more than 1 row in PRUNE_SHARE needs --prune,
PRUNE_ROWS = 100  # if the index has PRUNE_ROWS rows or more
TOO_MANY = "their pictures are gone, but more than a tenth of the index would be deleted"


class Built(NamedTuple):
    """What became of the pictures: counts, and "path: reason" of each that cannot be read.

    changed: of another content or other metadata; unchanged: includes those that were only touched; gone: without those
    that were renamed. All pictures are new, changed, renamed or unchanged. embedded: how many this build embedded;
    taken: how many vectors came from `ivt_jax.embed`. seconds: for reading, embedding and writing. note: a message of
    the store, "" for none. kept: rows that stay although their pictures are missing or cannot be read, by folder; they
    count as unchanged. reasons: how many of `unreadable` have each reason, the most frequent first.
    """

    new: int
    changed: int
    renamed: int
    unchanged: int
    gone: int
    embedded: int
    taken: int
    seconds: float
    unreadable: list[str]
    note: str = ""
    kept: Sequence[Kept] = ()
    reasons: Sequence[tuple[str, int]] = ()

    def __str__(self) -> str:
        pictures = counted(self.new + self.changed + self.renamed + self.unchanged, "picture")
        text = f"{pictures}: {self.new:,} new, {self.changed:,} changed, {self.renamed:,} renamed, "
        text += f"{self.gone:,} gone, {self.unchanged:,} unchanged"
        kept = sum(some.rows for some in self.kept)
        text += f"; {kept:,} of them kept without their pictures (--prune deletes them)" if kept else ""
        text += f"; {self.taken:,} had been embedded" if self.taken else ""
        pace = f"; {self.embedded:,} embedded at {self.embedded / self.seconds:,.0f} a second"
        return text + (pace if self.embedded else "")


def build(
    place: Path | str,
    source: Source,
    workdir: Path | str | None = None,
    dtype: str | None = None,
    batch: int = BATCH,
    moved: bool = False,
    encoder: ImageEncoder | None = None,
    vectors: Path | None = None,
    prune: bool = False,
) -> Built:
    """Builds or updates an index, so that it holds all readable pictures of `source` and no others.

    Rows whose pictures are out of reach stay. If more than a tenth of an index of 100 rows or more would be deleted,
    these rows stay as well.

    workdir: of the model, if it is not the one that the index states; dtype: of the vectors of a new index, a key of
    `DTYPES`, by default float32; batch: pictures that a device takes at once; moved: the pictures of the index are in
    another folder now; encoder: the model, if it is loaded already; vectors: a folder that `ivt_jax.embed` wrote, whose
    vectors are used for pictures of the same content; prune: deletes the rows that would stay without their pictures.
    Raises UserError if no picture can be read, if another process is building the index, or if the index is of another
    model, type or folder than is named; the index then keeps its rows.
    """
    store, about, encoder = _compare(place, source, workdir, dtype, moved, encoder)
    known = ByDigest(vectors) if vectors else None
    if known:
        _refuse_other_vectors(vectors, known.about, about)
    with _held(place):
        stale = find_stale(place, source, store, about.sideways) if store and about.sideways else set[int]()
        plan = plan_build(source, store.scan() if store else (), about.unfinished, stale)
        _refuse_unreadable(source, plan)
        about = _about_during(about, plan)
        store = store or create_store(place, about)
        _set_about(store, about)
        work = _Work(store, encoder, source, plan, batch, known)
        seconds = work.run()
        unreadable = [f"{path}: {reason}" for path, reason in source.unreadable] + work.unreadable
        if not plan.current + work.counts.total():
            raise _nothing_readable(unreadable)
        deleted, kept = work.delete_old(prune)
        sideways = about.sideways if stale & kept.keys() else 0
        _set_about(store, dataclasses.replace(about, unfinished=-1, planned=0, sideways=sideways))
        note = store.optimize()
    counts = work.counts
    reasons = collections.Counter(reason for _, reason in source.unreadable) + work.reasons
    return Built(
        new=counts["new"],
        changed=counts["changed"],
        renamed=counts["renamed"],
        unchanged=plan.current + counts["touched"] + len(kept),
        gone=deleted + work.overwritten,
        embedded=work.embedded,
        taken=work.taken,
        seconds=seconds,
        unreadable=unreadable,
        note=note,
        kept=count_kept(kept),
        reasons=reasons.most_common(),
    )


# ---- the index


def _held(place: Path | str) -> contextlib.AbstractContextManager[Any]:
    """Keeps other builders out, where the place is a folder of this machine."""
    if is_remote(place):
        return contextlib.nullcontext()
    try:
        Path(place).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{place} cannot be made: {error.strerror}") from None
    return lock_folder(Path(place), "indexer", "--index")


def _compare(
    place: Path | str,
    source: Source,
    workdir: Path | str | None,
    dtype: str | None,
    moved: bool,
    encoder: ImageEncoder | None,
) -> tuple[VectorStore | None, About, ImageEncoder]:
    """Returns the index (None if there is none yet), what it is to state, and its model. Writes nothing."""
    try:
        store = open_store(place)
    except NoIndexError:
        if workdir is None:
            raise UserError(f"there is no index at {place} yet: name the folder of its model with --workdir") from None
        encoder = encoder or ImageEncoder(workdir)
        about = state(encoder, workdir, dtype or "float32", source.fields, source.root)
        return None, dataclasses.replace(about, made=uuid.uuid4().hex), encoder
    found = store.about
    _refuse_other_folder(place, found, source.root, dtype, moved)
    if found.fields and not source.listed:
        raise UserError(
            f"{place} was made from a list, with the fields {', '.join(found.fields)}: name the list with --list, or, "
            "to drop the fields, a list of paths alone"
        )
    workdir = found.model_folder(workdir)
    encoder = encoder or ImageEncoder(workdir)
    about = state(encoder, workdir, found.dtype, source.fields, source.root)
    sideways = found.sideways
    if is_as_before(found.images, about.images):
        sideways, found = next_id(store), dataclasses.replace(found, images=about.images)
    about = dataclasses.replace(
        about, made=found.made, unfinished=found.unfinished, planned=found.planned, sideways=sideways
    )
    _refuse_other_model(place, found, about)
    return store, about, encoder


def state(encoder: ImageEncoder, workdir: Path | str, dtype: str, fields: Mapping[str, str], root: Path) -> About:
    """Returns what an index of this model and these pictures states."""
    folder = Path(workdir).absolute()
    return About(
        model=encoder.about["model"],
        tokenizer=folder_tokenizer(folder, encoder.config).digest,
        dimension=encoder.about["dimension"],
        dtype=dtype,
        images=encoder.about["images"],
        fields=fields,
        workdir=str(folder),
        root=str(root),
    )


def _set_about(store: VectorStore, about: About) -> None:
    if store.about != about:
        store.set_about(about)


def _refuse_other_folder(place: Path | str, about: About, root: Path, dtype: str | None, moved: bool) -> None:
    if str(root) != about.root and not moved:
        reason = f"{place} is of the pictures in {about.root}, not of those in {root}"
        raise UserError(f"{reason}: if they are the same, but moved, add --moved; else name another --index")
    if dtype not in (None, about.dtype):
        raise UserError(f"{place} holds vectors of {about.dtype}, not {dtype}: leave it so, or name another --index")


def _refuse_other_model(place: Path | str, about: About, other: About) -> None:
    for key in ("model", "tokenizer", "dimension", "images"):
        found, wanted = getattr(about, key), getattr(other, key)
        if found != wanted:
            raise UserError(
                f"{place} was made with {key} {short_digest(found)} ({about.workdir}), {other.workdir} has "
                f"{short_digest(wanted)}: name the folder of the index's model with --workdir, or another --index"
            )


def _refuse_other_vectors(folder: Path | None, found: Mapping[str, Any], about: About) -> None:
    if is_as_before(found.get("images", {}), about.images):
        found = {**found, "images": about.images}
    for key in ("model", "images"):
        was, wanted = found.get(key), getattr(about, key)
        if was != wanted:
            raise UserError(
                f"{folder} holds vectors of {key} {short_digest(was)}, not {short_digest(wanted)}: embed with the "
                f"index's model, {about.workdir}, or leave --vectors out"
            )


def _refuse_unreadable(source: Source, plan: "Plan") -> None:
    """Raises UserError if no picture can be read; an index of them is most likely of another folder.

    Must be called before anything is written.
    """
    if plan.current:
        return
    reasons = [f"{path}: {reason}" for path, reason in source.unreadable]
    for picture, _ in plan.todo:
        try:
            open_image(picture.path, read_content(picture.path, source.root / picture.path))
            return
        except UserError as error:
            reasons.append(str(error))
    raise _nothing_readable(reasons)


def _nothing_readable(reasons: list[str]) -> UserError:
    return UserError(f"none of {counted(len(reasons), 'picture')} can be read; the first: {reasons[0]}")


# ---- what is to be done


class Plan(NamedTuple):
    """What has become of an index's pictures."""

    todo: list[tuple[Picture, Row | None]]  # pictures that need a new row, each with the old row of its path
    current: int  # rows that agree with their pictures and stay
    missing: list[Missing]  # rows whose pictures the source does not have
    surplus: list[int]  # second rows of a picture, left by a stopped build, or by two builds at once
    shared: list[Missing]  # rows that share an id, left by two builds at once; they can only be deleted together
    recent: list[str]  # digests of rows that a stopped build has added and that agree with their pictures
    known: dict[str, int]  # digest -> a row with the vector of that content
    rows: int  # in the index
    next_id: int


def plan_build(source: Source, rows: Iterable[Row], unfinished: int = -1, stale: Collection[int] = frozenset()) -> Plan:
    """Compares the pictures with the rows of the index, in the order of their ids.

    unfinished: as in `About`; stale: ids of rows whose pictures are to be embedded again.
    """
    found: dict[str, Row | None] = {}  # path -> its row, None if that agrees with the picture
    known, surplus, shared, recent = dict[str, int](), list[int](), list[Missing](), list[str]()
    count, next_id = 0, 0
    for id, of_one_id in itertools.groupby(rows, lambda row: row.id):
        row, *others = of_one_id
        count, next_id = count + 1 + len(others), id + 1
        if others:  # their pictures count as new
            surplus.append(id)
            shared += [Missing(id, each.path, each.digest) for each in (row, *others)]
            continue
        if id not in stale:
            known[row.digest] = id
        picture = source.pictures.get(row.path)
        agrees = picture is not None and id not in stale and (row.size, row.changed, row.metadata) == picture[1:]
        if row.path in found:
            before = found.pop(row.path)  # inserted again below, to keep the order of ids
            surplus.append(id if before is None else before.id)  # a later row has a later state of the file
            agrees = agrees or before is None
        elif agrees and 0 <= unfinished <= id:
            recent.append(row.digest)
        found[row.path] = None if agrees else row
    # New pictures first, while the old rows of changed ones still have vectors that they may need. Changed ones in the
    # order of ids: `known` has the last row of each content, so it is replaced last.
    todo: list[tuple[Picture, Row | None]]
    todo = [(picture, None) for path, picture in source.pictures.items() if path not in found]
    todo += [(source.pictures[path], row) for path, row in found.items() if row and path in source.pictures]
    missing = [Missing(row.id, path, row.digest) for path, row in found.items() if row and path not in source.pictures]
    current = sum(row is None for row in found.values())
    return Plan(todo, current, missing, surplus, shared, recent, known, count, next_id)


def _about_during(about: About, plan: Plan) -> About:
    """Returns what the index states while a build runs; about: what it stated before, maybe by a stopped build."""
    unfinished, planned = about.unfinished, 0
    if plan.missing and plan.todo and unfinished < 0:
        unfinished = plan.next_id
    new = sum(old is None for _, old in plan.todo)
    if new and (about.planned or len(plan.todo) > ROWS):  # a single write is done whole or not at all
        planned = plan.rows + new
    return dataclasses.replace(about, unfinished=unfinished, planned=planned)


# ---- doing it


class _Entry(NamedTuple):
    """A picture that needs a row. With pixels it has to be embedded; without pixels and vector, the index has that."""

    picture: Picture
    old: Row | None
    digest: str
    pixels: np.ndarray | None = None  # (H, W, 3) uint8, as the model takes them
    vector: np.ndarray | None = None
    thumbnail: bytes | None = None


class _Work:
    """The pictures of a plan, on their way into the index.

    Attributes: counts, of rows written by kind; embedded, how many pictures were embedded; taken, how many vectors
    came from `ivt_jax.embed`; overwritten, how many indexed pictures were moved onto the path of another; unreadable,
    "path: reason"; reasons, how many of these have each reason.
    """

    def __init__(
        self,
        store: VectorStore,
        encoder: ImageEncoder,
        source: Source,
        plan: Plan,
        batch: int,
        vectors: ByDigest | None,
    ):
        self._store, self._encoder, self._plan, self._vectors = store, encoder, plan, vectors
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
        self._damaged: list[int] = []  # rows whose files can be read but are no pictures any more
        self.counts, self.embedded, self.taken, self.overwritten = collections.Counter[str](), 0, 0, 0
        self.unreadable: list[str] = []
        self.reasons = collections.Counter[str]()

    def run(self) -> float:
        """Reads, embeds and writes all pictures; deletes old rows that are replaced or whose pictures were moved.

        Returns the seconds that it took.
        """
        start = time.monotonic()
        entries = progress(self._entries(), len(self._plan.todo), "indexing: ", "pictures", brief=True)
        while some := list(itertools.islice(entries, ROWS)):
            self._write(some)
        return time.monotonic() - start

    def delete_old(self, prune: bool) -> tuple[int, Reasons]:
        """Deletes rows without pictures and surplus rows; returns how many had no picture, and why others are kept.

        Must be called when all rows are written: looks at the folders as they are then.
        """
        plan = self._plan
        # A stopped build may not have deleted the rows that its pictures were moved from.
        moved = [row.id for digest in plan.recent if (row := self._moved_from(digest))]
        unsure = [*self._missing.values(), *self._unread_rows]
        for row in plan.shared:
            if row.path in self._unread or row.path not in self._pictures:
                unsure.append(row._replace(reason=self._unread.get(row.path, "")))
        kept = {} if prune else self._reach.reasons_to_keep(unsure)
        gone = {*self._damaged, *(row.id for row in unsure)} - kept.keys()
        if not prune and plan.rows >= PRUNE_ROWS and PRUNE_SHARE * len(gone) > plan.rows:
            kept |= dict.fromkeys(gone, ("", TOO_MANY))
            gone = set()
        self._store.delete(sorted({*gone, *plan.surplus, *moved} - kept.keys()))
        return len(gone), kept

    def _entries(self) -> Iterator[_Entry]:
        """Yields an entry for each readable picture; those that have to be embedded come a batch at a time."""
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
                self.taken += entry.vector is not None
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
        self.unreadable.append(str(error))
        reason = str(error).removeprefix(f"{path}: ")
        self.reasons[reason] += 1
        if not isinstance(error, UnreachableError):
            self._damaged += [old.id] if old else []
            return
        self._unread[path] = reason
        self._unread_rows += [Missing(old.id, path, old.digest, reason)] if old else []

    def _read(self, item: tuple[Picture, Row | None]) -> _Entry:
        """Reads a picture, in a thread. Digest and pixels are of the same bytes, even if the file changes meanwhile."""
        picture, old = item
        same = old and (old.size, old.changed) == (picture.size, picture.changed)
        if old and same and old.digest in self._known:
            return _Entry(picture, old, old.digest)  # other metadata alone
        content = read_content(picture.path, self._root / picture.path)
        digest = hashlib.sha256(content)
        if digest.hexdigest() in self._known:
            return _Entry(picture, old, digest.hexdigest())
        image = open_image(picture.path, content)
        vector, upright = self._vectors.get(digest.digest()) if self._vectors else (None, True)
        if not upright and is_turned(io.BytesIO(content)):
            vector = None
        if vector is not None:
            vector = vector.astype(DTYPES[self._store.about.dtype])
        pixels = fit(image, self._encoder.size) if vector is None else None
        return _Entry(picture, old, digest.hexdigest(), pixels, vector, _thumbnail(image))

    def _embed(self, entries: list[_Entry]) -> Iterator[_Entry]:
        pixels = np.stack([entry.pixels for entry in entries])  # type: ignore[misc]
        vectors = self._encoder.embed(iter([pixels]), self._batch).astype(DTYPES[self._store.about.dtype])
        self.embedded += len(entries)
        for entry, vector in zip(entries, vectors, strict=True):
            yield entry._replace(pixels=None, vector=vector)

    def _write(self, entries: list[_Entry]) -> None:
        """Adds a row for each entry, all or none; then deletes the replaced rows and those of moved pictures."""
        donors = [self._known[entry.digest] if entry.vector is None else None for entry in entries]
        wanted = sorted({donor for donor in donors if donor is not None})
        found = {row.id: row for row in self._store.get(wanted, vectors=True, thumbnails=True)}
        rows: list[Row] = []
        for entry, donor in zip(entries, donors, strict=True):
            path, size, changed, metadata = entry.picture
            has = entry if donor is None else found[donor]
            number = self._next_id + len(rows)
            rows.append(Row(number, path, entry.digest, size, changed, metadata, has.vector, has.thumbnail))
        moved = [
            None if entry.old and entry.old.digest == entry.digest else self._moved_from(entry.digest)
            for entry in entries
        ]
        replaced = [entry.old for entry in entries if entry.old]
        self._store.add(rows)
        self._store.delete([row.id for row in (*replaced, *moved) if row])
        self._next_id += len(rows)
        for entry, moved_from in zip(entries, moved, strict=True):
            self._count(entry, moved_from)
        for row in replaced:
            if self._known.get(row.digest) == row.id:
                del self._known[row.digest]
        self._known.update({row.digest: row.id for row in rows})

    def _moved_from(self, digest: str) -> Missing | None:
        """Returns a row of this content whose file no longer exists, each such row once; None if there is none."""
        movable = self._movable.get(digest, [])
        while movable:
            row = movable.pop()
            if self._reach.was_moved(row):
                del self._missing[row.id]
                return row
        return None

    def _count(self, entry: _Entry, moved: Missing | None) -> None:
        if entry.old:
            same = (entry.digest, entry.picture.metadata) == (entry.old.digest, entry.old.metadata)
            self.counts["touched" if same else "changed"] += 1
            self.overwritten += moved is not None
        else:
            self.counts["renamed" if moved else "new"] += 1


def _thumbnail(image: Image.Image) -> bytes:
    """Returns a small JPEG of the pixels alone, without other data of the file, such as where it was taken."""
    image.thumbnail(THUMBNAIL)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=82, comment=b"")
    return file.getvalue()
