"""Where Prefect would keep the results of our flows: nowhere."""

from __future__ import annotations

import os
from pathlib import Path

NO_RESULTS = Path(os.devnull)
"""As `result_storage` of a flow that persists nothing. Without one, a run asks the server twice for a default that it
does not use, each time with a new client. Nothing can be written below this path."""
