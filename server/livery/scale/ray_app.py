"""Livery on Ray Serve: replicas that are whole servers, behind an ingress that sends each request where its adapter is.

    serve run livery.scale.ray_app:app model=smollm2-135m-instruct registry=postgresql:... blob_store=s3:... replicas=2
    serve deploy config.yaml        # import_path: livery.scale.ray_app:app, args: the same

Arguments are the knobs of `livery serve` and those of `livery.scale.ray_config.Scale`. Ray starts, scales, replaces and
drains the replicas; who may ask, what is counted and how it is answered is each replica's own server's affair.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import grpc
import ray
from pydantic import ValidationError
from ray import serve
from ray.exceptions import RayError
from ray.serve.config import AutoscalingConfig, RequestRouterConfig
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator
from ray.util.queue import Queue
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse

from livery.api.boundary import CLIENT_GONE, announced
from livery.api.errors import BodyTooSlow, describe_at
from livery.api.routes import route_path
from livery.api.uploads import streams_upload
from livery.refusals import Overloaded, ReplicaLost
from livery.scale.ray_bodies import Bodies, Body
from livery.scale.ray_config import OURS, Scale, aimed_at, busy_at, check_shared, most_ongoing, parse
from livery.scale.ray_exchange import AnswerCutShort, Forwarded, Head, Said, Wanted
from livery.scale.ray_replica import ReplicaServer
from livery.scale.ray_router import IDS, ONGOING
from livery.scale.ray_routing import Learned, asked_id
from livery.scale.ray_words import failed_event
from livery.settings import Settings, SettingsError

log = logging.getLogger("livery.ingress")

ROUTER = "livery.scale.ray_router:AdapterRouter"
STATS_S = 0.5  # how often a replica says what it has
PIECES = 16  # of an upload, on their way to a replica
PIECE = 256 << 10  # bytes
STOP_S = 10.0  # what a replica takes to stop beyond the requests that it lets end
MOST_ONGOING = 8192  # on an ingress: it only passes on, and replicas bound what they take


class Misdirected(Exception):
    """A request reached a replica of another application than it was sent to. Made of one string: it is pickled."""


LOST = (
    RayError,
    RayServeException,
    grpc.RpcError,
    AnswerCutShort,
    Misdirected,
)  # what a replica that is gone, or failed, looks like


class Replica:
    """A whole server in a replica of Ray's. Its methods are called by Ray."""

    async def __init__(self, args: dict[str, object]) -> None:  # type: ignore[misc]  # Ray awaits it
        scale, settings = parse(args, os.environ)
        check_shared(scale, settings, machines(scale))
        self._name = serve.get_replica_context().replica_id.unique_id.encode()
        self._application = application()
        self._drain_s = float(settings.drain_timeout)
        self._server = await ReplicaServer.start(settings)
        if scale.replica_port:
            await self._server.listen(scale.replica_host, scale.replica_port)

    async def answer(self, request: Forwarded) -> AsyncGenerator[Said]:
        """What the server says to a request. Raises Misdirected."""
        if request.application != self._application:
            raise Misdirected(
                f"a request for {request.application} came to {self._application}: a replica's address was taken over"
            )
        body = ComingBody()
        try:
            async with aclosing(self._server.answer(request, serve.get_multiplexed_model_id(), body.pull)) as messages:
                async for message in messages:
                    if isinstance(message, Wanted):
                        yield Wanted(await body.open())
                    elif isinstance(message, Head):
                        yield replace(message, headers=(*message.headers, (b"x-livery-replica", self._name)))
                    else:
                        yield message
        finally:
            body.close()

    async def record_routing_stats(self) -> dict[str, Any]:
        """What routers are told of this replica."""
        return {IDS: sorted(await self._server.ids()), ONGOING: self._server.ongoing}

    async def check_health(self) -> None:
        """Raises where nothing but a new replica helps."""
        await self._server.check()

    async def __del__(self) -> None:
        server = getattr(self, "_server", None)
        if server is not None:
            await server.stop(self._drain_s)


class ComingBody:
    """A body that an ingress sends piece by piece, once it is asked for it: only who may upload is. Close it.

    It comes through a process of Ray's that ends when it is told to and not before: its handle goes to the ingress by
    gRPC, where Ray doesn't count who has one. Making it takes Ray some 50 ms and ending it up to seconds, so neither
    is done on the event loop, where the streams are.
    """

    def __init__(self) -> None:
        self._opening: asyncio.Task[Queue] | None = None
        self._open = asyncio.Event()

    async def open(self) -> Queue:
        """Where to put it."""
        self._opening = asyncio.create_task(
            asyncio.to_thread(Queue, maxsize=PIECES, actor_options={"num_cpus": 0}), name="opening an upload's process"
        )
        queue = await asyncio.shield(self._opening)  # whoever leaves meanwhile leaves a process to be ended
        self._open.set()
        return queue

    async def pull(self) -> bytes:
        """The next piece; nothing at the end."""
        await self._open.wait()
        assert self._opening is not None, "it is open"
        piece: bytes = await self._opening.result().get_async()
        return piece

    def close(self) -> asyncio.Task[None] | None:
        """End what it came through, if it did, whatever is left in there. Whoever sends still is told that it ended."""
        if self._opening is None:
            return None
        ending = asyncio.create_task(_end(self._opening))
        _ENDING.add(ending)
        ending.add_done_callback(_ended)
        return ending


_ENDING: set[asyncio.Task[None]] = set()  # tasks that nobody holds may be lost


async def _end(opening: asyncio.Task[Queue]) -> None:
    await asyncio.to_thread((await opening).shutdown, force=True)


def _ended(task: asyncio.Task[None]) -> None:
    _ENDING.discard(task)
    if not task.cancelled() and (error := task.exception()) is not None:
        log.warning("an upload's process wasn't ended: %s: %s", type(error).__name__, error)


class Ingress:
    """Passes requests on to replicas, and their answers back as they come."""

    def __init__(self, replicas: DeploymentHandle) -> None:
        # Answers come by gRPC, not as objects of Ray's: two thirds of the processor time a piece, at eight streams.
        self._replicas = replicas.options(stream=True, method_name="answer", _by_reference=False)
        self._application = application()
        self._bodies = Bodies()
        self._learned = Learned()

    async def __call__(self, request: Request) -> Response:
        """Ray calls it for every request."""
        path = route_path(request.scope)
        upload = streams_upload(request.method, path, request.headers.get("content-type", ""))
        body = Body.to(self._bodies, path)
        try:
            if not upload:
                body.check(announced(request.headers, body.most))
            forwarded, rest = await _read(request, path, body, upload, self._application)
            return await self._answer(forwarded, rest, path)
        except ClientDisconnect:
            return Response(status_code=CLIENT_GONE)
        except (BodyTooSlow, Overloaded) as error:
            return describe_at(error, path).response()
        finally:
            body.leave()

    async def _answer(self, forwarded: Forwarded, rest: AsyncIterator[bytes], path: str) -> Response:
        """The answer, once it has begun."""
        asked = asked_id(forwarded.headers, forwarded.body)
        answers = self._replicas.options(multiplexed_model_id=self._learned.told(asked)).remote(forwarded)
        try:
            head = await self._head(answers, rest)
        except LOST as error:
            answers.cancel()
            return _failure(error, path)
        except BaseException:
            answers.cancel()
            raise
        self._learned.note(asked, head.adapter)
        answer = StreamingResponse(_pieces(answers, head, path), head.status)
        answer.raw_headers = list(head.headers)
        return answer

    async def _head(self, answers: DeploymentResponseGenerator, rest: AsyncIterator[bytes]) -> Head:
        """The answer's beginning. Beside that goes what a replica wants of the body, which it may have enough of."""
        sending: asyncio.Task[None] | None = None

        def sent(task: asyncio.Task[None]) -> None:
            error = None if task.cancelled() else task.exception()
            if error is None or isinstance(error, RayError):  # a replica that takes no more says why in its answer
                return
            if not isinstance(error, ClientDisconnect):
                log.warning("an upload was cut off: %s: %s", type(error).__name__, error)
            answers.cancel()

        try:
            async for said in answers:
                if isinstance(said, Wanted):
                    sending = asyncio.create_task(_send_body(rest, said.to))
                    sending.add_done_callback(sent)
                elif isinstance(said, Head):
                    return said
        finally:
            if sending is not None:
                sending.cancel()
        raise AnswerCutShort


async def _read(
    request: Request, path: str, body: Body, upload: bool, application: str
) -> tuple[Forwarded, AsyncIterator[bytes]]:
    """A request as it goes to a replica, with the rest of its body if that is an upload.

    `path` is without the application's route_prefix, of which replicas know nothing. Of other bodies as much is read
    as the API takes, and a byte more: it has words for what is too long. Raises ClientDisconnect, BodyTooSlow,
    Overloaded.
    """
    scope = request.scope
    headers = tuple((bytes(name), bytes(value)) for name, value in scope["headers"])
    rest = request.stream()
    beginning = b"" if upload else await body.read(rest)
    client = scope.get("client")
    forwarded = Forwarded(
        application,
        request.method,
        scope["scheme"],
        path,
        scope["query_string"],
        headers,
        (client[0], client[1]) if client else None,
        beginning,
        upload,
    )
    return forwarded, rest


async def _send_body(rest: AsyncIterator[bytes], queue: Queue) -> None:
    """Put what is left of a body where the replica takes it from, and its end."""
    async for piece in rest:
        for start in range(0, len(piece), PIECE):
            await queue.put_async(piece[start : start + PIECE])
    await queue.put_async(b"")


async def _pieces(answers: DeploymentResponseGenerator, head: Head, path: str) -> AsyncGenerator[bytes]:
    """An answer's body. A stream of events that is cut off by a lost replica ends with an event that says so."""
    try:
        async for piece in answers:
            yield piece
    except LOST as error:
        log.warning("an answer was cut off: %s", error)
        event = failed_event(ReplicaLost(), head, path)
        if event is None:
            raise  # the connection ends before the length that was announced
        yield event
    finally:
        answers.cancel()


def _failure(error: Exception, path: str) -> Response:
    """What is said where no answer began."""
    told: Exception = ReplicaLost()
    if isinstance(error, BackPressureError):
        told = Overloaded(error.max_queued_requests, "requests", 1)
    log.warning("a request got no answer: %s: %s", type(error).__name__, error)
    return describe_at(told, path).response()


def application() -> str:
    """A name that no other application has, of this cluster or another: addresses are soon taken by somebody else."""
    return f"{ray.get_runtime_context().get_session_name()}/{serve.get_replica_context().app_name}"


def machines(scale: Scale) -> int:
    """Machines of this cluster on which Ray may start replicas: a head without CPUs is none."""
    needed = {"CPU": scale.num_cpus, "GPU": scale.num_gpus}
    nodes = [node for node in ray.nodes() if node["Alive"]]
    fit = [node for node in nodes if all(node["Resources"].get(name, 0.0) >= least for name, least in needed.items())]
    return len({node["NodeManagerAddress"] for node in fit})


def app(args: dict[str, object]) -> serve.Application:
    """The application of these arguments. Raises SettingsError."""
    scale, settings = parse(args, os.environ)
    replicas = serve.deployment(Replica).options(**_replica_options(scale, settings))
    ingress = serve.deployment(Ingress).options(
        num_replicas=scale.ingress_replicas,
        max_ongoing_requests=MOST_ONGOING,
        ray_actor_options={"num_cpus": 0},
        graceful_shutdown_timeout_s=settings.drain_timeout + STOP_S,
    )
    return ingress.bind(replicas.bind(dict(args)))


def _replica_options(scale: Scale, settings: Settings) -> dict[str, Any]:
    """What Ray is told of the replicas' deployment."""
    options: dict[str, Any] = {
        "max_ongoing_requests": most_ongoing(scale, settings),
        "max_queued_requests": scale.max_queued_requests,
        "graceful_shutdown_timeout_s": settings.drain_timeout + STOP_S,
        "graceful_shutdown_wait_loop_s": 0.5,
        "health_check_period_s": 5.0,
        "ray_actor_options": {"num_cpus": scale.num_cpus, "num_gpus": scale.num_gpus},
        "request_router_config": RequestRouterConfig(
            request_router_class=ROUTER,
            request_router_kwargs={"busy_at": busy_at(scale, settings)},
            request_routing_stats_period_s=STATS_S,
        ),
    }
    if scale.max_replicas is None:
        options["num_replicas"] = scale.replicas
    else:
        options["autoscaling_config"] = _autoscaling(scale, scale.max_replicas, settings)
    return options


def _autoscaling(scale: Scale, most: int, settings: Settings) -> AutoscalingConfig:
    """Raises SettingsError for what isn't Ray's."""
    known = sorted(AutoscalingConfig.model_fields.keys() - set(OURS))
    for name in scale.autoscaling:
        if name not in known:
            raise SettingsError(f"autoscaling.{name}: Ray has no such setting; it has {', '.join(known)}")
    try:
        return AutoscalingConfig(
            **scale.autoscaling,
            min_replicas=scale.min_replicas,
            max_replicas=most,
            target_ongoing_requests=aimed_at(scale, settings),
        )
    except ValidationError as error:
        issue = error.errors()[0]
        name = ".".join(map(str, ("autoscaling", *issue["loc"])))
        raise SettingsError(f"{name} is {issue['input']!r}: {issue['msg']}") from None
