"""Routes for operators and clients: models, health, metrics, and the API's documentation."""

from html import escape
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import HTMLResponse
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from mvar.web.api.drawing import card_of
from mvar.web.api.errors import SERVER, Problem
from mvar.web.messages import Broken, Card
from mvar.web.service import Service

BUCKETS = (0.01, 0.03, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 30, 60, 120, 300, 1200)  # seconds
METHODS = ("GET", "HEAD", "POST", "OPTIONS")


class Metrics:
    """Counters of this service, in a registry of their own."""

    def __init__(self, service: Service) -> None:
        self.service, self.registry = service, CollectorRegistry()
        within: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter("mvar_requests", "Requests that ended", ["method", "route", "status"], **within)
        self.seconds = Histogram("mvar_request_seconds", "Time of a request", ["route"], buckets=BUCKETS, **within)
        self.images = Counter("mvar_images", "Images that were drawn", ["model"], **within)
        self.tokens = Counter("mvar_tokens", "Tokens that were drawn", ["model"], **within)
        self.registry.register(self)

    def collect(self) -> list[Metric]:
        """Gauges that are read from the service."""
        gauges = {
            "mvar_waiting": ("Images being drawn or waiting", lambda host: host.waiting),
            "mvar_loaded": ("Whether a model is loaded", lambda host: host.card is not None),
            "mvar_restarts": ("How often a model's process was started again", lambda host: host.restarts),
        }
        found: list[Metric] = []
        for name, (about, value) in gauges.items():
            family = GaugeMetricFamily(name, about, labels=["model"])
            for model, host in self.service.hosts.items():
                family.add_metric([model], float(value(host)))
            found.append(family)
        return found

    def ended(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request."""
        self.requests.labels(method if method in METHODS else "other", route, str(status)).inc()
        self.seconds.labels(route).observe(seconds)

    def drawn(self, model: str, images: int, tokens: int) -> None:
        """Count images."""
        self.images.labels(model).inc(images)
        self.tokens.labels(model).inc(tokens)


def router(service: Service, metrics: Metrics) -> APIRouter:
    """The routes."""
    routes = APIRouter(tags=["operations"])

    @routes.get("/v1/models")
    async def models() -> Any:
        """The models that are loaded."""
        return {"object": "list", "data": [_model(card) for card in service.cards.values()]}

    @routes.get("/v1/models/{name:path}")
    async def model(name: str) -> Any:
        """One model, with its classes."""
        card = card_of(name, service)
        return _model(card) | {"classes": card.classes, "facts": card.facts}

    @routes.head("/healthz", include_in_schema=False)
    @routes.get("/healthz")
    async def healthz() -> Any:
        """Whether the server runs and has not given up on a model."""
        if gone := [name for name, host in service.hosts.items() if host.failure is not None]:
            raise Broken(f"{', '.join(gone)}: no longer served; restart the server")
        return {"status": "ok"}

    @routes.head("/readyz", include_in_schema=False)
    @routes.get("/readyz")
    async def readyz() -> Any:
        """Whether all models are loaded."""
        if not service.ready:
            raise Problem(503, "models are being loaded", None, "not_ready", SERVER, {"Retry-After": "2"})
        return {"status": "ready"}

    @routes.get("/metrics", response_class=Response)
    async def prometheus() -> Response:
        """For Prometheus."""
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_PLAIN_0_0_4)

    @routes.get("/docs", include_in_schema=False)
    async def documentation(request: Request) -> HTMLResponse:
        return HTMLResponse(as_html(request.app))

    return routes


def _model(card: Card) -> dict[str, Any]:
    """OpenAI's fields, and some of our own."""
    return {
        "id": card.name,
        "object": "model",
        "created": card.created,
        "owned_by": "mvar",
        "size": f"{card.size[1]}x{card.size[0]}",
        "scales": [f"{w}x{h}" for h, w in card.shapes],
        "parameters": card.parameters,
        "defaults": card.defaults,
    }


def as_html(app: FastAPI) -> str:
    """The OpenAPI document as HTML, without scripts."""
    document = app.openapi()
    parts = [f"<h1>{escape(document['info']['title'])}</h1>", '<p><a href="openapi.json">openapi.json</a></p>']
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            parts.append(f"<h2><code>{method.upper()} {escape(path)}</code></h2>")
            parts.append(f"<p>{escape(operation.get('description', operation['summary']))}</p>")
            for kind, content in operation.get("requestBody", {}).get("content", {}).items():
                schema = content["schema"]
                if "$ref" in schema:
                    schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
                parts.append(f"<p>{escape(kind)}</p><dl>{_fields(schema)}</dl>")
    style = "body{font:16px/1.5 sans-serif;max-width:50em;margin:2em auto;padding:0 1em}dt{font-family:monospace}"
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>mvar</title>'
    return (
        f'<!doctype html><html lang="en"><head>{head}<style>{style}</style></head><body>{"".join(parts)}</body></html>'
    )


def _fields(schema: dict[str, Any]) -> str:
    required = schema.get("required", [])
    parts = []
    for name, field in schema["properties"].items():
        parts.append(f"<dt>{escape(name)}{' (required)' if name in required else ''}</dt>")
        parts.append(f"<dd>{escape(field.get('description', ''))}</dd>")
    return "".join(parts)
