"""The tables of a journal, as SQLAlchemy maps them. How they came to be is in ``migrations``."""

from typing import Any, ClassVar

from sqlalchemy import JSON, BigInteger, ForeignKey
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

MADE_BY = "alembic_version"  # the table in which Alembic keeps the last step


class Table(DeclarativeBase):
    """The base class of all."""

    type_annotation_map: ClassVar[dict[Any, Any]] = {dict[str, Any]: JSON(none_as_null=True), list[Any]: JSON}


class JournalRow(Table):
    """The journal itself, in one row: what tells whose database it is."""

    __tablename__ = "journals"

    id: Mapped[str] = mapped_column(primary_key=True)
    made: Mapped[str]


class CommitRow(Table):
    """A :class:`errata.journal.commit.Commit`; its parents in two columns."""

    __tablename__ = "commits"

    id: Mapped[str] = mapped_column(primary_key=True)
    parent: Mapped[str | None] = mapped_column(ForeignKey("commits.id"))
    merged: Mapped[str | None] = mapped_column(ForeignKey("commits.id"))
    depth: Mapped[int]
    patch: Mapped[str]
    size: Mapped[int] = mapped_column(BigInteger)
    author: Mapped[str]
    time: Mapped[str]
    why: Mapped[str]
    model: Mapped[str | None]
    fingerprint: Mapped[str | None]
    made: Mapped[list[Any]]
    edits: Mapped[list[Any]]
    added: Mapped[list[Any]]
    scores: Mapped[dict[str, Any]]
    review: Mapped[dict[str, Any] | None]
    how: Mapped[dict[str, Any] | None]


class NameRow(Table):
    """A name: a branch's or a tag's target is a commit, HEAD's is the branch that it is on."""

    __tablename__ = "names"

    name: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str]
    target: Mapped[str | None]
    seal: Mapped[str]
