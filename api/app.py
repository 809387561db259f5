"""The application: `uvicorn api.app:create_app --factory`."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from anyio import CapacityLimiter
from fastapi import FastAPI
from fastapi.concurrency import run_in_threadpool
from fastapi_offline import FastAPIOffline

from api import access, errors
from api.deps import JobDispatcher, Services
from api.middleware import BodyLimit, RequestContext
from api.routes import artifacts, catalog, events, files, health, jobs, metrics
from core import logs
from core.db import create_engine
from core.dispatch import Dispatcher
from core.jobs.store import JobStore
from core.settings import Settings, get_settings
from core.storage import Storage

VERSION = "1.0.0"
"""Of the HTTP contract."""

MAX_BODY_BYTES = 64 * 1024
"""Of everything but uploads. A list shows up to a hundred jobs, each with its spec twice."""

STORAGE_ATTEMPTS = 2
"""Times a request to a remote store is sent; somebody waits for the answer."""

DESCRIPTION = """\
Post a transformer, a task and a target; get back a smaller, faster model and the proof.

`POST /v1/jobs` queues a job, `GET /v1/jobs/{id}/events` follows it, `GET /v1/jobs/{id}/artifacts` lists what it made.
Errors are problem details (RFC 9457) that name the field and say what is allowed.
"""


def create_app(settings: Settings | None = None, *, dispatcher: JobDispatcher | None = None) -> FastAPI:
    """An application on the database, storage and broker of the settings.

    Without settings it takes those of the environment, and sets up logging too: then the process is its own.
    """
    if settings is None:
        settings = get_settings()
        logs.configure(settings.log_format)
    engine = create_engine(settings.database_url)
    broker: JobDispatcher = dispatcher or Dispatcher(settings.broker_url)
    services = Services(
        settings=settings,
        store=JobStore(engine, lease_seconds=settings.lease_seconds, max_attempts=settings.max_attempts),
        storage=Storage(settings.storage_url, attempts=STORAGE_ATTEMPTS),
        dispatcher=broker,
        upload_slots=CapacityLimiter(files.UPLOADS_AT_ONCE),
    )

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        await run_in_threadpool(broker.connect)
        yield
        broker.close()
        engine.dispose()

    # The pages of documentation have their scripts from here: whoever is offline would see nothing.
    app = FastAPIOffline(
        title="NeuroPrune",
        version=VERSION,
        description=DESCRIPTION,
        lifespan=lifespan,
        static_url=access.DOCUMENTATION_FILES,
    )
    app.state.services = services
    errors.install(app)
    for routes in (jobs, events, artifacts, files, catalog, metrics):
        app.include_router(routes.router, dependencies=[access.DOCUMENTED], responses=errors.problems(401, 421))
    app.include_router(health.router)
    upload_limit = settings.max_upload_bytes + files.MULTIPART_OVERHEAD_BYTES
    app.add_middleware(BodyLimit, limit=MAX_BODY_BYTES, larger={"/v1/files": upload_limit})
    app.add_middleware(access.Access, hosts=settings.allowed_hosts, keys=settings.api_keys)
    app.add_middleware(RequestContext)
    _document_problems(app)
    return app


def _document_problems(app: FastAPI) -> None:
    """Add to the OpenAPI document the one schema that no route returns as a model, and what pages are answered."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        document = generate()
        schema = errors.Problem.model_json_schema(ref_template="#/components/schemas/{model}")
        definitions = schema.pop("$defs")
        document["components"]["schemas"] |= {"Problem": schema | {"examples": [errors.EXAMPLE]}, **definitions}
        for operations in document["paths"].values():
            for method in operations.keys() - {"get"}:
                operations[method]["responses"]["403"] = errors.problems(403)[403]
        return document

    app.openapi = openapi  # type: ignore[method-assign]
