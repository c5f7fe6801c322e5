"""The sections `fileset` and `input`: which files there are, and how they are read."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, field_validator, model_validator
from pydantic_core import PydanticCustomError

from hepdask.config.base import Count, LocalPath, Section, shape_of
from hepdask.files.paths import split_tree

#: The tree of a file of which nothing else is said.
DEFAULT_TREE = "Delphes"


class File(Section):
    """One file of a dataset, in the form that coffea's `preprocess` gives, and with a checksum if there is one."""

    object_path: str | None = Field(
        None, description="name of the tree or RNTuple; default: the one in `path.root:Tree`, else `Delphes`"
    )
    num_entries: int | None = Field(None, ge=0, description="number of entries")
    steps: tuple[tuple[int, int], ...] | None = Field(
        None, description="ranges of entries, each read as a whole; default: all"
    )
    uuid: str | None = Field(None, description="UUID that the file must have")
    checksum: str | None = Field(
        None,
        pattern=r"^(adler32|md5|sha1|sha256|sha512):[0-9a-fA-F]+$",
        description="`adler32:…`, `md5:…`, `sha256:…`: the whole file is read and compared with it before use",
    )
    format: Literal["root"] | None = Field(None, description="coffea's name of the format")
    num_selected_entries: int | None = Field(
        None, description="written by coffea, not used here; nor are the next two"
    )
    lfn: str | None = Field(None, description="logical file name")
    pfn: str | None = Field(None, description="physical file name")

    @field_validator("steps")
    @classmethod
    def _hold_something(cls, steps: tuple[tuple[int, int], ...] | None) -> tuple[tuple[int, int], ...] | None:
        """Leave out 0 to 0, as coffea writes for a file without entries."""
        return steps and tuple(step for step in steps if step != (0, 0))

    @model_validator(mode="after")
    def _steps_are_in_order(self) -> File:
        last = 0
        for start, stop in self.steps or ():
            if not last <= start < stop or (self.num_entries is not None and stop > self.num_entries):
                raise ValueError(
                    f"steps: {start} to {stop} is empty, overlaps others, or lies outside the file"
                )
            last = stop
        return self


_Tree = Annotated[
    Annotated[str | None, Tag("name")] | Annotated[File, Tag("mapping")],
    Discriminator(
        shape_of,
        custom_error_type="text",
        custom_error_message="give the name of the tree, or {object_path, steps, num_entries, uuid, checksum}",
    ),
]


_Files = Annotated[
    Annotated[dict[LocalPath, _Tree], Tag("mapping")] | Annotated[list[LocalPath], Tag("list")],
    Discriminator(
        shape_of,
        custom_error_type="files",
        custom_error_message="give {path: tree}, or a list of paths",
    ),
]


# read and let go: it would travel to every worker
_Unused = Annotated[str | None, AfterValidator(lambda _: None)]


class Dataset(Section):
    """One dataset of a fileset, in coffea's format."""

    files: _Files = Field(
        description="{path: tree}, {path: {object_path, steps, num_entries, uuid, checksum}}, or a list of paths (tree "
        "`Delphes`, or `path.root:Tree`); globs and root:// directories are expanded"
    )
    metadata: dict[str, Any] = Field(
        description="must hold `label`, the name of the class; other keys are kept"
    )
    format: Literal["root"] | None = Field(None, description="coffea's name of the format", exclude=True)
    form: _Unused = Field(
        None, description="written by coffea, not used here; nor are the next two", exclude=True
    )
    compressed_form: _Unused = Field(None, description="form of the events, compressed", exclude=True)
    did: _Unused = Field(None, description="name in Rucio", exclude=True)

    @model_validator(mode="after")
    def _has_label(self) -> Dataset:
        if "label" not in self.metadata:
            raise ValueError("metadata.label is missing: give the name of the class these events belong to")
        if not isinstance(self.metadata["label"], str):
            raise PydanticCustomError("text", "metadata.label must be text, the name of a class")
        for path, file in self._named:
            _, tree = split_tree(path)
            said = file if isinstance(file, str) else file and file.object_path
            if tree and said and tree != said:
                raise ValueError(f"files.{path}: the tree is {tree} in the path, and {said} behind it")
        return self

    @property
    def _named(self) -> list[tuple[str, str | File | None]]:
        if isinstance(self.files, dict):
            return list(self.files.items())
        return [(path, None) for path in self.files]

    @property
    def trees(self) -> list[tuple[str, str, File]]:
        """Path (or pattern), name of the tree, and what is known of the file."""
        found = []
        for named, file in self._named:
            path, tree = split_tree(named)
            known = File(object_path=file) if isinstance(file, str) else file or File()
            found.append((path, tree or known.object_path or DEFAULT_TREE, known))
        return found


class XRootD(Section):
    """Bounds of the XRootD client [s]; a dead server is noticed within about their sum."""

    connection_window: Count = Field(5, description="longest time of one connection attempt")
    connection_retry: Count = Field(2, description="number of connection attempts")
    request_timeout: Count = Field(30, description="longest time of one request")
    stream_timeout: Count = Field(15, description="longest time without data on an open connection")
    stream_error_window: Count = Field(30, description="wait before a broken connection is tried again")

    def client_settings(self) -> dict[str, int]:
        """Give the settings by the client's own names."""
        return {
            "ConnectionWindow": self.connection_window,
            "ConnectionRetry": self.connection_retry,
            "RequestTimeout": self.request_timeout,
            "StreamTimeout": self.stream_timeout,
            "StreamErrorWindow": self.stream_error_window,
            "TimeoutResolution": 1,
            "RunForkHandler": 1,
        }


class Input(Section):
    """How the files are read, and what happens where they cannot be."""

    routes: tuple[str, ...] = Field(
        ("{url}",),
        min_length=1,
        description="addresses to try in turn: `{url}` is the address in the fileset, `{path}` its absolute path; "
        "for example `root://cache.example//{url}` or `root://other.example/{path}`",
    )
    read_retries: int = Field(2, ge=0, description="further rounds over all routes if none reaches the file")
    retry_wait: float = Field(
        1.0, ge=0, description="wait before the first further round [s]; doubled each time"
    )
    chunk_memory: Count = Field(256, description="memory filled by one chunk [MB of uncompressed branches]")
    chunk_events: Count | None = Field(
        None, description="most entries in one chunk; default: as many as chunk_memory allows"
    )
    xrootd: XRootD = Field(default_factory=XRootD, description="time-outs of root:// input")
