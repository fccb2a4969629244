"""What the tests of the caching engine share with those of the primitives: counts from zero, and the fake clock."""

from tests.unit.primitives.conftest import metrics, pytest_asyncio_loop_factories

__all__ = ["metrics", "pytest_asyncio_loop_factories"]
