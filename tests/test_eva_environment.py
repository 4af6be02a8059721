"""When the tests that run eva are skipped, and when they fail."""

import eva_environment
import pytest

# What uv says, but for where lines are broken.
UNSATISFIABLE = """error: No solution found when resolving dependencies
  cause: Because you require networkx==3.0 and networkx==3.6.1, we can conclude that your requirements are
unsatisfiable.
"""
REFUSED = """error: Request failed after 3 retries in 4.8s
  cause: Failed to fetch: http://127.0.0.1:9/simple/networkx/
  cause: error sending request for url (http://127.0.0.1:9/simple/networkx/)
  cause: client error (Connect)
  cause: tcp connect error
  cause: Connection refused (os error 111)
"""
NAMELESS = """error: Request failed after 3 retries in 6.4s
  cause: dns error
  cause: failed to lookup address information: Name or service not known
"""
BROKEN = "error: Failed to build `networkx`\n  cause: The build backend returned an error\n"


@pytest.mark.parametrize(
    ("said", "skipped"),
    [(UNSATISFIABLE, False), (REFUSED, True), (NAMELESS, True), (BROKEN, False)],
    ids=["unsatisfiable", "refused", "nameless", "broken"],
)
def test_only_a_registry_that_cannot_be_reached_is_a_reason_to_skip(said: str, skipped: bool) -> None:
    assert eva_environment.unreachable(said) == skipped


def test_pins_that_cannot_be_had_together_are_a_failure_though_uv_speaks_of_the_network() -> None:
    said = UNSATISFIABLE + "  hint: Packages were unavailable because the network was disabled.\n"

    assert not eva_environment.unreachable(said)
