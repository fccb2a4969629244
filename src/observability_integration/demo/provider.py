"""A local provider that serves the OpenAI API in this process, on the loopback interface.

It answers from the corpus, with the speed and the failures of its `model_profiles`. Clients, timeouts, retries and
fail-over can be tried over a real socket without a network or a bill.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from observability_integration.checks import check_at_least
from observability_integration.errors import ConfigurationError
from observability_integration.testing.http.loopback import LoopbackProvider

from .model_profiles import DEFAULT_PROFILES, ModelProfile
from .openai_api import METHOD_BY_PATH, OpenAIApi

if TYPE_CHECKING:
    from collections.abc import Sequence


class LocalProvider(LoopbackProvider):
    """An HTTP server on the loopback interface that serves the OpenAI chat completions API.

    Usage::

        async with LocalProvider(time_scale=0.05, seed=7) as provider:
            client = AsyncOpenAI(base_url=provider.base_url, api_key="any", max_retries=0)

    It logs, keeps and forwards nothing that it receives. It requires a bearer token and accepts any.

    Args:
        time_scale: factor of all latencies of the profiles; 0.0 answers at once.
        seed: seed of the jitter; the same seed and order of requests give the same latencies.
        port: the TCP port to listen on; 0 picks a free one.
        profiles: the models that are served.

    Raises:
        ConfigurationError: `time_scale` is negative or not finite, or two profiles share a name.
    """

    def __init__(
        self,
        *,
        time_scale: float = 1.0,
        seed: int = 0,
        port: int = 0,
        profiles: Sequence[ModelProfile] = DEFAULT_PROFILES,
    ) -> None:
        check_at_least("time_scale", time_scale, 0)
        if len({profile.name for profile in profiles}) != len(profiles):
            raise ConfigurationError("profiles must not name a model twice")
        api = OpenAIApi(profiles, time_scale=time_scale, seed=seed)
        super().__init__(api.handle, METHOD_BY_PATH, count=self._count_request, port=port)
        self._requests: Counter[tuple[str, int]] = Counter()

    @property
    def requests(self) -> Counter[tuple[str, int]]:
        """The number of requests answered so far, by model and HTTP status; a copy.

        A request is counted just before the first byte of its reply. A request that ends without a reply, because the
        client disconnected or the provider closed, has status 499. The model is ``unknown`` if it is not served, and
        ``none`` if the request names none.
        """
        return self._requests.copy()

    def _count_request(self, model: str, status: int) -> None:
        self._requests[model, status] += 1
