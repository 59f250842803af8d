"""The explorer's page: Gradio around `Looking`, without telemetry or fonts from elsewhere."""

import os
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # before Gradio reads it

import gradio as gr

from ...classifiers.zero_shot import ZeroShotClassifier
from ...errors import ResiDualError, printable
from ..prediction import Answer, FilePredictor
from . import html
from .looking import KNOBS, Knob, Look, Looking

TOP = 5  # classes of an image
MOST_FILES = 500
"""Images that are classified at once."""
_ONE_AT_A_TIME: dict[str, Any] = {
    # a pass switches the adapter of the one model off and on: no two at once
    "concurrency_id": "model",
    "concurrency_limit": 1,
    "api_visibility": "private",
}
HEADERS = ("file", "class", "score", "next", "its score")


def explorer(classifier: ZeroShotClassifier, title: str = "What an adapter sees") -> gr.Blocks:
    """A page for one classifier: an image and what moved it, and a folder of images.

    The classifier is asked, never changed: a slider changes one answer, not the adapter. These are
    Blocks to `launch(**appearance())`.
    """
    looking = Looking(classifier)
    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gr.Markdown(f"# {html.markdown(title)}\n{_about(classifier)}")
        with gr.Tab("One image"):
            _one_image(looking)
        with gr.Tab("A folder"):
            _folder(classifier)
    return page


def explore(
    adapter: str | os.PathLike[str],
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    browser: bool = True,
    said: Callable[[str], object] = print,
) -> None:
    """Serve the explorer of a saved adapter until it is interrupted; says where the page is.

    Raises:
        ResiDualError: no such adapter, or the port is taken.
    """
    classifier = ZeroShotClassifier.from_pretrained(adapter)
    page = explorer(classifier, title=f"What {Path(adapter).name} sees")
    try:
        _, address, _ = page.launch(
            server_name=host,
            server_port=port,
            inbrowser=browser,
            quiet=True,
            prevent_thread_lock=True,
            **appearance(),
        )
    except OSError as error:
        raise ResiDualError(
            f"wanted to listen at port {port} of {host}, which is taken or not allowed "
            f"({error}): name another one with --port."
        ) from error
    said(f"The explorer is at {address.rstrip('/')} (Ctrl-C ends it)")
    page.block_thread()


def appearance() -> dict[str, Any]:
    """What `Blocks.launch` is to be told: a look that needs no network, and room for photos."""
    fonts = ["ui-sans-serif", "system-ui", "sans-serif"]
    mono = ["ui-monospace", "Consolas", "monospace"]
    theme = gr.themes.Default(font=fonts, font_mono=mono).set(
        body_text_color_subdued="*neutral_600",  # theirs is too pale to read
        block_info_text_color="*neutral_600",
    )
    return {
        "theme": theme,
        "css": html.CSS,
        "footer_links": [],
        "max_file_size": "100mb",
        "show_error": True,
    }


def _about(classifier: ZeroShotClassifier) -> str:
    names = classifier.class_names
    shown = ", ".join(map(html.markdown, names[:12])) + (", …" if len(names) > 12 else "")
    head = classifier.head
    how = "gains" if head is None else f"a class head ({head.method or 'fitted'})"
    return f"{len(names)} classes, told apart by {html.markdown(how)}: {shown}"


def _one_image(looking: Looking) -> None:
    """The tab of one image: what it is before and after, why, and sliders."""
    state = gr.State(None)
    with gr.Row():
        with gr.Column(scale=1, min_width=260):
            image = gr.Image(
                type="filepath",
                image_mode=None,  # the file as it is
                sources=["upload", "clipboard"],
                label="An image",
                height=300,
                buttons=[],
                elem_id="image",
            )
            # not by Gradio, which decodes it before we say what is wrong with it, whatever its size
            vars(image)["preprocess"] = lambda sent: None if sent is None else sent.path
        with gr.Column(scale=2, min_width=320):
            with gr.Row():
                before = gr.Label(
                    label="Before: the backbone", num_top_classes=TOP, elem_id="before"
                )
                after = gr.Label(label="After: the adapter", num_top_classes=TOP, elem_id="after")
            margin = gr.HTML(elem_classes="rp", elem_id="margin")
    with gr.Row():
        with gr.Column(scale=3, min_width=320):
            why = gr.HTML(html.invitation(looking), elem_classes="rp", elem_id="why")
        with gr.Column(scale=2, min_width=300, visible=False) as turning:
            gr.Markdown(_turning(looking), elem_id="turning")
            sliders = [
                gr.Slider(-1, 2, 1, step=0.05, visible=False, buttons=[], elem_id=f"knob-{number}")
                for number in range(KNOBS)
            ]
            again = gr.Button("As fitted", size="sm", elem_id="again")

    def look(file: str | None) -> list[Any]:
        found = None if file is None else _result_or_error(lambda: looking.look(file))
        if found is None:
            nothing = [None, {}, {}, "", html.invitation(looking), gr.update(visible=False)]
            return [*nothing, *_knobs(None)]
        return [
            found,
            found.before.probabilities,
            found.after.probabilities,
            html.margin(found, found.after),
            html.why(looking, found),
            gr.update(visible=bool(found.knobs)),
            *_knobs(found),
        ]

    def turn(shown: Look | None, *values: float) -> list[Any]:
        if shown is None or shown.rows is None:
            return [{}, ""]
        turned = zip(shown.knobs, values, strict=False)
        moved = [(knob, value) for knob, value in turned if value != round(knob.fitted, 3)]
        now = looking.turned(shown.rows, moved) if moved else shown.after
        return [now.probabilities, html.margin(shown, now)]

    def as_fitted(shown: Look | None) -> list[Any]:
        return [*turn(shown), *_knobs(shown)]

    everything = [state, before, after, margin, why, turning, *sliders]
    image.change(look, image, everything, **_ONE_AT_A_TIME)
    gr.on(
        [slider.input for slider in sliders],
        turn,
        [state, *sliders],
        [after, margin],
        trigger_mode="always_last",
        show_progress="hidden",
        **_ONE_AT_A_TIME,
    )
    again.click(as_fitted, state, [after, margin, *sliders], **_ONE_AT_A_TIME)


def _folder(classifier: ZeroShotClassifier) -> None:
    """The tab of many images: a line for each."""
    files = gr.File(
        file_count="multiple",
        label="Images: drop several, or all of a folder",
        height=240,
        elem_id="files",
    )
    table = gr.Dataframe(
        headers=[*HEADERS, *["labels"] * classifier.multi_label],
        datatype="str",
        interactive=False,
        visible=False,
        wrap=True,
        elem_id="table",
    )
    predictor = FilePredictor(classifier, num_workers=0)

    width = len(HEADERS) + classifier.multi_label

    def classify(paths: list[str] | None) -> Any:
        if not paths:
            return gr.update(value=[], visible=False)
        if len(paths) > MOST_FILES:
            raise gr.Error(
                f"{len(paths):,} images are more than the {MOST_FILES} that are classified here "
                "at once; residual-peft predict takes any number."
            )
        rows = _result_or_error(lambda: [_row(answer) for answer in predictor.answers(paths)])
        return gr.update(value=[row + [""] * (width - len(row)) for row in rows], visible=True)

    files.change(classify, files, table, **_ONE_AT_A_TIME)


def _result_or_error(function: Callable[[], Any]) -> Any:
    """What a function says, or its error as one line on the page."""
    try:
        return function()
    except ResiDualError as error:
        raise gr.Error(escape(str(error)), print_exception=False) from error


def _row(answer: Answer) -> list[str]:
    """One line of the table."""
    name, found = printable(Path(answer.file).name), answer.prediction
    if found is None:
        return [name, f"not read: {printable(answer.reason)}"]
    likely = [f"{value:.3f}" for _, value in found.top(2)]
    names = [printable(label) for label, _ in found.top(2)]
    labels = [", ".join(map(printable, found.labels)) or "none"] if found.several else []
    return [name, names[0], likely[0], names[1], likely[1], *labels]


def _knobs(look: Look | None) -> list[Any]:
    """Updates of all sliders for an image."""
    knobs: Sequence[Knob] = () if look is None else look.knobs
    updates = [
        gr.update(
            visible=True,
            label=f"{knob.name}  (effect {knob.effect:+.2f})",
            info=printable(knob.words) or None,
            minimum=round(knob.range[0], 3),
            maximum=round(knob.range[1], 3),
            value=round(knob.fitted, 3),
        )
        for knob in knobs
    ]
    return updates + [gr.update(visible=False)] * (KNOBS - len(updates))


def _turning(looking: Looking) -> str:
    if looking.classifier.head is None:
        return (
            "**Turn a gain.** Each scales what one component writes to the embedding: 0 takes it "
            "away, 1 leaves it as the backbone has it."
        )
    return (
        "**Turn a component.** Each scales what the class head reads of it, seen from the mean "
        "image: 0 takes it away, 1 is as fitted."
    )
