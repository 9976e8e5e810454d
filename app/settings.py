"""Settings, each from the environment as CONVLM_<NAME> (docs/reference/settings.md)."""

from __future__ import annotations

import re
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from app.errors import TooLargeError

SHIPPED = Path(__file__).parent.parent / "model" / "bundles" / "prose-18m-3"

Positive = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Network = IPv4Network | IPv6Network
_HOST = re.compile(
    r"(?:(?:\*\.)?[a-z0-9_-][a-z0-9_.-]*|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?|[0-9a-f:.]+",
    re.ASCII | re.IGNORECASE,
)
"""A name, perhaps with an ending's `*.`, or an address, with or without a port."""


def parse_networks(value: str) -> list[Network]:
    """The networks in a list separated by commas; `*` means all. Raises ValueError."""
    if value.strip() == "*":
        return [ip_network("0.0.0.0/0"), ip_network("::/0")]
    return [ip_network(each.strip(), strict=False) for each in value.split(",") if each.strip()]


class Settings(BaseSettings):
    """A request over a limit is answered with 413."""

    model_config = SettingsConfigDict(env_prefix="CONVLM_", env_ignore_empty=True, frozen=True)

    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    """Address to listen on."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """Port to listen on."""
    cors_origins: str = ""
    """Origins of web pages that may send requests, separated by commas, or `*`."""
    allowed_hosts: str = ""
    """Names that requests may give in their Host header besides the loopback names, separated by
    commas, or `*` for any."""
    bundle: Path = SHIPPED
    """The bundle to serve; of the default model, if `bundles` is set too."""
    bundles: Path | None = None
    """A folder of bundles; each is a model, named as its folder."""
    loading: Literal["eager", "lazy"] = "eager"
    """`lazy` loads every model but the default when it is first needed."""
    reload_seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Interval of scans for changed bundles; 0 means only at SIGHUP."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model runs; `auto` uses CUDA if it works."""
    precision: Literal["auto", "float32", "float16", "int8"] = "auto"
    """Number format of the model; `auto` uses 8 bits if they cost at most 0.2 % perplexity."""
    threads: Annotated[int, Field(ge=0, le=1024)] = 0
    """Threads of the engine on CPU; 0 means one per core."""
    sessions: Annotated[int, Field(ge=0, le=1024)] = 0
    """Concurrent batches on CPU, each with its share of the threads; 0 means one per thread, at
    most 4. A batch that runs alone gets all threads if that makes it faster."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Lowest severity that is logged."""

    max_batch_tokens: Positive = 256
    """Rows of a batch; twice as many while at least eight requests wait."""
    max_stream_batch_tokens: Positive = 64
    """Rows of a batch while texts are being generated, so that a stream's step stays short; also
    rows whose distribution is wanted, to bound arrays that are as wide as the vocabulary."""
    max_batch_seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 30.0
    """Time of a batch, ordinarily some milliseconds, after which the server is not ready until it
    ends; after three times as long the server ends."""
    max_open_sequences: Positive = 1024
    """Streams and partly scored texts that hold a state at once; others wait."""
    max_queue_seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 10.0
    """Time that the work of all requests may take at the measured rate; a request that would exceed
    it gets 503, and so does one that has waited for so long."""

    max_request_texts: Positive = 1024
    """Texts, utterances, prompts times choices, or candidates in one request."""
    max_request_hypotheses: Positive = 16_384
    """Hypotheses of all utterances of one request together."""
    max_request_tokens: Positive = 1_000_000
    """Tokens in one request, prompts and contexts included; also `max_model_len`."""
    max_request_bytes: Positive = 16 * 1024 * 1024
    """Bytes of a request's body."""
    max_open_body_bytes: Positive = 256 * 1024 * 1024
    """Bytes of all long bodies whose requests are not answered yet; a request that would exceed it
    gets 503."""
    max_completion_tokens: Positive = 16_384
    """Tokens that one choice may generate."""
    max_top_logprobs: Positive = 20
    """Alternatives listed per token."""
    max_top_k: Positive = 1000
    """Tokens listed by /v1/next."""
    max_stop_strings: Positive = 16
    """Stop strings of a completion; more than OpenAI's 4, since evaluation tools send more."""
    notice_seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    """Time after SIGTERM in which connections are still accepted, so that balancers notice."""
    drain_seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 10.0
    """Time that open requests have to finish when the server stops, before they get an error."""

    head_seconds: Seconds = 10.0
    """Time for the head of a request, from the connection's beginning or the head's first byte."""
    body_seconds: Seconds = 30.0
    """Time without a byte of a body that the server waits for."""
    reader_seconds: Seconds = 60.0
    """Time in which a client takes nothing of a response that waits for it."""
    idle_seconds: Seconds = 75.0
    """Time that a connection stays open without a request; longer than that of proxies, often 60,
    since a proxy must not send a request while the server closes the connection."""
    max_connections: Annotated[int, Field(ge=0)] = 0
    """Open connections; 0 means as many as the limit of open files has room for."""
    max_connections_per_address: Annotated[int, Field(ge=0)] = 0
    """Open connections of one address, or IPv6 network of 64 bits; 0 means no limit."""
    trusted_proxies: str = "127.0.0.1,::1"
    """Addresses or networks of proxies, separated by commas, or `*`: `X-Forwarded-For` counts from
    them, and their connections do not count by address."""

    @field_validator("allowed_hosts")
    @classmethod
    def _check_hosts(cls, value: str) -> str:
        for name in value.split(","):
            if value.strip() != "*" and name.strip() and not _HOST.fullmatch(name.strip()):
                raise ValueError(
                    f"{name.strip()!r} is no name or address; `*` must be the whole value or be "
                    "followed by `.` and a name, and names have ASCII letters only (`xn--`)"
                )
        return value

    @field_validator("trusted_proxies")
    @classmethod
    def _check_proxies(cls, value: str) -> str:
        parse_networks(value)
        return value

    @property
    def trusted_networks(self) -> list[Network]:
        """The networks in `trusted_proxies`."""
        return parse_networks(self.trusted_proxies)

    @property
    def origins(self) -> list[str]:
        """The origins in `cors_origins`."""
        return [origin.strip(" /") for origin in self.cors_origins.split(",") if origin.strip(" /")]

    @property
    def allowed_names(self) -> list[str]:
        """The names in `allowed_hosts`."""
        return [name.strip() for name in self.allowed_hosts.split(",") if name.strip()]

    @property
    def names_bundle(self) -> bool:
        """Whether `bundle` was given."""
        return "bundle" in self.model_fields_set

    @property
    def reloads(self) -> bool:
        """Whether bundles are expected to change while they are served."""
        return self.bundles is not None or self.reload_seconds > 0

    def check_limit(self, field: str, value: int, limit: str) -> None:
        """Raises TooLargeError when a field's value is over the setting named `limit`."""
        allowed: int = getattr(self, limit)
        if value > allowed:  # the value last, since it may be long and is cut
            raise TooLargeError(f"{field}: over the limit {limit}, {allowed}: {value}", field)

    def lower_default(self, body: BaseModel, field: str, limit: str) -> None:
        """Gives a field that a body leaves out the limit, if its default is above it."""
        allowed: int = getattr(self, limit)
        if field not in body.model_fields_set and getattr(body, field) > allowed:
            setattr(body, field, allowed)
