"""Speak the Open Inference Protocol, version 2, over HTTP.

Clients of Triton Inference Server, KServe and OpenVINO Model Server speak it. Source:
github.com/open-inference/open-inference-protocol, specification/protocol/inference_rest.md.
"""

import time
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from edgec.compiler.bundle.bundle import Bundle
from edgec.compiler.serve.batching import Batcher
from edgec.compiler.serve.disconnect import unless_gone
from edgec.compiler.serve.request_error import RequestError
from edgec.compiler.serve.streams import Streams
from edgec.compiler.serve.tensors import DATATYPES, read_request, write_response

EXTENSIONS = ("binary_tensor_data", "sequence")
HEADER = "inference-header-content-length"


class ServedModel:
    """A served model is a bundle under a name, with what runs it.

    Attributes:
        name: what clients call it.
        bundle: the bundle.
        runner: what answers requests.
    """

    def __init__(self, name: str, bundle: Bundle, runner: Batcher | Streams) -> None:
        self.name = name
        self.bundle = bundle
        self.runner = runner

    async def infer(self, body: bytes, header_bytes: str | None) -> tuple[bytes, int | None]:
        """Answer one request; see `read_request` and `write_response`."""
        request = read_request(body, header_bytes)
        if isinstance(self.runner, Streams):
            outputs = await self.runner.run(request.inputs, request.parameters)
        else:
            outputs = await self.runner.run(request.inputs)
        return write_response(self.name, request, outputs)

    def metadata(self) -> dict[str, Any]:
        """Return names, datatypes and shapes; an extent is -1 where programs differ."""
        signatures = list(self.bundle.manifest.signatures.values())

        def describe(kind: str) -> list[dict[str, Any]]:
            described = []
            for number, spec in enumerate(getattr(signatures[0], kind)):
                shapes = [getattr(s, kind)[number].shape for s in signatures]
                shape = [
                    -1 if len(set(extents)) > 1 or extents[0] is None else extents[0]
                    for extents in zip(*shapes, strict=True)
                ]
                datatype = DATATYPES[spec.dtype]
                described.append({"name": spec.name, "datatype": datatype, "shape": shape})
            return described

        return {
            "name": self.name,
            "versions": ["1"],
            "platform": "edgec_bundle",
            "inputs": describe("inputs"),
            "outputs": describe("outputs"),
        }


def inference_routes(models: Mapping[str, ServedModel]) -> list[Route]:
    """Return the routes of the protocol for some models."""

    def model_of(request: Request) -> ServedModel:
        name, number = request.path_params["model"], request.path_params.get("version", "1")
        if name not in models:
            raise RequestError(404, f"there is no model {name[:64]!r}; there are {list(models)}")
        if number != "1":
            raise RequestError(404, f"model {name!r} has version 1 only, {number[:32]!r} was asked")
        return models[name]

    async def live(_request: Request) -> Response:
        return JSONResponse({"live": True})

    async def ready(_request: Request) -> Response:
        return JSONResponse({"ready": True})

    async def server(_request: Request) -> Response:
        return JSONResponse(
            {"name": "edgec", "version": version("edgec"), "extensions": list(EXTENSIONS)}
        )

    async def model_ready(request: Request) -> Response:
        return JSONResponse({"name": model_of(request).name, "ready": True})

    async def model_metadata(request: Request) -> Response:
        return JSONResponse(model_of(request).metadata())

    async def infer(request: Request) -> Response:
        model = model_of(request)
        body = await request.body()
        began = time.perf_counter()
        answer = model.infer(body, request.headers.get(HEADER))
        body, head = await unless_gone(request, answer)
        # Who measures the network subtracts it (https://www.w3.org/TR/server-timing/).
        headers = {"server-timing": f"infer;dur={(time.perf_counter() - began) * 1e3:.3f}"}
        if head is None:
            return Response(body, media_type="application/json", headers=headers)
        headers[HEADER] = str(head)
        return Response(body, media_type="application/octet-stream", headers=headers)

    routes = [
        Route("/v2", server),
        Route("/v2/health/live", live),
        Route("/v2/health/ready", ready),
    ]
    for path in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
        routes += [
            Route(path, model_metadata),
            Route(f"{path}/ready", model_ready),
            Route(f"{path}/infer", infer, methods=["POST"]),
        ]
    return routes
