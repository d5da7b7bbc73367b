"""POST /v1/scores and /v1/classifications."""

from typing import Any

import numpy as np
from fastapi import APIRouter, Request

from mvar.web.api.drawing import card_of, note, while_connected
from mvar.web.api.errors import Problem
from mvar.web.api.prompts import find_class
from mvar.web.api.schemas import Classifying, Scoring, described
from mvar.web.api.uploads import read_upload
from mvar.web.messages import Classifying as ToClassify
from mvar.web.messages import Scoring as ToScore
from mvar.web.service import Service

IMAGE = "PNG, JPEG or WebP; where its aspect is not the model's, its centre is used."


def router(service: Service) -> APIRouter:
    """The routes."""
    routes = APIRouter(tags=["judging"])

    @routes.post("/v1/scores", openapi_extra=described(Scoring, image=IMAGE))
    async def scores(request: Request) -> Any:
        """Exact log p(tokens | class) of an image, and the bits of each scale."""
        form = await read_upload(request, Scoring, "image")
        card = card_of(form.fields.model, service)
        label = find_class(form.fields.prompt, card.classes)
        note(request, card.name, 1)
        asked = ToScore(image=form.images["image"], label=label)
        found = await while_connected(request, service.answer(card.name, asked))
        ends = np.cumsum([h * w for h, w in card.shapes])[:-1]
        parts = np.split(found.bits, ends)
        return {
            "object": "score",
            "model": card.name,
            "class": None if label is None else card.classes[label],
            "log_prob": found.log_prob,
            "bits_per_token": float(found.bits.mean()),
            "scales": [
                {"size": f"{w}x{h}", "tokens": h * w, "bits_per_token": float(bits.mean())}
                for (h, w), bits in zip(card.shapes, parts, strict=True)
            ],
        }

    @routes.post("/v1/classifications", openapi_extra=described(Classifying, image=IMAGE))
    async def classifications(request: Request) -> Any:
        """The most likely classes of an image, by Bayes' rule with a uniform prior."""
        form = await read_upload(request, Classifying, "image")
        card = card_of(form.fields.model, service)
        scales = card.few_maps if form.fields.scales is None else form.fields.scales
        if len(card.classes) < 2:
            text = f"has {len(card.classes)} classes, but classifying needs two or more; choose another model"
            raise Problem(400, f"model = {card.name!r}: {text}", "model")
        if scales > len(card.shapes):
            raise Problem(400, f"scales = {scales}: give 1 to {len(card.shapes)}", "scales")
        note(request, card.name, 1)
        asked = ToClassify(image=form.images["image"], scales=scales)
        found = await while_connected(request, service.answer(card.name, asked))
        order = np.argsort(-found.log_posterior)[: form.fields.top]
        data = [
            {"class": card.classes[i], "index": int(i), "log_probability": float(found.log_posterior[i])} for i in order
        ]
        return {"object": "classification", "model": card.name, "data": data}

    return routes
