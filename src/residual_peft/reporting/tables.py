"""Results of methods -> tables of text."""

from collections.abc import Mapping, Sequence

from ..experiments import Row, summarize


def readable_bytes(size: int) -> str:
    """A file size for people.

    Examples:
        >>> readable_bytes(0), readable_bytes(999), readable_bytes(5_530), readable_bytes(999_999)
        ('–', '999 B', '5.5 kB', '1.0 MB')
    """
    if size == 0:
        return "–"
    if size < 1000:
        return f"{size} B"
    return f"{size / 1000:.1f} kB" if size < 999_950 else f"{size / 1_000_000:.1f} MB"


HEADERS = ("method", "test accuracy", "trained", "seconds", "adapter")  # fits 80 columns


def table_cells(
    rows: Sequence[Row], labels: Mapping[str, str] | None = None
) -> list[tuple[str, ...]]:
    """What the results table shows, a tuple of texts per method (see `HEADERS`).

    Of rows, one per method and seed, accuracies become mean ± standard deviation over seeds.
    """
    cells: list[tuple[str, ...]] = []
    for item in summarize(rows):
        trained = item.parameters > 0  # zero-shot is the same with every seed, and fits nothing
        cells.append(
            (
                (labels or {}).get(item.method, item.method),
                f"{item.accuracy:.3f} ± {item.spread:.3f}" if trained else f"{item.accuracy:.3f}",
                f"{item.parameters:,}",
                f"{item.seconds:.1f}" if trained else "–",
                readable_bytes(item.bytes),
            )
        )
    return cells


def markdown_table(headers: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """A table in Markdown: the first column to the left, the others to the right."""
    headers, *cells = [[text.replace("|", "\\|") for text in row] for row in (headers, *cells)]
    lines = ["| " + " | ".join(headers) + " |"]
    lines.append("|" + "|".join(["---"] + ["---:"] * (len(headers) - 1)) + "|")
    lines += ["| " + " | ".join(row) + " |" for row in cells]
    return "\n".join(lines)
