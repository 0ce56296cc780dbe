"""What each click on the page does: the visitor's session changes, and the page shows what it is then."""

from __future__ import annotations

import base64
import io
import weakref
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from .. import transforms
from ..config import Format
from . import results, view
from .examples import examples
from .models import Menu
from .session import Session

Shown = tuple[Any, ...]
"""The session, the picture, masks to choose from, words; after them what else changes."""


class Actions:
    """Functions of the page's events. A session is None for who is new, or was away for long."""

    def __init__(self, menu: Menu) -> None:
        self._menu = menu
        self._sessions: weakref.WeakValueDictionary[str, Session] = weakref.WeakValueDictionary()
        """By Gradio's name of the visitor's tab."""

    def upload(
        self, file: str | None, model: str, session: Session | None, opacity: float, request: gr.Request
    ) -> Shown:
        """Another photo, from a file of the visitor's, which is deleted."""
        path = Path(file or "")
        if not path.is_file():
            raise ValueError("the file did not arrive; try again")
        try:
            image = transforms.load_image(path)
        finally:
            path.unlink(missing_ok=True)
        session = self._open(image, path.name, model, session, request)
        return *self._show(session, opacity), None

    def example(
        self, model: str, session: Session | None, opacity: float, event: gr.EventData, request: gr.Request
    ) -> Shown:
        """Another photo, one of the examples."""
        number = int(event.number) % len(examples())
        session = self._open(examples()[number], f"example {number + 1}.png", model, session, request)
        return self._show(session, opacity)

    def _open(self, image: np.ndarray, name: str, model: str, session: Session | None, request: gr.Request) -> Session:
        session = session or Session()
        session.open(self._menu.get(model), image, name)
        if request.session_hash:
            self._sessions[request.session_hash] = session
        return session

    def leave(self, request: gr.Request) -> None:
        """The visitor has closed the tab."""
        if left := self._sessions.pop(request.session_hash, None):
            left.close()

    def model(self, model: str, session: Session | None, opacity: float) -> Shown:
        """Another model, for the photo and its prompt, with thresholds that suit it; if it can't be had, the same."""
        session = session or Session()
        try:
            session.use(self._menu.get(model))
        except (ValueError, OSError, RuntimeError) as error:
            gr.Warning(str(error))
            model = self._menu.name_of(session.predictor)
        own = self._menu.get(model).config.generator_defaults
        defaults = own.pred_iou_thresh, own.stability_score_thresh, own.stability_score_offset
        return *self._show(session, opacity), gr.Dropdown(self._menu.choices, value=model), *defaults

    def point(self, mode: str, session: Session | None, opacity: float, event: gr.EventData) -> Shown:
        """A click on the picture."""
        session = session or Session()
        x, y = _pixels(session, event.x, event.y)
        if mode == "remove" and not event.other:
            session.remove(x, y)
        else:
            session.add_point(x, y, int(mode != "exclude" and not event.other))
        return self._show(session, opacity)

    def box(self, session: Session | None, opacity: float, event: gr.EventData) -> Shown:
        """A box that was dragged."""
        session = session or Session()
        corners = *_pixels(session, event.x1, event.y1), *_pixels(session, event.x2, event.y2)
        session.draw_box(*corners)
        return self._show(session, opacity)

    def choose(self, label: str, session: Session | None, opacity: float) -> Shown:
        """Another of the masks."""
        session = session or Session()
        session.choose(int(label.partition(":")[0]) - 1)
        return self._show(session, opacity)

    def undo(self, session: Session | None, opacity: float) -> Shown:
        """A step back."""
        session = session or Session()
        session.undo()
        return self._show(session, opacity)

    def clear(self, session: Session | None, opacity: float) -> Shown:
        """No prompt."""
        session = session or Session()
        session.clear()
        return self._show(session, opacity)

    def refine(self, session: Session | None, opacity: float) -> Shown:
        """The chosen mask goes in again."""
        session = session or Session()
        session.refine()
        return self._show(session, opacity)

    def draw(self, session: Session | None, opacity: float) -> Shown:
        """The same with another opacity."""
        return self._show(session or Session(), opacity)

    def search(
        self,
        session: Session | None,
        opacity: float,
        *settings: float,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> Shown:
        """All masks."""
        session = session or Session()
        given = dict(zip(SETTINGS, settings, strict=True))
        dropped = session.search(given, lambda done, total: progress((done, total), unit="points"))
        if not session.records:
            most = max(dropped, key=lambda name: dropped[name])
            gr.Warning(f"Nothing passed; most was dropped by {most} ({dropped[most]}): lower it")
        return self._show(session, opacity)

    def save(self, form: Format, session: Session | None) -> dict[str, str]:
        """A file for the browser to save."""
        file = results.result(session or Session(), form)
        return {"name": file.name, "content": base64.b64encode(file.content).decode()}

    def state(self, model: str) -> Shown:
        """How far compiling is; without a timer once it is over."""
        word, over = self._menu.state(model)
        return word, gr.Timer(active=not over)

    def warm(self, model: str) -> Any:
        """Begin to compile what was chosen."""
        self._menu.start_warmup(model)
        return gr.Timer(active=True)

    def _show(self, session: Session, opacity: float) -> Shown:
        labels, chosen = view.candidates(session), session.now.chosen
        masks = gr.Radio(labels, value=labels[chosen] if labels else None, visible=len(labels) > 1)
        picture = view.picture(session, opacity)
        return session, None if picture is None else picture_url(picture), masks, view.words(session)


SETTINGS = (
    "pred_iou_thresh",
    "stability_score_thresh",
    "stability_score_offset",
    "points_per_side",
    "box_nms_thresh",
    "min_mask_region_area",
)
"""What `search` takes, in the order of the page."""


def _pixels(session: Session, x: float, y: float) -> tuple[float, float]:
    """From shares of the picture's width and height."""
    if session.photo is None:
        raise ValueError(GONE)
    height, width = session.photo.size
    within = lambda share: min(max(float(share), 0.0), 1.0)
    return round(within(x) * width, 2), round(within(y) * height, 2)


GONE = "the photo is not here any more, since nothing was clicked for long; upload it again"


def picture_url(picture: UInt8[np.ndarray, "h w 3"]) -> str:
    """A picture as a data URL, so that it is in no file."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=92)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
