"""What the service refuses with: facts and words, no status codes (those are one table in `api.errors`).

ServiceRefusal
├── UnknownModel            no base model or adapter of that name
├── InvalidParameter        a field's value can't be honoured
│   ├── UnsupportedParameter   the field asks for something this server doesn't do
│   └── UnknownParameter       the field is unknown, and fields must be known
├── ContextLengthExceeded   prompt and answer don't fit the model
├── Overloaded              the server has no room now
│   └── OutOfDescriptors       it has as many files and sockets open as it may
├── GrammarUntried          whether an answer can be held to a grammar isn't found out now
├── Draining                the server is stopping
├── TooManyIntakes          too many adapters are on their way in
├── NotReady                the engine doesn't answer in time
├── GenerationFailed        a request broke after it was taken
│   ├── DeadlineExceeded       its time was up before it was done
│   ├── AdapterTooLarge        its adapter takes more memory than its tenant may have
│   └── AdapterReplaced        its adapter has another version, and what ran on the older was to end
├── AdapterUnusable         the adapter is known and can't be served
├── AdapterNotReady         the adapter is being loaded
├── PreconditionFailed      an adapter is no longer as a change expects it
├── AdapterExists           a name to load is taken
├── AdapterNotFound         no adapter to unload of that name
├── AdapterPathNotFound     nothing to load at the path given
└── AdapterFieldEmpty       a load or unload names no adapter or no path
"""

from __future__ import annotations

from livery.engine.codes import ADAPTER_TOO_LARGE, DEADLINE_EXCEEDED


class ServiceRefusal(Exception):
    """Base of what the service raises on purpose; the message is fit for the client."""


class UnknownModel(ServiceRefusal):
    """No model of that name is served; `reason` says why where a version was pinned that isn't there."""

    def __init__(self, name: str, reason: str | None = None) -> None:
        # Both the words `model_not_found` and the type are what gateways look for in the text.
        because = f": {reason}" if reason else ""
        super().__init__(
            f"The model '{name[:128]}' does not exist (model_not_found){because}. "
            "GET /v1/models lists the models served here."
        )
        self.name = name


class InvalidParameter(ServiceRefusal):
    """A field's value can't be honoured. `param` is the dotted path of the field."""

    def __init__(self, message: str, param: str | None) -> None:
        super().__init__(message)
        self.param = param


class UnsupportedParameter(InvalidParameter):
    """The field would change the answer in a way this server doesn't implement."""


class UnknownParameter(InvalidParameter):
    """A request has a field that no route knows, and the server was told to refuse such. Worded as OpenAI does."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"Unrecognized request argument supplied: {name}. This server takes no unknown fields (--strict-params).",
            name,
        )


class ContextLengthExceeded(ServiceRefusal):
    """Prompt tokens plus the answer asked for exceed the model's context. Lengths in tokens.

    `uncounted`: the prompt was too long to count, and has at least that many.
    """

    def __init__(self, limit: int, prompt: int, answer: int | None, param: str, *, uncounted: bool = False) -> None:
        asked = f"{'at least ' if uncounted else ''}{prompt} tokens in the prompt"
        if answer is not None:
            asked = f"{prompt + answer} tokens ({asked}, {answer} for the completion)"
        super().__init__(
            # Clients know this case by these words: LiteLLM by the first ones, LangChain by "prompt is too long".
            f"This model's maximum context length is {limit} tokens. However, you requested {asked}. "
            "Your prompt is too long for that: please shorten it or ask for fewer tokens."
        )
        self.param = param


class Overloaded(ServiceRefusal):
    """The server has no room for more of `what`, of which it holds so many; `retry_after` is in seconds."""

    def __init__(self, held: int, what: str, retry_after: int) -> None:
        super().__init__(f"The server is full: {held} {what} are open or waiting. Please retry in {retry_after} s.")
        self.retry_after = retry_after


class OutOfDescriptors(Overloaded):
    """The process has as many files and sockets open as it may."""

    def __init__(self, retry_after: int = 1) -> None:
        ServiceRefusal.__init__(
            self,
            "The server has as many files and sockets open as the system lets it (ulimit -n, which its operator can "
            f"raise). Please retry in {retry_after} s.",
        )
        self.retry_after = retry_after


class ReplicaLost(ServiceRefusal):
    """The replica that had the request is gone, and nobody knows how far it was."""

    retry_after = 1

    def __init__(self) -> None:
        super().__init__("The replica that worked on this request was lost. Please retry; another one takes it.")


class GrammarUntried(ServiceRefusal):
    """Whether an answer can be held to a grammar isn't found out now; `retry_after` is in seconds."""

    def __init__(self, reason: str, retry_after: int = 1) -> None:
        super().__init__(
            f"The schema or grammar is new here and couldn't be tried out: {reason}. Please retry shortly."
        )
        self.retry_after = retry_after


class TooManyIntakes(ServiceRefusal):
    """Too many adapters are on their way in; `retry_after` is in seconds."""

    def __init__(self, limit: int, retry_after: int) -> None:
        super().__init__(
            f"The server is already taking in {limit} adapters, which is as many as it does at once. "
            "Please retry when one of them is done."
        )
        self.retry_after = retry_after


class Draining(ServiceRefusal):
    """The server finishes what it has and takes nothing new; `retry_after` is in seconds."""

    def __init__(self, retry_after: int = 5) -> None:
        super().__init__("The server is shutting down and takes no new requests. Please retry shortly.")
        self.retry_after = retry_after


class NotReady(ServiceRefusal):
    """The engine doesn't answer in time, or something else that requests need doesn't run."""

    def __init__(self, reason: str = "The engine makes no progress at the moment.") -> None:
        super().__init__(reason)


class GenerationFailed(ServiceRefusal):
    """A request broke after it was taken; the message is the engine's, fit for the client. `code`: its word for it."""

    code = ""


class DeadlineExceeded(GenerationFailed):
    """A request's time was up, or too short, before it was done."""


class AdapterTooLarge(GenerationFailed):
    """A request's adapter takes more device memory than all adapters of its tenant may."""


class AdapterReplaced(GenerationFailed):
    """Its adapter has another version by now, and whoever brought that had requests on older ones end."""

    code = "adapter_replaced"
    retry_after = 1

    def __init__(self) -> None:
        super().__init__(
            "The adapter got a new version, and requests on the older one were told to end (running=abort). Please "
            "retry; it runs on the new version."
        )


def failure_of(message: str, code: str) -> GenerationFailed:
    """What broke a request, by the engine's message and its code for it (livery.engine.codes)."""
    kinds = {DEADLINE_EXCEEDED: DeadlineExceeded, ADAPTER_TOO_LARGE: AdapterTooLarge}
    failure = kinds.get(code, GenerationFailed)(message)
    failure.code = code
    return failure


# What makes an adapter unusable may be about its owner, so those who only use it get a fixed reason.
WHY_FOR_OTHERS = "something is wrong with it, which its owner is told; ask for another one, or ask its owner to mend it"


class AdapterUnusable(ServiceRefusal):
    """The adapter is known and can't be served; the message says why to those whose it is (`own`)."""

    def __init__(self, name: str, reason: str, *, own: bool = True) -> None:
        super().__init__(f"The adapter '{name}' can't be served: {reason if own else WHY_FOR_OTHERS}")


class AdapterNotReady(ServiceRefusal):
    """The adapter is being loaded; `retry_after` is in seconds."""

    def __init__(self, name: str, retry_after: int = 1) -> None:
        super().__init__(f"The adapter '{name}' is still being loaded. Please retry shortly.")
        self.retry_after = retry_after


class AdapterNotFetched(AdapterNotReady):
    """Its files are to come from the object store that servers share, and for now they don't; `why` in words."""

    def __init__(self, name: str, why: str, retry_after: int = 5) -> None:
        ServiceRefusal.__init__(
            self, f"The files of adapter '{name}' are not on this server, and {why} at the moment. Please retry."
        )
        self.retry_after = retry_after


class PreconditionFailed(ServiceRefusal):
    """An adapter is no longer as a change expects it (If-Match); the message says how it stands."""


class AdapterExists(ServiceRefusal):
    """A name to load is taken. Worded as vLLM words it: clients look for it."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"The lora adapter '{name}' has already been loaded. If you want to load the adapter in place, "
            "set 'load_inplace' to True."
        )
        self.param = "lora_name"


class AdapterNotFound(ServiceRefusal):
    """No adapter to unload of that name. Worded as vLLM words it."""

    def __init__(self, name: str) -> None:
        super().__init__(f"The lora adapter '{name[:128]}' cannot be found.")
        self.param = "lora_name"


class AdapterFieldEmpty(ServiceRefusal):
    """A load or unload that names no adapter, or no path. Worded as vLLM words it."""

    def __init__(self, message: str, param: str) -> None:
        super().__init__(message)
        self.param = param


class AdapterPathNotFound(ServiceRefusal):
    """Nothing to load at the path given. Worded as vLLM words it."""

    def __init__(self, name: str, path: str) -> None:
        super().__init__(f"Loading lora {name} failed: No adapter found for {path[:256]}")
        self.param = "lora_path"
