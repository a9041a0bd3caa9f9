"""Bodies and answers of `/v1/rerank` and `/v1/score`. Defines the wire's types and bounds."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, AliasChoices, BaseModel, Field, PlainValidator

from server.dialects.openai_schema import AnswerModel
from server.dialects.openai_shared import CacheSalt, PriorityField, WireModel, check_text

MOST_DOCUMENTS = 2048
Text = Annotated[str, AfterValidator(check_text)]
Query = Annotated[str, Field(min_length=1), AfterValidator(check_text)]


class TextObject(BaseModel):
    """A document as an object, for the schema; `check_document` checks it. Other fields are ignored."""

    text: str


def check_document(value: object) -> str:
    """Return a string, or an object's `text`. Raises ValueError."""
    text = value.get("text") if isinstance(value, dict) else value
    if not isinstance(text, str):
        raise ValueError("Input should be a string, or an object with a string 'text'")
    return check_text(text)


def check_texts(value: object) -> list[str] | str:
    """Return a text, or up to MOST_DOCUMENTS of them. Raises ValueError."""
    if not isinstance(value, list):
        return check_document(value)
    if not 1 <= len(value) <= MOST_DOCUMENTS:
        raise ValueError(f"Input should be a text, or a list of 1 to {MOST_DOCUMENTS}")
    return [check_document(each) for each in value]


Document = Annotated[str, PlainValidator(check_document, json_schema_input_type=str | TextObject)]


class ScoringFields(WireModel):
    """Fields common to both requests."""

    model: str | None = None
    instruction: Text | None = None
    max_tokens_per_query: int | None = Field(None, ge=1)
    max_tokens_per_doc: int | None = Field(None, ge=1)
    truncate_prompt_tokens: int | None = Field(None, ge=-1, json_schema_extra={"not": {"const": 0}})
    use_activation: bool | None = Field(None, validation_alias=AliasChoices("use_activation", "activation", "softmax"))
    cache_salt: CacheSalt | None = None
    prefix_cache: bool | None = None
    priority: PriorityField = None
    user: str | None = None


class RerankRequest(ScoringFields):
    query: Query
    documents: list[Document] = Field(min_length=1, max_length=MOST_DOCUMENTS)
    top_n: int | None = Field(None, ge=0)
    return_documents: bool | None = None


_Listed = Annotated[list[str | TextObject], Field(min_length=1, max_length=MOST_DOCUMENTS)]
Texts = Annotated[str | list[str], PlainValidator(check_texts, json_schema_input_type=str | TextObject | _Listed)]


class ScoreRequest(ScoringFields):
    text_1: Texts = Field(validation_alias=AliasChoices("text_1", "queries", "data_1"))
    text_2: Texts = Field(validation_alias=AliasChoices("text_2", "documents", "items", "data_2"))


class ReturnedDocument(AnswerModel):
    text: str


class RerankResult(AnswerModel):
    """A document: its index in the request, and its relevance, from 0 to 1."""

    index: int
    document: ReturnedDocument | None = None
    relevance_score: float


class ScoringUsage(AnswerModel):
    prompt_tokens: int
    total_tokens: int


class RerankAnswer(AnswerModel):
    """Results, most relevant first; each has its document unless `return_documents` is false."""

    id: str
    model: str
    usage: ScoringUsage
    results: list[RerankResult]


class Score(AnswerModel):
    index: int
    object: Literal["score"]
    score: float


class ScoreAnswer(AnswerModel):
    """Scores of the pairs, in order."""

    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[Score]
    usage: ScoringUsage
