"""Why the Hub did not give or take something, and what to do."""

from collections.abc import Iterator

from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

LOG_IN = "log in with `hf auth login`, set HF_TOKEN, or pass token="


def why_not_given(error: Exception, revision: str | None) -> str:
    """Why a download failed, and what to do."""
    hub = "the Hugging Face Hub"
    for cause in _causes(error):
        if isinstance(cause, HFValidationError):
            return f"it is no id on {hub} either, such as 'owner/name'. Check the spelling."
        if isinstance(cause, OfflineModeIsEnabled):
            return (
                f"{hub} was not asked, because HF_HUB_OFFLINE is set and no whole copy was "
                "downloaded before. Unset it, or give a local directory."
            )
        if isinstance(cause, RevisionNotFoundError):
            return (
                f"the repository of that name on {hub} has no revision '{revision}'. Name one of "
                "its branches, tags or commits."
            )
        if isinstance(cause, GatedRepoError):
            return (
                f"its owner asks for consent to terms first. Give it at the repository's page on "
                f"{hub}, then {LOG_IN}."
            )
        if _is_bad_token(cause):
            return f"{hub} does not know the token that was sent. To replace it, {LOG_IN}."
        if isinstance(cause, RepositoryNotFoundError) or _status(cause) in (401, 404):
            return (
                f"{hub} has no repository of that name that you may read. Check the spelling; if "
                f"it is private, {LOG_IN}."
            )
    return (
        f"{hub} did not give it ({_one_line(error)}). Check the spelling and the connection, or "
        "give a local directory."
    )


def why_not_taken(error: Exception) -> str:
    """Why an upload failed, and what to do."""
    for cause in _causes(error):
        if isinstance(cause, HFValidationError):
            return "that is no id on the Hugging Face Hub, such as 'owner/name'."
        if isinstance(cause, OfflineModeIsEnabled):
            return "HF_HUB_OFFLINE is set; unset it to speak to the Hugging Face Hub."
        if _is_bad_token(cause):
            return f"the Hugging Face Hub does not know the token. To replace it, {LOG_IN}."
        if _status(cause) == 401:
            return f"no token was sent that the Hugging Face Hub accepts; {LOG_IN}."
        if _status(cause) == 403 or isinstance(cause, RepositoryNotFoundError):
            return (
                "the token may not write there. Take one with the right to write to that "
                f"namespace: {LOG_IN}."
            )
        if _status(cause) == 400 or isinstance(cause, ValueError):
            return f"the Hugging Face Hub refused the content ({_one_line(cause)})."
    return (
        f"the upload broke off ({_one_line(error)}). All files go in one commit, so nothing half "
        "is there; check the connection and push again."
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _status(error: BaseException) -> int | None:
    return error.response.status_code if isinstance(error, HfHubHTTPError) else None


def _is_bad_token(error: BaseException) -> bool:
    if not isinstance(error, HfHubHTTPError):
        return False
    message = error.response.headers.get("X-Error-Message", "")
    return _status(error) == 401 and "credentials" in message


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or repr(error)
    return text if len(text) <= 300 else text[:300] + " …"
