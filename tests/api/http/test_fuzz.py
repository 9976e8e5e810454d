"""Requests that schemathesis makes of the schema, with all of its checks of the responses.

`make test` sends some, always the same; `make fuzz` sends more, others each time.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import settings
from schemathesis.checks import CheckFunction, not_a_server_error
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from app.main import create_app
from tests.api.conftest import Server, serving, settings_for

LIMITS = {"max_completion_tokens": 20, "max_top_logprobs": 5, "max_request_texts": 50}
"""So that no request asks for much work."""
TOKENS = 400

REFUSED = {
    r"an empty text has nothing to score": "unless the end symbol is scored, says `add_eos`",
    r"no token to score": "of a text without a start symbol the first token is not scored",
    r"an empty candidate has no probability": "nothing goes on with no token",
    r"an empty prompt needs its start symbol": "without it there is nothing to go on from",
    r"has no prior and others of its utterance have one": "all hypotheses have one, or none has",
    r"it excludes top_logprobs and ranks": "`cache` is for the text's own tokens",
    r"over the limit max_request_(texts|hypotheses)": "of all lists, or of prompts times `n`",
    r"best_of: must be null or equal to n": "as in OpenAI's interface",
    r"stream_options: needs stream to be true": "as in OpenAI's interface",
    r"prompt_logprobs: not with stream": "as in vLLM",
    r"logprob_token_ids: not with prompt_logprobs": "both name the alternatives",
    r"min_tokens: must not be above max_tokens": "nothing could end the text",
    r"no token is left that may be generated": "the fields together forbid all",
    r"bad_words\.\d+: there is no word": "white space alone is a word's mark, not a word",
    r"logit_bias: token id \d+ .* is not in the vocabulary": "a pattern cannot bound a number",
    r"logprobs: over the limit max_top_logprobs": "-1 stands for the vocabulary, whose size counts",
}
"""Why a body that the schema allows may be refused: it cannot say what fields mean together."""


def narrowed(part: Any) -> Any:
    """A schema of requests that get beyond their names: the tiny model's tokens, and its name.

    Pairs are written without `prefixItems`, which schemathesis 4.32 takes for an older draft's.
    """
    if isinstance(part, list):
        return [narrowed(item) for item in part]
    if not isinstance(part, dict):
        return part
    if part.get("maximum") == 2**31 - 1:
        return {**part, "maximum": TOKENS - 1}
    if part.get("description") == "A name from /v1/models.":
        return {**part, "enum": ["tiny", None]}
    made = {key: narrowed(value) for key, value in part.items()}
    if pair := made.pop("prefixItems", None):
        made["items"] = pair[0]
    return made


@schemathesis.serializer("application/x-ndjson")
def as_line(_: object, value: Any) -> bytes:
    """A body of one line."""
    return json.dumps(value).encode() + b"\n"


API = schemathesis.openapi.from_dict(
    narrowed(create_app(settings_for(Path("nowhere"), **LIMITS)).openapi())
).exclude(path_regex="^/(de)?token")  # the same endpoints as below /v1


_rejection = API.config.checks.negative_data_rejection
_rejection.expected_statuses = [*_rejection.expected_statuses, "413"]  # a bound of the settings


@pytest.fixture(scope="module")
def limited(tiny_folder: Path) -> Iterator[Server]:
    """The server of this schema."""
    with serving(settings_for(tiny_folder, **LIMITS)) as running:
        yield running


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    """A connection that is kept."""
    with requests.Session() as made:
        made.trust_env = False
        yield made


def excused(case: schemathesis.Case, response: schemathesis.Response) -> list[CheckFunction]:
    """The checks that a response need not pass."""
    if response.status_code == 504:  # its own time was over
        return [not_a_server_error]
    if response.status_code in (400, 413):
        message = response.json()["error"]["message"]
        if any(re.search(pattern, message) for pattern in REFUSED):
            return [positive_data_acceptance]
    if case.operation.path == "/v1/score/stream" and response.status_code == 200:
        first = json.loads(response.content.splitlines()[0])
        if "error" in first or first.get("lines") == 0:  # a bad line is told so by its answer
            return [negative_data_rejection]
    return []


@API.parametrize()
@settings(settings.get_profile("fuzz"))
def test_responses_are_as_the_schema_says(
    case: schemathesis.Case, limited: Server, session: requests.Session
) -> None:
    response = case.call(base_url=limited.url, session=session)
    case.validate_response(response, excluded_checks=excused(case, response))


def test_the_server_is_well_afterwards(limited: Server) -> None:
    limited.assert_alive()
