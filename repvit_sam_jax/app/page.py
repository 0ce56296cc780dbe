"""The page in Gradio: what is on it, and what each click does to the visitor's session."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

from ..config import Format
from . import view
from .actions import SETTINGS, Actions, picture_url
from .examples import examples
from .models import Menu
from .session import Session

IDLE = 1800
"""Seconds after its last click that a visitor's photo is forgotten."""
UNREAD = 600
"""Seconds after which an upload is deleted that was not read, since the visitor left; others are deleted at once."""
MOST_BYTES = 100 * 2**20
"""Size of an upload."""
VISITORS = 64
"""Visitors whose photos are in memory, at most; the one whose last click is longest ago goes first."""

_HERE = Path(__file__).parent
_FONTS = {"font": ("system-ui", "sans-serif"), "font_mono": ("ui-monospace", "monospace")}  # the visitor's own
_PICTURE = """${value
  ? `<div class="stage"><img draggable="false" alt="photo with masks" src="${value}"><div class="band"></div></div>`
  : `<div class="empty">Upload a photo, or take an example</div>`}"""
_EXAMPLES = """<div class="examples">${value.map((url, number) =>
  `<button data-number="${number}"><img alt="example ${number + 1}" src="${url}"></button>`).join("")}</div>"""
_HELP = """Click on what you mean; **right-click** (or Shift) on what you do not; **drag** a box.
A first click gives three masks to choose from; **Refine** sends the chosen one through the decoder again."""
_MODES = [("Include", "include"), ("Exclude", "exclude"), ("Remove", "remove")]
_SLIDERS: dict[str, tuple[float, float, float, float, str, str]] = {
    "pred_iou_thresh": (0, 1, 0, 0.01, "Predicted IoU", "Masks that the model is surer of pass. Lower finds more."),
    "stability_score_thresh": (0, 1, 0, 0.01, "Stability", "Masks pass whose edge stays put. Lower finds more."),
    "stability_score_offset": (0, 3, 0, 0.1, "Shift of the stability test", "More makes it stricter, in logits."),
    "points_per_side": (4, 64, 32, 1, "Points a side", "More find smaller things; time grows with the square."),
    "box_nms_thresh": (0, 1, 0.7, 0.05, "Overlap of boxes", "Of masks that overlap more, the surer one stays."),
    "min_mask_region_area": (0, 2000, 0, 10, "Specks", "Holes are filled and islands dropped below these pixels."),
}
"""Least, most, what it is unless the model says, step, label, explanation."""


def serve(menu: Menu, host: str, port: int, share: bool) -> None:
    """Answer visitors until Ctrl-C.

    Args:
      menu: of models; the first one is loaded and compiled at once.
      host: address to listen at.
      port: of it.
      share: whether Gradio makes a public link.

    Raises:
      OSError: the port is taken.
    """
    menu.get(menu.first)
    page = build(menu)
    menu.start_warmup(menu.first)
    page.queue(default_concurrency_limit=4)
    try:
        page.launch(
            prevent_thread_lock=True,
            server_name=host,
            server_port=port,
            share=share,
            quiet=not share,
            max_file_size=MOST_BYTES,
            state_session_capacity=VISITORS,
            theme=_theme(),
            css=_read("page.css"),
            footer_links=[],
            run_history=False,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            enable_monitoring=False,
        )
    except OSError as error:
        raise OSError(f"can't listen at {host}, port {port}; if something else does, take another --port") from error
    print(f"http://{host}:{port} (Ctrl-C ends it)", flush=True)
    page.block_thread()


def build(menu: Menu) -> gr.Blocks:
    """The page over a menu of models."""
    actions = Actions(menu)
    with gr.Blocks(title="RepViT-SAM", analytics_enabled=False, delete_cache=(UNREAD // 10, UNREAD)) as page:
        session = gr.State(None, time_to_live=IDLE, delete_callback=lambda old: old and old.close())
        gr.Markdown("# RepViT-SAM")
        with gr.Row():
            with gr.Column(scale=3):
                stage, words, masks, tools = _stage()
            with gr.Column(scale=1, min_width=300):
                upload, shown, model, state = _sources(menu)
                sliders, search = _everything(menu)
                buttons, saver = _results()
        opacity = tools["opacity"]
        outputs = [session, stage, masks, words]
        _listen(upload.upload, actions.upload, [upload, model, session, opacity], [*outputs, upload], slow=words)
        _listen(shown.taken, actions.example, [model, session, opacity], outputs, slow=words)
        thresholds = list(sliders.values())[:3]
        _listen(model.select, actions.model, [model, session, opacity], [*outputs, model, *thresholds], slow=words)
        _listen(stage.pointed, actions.point, [tools["mode"], session, opacity], outputs)
        _listen(stage.boxed, actions.box, [session, opacity], outputs)
        _listen(masks.input, actions.choose, [masks, session, opacity], outputs)
        _listen(opacity.release, actions.draw, [session, opacity], outputs)
        for name in ("undo", "clear", "refine"):
            _listen(tools[name].click, getattr(actions, name), [session, opacity], outputs)
        settings = [sliders[name] for name in SETTINGS]
        _listen(search.click, actions.search, [session, opacity, *settings], outputs, slow=words)
        for form, button in buttons.items():
            _listen(button.click, functools.partial(actions.save, form), [session], [saver])
        _watch(page, actions, model, state)
        page.unload(actions.leave)
    return page


def _watch(page: gr.Blocks, actions: Actions, model: gr.Dropdown, state: gr.Markdown) -> None:
    """Say how far compiling is, each second until it is over."""
    timer, quietly = gr.Timer(1), {"show_progress": "hidden", "queue": False, "api_visibility": "private"}
    for event in (timer.tick, page.load):
        event(actions.state, model, [state, timer], **quietly)
    model.select(actions.warm, model, timer, **quietly)


def _stage() -> tuple[gr.HTML, gr.Markdown, gr.Radio, dict[str, Any]]:
    """The picture with tools, by name, above it, and beneath it words and masks to choose from."""
    gr.Markdown(_HELP)
    with gr.Row(equal_height=True):
        tools: dict[str, Any] = {
            "mode": gr.Radio(
                _MODES, value="include", label="A click", container=False, scale=3, min_width=300, elem_id="mode"
            )
        }
        for name in ("undo", "clear", "refine"):
            tools[name] = gr.Button(name.capitalize(), size="sm", min_width=60, elem_id=name)
    stage = gr.HTML(None, html_template=_PICTURE, js_on_load=_read("stage.js"), elem_id="stage")
    words = gr.Markdown(view.words(Session()), elem_id="words")
    masks = gr.Radio([], label="Mask, with its predicted IoU", visible=False, elem_id="masks")
    tools["opacity"] = gr.Slider(0, 1, 0.5, step=0.05, label="Opacity of masks", elem_id="opacity")
    return stage, words, masks, tools


def _sources(menu: Menu) -> tuple[gr.File, gr.HTML, gr.Dropdown, gr.Markdown]:
    """What goes in: an upload, an example, a model; and a word about the model."""
    upload = gr.File(label="Photo", file_types=["image"], height=130, elem_id="upload")
    gr.Markdown("or a scene that this library draws:")
    pictures = [picture_url(image[::3, ::3]) for image in examples()]
    shown = gr.HTML(pictures, html_template=_EXAMPLES, js_on_load=_read("examples.js"), elem_id="examples")
    model = gr.Dropdown(menu.choices, value=menu.first, label="Model", elem_id="model")
    return upload, shown, model, gr.Markdown(menu.state(menu.first)[0], elem_id="state")


def _everything(menu: Menu) -> tuple[dict[str, gr.Slider], gr.Button]:
    """Arguments of the mask generator by name, those that models have their own defaults of first, and the button."""
    own = dataclasses.asdict(menu.get(menu.first).config.generator_defaults)
    search = gr.Button("Everything: find all masks", variant="primary", elem_id="search")
    with gr.Accordion("How to look for everything", open=False, elem_id="everything"):
        sliders = {
            name: gr.Slider(low, high, own.get(name, usual), step=step, label=label, info=info, elem_id=name)
            for name, (low, high, usual, step, label, info) in _SLIDERS.items()
        }
    return sliders, search


def _results() -> tuple[dict[Format, gr.Button], gr.HTML]:
    """Buttons that save, by the kind of file, and what hands files to the browser."""
    gr.Markdown("### Save the mask, or all")
    with gr.Row():
        labels: dict[Format, str] = {"png": "PNG", "coco": "COCO", "polygons": "Polygons", "yolo": "YOLO"}
        buttons = {form: gr.Button(label, size="sm", min_width=60, elem_id=form) for form, label in labels.items()}
    return buttons, gr.HTML(None, html_template="", js_on_load=_read("saver.js"))


def _theme() -> gr.themes.Base:
    """Gradio's own, with explanations that are dark enough on white to be read."""
    subdued = {"block_info_text_color": "*neutral_600", "body_text_color_subdued": "*neutral_600"}
    dark = {"block_info_text_color_dark": "*neutral_300", "body_text_color_subdued_dark": "*neutral_300"}
    return gr.themes.Default(**_FONTS).set(**subdued, **dark)


def _read(name: str) -> str:
    return (_HERE / name).read_text()


def _listen(
    event: Any, function: Callable[..., Any], inputs: list[Any], outputs: list[Any], slow: gr.Markdown | None = None
) -> None:
    """Call the function at the event; what is slow shows on these words how far it is."""
    progress = {"show_progress": "hidden"} if slow is None else {"show_progress_on": slow}
    event(_told(function), inputs, outputs, trigger_mode="multiple", api_visibility="private", **progress)


def _told(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, whose expected errors visitors are told in a line."""

    @functools.wraps(function)
    def tell(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except (ValueError, OSError, RuntimeError) as error:
            raise gr.Error(str(error), print_exception=False) from error

    return tell
