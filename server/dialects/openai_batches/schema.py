"""The bodies of `/v1/files` and `/v1/batches`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from server.dialects.openai_schema import AnswerModel

MetadataKey = Annotated[str, StringConstraints(max_length=64)]
MetadataValue = Annotated[str, StringConstraints(max_length=512)]


class FileObject(AnswerModel):
    """An uploaded file, or the answers of a batch."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: Literal["batch", "batch_output"]
    status: Literal["processed"] = "processed"


class FileList(AnswerModel):
    """A page of files."""

    object: Literal["list"] = "list"
    data: list[FileObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class DeletedFile(AnswerModel):
    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


class BatchRequest(BaseModel):
    """Parameters of a new batch. Unknown fields are ignored, and listed in a header of the answer."""

    model_config = ConfigDict(extra="allow")

    input_file_id: str
    endpoint: str
    completion_window: str
    metadata: Annotated[dict[MetadataKey, MetadataValue], Field(max_length=16)] | None = None

    @property
    def ignored(self) -> dict[str, Any]:
        return self.model_extra or {}


class BatchError(AnswerModel):
    code: str
    message: str
    line: int | None
    param: str | None


class BatchErrors(AnswerModel):
    object: Literal["list"] = "list"
    data: list[BatchError]


class RequestCounts(AnswerModel):
    total: int
    completed: int
    failed: int


class BatchObject(AnswerModel):
    """A batch, from its creation to its end."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    errors: BatchErrors | None
    input_file_id: str
    completion_window: str
    status: Literal[
        "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"
    ]
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: RequestCounts
    metadata: dict[str, str] | None


class BatchList(AnswerModel):
    """A page of batches."""

    object: Literal["list"] = "list"
    data: list[BatchObject]
    first_id: str | None
    last_id: str | None
    has_more: bool
