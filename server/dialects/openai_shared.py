"""Common parts of requests in the OpenAI dialects: sampling fields, and checks of values.

Uses pydantic, as the schemas do. Imports no dialect.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AliasChoices, BaseModel, ConfigDict, Field, PlainValidator, field_validator

from mlx_backend.api.interface import Priority, SamplingParams
from server.dialects.openai_refusals import NO_EFFECT as NO_EFFECT
from server.dialects.openai_refusals import UNSUPPORTED as UNSUPPORTED
from server.dialects.openai_refusals import check_extra as check_extra
from server.dialects.openai_schema import JSONText, NotEmpty, ResponseFormat, StructuredOutputs
from server.dialects.openai_schema import TokenId as TokenId
from server.dialects.priorities import check_priority
from server.errors import InvalidRequest, UnsupportedParameter
from server.request_defaults import MAX_STOPS as MAX_STOPS
from server.request_defaults import SAMPLING

MAX_CHOICES = 128
BIAS_KEY = "[0-9]{1,9}"


class WireModel(BaseModel):
    """A body as clients write it: strict types, no NaN; unknown fields are kept for checks."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False, protected_namespaces=())


def check_text(value: object) -> str:
    """Return `value`, a string that can be encoded. Raises ValueError."""
    if not isinstance(value, str):
        raise ValueError("Input should be a valid string")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("it is not valid Unicode (half of a surrogate pair)") from None
    return value


def check_stop(value: object) -> list[str] | None:
    """Return None, or the strings of a string or a list of up to MAX_STOPS, none empty. Raises ValueError."""
    if value is None:
        return None
    stops = value if isinstance(value, list) else [value]
    if len(stops) > MAX_STOPS:
        raise ValueError(f"there may be at most {MAX_STOPS} stop strings")
    if not all(isinstance(stop, str) for stop in stops):
        raise ValueError("Input should be a string or a list of strings")
    if not all(stops):
        raise ValueError("a stop string must not be empty")
    return [check_text(stop) for stop in stops]


def check_object(value: object) -> dict[str, Any] | None:
    """Return None or an object, with its content unchecked. Raises ValueError."""
    if value is None or isinstance(value, dict):
        return value
    raise ValueError("Input should be an object")


StopStrings = NotEmpty | Annotated[list[NotEmpty], Field(max_length=MAX_STOPS)]
Breaker = Annotated[str, Field(min_length=1, max_length=64), AfterValidator(check_text)]
BadWord = Annotated[str, Field(min_length=1, max_length=256), AfterValidator(check_text)]
CacheSalt = Annotated[str, Field(min_length=1, max_length=256), AfterValidator(check_text)]


PriorityField = Annotated[
    Priority | int | None,
    PlainValidator(check_priority, json_schema_input_type=Priority | int | None),
]
"""A class, or a number as in vLLM and Cohere: less than 0 is live, 0 is normal, more is batch."""


def check_max_tokens(value: int) -> int:
    """Return a number of tokens; -1 means as many as fit. Raises ValueError."""
    if value == 0:
        raise ValueError("Input should be greater than or equal to 1, or -1 for as many as there is room for")
    return value


MaxTokens = Annotated[int, Field(ge=-1, json_schema_extra={"not": {"const": 0}}), AfterValidator(check_max_tokens)]


class PredictedPart(WireModel):
    type: Literal["text"]
    text: str


class Prediction(WireModel):
    """The expected answer; matching tokens are computed several at a time."""

    type: Literal["content"]
    content: str | list[PredictedPart]


class StreamOptions(WireModel):
    include_usage: bool | None = None


class SamplingFields(WireModel):
    """Fields that the dialects have in common. None is the same as absent."""

    model: str | None = None
    n: int | None = Field(None, ge=1, le=MAX_CHOICES)
    max_tokens: MaxTokens | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=-1)
    min_p: float | None = Field(None, ge=0, le=1)
    stop: Annotated[list[str] | None, PlainValidator(check_stop, json_schema_input_type=StopStrings | None)] = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**64)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(
        None, gt=0, validation_alias=AliasChoices("repetition_penalty", "repeat_penalty")
    )
    typical_p: float | None = Field(None, gt=0, le=1)
    top_n_sigma: float | None = Field(None, ge=-1, le=100)
    xtc_probability: float | None = Field(None, ge=0, le=1)
    xtc_threshold: float | None = Field(None, ge=0, le=1)
    dry_multiplier: float | None = Field(None, ge=0, le=100)
    dry_base: float | None = Field(None, ge=1, le=8)
    dry_allowed_length: int | None = Field(None, ge=1, le=50)
    dry_range: int | None = Field(None, ge=2, le=8192)
    dry_sequence_breakers: list[Breaker] | None = Field(None, max_length=64)
    min_tokens: int | None = Field(None, ge=0)
    stop_token_ids: list[TokenId] | None = Field(None, max_length=64)
    allowed_token_ids: list[TokenId] | None = Field(None, min_length=1, max_length=2**16)
    bad_words: list[BadWord] | None = Field(None, max_length=256)
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = Field(
        None, json_schema_extra={"propertyNames": {"pattern": f"^{BIAS_KEY}$"}}
    )
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    ignore_eos: bool | None = None
    speculation: bool | None = None
    prediction: Prediction | None = None
    cache_salt: CacheSalt | None = None
    prefix_cache: bool | None = None
    response_format: Annotated[
        dict[str, Any] | None, PlainValidator(check_object, json_schema_input_type=ResponseFormat | None)
    ] = None
    guided_json: dict[str, Any] | JSONText | None = None
    guided_regex: str | None = Field(None, min_length=1)
    guided_choice: list[NotEmpty] | None = Field(None, min_length=1)
    guided_grammar: str | None = Field(None, min_length=1)
    structured_outputs: Annotated[
        dict[str, Any] | None, PlainValidator(check_object, json_schema_input_type=StructuredOutputs | None)
    ] = None
    user: str | None = None
    priority: PriorityField = None
    service_tier: str | None = None

    @field_validator("logit_bias")
    @classmethod
    def _check_bias_keys(cls, value: dict[str, float] | None) -> dict[str, float] | None:
        for key in value or ():
            if not re.fullmatch(BIAS_KEY, key):
                raise ValueError("the keys must be token ids")
        return value


def decode_sampling(fields: SamplingFields, num_logprobs: int | None) -> SamplingParams:
    bias = fields.logit_bias or {}
    neutral = SamplingParams()
    return SamplingParams(
        temperature=_or(fields.temperature, neutral.temperature),
        top_p=fields.top_p or neutral.top_p,
        top_k=1 if fields.top_p == 0 else max(_or(fields.top_k, neutral.top_k), 0),
        min_p=_or(fields.min_p, neutral.min_p),
        repetition_penalty=_or(fields.repetition_penalty, neutral.repetition_penalty),
        presence_penalty=_or(fields.presence_penalty, neutral.presence_penalty),
        frequency_penalty=_or(fields.frequency_penalty, neutral.frequency_penalty),
        typical_p=_or(fields.typical_p, neutral.typical_p),
        top_n_sigma=max(_or(fields.top_n_sigma, neutral.top_n_sigma), 0.0),
        xtc_probability=_or(fields.xtc_probability, neutral.xtc_probability),
        xtc_threshold=_or(fields.xtc_threshold, neutral.xtc_threshold),
        dry_multiplier=_or(fields.dry_multiplier, neutral.dry_multiplier),
        dry_base=_or(fields.dry_base, neutral.dry_base),
        dry_allowed_length=_or(fields.dry_allowed_length, neutral.dry_allowed_length),
        dry_range=_or(fields.dry_range, neutral.dry_range),
        logit_bias=tuple(sorted((int(key), value) for key, value in bias.items())),
        allowed_token_ids=tuple(sorted(set(fields.allowed_token_ids or ()))),
        seed=None if fields.seed is None else fields.seed % 2**64,
        num_logprobs=num_logprobs,
    )


def given_fields(fields: SamplingFields, max_tokens: int | None) -> frozenset[str]:
    """Return the names of fields with a value, among those that a model may set defaults for."""
    names = {name for name in (*SAMPLING, "stop") if getattr(fields, name) is not None}
    if fields.top_p == 0:
        names.add("top_k")  # top_p 0 sets it to 1
    return frozenset(names if max_tokens is None else {*names, "max_tokens"})


def decode_breakers(fields: SamplingFields) -> tuple[str, ...] | None:
    breakers = fields.dry_sequence_breakers
    return None if breakers is None else tuple(breakers)


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


def check_stream_options(fields: SamplingFields) -> list[str]:
    """Return the unknown names in `stream_options`, dotted. Raises InvalidRequest if the request does not stream."""
    options = fields.stream_options
    if options is None:
        return []
    if not fields.stream:
        raise InvalidRequest("'stream_options' is only allowed when 'stream' is true.", param="stream_options")
    extra = options.model_extra or {}
    try:
        unknown = check_extra(extra, {"continuous_usage_stats": (False,)}, {"include_obfuscation"})
    except UnsupportedParameter as error:
        raise UnsupportedParameter(f"stream_options.{error.param}") from None
    return [f"stream_options.{name}" for name in unknown]


def decode_prediction(fields: SamplingFields) -> str | None:
    """Return the expected text of the answer, or None."""
    if fields.prediction is None:
        return None
    content = fields.prediction.content
    return content if isinstance(content, str) else "".join(part.text for part in content)
