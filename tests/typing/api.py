"""The public API as a type checker sees it: checked by mypy and pyright, never run."""

from typing import assert_type

import agentrt

assert_type(agentrt.__version__, str)
