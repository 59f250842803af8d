"""`residual-peft push`."""

from pathlib import Path
from typing import Annotated

import typer

from ..errors import printable
from .commands import argument_or_option, begin, example
from .options import AdapterOption

_HOW = "residual-peft push ADAPTER OWNER/NAME"


@example("""residual-peft push my-adapter me/my-adapter --private
The adapter is at https://huggingface.co/me/my-adapter/commit/0123456789abcdef""")
def push(
    adapter: Annotated[
        str | None,
        typer.Argument(
            metavar="ADAPTER", help="The directory of a saved adapter.", show_default=False
        ),
    ] = None,
    repo: Annotated[
        str | None,
        typer.Argument(metavar="REPO", help="Where to on the Hub: OWNER/NAME.", show_default=False),
    ] = None,
    adapter_option: AdapterOption = None,
    repo_option: Annotated[str | None, typer.Option("--repo", hidden=True)] = None,
    private: Annotated[bool, typer.Option(help="Make the repository private.")] = False,
    revision: Annotated[str | None, typer.Option(help="A branch, made when missing.")] = None,
    with_report: Annotated[
        bool, typer.Option("--with-report", help="Upload report.html, too: it shows test images.")
    ] = False,
) -> None:
    """Upload an adapter with its card to the Hub, in one commit; `hf auth login` comes first."""
    directory = Path(argument_or_option(adapter, adapter_option, "an adapter's directory", _HOW))
    target = argument_or_option(repo, repo_option, "the name of a repository", _HOW)
    begin(f"Uploading {directory} to {target}.")
    from ..hub.directories import push_directory
    from ..tuner import check_directory

    check_directory(directory)
    done = push_directory(
        directory, target, private=private or None, revision=revision, with_report=with_report
    )
    print(printable(f"The adapter is at {done.commit_url}"))
