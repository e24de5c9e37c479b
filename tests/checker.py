"""The decorator that checks shapes and types in tests: beartype, which accepts an int as a float (PEP 484)."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
