"""The explorer's page in words: what was found of an image, as HTML in which names stay text."""

from collections.abc import Iterable
from html import escape

from ...errors import printable
from .looking import Look, Looking, Scores

UNITS = 8  # heads and MLPs of an image
CSS = """
.rp table {width: 100%; border-collapse: collapse; font-size: .9rem; border: 0 !important}
.rp tr {border: 0 !important; border-bottom: 1px solid var(--border-color-primary) !important}
.rp td, .rp th {padding: .35rem .4rem; text-align: left; vertical-align: top; border: 0 !important}
.rp th {font-weight: 600}
.rp td.number, .rp th.number {text-align: right; white-space: nowrap;
  font-variant-numeric: tabular-nums}
.rp .words {display: block; font-size: .85em; color: var(--body-text-color-subdued)}
.rp td.bar {width: 30%; min-width: 4rem; padding-top: .6rem}
.rp .track {display: flex; height: .7rem; border-radius: .2rem; overflow: hidden;
  background: var(--border-color-primary)}
.rp .half {flex: 1; display: flex}
.rp .half:first-child {justify-content: flex-end}
.rp .for {background: #2f7fd0}
.rp .against {background: #d0662f}
.rp p {margin: .2rem 0 .6rem}
.rp .quiet {color: var(--body-text-color-subdued)}
@media (max-width: 40rem) {.rp td.bar {width: 4rem}}
#image img {width: 100%; height: 100%; object-fit: contain}
"""


def invitation(looking: Looking) -> str:
    """What stands where nothing is told yet, or cannot be."""
    said = looking.silence or "Drop an image to see which heads and words made it what it is."
    return f'<p class="quiet">{escape(printable(said))}</p>'


def why(looking: Looking, look: Look) -> str:
    """What moved the image, in HTML: the margin, components with words, heads and MLPs."""
    if look.why is None or look.classes is None:
        return invitation(looking)
    this, other = (f"<b>{escape(printable(name))}</b>" for name in look.classes)
    units = [(str(unit), effect, "") for unit, effect in look.by_unit()[:UNITS]]
    asked = f"Why {this} rather than {other}"
    if looking.classifier.head is None:
        asked = f"What moved it toward {this}, away from {other}"
    return (
        f"<p>{asked}: effects on the difference of their logits.</p>"
        + bars("component, and in words what the image has of it", looking.effects(look.why))
        + "<br>"
        + bars("head or MLP, all its components", units)
    )


def margin(look: Look, now: Scores) -> str:
    """By how much the one class is above the other: before, as fitted, and as the sliders are."""
    if look.classes is None:
        return ""
    this, other = (f"<b>{escape(printable(name))}</b>" for name in look.classes)
    before, fitted, turned = (s.margin(*look.classes) for s in (look.before, look.after, now))
    said = "" if now is look.after else f", with the sliders <b>{turned:+.2f}</b>"
    return (
        f"<p>Logit of {this} less that of {other}: before {before:+.2f}, as fitted "
        f"<b>{fitted:+.2f}</b>{said}</p>"
    )


def bars(title: str, rows: Iterable[tuple[str, float, str]]) -> str:
    """A table with a bar per row, to the right for, to the left against."""
    found = list(rows)
    largest = max((abs(effect) for _, effect, _ in found), default=0) or 1
    lines = [f'<tr><th>{escape(title)}</th><th></th><th class="number">effect</th></tr>']
    for name, effect, words in found:
        width = f"{100 * abs(effect) / largest:.0f}%"
        inside = f'<span class="{"for" if effect > 0 else "against"}" style="width:{width}"></span>'
        left, right = ("", inside) if effect > 0 else (inside, "")
        lines.append(
            f'<tr><td>{escape(name)}<span class="words">{escape(printable(words))}</span></td>'
            f'<td class="bar"><div class="track"><div class="half">{left}</div>'
            f'<div class="half">{right}</div></div></td>'
            f'<td class="number">{effect:+.2f}</td></tr>'
        )
    return f"<table>{''.join(lines)}</table>"


def markdown(text: str) -> str:
    """Text that Markdown and HTML leave as it is."""
    plain = (c if c.isalnum() or c in " ,;:" else f"&#{ord(c)};" for c in printable(text))
    return "".join(plain)
