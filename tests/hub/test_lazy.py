"""Names of a package that wait for their module until they are asked for."""

import pytest

from residual_peft.hub.lazy import imported_when_used


def test_names_are_those_of_the_module_and_no_others() -> None:
    import email.message

    given = imported_when_used("email", message=("Message",))
    assert given("Message") is email.message.Message
    with pytest.raises(AttributeError, match="module 'email' has no attribute 'EmailMessage'"):
        given("EmailMessage")
