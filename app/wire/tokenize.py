"""Bodies of POST /v1/tokenize and related endpoints, in vLLM's format."""

from __future__ import annotations

from pydantic import BaseModel

from app.wire.fields import ForeignBody, ModelName, TokenIds, examples


class TokenizeRequest(ForeignBody):
    """A text to tokenise."""

    model_config = examples(
        {"prompt": "The cat sat on the mat."},
        {"prompt": " na\u00efve", "add_special_tokens": False, "return_offsets": True},
    )

    prompt: str
    """A text of at most `max_request_tokens`; the name of a special symbol alone is that symbol."""
    model: ModelName = None
    add_special_tokens: bool = True
    """Put the start symbol first, as in scoring."""
    return_token_strs: bool = False
    """List the tokens' strings."""
    return_token_bytes: bool = False
    """List the tokens' bytes."""
    return_offsets: bool = False
    """List the range of characters that each token covers."""


class TokenizeResponse(BaseModel):
    """A text's tokens. The lists are parallel.

    A list that was not requested is absent, except `token_strs`, which is null, as in vLLM.
    """

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None
    token_bytes: list[list[int]] | None = None
    offsets: list[tuple[int, int]] | None = None


class DetokenizeRequest(ForeignBody):
    """Tokens to turn into text."""

    model_config = examples({"tokens": [52, 148, 371, 4]})

    tokens: TokenIds
    """Token ids, at most `max_request_tokens`."""
    model: ModelName = None
    skip_special_tokens: bool = False
    """Omit special symbols instead of naming them."""


class DetokenizeResponse(BaseModel):
    """The text of tokens, U+FFFD where their bytes are not UTF-8."""

    prompt: str


class TokenizerInfo(BaseModel):
    """The tokenizer, under the names of Hugging Face's `tokenizer_config.json`."""

    tokenizer_class: str = "PreTrainedTokenizerFast"
    bos_token: str
    eos_token: str
    unk_token: str | None
    pad_token: str | None = None
    bos_token_id: int
    eos_token_id: int
    unk_token_id: int | None
    vocab_size: int
    model_max_length: int
    add_bos_token: bool = True
    add_eos_token: bool = False
