"""Templates that adapters bring: rendered as any other, and stopped when they run wild."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest

from livery.chat_template import ChatTemplate, Conversation, InvalidMessages
from livery.foreign_templates import KEPT, ForeignTemplate, RenderLimits, TemplateStopped, TemplateWorkers
from livery.models import resolve_model

HI = Conversation([{"role": "user", "content": "hi"}])
LIMITS = RenderLimits(cpu_s=0.5, memory_bytes=256 << 20, max_chars=100_000)


@pytest.fixture(scope="module")
def workers() -> Iterator[TemplateWorkers]:
    workers = TemplateWorkers(2, LIMITS)
    yield workers
    workers.close()


def test_it_renders_as_the_same_template_does_here(workers: TemplateWorkers) -> None:
    folder = resolve_model("smollm2-135m-instruct").path
    config = json.loads((folder / "tokenizer_config.json").read_text())
    file = folder / "chat_template.jinja"
    source = file.read_text() if file.is_file() else config["chat_template"]
    named = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    chat = Conversation(
        [{"role": "system", "content": "é \U0001f3f4"}, {"role": "user", "content": "hi"}],
        template_kwargs={"date": "today", "serial": 10**21},
    )
    source += "{{ date }}{{ serial }}"
    assert workers.render(source, named, chat) == ChatTemplate(source, named).render(chat)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "processor time"),
        ("{% set x = 10 ** (10 ** 9) %}", "processor time"),
        ("{{ 'a' * 10 ** 9 }}", "memory"),
        ("{{ 'a' | center(10 ** 9) }}", "memory"),
        ("{{ [1] * 10 ** 9 }}", "memory"),
        ("{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}", ""),
        ("{{ 'a' * 200000 }}", "writes over 100000 characters"),
        ("{% if a %}" * 20000, "nested too deeply"),
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "nested too deeply"),
        ("{% for %}", "is no Jinja template (line 1"),
        ("{{ messages[0].content.encode('rot13') }}", "stopped"),
    ],
    ids=lambda value: value[:24],
)  # fmt: skip
def test_one_that_runs_wild_is_stopped_and_the_next_renders(workers: TemplateWorkers, source: str, says: str) -> None:
    with pytest.raises(TemplateStopped) as stopped:
        workers.render(source, {}, HI)
    assert says in str(stopped.value)
    assert "livery adapters profile" in str(stopped.value)
    assert workers.render("{{ messages[0].content }}", {}, HI) == "hi"


def test_what_it_says_of_messages_is_the_clients_to_read(workers: TemplateWorkers) -> None:
    for source, says in (
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ nobody.knows }}", "undefined"),
        ("{{ messages.__class__.__mro__ }}", "unsafe"),
        ("{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}", "can't render"),
        ("{% for i in range(10 ** 9) %}{% endfor %}", "can't render"),
    ):
        with pytest.raises(InvalidMessages, match=says) as refused:
            workers.render(source, {}, HI)
        assert not isinstance(refused.value, TemplateStopped)


ESCAPED = """
import socket, sys
from livery import template_worker
template_worker._shut_in(512 << 20)
tried = []
def attempt(name, work):
    try: work()
    except (OSError, MemoryError): tried.append(name)
attempt("read", lambda: open("/etc/hostname"))
attempt("connect", lambda: socket.socket())
attempt("memory", lambda: bytearray(1 << 30))
sys.stdout.write(" ".join(tried))
"""


async def test_even_code_that_got_out_of_jinja_reaches_nothing() -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", ESCAPED, stdout=asyncio.subprocess.PIPE, stdin=asyncio.subprocess.DEVNULL
    )
    said, _ = await process.communicate()
    assert said.decode() == "read connect memory"


async def test_renderings_of_one_template_wait_for_each_other_and_others_do_not(workers: TemplateWorkers) -> None:
    """A template that takes its whole time, asked for again and again, holds one worker; the other one is free."""
    slow = ForeignTemplate(
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", {}, workers
    )
    quick = ForeignTemplate("{{ messages[0].content }}", {}, workers)
    done: list[str] = []

    async def render(name: str, template: ForeignTemplate) -> None:
        try:
            await template.apart(lambda: template.render(HI))
        except TemplateStopped:
            name = f"{name} stopped"
        done.append(name)

    async with asyncio.TaskGroup() as group:
        for _ in range(4):
            group.create_task(render("slow", slow))
        await asyncio.sleep(0)
        group.create_task(render("quick", quick))
    assert done.index("quick") < 3
    assert done.count("slow stopped") == 4


async def test_a_tenant_with_many_slow_templates_leaves_workers_to_others(workers: TemplateWorkers) -> None:
    burn = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    done: list[str] = []

    async def render(tenant: str, source: str) -> None:
        template = ForeignTemplate(source, {}, workers, tenant)
        with suppress(TemplateStopped):
            await template.apart(lambda: template.render(HI))
        done.append(tenant)

    async with asyncio.TaskGroup() as group:
        for number in range(4):
            group.create_task(render("zeta", f"{number}{burn}"))
        await asyncio.sleep(0)
        group.create_task(render("acme", "{{ messages[0].content }}"))
    assert done.index("acme") < 3


async def test_a_client_that_goes_away_holds_its_tenants_worker_until_that_is_free(workers: TemplateWorkers) -> None:
    begun, gate = threading.Event(), threading.Event()
    order: list[str] = []

    def block() -> None:
        begun.set()
        gate.wait(60)

    left = asyncio.create_task(workers.run("zeta", "a", block))
    await asyncio.to_thread(begun.wait, 60)
    left.cancel()
    second = asyncio.create_task(workers.run("zeta", "b", lambda: order.append("second")))
    await workers.run("acme", "c", lambda: order.append("another tenant's"))
    order.append("the end of the first")
    gate.set()
    await second
    assert order == ["another tenant's", "the end of the first", "second"]
    with pytest.raises(asyncio.CancelledError):
        await left


def test_a_process_that_has_rendered_one_template_never_renders_another() -> None:
    """Jinja's sandbox is no border: code that got out of it stays in its process, and must meet no one else's text."""
    workers = TemplateWorkers(1, LIMITS)
    try:
        served: dict[str, set[int]] = {}
        for name in ("a", "b", "a", "c", "b", "a"):
            source = name + "{{ messages[0].content }}"
            before = {worker.pid: worker.renders for worker in workers._idle}
            assert workers.render(source, {}, HI) == name + "hi"
            by = workers._idle[-1].pid  # the latest used
            assert before.get(by) in (None, ("", source))
            served.setdefault(name, set()).add(by)
        assert all(len(pids) == 1 for pids in served.values())  # kept for its own
        assert len(set.union(*served.values())) == len(served)  # and for no other
    finally:
        workers.close()


async def test_tenants_whose_adapters_have_the_same_template_have_processes_of_their_own() -> None:
    workers = TemplateWorkers(1, LIMITS)
    served: dict[str, set[int]] = {"acme": set(), "zeta": set()}
    try:
        for tenant in ("acme", "zeta", "acme", "zeta"):
            template = ForeignTemplate("{{ messages[0].content }}", {}, workers, tenant)
            assert await template.apart(lambda: template.render(HI)) == "hi"  # noqa: B023  (it is done by then)
            served[tenant].add(workers._idle[-1].pid)  # the latest used
        assert [len(pids) for pids in served.values()] == [1, 1]
        assert not served["acme"] & served["zeta"]
    finally:
        workers.close()


def test_a_tenant_with_many_templates_ends_its_own_processes_before_anothers() -> None:
    workers = TemplateWorkers(1, LIMITS)
    try:
        workers.render("{{ messages[0].content }}", {}, HI, "acme")
        for number in range(KEPT + 1):
            workers.render(f"{number}", {}, HI, "zeta")
        kept = {worker.renders for worker in workers._idle if worker.renders}
        assert len(kept) == KEPT
        assert ("acme", "{{ messages[0].content }}") in kept
        assert not kept & {("zeta", "0"), ("zeta", "1")}  # its longest unused
    finally:
        workers.close()


def test_few_processes_are_kept_and_none_once_closed() -> None:
    workers = TemplateWorkers(1, LIMITS)
    first = "first {{ messages[0].content }}"
    workers.render(first, {}, HI)
    pids = {worker.pid for worker in workers._idle}
    for number in range(KEPT):
        workers.render(f"{number}", {}, HI)
        pids |= {worker.pid for worker in workers._idle}
    assert ("", first) not in {worker.renders for worker in workers._idle}  # the longest unused has ended
    assert len(workers._idle) == KEPT + 1  # and one stands by
    workers.close()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
