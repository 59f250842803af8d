"""A run record -> one HTML file that asks nothing of the network."""

import base64
import hashlib
import json
import math
import re
from typing import Any

from jinja2 import Environment
from markupsafe import Markup, escape

from ..classifiers.figures import brief
from ..data.metrics import confusion_matrix
from ..data.pictures import PICTURE_SUFFIXES, picture_suffix
from ..hub.cards import METRIC_NAMES, environment_of
from ..hub.directories import DEMO_MODEL
from ..hub.files import PathLike, atomic_file
from ..solvers import strength_note
from ..towers.units import Unit
from . import charts
from .components import (
    class_views,
    gain_map,
    head_components,
    head_maps,
    share_map,
    strongest,
    unit_views,
    widest_spectra,
)
from .findings import Findings, several_findings
from .run_record import RunRecord
from .tables import readable_bytes

ALL_CLASSES = 40  # up to here every class has its row in the chart
CHANGED_CLASSES = 12  # above it, so many of either end
HEATMAP_CLASSES = 50
ALL_REASONS = 12  # up to here what speaks for and against every class is open
BRIEF = 4  # so many characters fit above a column
_MEDIA = {suffix: f"image/{kind.lower()}" for kind, suffix in PICTURE_SUFFIXES.items()}
_MARK = re.compile(r"(?<=[._/\\-])(?=\w)")  # after which a name may go on in the next line
_SPACE = "\N{NO-BREAK SPACE}"
_MINUS = "\N{MINUS SIGN}"


def write_report(record: RunRecord, path: PathLike) -> None:
    """Write the report on a fit, whole or not at all.

    Args:
        record: what `fit_adapter` left: `RunRecord.load(adapter)`.
        path: an HTML file that needs no other; it shows some of the test images.

    Raises:
        ResiDualError: a logit is not finite.
    """
    write_page(path, report_html(record))


def write_page(path: PathLike, text: str) -> None:
    """Write a text, whole or not at all."""
    with atomic_file(path) as temporary:
        # a class name may hold what UTF-8 has no bytes for
        temporary.write_text(text, encoding="utf-8", errors="replace")


def report_html(record: RunRecord) -> str:
    """The report on a fit as text.

    Raises:
        ResiDualError: a logit is not finite.
    """
    several = record.labels.ndim == 2
    findings = {"several": several_findings(record)} if several else _of_one(record)
    views = [] if record.gains is None else unit_views(record.gains)
    pages = environment()
    assert pages.loader is not None
    # the page's only code, as it stands between its tags: a browser knows it by its hash
    script = pages.loader.get_source(pages, "report.js")[0]
    return pages.get_template("several.html.jinja" if several else "report.html.jinja").render(
        record=record,
        facts=record.facts,
        heading=_heading(record),
        gains=record.gains,
        head=record.head,
        head_maps=(None, None) if record.head is None else head_maps(record.head),
        head_components=[] if record.head is None else head_components(record),
        reasons=class_views(record),
        all_reasons=ALL_REASONS,
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        gain_map=gain_map(views),
        share_map=share_map(views),
        elsewhere=[view for view in views if view.unit.layer is None],
        strongest=[] if record.gains is None else strongest(record),
        spectra=widest_spectra(views),
        strength_note=strength_note(record.facts.strength, record.facts.learned or 0),
        demo_model=DEMO_MODEL,
        metric_names=METRIC_NAMES,
        **findings,
    )


def _of_one(record: RunRecord) -> dict[str, Any]:
    """What is told of images with one label each."""
    found = Findings(record)
    few = len(found.classes) <= ALL_CLASSES
    return {
        "found": found,
        "change": found.change,
        "rows": found.classes if few else found.classes[:CHANGED_CLASSES],
        "last_rows": [] if few else found.classes[-CHANGED_CLASSES:],
        "heatmaps": _heatmaps(record) if len(record.class_names) <= HEATMAP_CLASSES else [],
        "brief": max(map(len, record.class_names)) <= BRIEF,
    }


def _heading(record: RunRecord) -> str:
    name = record.facts.data_name
    if name in (None, "the dataset"):  # what `load_data` calls one that came without a name
        name = f"{len(record.class_names):,} classes"
    return record.facts.title or f"{name}, before and after adapting CLIP"


def _heatmaps(record: RunRecord) -> list[tuple[str, list[list[tuple[int, str]]]]]:
    """(title, rows of (count, colour)) before and after: labels down, predictions across."""
    found = []
    for title, logits in (("Before", record.before), ("After", record.after)):
        counts = confusion_matrix(logits, record.labels).tolist()
        rows = [[(n, charts.sequential(n, sum(row))) for n in row] for row in counts]
        found.append((title, rows))
    return found


def environment() -> Environment:
    """Where pages are made: their templates, and what these may call."""
    pages = environment_of("reporting", autoescape=True)
    own = (percent, points, number, brief, score, with_sign, short, breakable, seconds)
    pages.filters |= {each.__name__: each for each in own} | {
        "count": lambda value: f"{value:,}",
        "bytes": readable_bytes,
        "unit": unit_name,
        "picture": data_uri,
        # a picture whose pixels are to be seen one by one: `thumbnail` keeps such as PNG
        "tiny": lambda content: content.startswith(b"\x89PNG"),
        "quoted": json.dumps,
    }
    pages.globals["charts"] = charts
    return pages


def percent(share: float, digits: int = 1) -> str:
    """A share for people.

    >>> percent(0.9523)
    '95.2\\xa0%'
    """
    return f"{number(100 * share, digits)}{_SPACE}%"


def score(probability: float) -> str:
    """How sure a model is: nothing is certain, so nothing is rounded to 0 or 100 %.

    >>> score(0.434), score(0.9999), score(0.001)
    ('43\\xa0%', '>99\\xa0%', '<1\\xa0%')
    """
    if probability > 0.995:
        return f">99{_SPACE}%"
    return f"<1{_SPACE}%" if probability < 0.005 else percent(probability, 0)


def number(value: float, digits: int = 2) -> str:
    """A number with a true minus.

    >>> number(1.0), number(-2.254), number(-0.001)
    ('1.00', '−2.25', '0.00')
    """
    text = f"{value:.{digits}f}"
    return text.replace("-", _MINUS if float(text) else "")


def with_sign(value: float, digits: int = 2) -> str:
    """A number with its sign, and none for nothing.

    >>> with_sign(0.5), with_sign(-0.25, 1), with_sign(-0.001), with_sign(float("nan"))
    ('+0.50', '−0.2', '0.00', '–')
    """
    if math.isnan(value):
        return "–"
    text = f"{value:+.{digits}f}"
    return text[1:] if not float(text) else text.replace("-", _MINUS)


def points(difference: float) -> str:
    """A difference of two shares in percentage points.

    >>> points(0.388), points(-0.01), points(0.0)
    ('+38.8', '−1.0', '0.0')
    """
    return with_sign(100 * difference, 1)


def short(text: str, limit: int = 60) -> str:
    """A text on one line, cut where it is longer than people read."""
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 1].rstrip() + "…"


def breakable(text: str) -> Markup:
    """A name that goes on in the next line where it has a mark, before it does so anywhere.

    >>> breakable("007.red_ring/a<b")
    Markup('007.<wbr>red_<wbr>ring/<wbr>a&lt;b')
    """
    return Markup("<wbr>").join(map(escape, _MARK.split(text)))


def seconds(value: float) -> str:
    """A time for people.

    >>> seconds(0.034), seconds(4.12), seconds(75.0), seconds(5400.0)
    ('0.03\\xa0s', '4.1\\xa0s', '75\\xa0s', '90\\xa0min')
    """
    if value >= 600:
        return f"{value / 60:.0f}{_SPACE}min"
    digits = 0 if value >= 60 else 1 if value >= 1 else 2
    return f"{value:.{digits}f}{_SPACE}s"


def unit_name(unit: Unit) -> str:
    """A unit for people.

    >>> unit_name(Unit("head", 3, 5)), unit_name(Unit("mlp", 3))
    ('layer 3 · head 5', 'layer 3 · MLP')
    >>> unit_name(Unit("embed")), unit_name(Unit("pooler")), unit_name(Unit("output"))
    ('patch embedding', 'pooling MLP', 'image embedding')
    """
    if unit.kind == "head":
        return f"layer {unit.layer} · head {unit.head}"
    if unit.kind == "mlp":
        return f"layer {unit.layer} · MLP"
    names = {"embed": "patch embedding", "pooler": "pooling MLP", "output": "image embedding"}
    return names[unit.kind]


def data_uri(content: bytes) -> str:
    """A picture as the page's own text."""
    kind: Any = _MEDIA[picture_suffix(content, "a picture")]
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
