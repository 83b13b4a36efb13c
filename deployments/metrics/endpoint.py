"""The metrics of a worker's runs at an address, for Prometheus to fetch."""

from __future__ import annotations

from prometheus_client import start_http_server

from prefect_regional_diffusion.deployments.metrics.collector import Collector
from prefect_regional_diffusion.deployments.metrics.series import Series


class Endpoint:
    """Serves them in threads of its own, until it is closed."""

    def __init__(self, pool: str, address: str, port: int) -> None:
        """Port 0 is any that is free. Raises OSError where nothing can listen there."""
        series = Series(pool)
        self._server, self._thread = start_http_server(port, address, series.registry)
        try:
            self.collector = Collector(series)
        except OSError:
            self._stop_serving()
            raise
        host = f"[{address}]" if ":" in address else address
        self.url = f"http://{host}:{self._server.server_port}/metrics"

    def close(self) -> None:
        self._stop_serving()
        self.collector.close()

    def _stop_serving(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
