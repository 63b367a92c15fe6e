"""What bodies in another API's words have in common: what that API has no word for is said as in a chat completion."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from livery.api.body import Body, WholeBody
from livery.api.ignored import ignored
from livery.api.retold import chat_body
from livery.api.schemas import ChatCompletionBody
from livery.api.unsupported import UNSUPPORTED_IN_RETOLD_STREAMS, refuse_unsupported


class RetoldStreamOptions(Body):
    unsupported = UNSUPPORTED_IN_RETOLD_STREAMS

    include_usage: bool | None = ignored("the end of every stream tells it")
    include_obfuscation: bool | None = ignored("events aren't padded")


class RetoldBody(WholeBody):
    """A request that becomes a chat completion. `unsupported` may name fields of the schema too."""

    names: ClassVar[Mapping[str, str]] = {}  # what a chat completion calls what the client wrote, as in `params_named`

    stream_options: RetoldStreamOptions | None = None

    def check(self) -> None:
        """Raises UnsupportedParameter for what this server doesn't do, and for what has a word of its own here."""
        refuse_unsupported({**self.__dict__, **(self.model_extra or {})}, self.unsupported)
        if self.stream_options is not None:
            options = self.stream_options
            refuse_unsupported(options.model_extra or {}, options.unsupported, "stream_options.")

    def to_chat(self) -> ChatCompletionBody:
        """The chat completion asked for; fields that this body doesn't know stand there as they came, to be taken,
        refused or counted as unknown. Raises InvalidParameter or UnsupportedParameter.
        """
        said = {name: value for name, value in self.chat_fields().items() if value is not None}
        return chat_body({**(self.model_extra or {}), **said}, self.names)

    def chat_fields(self) -> dict[str, object]:
        """What this body's own fields are in a chat completion; None is absent."""
        raise NotImplementedError
