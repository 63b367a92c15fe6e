"""What an adapter's profile makes of a request: its words before the client's, its defaults where the client is silent.

    job = dressed(job, profile_of(lease), lease)     # InvalidParameter where the profile's bounds say no

Pure: no text is encoded here and nothing is waited for. A raw prompt of /v1/completions gets the sampling and the
stop strings, and no words: whoever sends one has put everything into it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from livery.chat_template import SYSTEM_ROLES, Message
from livery.engine.base import Grammar
from livery.jobs import DEFAULT_SAMPLING, ChatPrompt, Job, Options, Prompt
from livery.lease import Lease
from livery.refusals import AdapterUnusable, InvalidParameter
from livery_adapters.profile import EMPTY, Document, Example, Profile, ProfileInvalid, recorded_profile


def profile_of(lease: Lease | None) -> Profile:
    """The profile of the version that answers; the base and sums of adapters have none. Raises AdapterUnusable."""
    if lease is None or lease.facts is None or not lease.facts.profile:
        return EMPTY
    try:
        return recorded_profile(lease.facts.profile)
    except ProfileInvalid as invalid:
        reason = f"its profile can't be read ({invalid}); set it again"
        raise AdapterUnusable(lease.name, reason, own=lease.own) from None


def tells_words(lease: Lease | None, profile: Profile) -> bool:
    """Whether the caller may see what its messages become: an owner's words and template are told to nobody else."""
    own = lease is None or lease.own
    return own or not (profile.system_prompt or profile.examples or profile.documents or profile.chat_template)


def dressed(job: Job, profile: Profile, lease: Lease | None) -> Job:
    """The request as the profile completes it. Raises InvalidParameter for what the profile doesn't allow."""
    if profile == EMPTY:
        return job
    if any(isinstance(prompt, ChatPrompt) for prompt in job.prompts) and not tells_words(lease, profile):
        _check_untold(job.options)
    return replace(
        job,
        prompts=[_prompt(prompt, profile) for prompt in job.prompts],
        options=_options(job.options, profile),
    )


def _check_untold(options: Options) -> None:
    """Nothing that would show the prompt is asked for."""
    asked = {"return_token_ids": options.token_ids, "prompt_logprobs": options.prompt_logprobs is not None}
    for field, wanted in asked.items():
        if wanted:
            raise InvalidParameter(
                f"{field} would show the words or the template that this adapter's owner puts around yours, which only "
                f"its owner may see; leave {field} out.",
                field,
            )


def _prompt(prompt: Prompt, profile: Profile) -> Prompt:
    if not isinstance(prompt, ChatPrompt):
        return prompt
    return replace(prompt, messages=worded(prompt.messages, profile))


def worded(given: Sequence[Message], profile: Profile) -> list[Message]:
    """System prompt with the documents, examples, and then what the client said."""
    own = next((at for at, message in enumerate(given) if message["role"] in SYSTEM_ROLES), None)
    if own is not None and profile.system_prompt_mode == "only":
        raise InvalidParameter(
            "This adapter has a system prompt of its own and takes no other; leave the system message out.",
            f"messages.{own}.role",
        )
    messages = list(given)
    if profile.system_prompt is not None:
        if own is None:
            messages.insert(0, {"role": "system", "content": profile.system_prompt})
        elif profile.system_prompt_mode == "always":
            # One message: templates as a rule know a single one, at the beginning.
            first = messages.pop(own)
            messages.insert(0, {**first, "content": f"{profile.system_prompt}\n\n{first['content']}"})
    if profile.documents:
        texts = [_document(number, document) for number, document in enumerate(profile.documents, 1)]
        system: Message = {"role": "system"}
        if messages and messages[0]["role"] in SYSTEM_ROLES:
            system = messages.pop(0)
            texts.insert(0, str(system["content"]))
        messages.insert(0, {**system, "content": "\n\n".join(texts)})
    start = 1 if messages and messages[0]["role"] in SYSTEM_ROLES else 0
    messages[start:start] = [_message(example) for example in profile.examples]
    return messages


def _document(number: int, document: Document) -> str:
    """A document as the system message holds it, with the number that an answer may cite."""
    return f"[{number}] {document.title}\n{document.text}" if document.title else f"[{number}] {document.text}"


def _message(example: Example) -> Message:
    return {"role": example.role, "content": example.content}


def _options(given: Options, profile: Profile) -> Options:
    _check_bounds(given, profile)
    bounds = dict(profile.bounds.given())
    usual: dict[str, float] = {}
    for name, default in DEFAULT_SAMPLING.items():
        if getattr(given, name) is None:
            own = getattr(profile, name, None)
            usual[name] = default if own is None else own
    chosen: dict[str, Any] = {
        name: bounds[name].nearest(value) if name in bounds else value for name, value in usual.items()
    }
    longest = bounds["max_tokens"].max if "max_tokens" in bounds else None
    most = profile.max_tokens or given.default_max_tokens
    if longest is not None:
        most = int(longest) if most is None else min(most, int(longest))
    return replace(
        given,
        **chosen,
        default_max_tokens=most,
        stop=tuple(dict.fromkeys((*given.stop, *profile.stop))),
        grammar=given.grammar or _format(given, profile),
    )


def _format(given: Options, profile: Profile) -> Grammar | None:
    """What the profile holds an answer to that the client lets be anything: held to it, none could call a tool."""
    if profile.schema is None or given.tools is not None or given.free_form:
        return None
    return Grammar("json_schema", profile.schema)


def _check_bounds(given: Options, profile: Profile) -> None:
    """A value outside is refused, not moved: an answer other than the one asked for would come without a word.

    With max_tokens 0 nothing is sampled, and no bound is about anything.
    """
    if given.max_tokens == 0:
        return
    for name, bound in profile.bounds.given():
        value = getattr(given, name)
        if value is not None and bound.nearest(value) != value:
            ends = [f"at least {bound.min:g}" if bound.min is not None else ""]
            ends.append(f"at most {bound.max:g}" if bound.max is not None else "")
            raise InvalidParameter(
                f"{name} is {value:g} and this adapter's profile allows {' and '.join(filter(None, ends))}; "
                "ask for a value within, or leave it out.",
                name,
            )
