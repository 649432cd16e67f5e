"""The service itself: routes over a predictor. Importing this needs the extra `serve`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import asdict
from functools import partial
from importlib import resources
from math import isfinite
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from fastapi import Depends, FastAPI, Query, Request, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.concurrency import run_in_threadpool
from starlette.middleware.cors import CORSMiddleware

from fedvad._version import __version__
from fedvad.serving.predictor import Predictor
from fedvad.serving.service.answers import Answers
from fedvad.serving.service.guard import Guard, HeadAsGet, KnownHosts, SameOrigin
from fedvad.serving.service.heat import heat_png
from fedvad.serving.service.intake import FIELD, Intake
from fedvad.serving.service.limits import Refusal, WorkQueue, check_token
from fedvad.serving.service.metrics import METRICS_TYPE, ServiceMetrics
from fedvad.serving.service.models import (
    Calibration,
    FileResult,
    Health,
    Info,
    Limits,
    Predictions,
    Promised,
    SampleInfo,
    SiteInfo,
)
from fedvad.serving.service.overview import sites_of
from fedvad.serving.service.problems import (
    add_handlers,
    described,
    refuse_unknown_parameters,
)
from fedvad.serving.service.results import score_files
from fedvad.serving.service.routes import answer_routes, watch_routes
from fedvad.serving.service.samples import Sample
from fedvad.serving.service.settings import ServiceSettings
from fedvad.serving.service.sites import SitePredictors
from fedvad.serving.watch.lines import Lines

_STATIC = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
}
_METRICS: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/plain": {"schema": {"type": "string"}}}}
}
_WEBP: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/webp": {"schema": {"type": "string", "format": "binary"}}}}
}
_BEARER = HTTPBearer(auto_error=False)
_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": [FIELD],
                    "additionalProperties": False,
                    "properties": {
                        FIELD: {
                            "type": "array",
                            "minItems": 1,
                            "items": {"type": "string", "format": "binary"},
                            "description": "Files of one image each: PNG, JPEG, TIFF, ...",
                        }
                    },
                }
            }
        },
    }
}


SiteQuery = Annotated[
    str | None, Query(description="One of the sites in /v1/info; without it all of them.")
]


def create_app(
    predictor: Predictor,
    settings: ServiceSettings | None = None,
    *,
    sites: SitePredictors | None = None,
    samples: Sequence[Sample] = (),
    name: str = "",
    answers: Answers | None = None,
    runs: Sequence[Path] = (),
    lines: Lines | None = None,
) -> FastAPI:
    """The service over a predictor, which it warms up at its start and leaves open at its end.

    `sites` are offered in addition. `samples` are shown on the page, under the same token as
    everything else. `answers` takes what people say of images; None refuses it. `runs`:
    folders whose sites are shown side by side. `lines`: watches that are shown. Every refusal is a
    `Problem`; a file that cannot be read is a result with an error, not a refusal.
    """
    settings = settings or ServiceSettings()
    sites = sites or SitePredictors(predictor)
    intake = Intake(settings)
    queue = WorkQueue(
        workers=settings.workers, waiting=settings.waiting, timeout_s=settings.timeout_s
    )
    metrics = ServiceMetrics(lambda: queue.taken, lambda: intake.under_way)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        predictor.warm_up()
        heat_png(np.zeros((2, 2), np.float32), (2, 2), None)  # loads the colours
        queue.open()
        yield
        queue.close()
        sites.close()

    app = FastAPI(
        title="fedvad",
        version=__version__,
        summary="Scores, decisions and heat-maps of images.",
        lifespan=lifespan,
        openapi_url="/v1/openapi.json",
        docs_url=None,  # they load scripts from elsewhere
        redoc_url=None,
        dependencies=[Depends(refuse_unknown_parameters)],
    )
    add_handlers(app)

    def authorised(
        given: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)],
    ) -> None:
        check_token(settings.token, given.credentials if given else None)

    guarded: dict[str, Any] = {"dependencies": [Depends(authorised)] if settings.token else []}

    @app.post("/v1/predict", openapi_extra=_BODY, responses=described(400, 401, 403, 408, 413,
              415, 422, 429, 503, 504), **guarded)  # fmt: skip
    async def predict(
        request: Request,
        heatmap: Annotated[bool, Query(description="Send heat-maps, too.")] = False,
        site: SiteQuery = None,
        threshold: Annotated[
            float | None,
            Query(allow_inf_nan=False, description="Decides instead of the run's threshold."),
        ] = None,
    ) -> Predictions:
        """Score one or several image files."""
        sites.check(site)
        queue.check_room()
        # received before it takes a place: a slow upload must not keep others waiting
        files = await intake.files(request)
        with ExitStack() as received:
            for upload in files:
                received.callback(upload.file.close)
            with queue.place() as place:
                place.at_end(received.pop_all().close)

                def work(stopped: Callable[[], bool]) -> tuple[str | None, list[FileResult]]:
                    chosen = sites.get(site)
                    return chosen.site, score_files(
                        chosen,
                        metrics,
                        files,
                        stopped,
                        heatmap=heatmap,
                        threshold=threshold,
                        max_file_bytes=settings.max_file_bytes,
                        report=place.report,
                    )

                used, results = await place.run(work)
        return Predictions(site=used, results=results)

    @app.get("/v1/health", responses=described(422))
    async def health() -> Health:
        """Whether the service answers; needs no token."""
        return Health(status="ok", version=__version__)

    @app.get("/v1/info", responses=described(401, 422, 503), **guarded)
    async def info(site: SiteQuery = None) -> Info:
        """What is served: site, threshold, limits."""
        sites.check(site)
        chosen = await run_in_threadpool(sites.get, site)
        return Info(
            name=name,
            site=chosen.site,
            sites=sites.names,
            version=__version__,
            calibration=_calibration(chosen),
            limits=Limits(
                max_file_bytes=settings.max_file_bytes,
                max_files=settings.max_files,
                max_total_bytes=settings.max_total_bytes,
                max_pixels=predictor.max_pixels,
            ),
            feedback=answers is not None,
        )

    app.include_router(answer_routes(answers, sites, intake, queue, _BODY, guarded))

    app.include_router(watch_routes(lines or Lines(), guarded))

    @app.get("/v1/sites", responses=described(401, 422), **guarded)
    async def list_sites() -> list[SiteInfo]:
        """Sites of the run, and of others that are shown next to it, with their thresholds."""
        found: list[SiteInfo] = await run_in_threadpool(sites_of, runs)
        return found

    @app.get("/v1/metrics", response_class=Response, responses=_METRICS | described(401, 422),
             **guarded)  # fmt: skip
    async def metrics_() -> Response:
        """Counters and times in Prometheus' text format."""
        return Response(metrics.text(), media_type=METRICS_TYPE)

    @app.get("/v1/samples", responses=described(401, 422), **guarded)
    async def list_samples() -> list[SampleInfo]:
        """Small copies of some of the run's test images; empty where it keeps none."""
        return [
            SampleInfo(id=i, name=s.name, site=s.site, defect=s.defect)
            for i, s in enumerate(samples)
        ]

    @app.get("/v1/samples/{number}", response_class=Response,
             responses=_WEBP | described(401, 404, 422), **guarded)  # fmt: skip
    async def sample(number: int) -> Response:
        """One of them as WebP."""
        if not 0 <= number < len(samples):
            raise Refusal(404, "no_sample", f"there are {len(samples)} samples")
        return Response(samples[number].webp, media_type="image/webp")

    for path, (file, kind) in _STATIC.items():
        content = resources.files(__package__).joinpath("static", file).read_bytes()
        app.add_api_route(
            path,
            partial(_static, content, kind),
            include_in_schema=False,
        )
    app.add_middleware(SameOrigin, origins=settings.allowed_origins)
    if settings.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.allowed_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type"],
            expose_headers=["Retry-After"],
        )
    app.add_middleware(HeadAsGet)
    if settings.allowed_hosts:
        app.add_middleware(KnownHosts, hosts=settings.allowed_hosts)
    app.add_middleware(Guard, metrics=metrics)
    return app


async def _static(content: bytes, kind: str) -> Response:
    return Response(content, media_type=kind, headers={"Cache-Control": "no-cache"})


def _calibration(predictor: Predictor) -> Calibration | None:
    threshold = predictor.threshold
    if threshold is None:
        return None
    known = isfinite(threshold.target_fpr)  # not of one that was given
    return Calibration(
        threshold=threshold.value,
        target_fpr=threshold.target_fpr if known else None,
        n=threshold.n,
        method=threshold.method,
        scores=sorted(threshold.scores) or None,  # of an earlier version's run there are none
        promise=None if threshold.promise is None else Promised(**asdict(threshold.promise)),
        promised=threshold.promised,
    )
