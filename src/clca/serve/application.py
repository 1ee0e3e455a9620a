"""`create_app`: the endpoint as one FastAPI application, into which a page can be mounted."""

import asyncio
import statistics
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BeforeValidator
from starlette.exceptions import HTTPException
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

import clca
from clca.errors import ClcaError
from clca.evaluation.together import combined
from clca.models.ranking import most_likely
from clca.models.token_reduced_vit import TokenReducedViT
from clca.serve.answers import Answer, Health, ImageAnswer, Limits, ModelAnswer, Models, Reason, Refused
from clca.serve.docs_page import POLICY, docs_page
from clca.serve.errors import Refusal
from clca.serve.guard import Guard
from clca.serve.metrics import CountRequests, Metrics
from clca.serve.root_path import RootPath
from clca.serve.served_model import ServedModel, load
from clca.serve.service import Ranked, Service
from clca.serve.settings import ServeSettings
from clca.serve.upload import Upload, read_uploads
from clca.system.numbers import refuse_odd_number
from clca.training.device import make_accelerator

_PLAIN = BeforeValidator(refuse_odd_number)  # before pydantic converts text
_REASONS = {
    400: "The form is broken",
    401: "No token, or a wrong one",
    404: "No model of this name",
    408: "The upload is too slow",
    413: "Over a limit of bytes, files or pixels",
    415: "Not an image of a known format, or a body of an unknown type",
    421: "Called by another name than localhost, where only this machine is answered",
    422: "A damaged image, no image, or an option out of range",
    429: "Too much is under way: come back after Retry-After seconds",
    500: "The server failed, or the model gave no finite number",
    503: "The models are still loading, or the server is stopping",
    504: "Not answered in time",
}
_RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": Refused, "description": text} for status, text in _REASONS.items()
}
_OF_ALL: dict[int | str, dict[str, Any]] = {status: _RESPONSES[status] for status in (401, 421, 503)}
_OF_HEALTH: dict[int | str, dict[str, Any]] = {
    421: _RESPONSES[421],
    503: {"model": Health, "description": _REASONS[503]},
}
_TEXT = {"content": {"text/plain": {"schema": {"type": "string"}}}}
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_BODY = {
    "requestBody": {
        "required": True,
        "description": "One or several files in a form, under any field name; or one image as the body.",
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["images"],
                    "properties": {
                        "images": {"type": "array", "minItems": 1, "items": {"type": "string", "format": "binary"}}
                    },
                }
            },
            "image/*": _BINARY,
            "application/octet-stream": _BINARY,
        },
    }
}


def create_app(
    models: Mapping[str, TokenReducedViT] | Sequence[str | Path], settings: ServeSettings | None = None
) -> FastAPI:
    """The endpoint: /v1/predict, /v1/models, /health, /metrics, and /docs that describe them.

    Its lifespan starts and stops the threads. `app.state.service` is the `Service`, through which whatever is mounted
    into the application reaches the same models: `await app.state.service.on_worker(function)`.

    Args:
        models: By name; or run folders, saved models and hub ids. The first answers requests that name none.
        settings: Limits and batching.

    Raises:
        ClcaError: If there is no model, or one cannot be loaded.
    """
    settings = settings or ServeSettings()
    metrics = Metrics()
    accelerator = make_accelerator(device=settings.device, precision=settings.precision, serving=True)
    service = Service(load(models, accelerator), settings, metrics)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.start()
        try:
            yield
        finally:
            await service.stop()

    app = FastAPI(
        title="clca",
        version=clca.__version__,
        description="Which class a photograph shows, from vision transformers with token reduction.",
        lifespan=lifespan,
        docs_url=None,  # FastAPI's own load their programs from another host
        redoc_url=None,
    )
    app.state.service = service
    _add_error_handlers(app)
    _add_routes(app, service, metrics)
    _refuse_other_methods(app)
    # The last one added comes first: requests without the token are counted as well.
    app.add_middleware(Guard, token=settings.token, local=settings.local)
    app.add_middleware(CountRequests, metrics=metrics)
    if settings.root_path:
        app.add_middleware(RootPath, root_path=settings.root_path)
    return app


def _add_routes(app: FastAPI, service: Service, metrics: Metrics) -> None:
    settings = service.settings
    described = Models(
        models=[_describe(model) for model in service.models.values()],
        limits=Limits(
            files=settings.files_a_request,
            file_bytes=settings.file_bytes,
            request_bytes=settings.request_bytes,
            pixels=settings.pixels,
            queue=settings.queue,
        ),
    )

    @app.post("/v1/predict", responses=_RESPONSES, openapi_extra=_BODY, tags=["predict"])
    async def predict(
        request: Request,
        top_k: Annotated[int, _PLAIN, Query(ge=1, le=100_000, description="classes to name, best first")] = 5,
        keep_rate: Annotated[
            float | None,
            _PLAIN,
            Query(gt=0, le=1, description="share of tokens to keep at each location, where the model can change it"),
        ] = None,
        model: Annotated[str | None, Query(description="name, as listed by /v1/models; if omitted, the first")] = None,
        together: Annotated[
            bool, Query(description="the photographs are of one plant: also give one answer for all of them")
        ] = False,
    ) -> Answer:
        """Classify photographs.

        An image that cannot be read has an `error` among the `results`; where it is the only one of its request, the
        request is refused with that error's status.

            curl -F images=@leaf.jpg -F images=@other.jpg 'http://127.0.0.1:8000/v1/predict?top_k=3'
            curl -H 'Content-Type: image/jpeg' --data-binary @leaf.jpg http://127.0.0.1:8000/v1/predict
        """
        with service.place() as place:
            served = service.find(model)
            try:
                rates = served.rates(keep_rate)
            except ClcaError as error:
                raise Refusal(422, "keep_rate_is_fixed", str(error)) from None
            uploads = await read_uploads(request, settings, place.more_bytes)
            place.more_images(len(uploads) - 1)
            most = len(served.classes) if together else top_k
            answers = await _in_time(request, service, uploads, served, rates, most)
        if len(answers) == 1 and isinstance(answers[0], Refusal):
            raise answers[0]
        results = [_as_result(upload, answer, top_k) for upload, answer in zip(uploads, answers, strict=True)]
        whole = _one_answer(served, answers, top_k) if together else None
        return Answer(model=served.name, keep_rate=rates, results=results, together=whole)

    # Health checkers and load balancers ask with HEAD; the server leaves the body of the answer out.
    @app.head("/v1/models", include_in_schema=False)
    @app.get("/v1/models", responses=_OF_ALL, tags=["models"])
    async def models() -> Models:
        """What is served: classes, image size, reduction, keep rates, cost; and the limits of a request."""
        return described

    @app.head("/health", include_in_schema=False)
    @app.head("/health/ready", include_in_schema=False)
    @app.get("/health", responses=_OF_HEALTH, tags=["operation"])
    @app.get("/health/ready", responses=_OF_HEALTH, tags=["operation"])
    async def health(response: Response) -> Health:
        """200 while requests are taken, 503 while the models load and while the server stops. Needs no token."""
        response.status_code = 200 if service.accepts else 503
        return Health(live=True, ready=service.accepts)

    @app.head("/health/live", include_in_schema=False)
    @app.get("/health/live", responses={421: _RESPONSES[421]}, tags=["operation"])
    async def live() -> Health:
        """200 while the process lives. Needs no token."""
        return Health(live=True, ready=service.accepts)

    @app.head("/docs", include_in_schema=False)
    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(docs_page(app.openapi()), headers={"Content-Security-Policy": POLICY})

    @app.head("/metrics", response_class=Response, include_in_schema=False)
    @app.get("/metrics", response_class=Response, responses={200: _TEXT, **_OF_ALL}, tags=["operation"])
    async def read_metrics() -> Response:
        """For Prometheus: requests by code, latency, queue length, batch sizes, images."""
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)


class _OtherMethods:
    """Refuses the methods that a path does not have; a page mounted at the root would answer that it does not exist."""

    def __init__(self, methods: set[str]) -> None:
        self._allowed = ", ".join(sorted(methods))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        raise HTTPException(405, f"{scope['path']} takes {self._allowed}", {"Allow": self._allowed})


def _refuse_other_methods(app: FastAPI) -> None:
    """Answer 405 with all methods of a path, whatever is mounted later; called once all routes are there."""
    allowed: dict[str, set[str]] = {}
    for route in app.router.routes:
        if isinstance(route, Route) and route.methods:
            allowed.setdefault(route.path, set()).update(route.methods)
    app.router.routes.extend(Route(path, _OtherMethods(methods)) for path, methods in allowed.items())


async def _in_time(
    request: Request, service: Service, uploads: Sequence[Upload], served: ServedModel, rates: Any, top_k: int
) -> list[Ranked | Refusal]:
    """The answers; the work is cancelled where it takes too long, or the client has gone."""
    work = asyncio.ensure_future(service.answer(uploads, served, rates, top_k))
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({work, gone}, timeout=service.settings.answer_seconds, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            return work.result()
        if gone.done():
            raise Refusal(499, "client_gone", "the client closed the connection")
        raise Refusal(504, "too_late", f"not answered within {service.settings.answer_seconds:g} seconds")
    finally:
        work.cancel()
        gone.cancel()
        await asyncio.gather(work, gone, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _one_answer(served: ServedModel, answers: Sequence[Ranked | Refusal], top_k: int) -> ImageAnswer | None:
    """The answer of all images that were read, which name every class; None if there are none."""
    read = [answer for answer in answers if isinstance(answer, Ranked)]
    if not read:
        return None
    each = [dict(zip(answer.classes, answer.probabilities, strict=True)) for answer in read]
    shares, indices = most_likely(
        combined([torch.tensor([one[name] for name in served.classes]) for one in each]), top_k
    )
    distances = [answer.unfamiliarity for answer in read if answer.unfamiliarity is not None]
    median = statistics.median(distances) if distances else None
    return ImageAnswer(
        name=f"{len(read)} photographs",
        classes=[served.classes[k] for k in indices.tolist()],
        probabilities=shares.tolist(),
        unfamiliarity=median,
        none_of_these=None if median is None else median > 1,
    )


def _as_result(upload: Upload, answer: Ranked | Refusal, top_k: int) -> ImageAnswer:
    if isinstance(answer, Refusal):
        reason = Reason(status=answer.status, code=answer.code, message=answer.message)
        return ImageAnswer(name=upload.name, error=reason)
    return ImageAnswer(
        name=upload.name,
        classes=list(answer.classes[:top_k]),
        probabilities=list(answer.probabilities[:top_k]),
        unfamiliarity=answer.unfamiliarity,
        none_of_these=answer.is_unfamiliar,
    )


def _describe(model: ServedModel) -> ModelAnswer:
    return ModelAnswer(
        name=model.name,
        classes=model.classes,
        image_size=model.image_size,
        backbone=model.backbone,
        reduction=model.reduction,
        keep_rate=model.keep_rate,
        keep_rate_range=(0.0, 1.0) if model.keep_rate_is_free else None,
        gmacs=model.cost.gmacs,
        computed_gmacs=model.cost.computed_gmacs,
        gmacs_of=model.cost_of,
        params=model.cost.params,
    )


def _add_error_handlers(app: FastAPI) -> None:
    """Every refusal in one form, and nothing of this machine in any."""

    @app.exception_handler(Refusal)
    async def refused(request: Request, refusal: Refusal) -> JSONResponse:
        return JSONResponse(refusal.body, refusal.status, refusal.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        details = "; ".join(f"{item['loc'][-1]}: {item['msg']}" for item in error.errors())
        return JSONResponse(Refusal(422, "invalid", details).body, 422)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        code = "not_found" if error.status_code == 404 else "refused"
        return JSONResponse(Refusal(error.status_code, code, str(error.detail)).body, error.status_code, error.headers)

    @app.exception_handler(Exception)  # uvicorn writes the traceback to its log
    async def failed(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse(Refusal(500, "failed", "the server failed: see its log").body, 500)
