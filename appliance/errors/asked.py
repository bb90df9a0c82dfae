"""Name what is wrong with a request: sending it again unchanged fails again.

What this room does: the branch `RequestError`.
What it knows: the limits that a request can be over.
What it never does: decide what a transport says of it.
"""

from __future__ import annotations

from appliance.errors.base import ApplianceError


class RequestError(ApplianceError):
    """The request can't be served as it stands."""


class InvalidRequest(RequestError):
    """A field is missing, of the wrong type, out of range or in contradiction to another one."""

    code = "INVALID_REQUEST"
    sentence = "{field}: {reason}"

    def __init__(self, *, field: str, reason: str) -> None:
        super().__init__(field=field, reason=reason)
        self.field = field
        self.reason = reason


class ModelNotServed(RequestError):
    """No version of that model is served here."""

    code = "MODEL_NOT_SERVED"
    sentence = "the model '{model}' is not served here"

    def __init__(self, *, model: str) -> None:
        super().__init__(model=model)
        self.model = model


class AdapterNotLoaded(RequestError):
    """The model is served here, but not with that LoRA adapter now; `loaded` names those it has."""

    code = "ADAPTER_NOT_LOADED"
    sentence = "the adapter '{adapter}' of '{model}' is {state}; loaded are: {loaded}"

    def __init__(self, *, model: str, adapter: str, state: str, loaded: str) -> None:
        super().__init__(model=model, adapter=adapter, state=state, loaded=loaded)
        self.adapter = adapter


class ContextTooLong(RequestError):
    """The prompt, with room for one token at least, does not fit into the context."""

    code = "CONTEXT_TOO_LONG"
    sentence = (
        "the prompt has {prompt_tokens} tokens; with the output the limit is {limit_tokens} tokens"
    )

    def __init__(self, *, prompt_tokens: int, limit_tokens: int) -> None:
        super().__init__(prompt_tokens=prompt_tokens, limit_tokens=limit_tokens)
        self.prompt_tokens = prompt_tokens
        self.limit_tokens = limit_tokens


class BodyTooLarge(RequestError):
    """The body is larger than the configured limit."""

    code = "BODY_TOO_LARGE"
    sentence = "the body is larger than the limit of {limit_bytes} bytes"

    def __init__(self, *, limit_bytes: int) -> None:
        super().__init__(limit_bytes=limit_bytes)
        self.limit_bytes = limit_bytes


class SchemaUnsupported(RequestError):
    """A constraint on the output can't be honoured; it is refused, never ignored."""

    code = "SCHEMA_UNSUPPORTED"
    sentence = "{field}: {reason}"

    def __init__(self, *, field: str, reason: str) -> None:
        super().__init__(field=field, reason=reason)
        self.field = field
        self.reason = reason


class RequestUnsafe(RequestError):
    """This request ended its worker twice and is not tried a third time."""

    code = "REQUEST_UNSAFE"
    sentence = "this request ended its worker process {worker_losses} times and is not tried again"

    def __init__(self, *, worker_losses: int) -> None:
        super().__init__(worker_losses=worker_losses)
        self.worker_losses = worker_losses


class RequestCancelled(RequestError):
    """The request was cancelled by CancelRequest or by the client going away."""

    code = "REQUEST_CANCELLED"
    sentence = "the request was cancelled"

    def __init__(self) -> None:
        super().__init__()


class StreamNotHeld(RequestError):
    """No resumable stream of that id is held for this client: there was none, or its time is up."""

    code = "STREAM_NOT_HELD"
    sentence = "no stream of the id '{request_id}' is held for this client"

    def __init__(self, *, request_id: str) -> None:
        super().__init__(request_id=request_id)


class StreamGone(RequestError):
    """The stream is held, and the event to go on from is not: too many came after it."""

    code = "STREAM_GONE"
    sentence = "event {from_seq} of the stream is gone; held are {first_seq} to {last_seq}"

    def __init__(self, *, from_seq: int, first_seq: int, last_seq: int) -> None:
        super().__init__(from_seq=from_seq, first_seq=first_seq, last_seq=last_seq)


class StreamTaken(RequestError):
    """Somebody else resumed the stream; it has one reader at a time."""

    code = "STREAM_TAKEN"
    sentence = "another reader has resumed this stream"

    def __init__(self) -> None:
        super().__init__()
