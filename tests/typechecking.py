"""The checker that tests put around every annotated call of the core."""

from __future__ import annotations

from beartype import BeartypeConf, beartype

# An int is fine where a float is asked for, as for the static checker.
checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
