"""`residual-peft push`."""

from pathlib import Path
from typing import Annotated

import typer

from ..errors import printable
from .commands import begin, example


@example("""residual-peft push my-adapter me/my-adapter --private
The adapter is at https://huggingface.co/me/my-adapter/commit/0123456789abcdef""")
def push(
    adapter: Annotated[
        Path, typer.Argument(metavar="ADAPTER", help="The directory of a saved adapter.")
    ],
    repo: Annotated[str, typer.Argument(metavar="REPO", help="Where to on the Hub: OWNER/NAME.")],
    private: Annotated[bool, typer.Option(help="Make the repository private.")] = False,
    revision: Annotated[str | None, typer.Option(help="A branch, made when missing.")] = None,
    with_report: Annotated[
        bool, typer.Option("--with-report", help="Upload report.html, too: it shows test images.")
    ] = False,
) -> None:
    """Upload an adapter with its card to the Hub, in one commit; `hf auth login` comes first."""
    begin(f"Uploading {adapter} to {repo}.")
    from ..hub.directories import push_directory
    from ..tuner import check_directory

    check_directory(adapter)
    done = push_directory(
        adapter, repo, private=private or None, revision=revision, with_report=with_report
    )
    print(printable(f"The adapter is at {done.commit_url}"))
