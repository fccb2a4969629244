"""What the import drags in."""

from __future__ import annotations

import pytest

from tests.scripts import run_script

pytestmark = pytest.mark.once

_SCRIPT = """
import sys
before = set(sys.modules)
import observability_integration.propagation
import observability_integration.web
with observability_integration.propagation.continue_from({"baggage": "a=1"}):
    observability_integration.propagation.outgoing_headers()
new = {name.partition(".")[0] for name in set(sys.modules) - before}
print(*sorted(new - sys.stdlib_module_names - {"observability_integration"}))
"""


def test_neither_the_import_nor_the_use_loads_anything_else() -> None:
    """An application that traces nothing must not import OpenTelemetry only to learn that there is no span."""
    assert [] == run_script(_SCRIPT).split()
