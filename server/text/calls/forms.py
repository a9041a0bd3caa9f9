"""The table of all call forms, and the selection of a model's form."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from server.text.calls.form import CallForm
from server.text.calls.json_forms import JSON_FORMS
from server.text.calls.tagged_forms import TAGGED_FORMS

FORMS: Mapping[str, CallForm] = {form.name: form for form in (*TAGGED_FORMS, *JSON_FORMS)}

GENERIC = replace(FORMS["json_tools"], name="generic", models="any other", own_words=True)
"""Form for a model with a template that does not support calls."""

_MOST_GENERAL = ("mistral_list", "granite", "llama_tagged", "json_tools")
"""Their marks also occur in the templates of other forms, so the other forms are tried first."""


def form_of(template: str, vocabulary: Collection[str], named: str | None = None) -> CallForm | None:
    """Return a model's form by its chat template and the names of its tokens; None if none matches.

    `named`: the row of the table that mlx-lm, or the model's own configuration, names.
    """
    if named == "mistral" and "[ARGS]" not in template and "[ARGS]" not in vocabulary:
        return FORMS["mistral_list"]
    if named is not None and named in FORMS:
        return FORMS[named]
    rows = sorted(FORMS.values(), key=lambda form: form.name in _MOST_GENERAL)
    by_template = (form for form in rows if form.template and all(mark in template for mark in form.template))
    by_tokens = (form for form in rows if form.vocabulary and all(mark in vocabulary for mark in form.vocabulary))
    return next(by_template, None) or next(by_tokens, None)
