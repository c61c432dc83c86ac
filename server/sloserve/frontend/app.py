"""The FastAPI application of one replica: OpenAI's routes beside those that watch it."""

from typing import Any

from fastapi import FastAPI, Request, Response
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from sloserve import __version__
from sloserve.frontend.figures import Figures, start_series
from sloserve.frontend.generations import Generations
from sloserve.frontend.prompts import chat_prompt, check_tokens, encode
from sloserve.frontend.replica import Replica
from sloserve.frontend.watching import watching_routes
from sloserve.http import answers, errors
from sloserve.http.bodies import (
    ChatBody,
    CompletionBody,
    DetokenizeBody,
    TokenizeBody,
    parse,
    turns,
)
from sloserve.http.exporter import Exporter
from sloserve.http.reading import read_body
from sloserve.http.tracing import NO_TRACER, Tracer
from sloserve.metrics import REPLICA_EXPORTS


def create_app(replica: Replica, *, tracer: Tracer = NO_TRACER) -> FastAPI:
    """
    The application. It answers from the first second: 503 and a phase until the model is ready.
    """
    app = FastAPI(title="sloserve replica", version=__version__, docs_url=None, redoc_url=None)
    errors.install(app)
    exporter = Exporter(REPLICA_EXPORTS)
    start_series(replica.spec, exporter)
    replica.on_apply(lambda spec: start_series(spec, exporter))
    generations = Generations(replica, exporter, tracer)
    app.state.way_out = generations.way_out
    app.state.figures = Figures(replica, exporter, emission_lag_s=lambda: generations.way_out.p99_s)
    _generation_routes(app, generations)
    _model_routes(app, replica)
    watching_routes(app, replica, exporter)
    _describe_bodies(app)
    return app


def _generation_routes(app: FastAPI, generations: Generations) -> None:
    @app.post("/v1/chat/completions", openapi_extra=_body(ChatBody))
    async def chat(request: Request) -> Response:
        return await generations.answer(request, ChatBody)

    @app.post("/v1/completions", openapi_extra=_body(CompletionBody))
    async def completions(request: Request) -> Response:
        return await generations.answer(request, CompletionBody)


def _model_routes(app: FastAPI, replica: Replica) -> None:
    def card(name: str) -> answers.Json:
        served = replica.loaded
        length = served.max_model_len if served else replica.spec.model.max_model_len
        return answers.model_card(
            replica.spec.model, name, max_model_len=length, created_s=replica.created_s
        )

    @app.get("/v1/models")
    async def models() -> Response:
        return _json(answers.model_list([card(name) for name in replica.spec.model.names]))

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        replica.adapter_of(name)
        return _json(card(name))

    @app.post("/tokenize", openapi_extra=_body(TokenizeBody))
    async def tokenize(request: Request) -> Response:
        body = parse(TokenizeBody, await read_body(request))
        replica.adapter_of(body.model)
        served = replica.served
        if body.messages is not None:
            tokens = (await chat_prompt(turns(body.messages), {}, served.tokenizer)).tokens
        else:
            special = body.add_special_tokens is not False
            tokens = await encode(served.tokenizer, body.prompt or "", add_special=special)
        length = served.max_model_len
        return _json({"count": len(tokens), "max_model_len": length, "tokens": tokens})

    @app.post("/detokenize", openapi_extra=_body(DetokenizeBody))
    async def detokenize(request: Request) -> Response:
        body = parse(DetokenizeBody, await read_body(request))
        replica.adapter_of(body.model)
        served = replica.served
        check_tokens(body.tokens, vocab_size=served.facts.vocab_size, field="tokens")
        return _json({"prompt": served.tokenizer.decode(body.tokens, skip_special=False)})

    @app.get("/tokenizer_info")
    async def tokenizer_info() -> Response:
        """For clients that tokenise by the routes above (lm_eval): special tokens, template."""
        return _json(replica.served.tokenizer.info())

    @app.get("/version")
    async def version() -> Response:
        return _json({"version": __version__})


def _json(value: object) -> Response:
    return Response(answers.encode(value), media_type=errors.JSON)


BODIES = (ChatBody, CompletionBody, TokenizeBody, DetokenizeBody)


def _body(kind: type[BaseModel]) -> dict[str, Any]:
    """The OpenAPI side of a body that the route parses itself (its errors are OpenAI's)."""
    schema = {"$ref": f"#/components/schemas/{kind.__name__}"}
    return {"requestBody": {"required": True, "content": {errors.JSON: {"schema": schema}}}}


def _describe_bodies(app: FastAPI) -> None:
    """Put the bodies' schemas into the OpenAPI document."""
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        document = plain()
        _, schemas = models_json_schema(
            [(kind, "validation") for kind in BODIES], ref_template="#/components/schemas/{model}"
        )
        document.setdefault("components", {}).setdefault("schemas", {}).update(schemas["$defs"])
        return document

    app.openapi = openapi  # type: ignore[method-assign]
