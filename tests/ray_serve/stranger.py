"""Somebody on the cluster who asks replicas without an ingress, in the words of whatever application."""

from __future__ import annotations

from ray import serve

from livery.scale.ray_app import LOST
from livery.scale.ray_exchange import Forwarded, Head
from ray_serve.cluster import APPLICATION, KEY


class Stranger:
    """On the cluster, since that is where handles work with the settings that are recommended."""

    async def status(self, application: str) -> int | str:
        """Of the replicas' answer to a request that says it is for this application; or why there is none."""
        replicas = serve.get_deployment_handle("Replica", APPLICATION)
        answers = replicas.options(stream=True, method_name="answer", _by_reference=False)
        headers = ((b"host", b"here"), (b"authorization", f"Bearer {KEY}".encode()))
        try:
            said = await anext(
                aiter(answers.remote(Forwarded(application, "GET", "http", "/v1/models", b"", headers, None)))
            )
        except LOST as error:
            return str(error)
        assert isinstance(said, Head)
        return said.status
